package harness

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience bounds every wait for something that happens by itself when the system is right. It is
// generous: CI machines are slow, and nothing waits for it when all is well.
const Patience = 90 * time.Second

// Process is one program of the system under test, in a process group of its own.
type Process struct {
	Name string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended and all its output is read
	err  error         // of Wait; read after done

	mu      sync.Mutex // guards lines and changed
	lines   []string
	changed chan struct{} // closed and replaced with every line
}

// Start starts bin/<program> with args and env on top of this process's environment (without its
// GPULET_ variables). The process is killed, with its group, when the test ends; its output is
// shown when the test failed.
func Start(t testing.TB, program string, env []string, args ...string) *Process {
	t.Helper()
	p := &Process{Name: program, done: make(chan struct{}), changed: make(chan struct{})}
	p.cmd = exec.Command(Binary(t, program), args...)
	p.cmd.Env = append(environment(), env...)
	// When the test binary itself is killed, by a time limit say, its programs must not outlive it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = 5 * time.Second // for output that a left-behind child holds open
	out, in := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = in, in
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	var reading sync.WaitGroup
	reading.Go(func() { p.read(out) })
	go func() {
		p.err = p.cmd.Wait()
		_ = in.Close()
		reading.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s %s:\n%s", program, strings.Join(args, " "), p.Tail(60))
		}
	})
	return p
}

// Binary is the path of a program that `make build` made.
func Binary(t testing.TB, program string) string {
	t.Helper()
	path := filepath.Join(Root(t), "bin", program)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing: run make build", path)
	}
	return path
}

// Root is the top folder of the repository.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the working directory")
		}
		dir = parent
	}
}

// environment is this process's, without settings of gpulet that somebody has exported.
func environment() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "GPULET_") {
			env = append(env, kv)
		}
	}
	return env
}

func (p *Process) read(r io.Reader) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		p.mu.Lock()
		p.lines = append(p.lines, sc.Text())
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, r) // a line beyond the buffer must not stop the process
}

// Tail is the last n lines of output.
func (p *Process) Tail(n int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines[max(0, len(p.lines)-n):], "\n")
}

// Event is a line of a JSON log.
type Event map[string]any

// Text is an attribute as text; "" when it is absent.
func (e Event) Text(key string) string {
	if v, ok := e[key]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

// WaitLine waits for a line of output, past or to come, that match accepts.
func (p *Process) WaitLine(t testing.TB, what string, match func(line string) bool) string {
	t.Helper()
	limit := time.NewTimer(Patience)
	defer limit.Stop()
	for next := 0; ; {
		p.mu.Lock()
		lines, changed := p.lines[next:], p.changed
		next = len(p.lines)
		p.mu.Unlock()
		for _, line := range lines {
			if match(line) {
				return line
			}
		}
		select {
		case <-changed:
		case <-p.done:
			t.Fatalf("%s ended (%v) while waiting for %s", p.Name, p.err, what)
		case <-limit.C:
			t.Fatalf("%s: no %s within %v", p.Name, what, Patience)
		}
	}
}

// WaitEvent waits for a log line with the given message and returns its attributes.
func (p *Process) WaitEvent(t testing.TB, message string) Event {
	t.Helper()
	var event Event
	p.WaitLine(t, fmt.Sprintf("log line %q", message), func(line string) bool {
		event = nil
		return json.Unmarshal([]byte(line), &event) == nil && event.Text("msg") == message
	})
	return event
}

// Signal sends sig to the process alone.
func (p *Process) Signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// SignalGroup sends sig to the process and the children that are still in its group, as a terminal
// does on Ctrl-C.
func (p *Process) SignalGroup(sig syscall.Signal) { _ = syscall.Kill(-p.cmd.Process.Pid, sig) }

// Kill ends the process and what is left of its group, and waits for it.
func (p *Process) Kill() {
	p.SignalGroup(syscall.SIGKILL)
	<-p.done
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Wait waits until the process has ended and returns its exit code, -1 when a signal ended it.
func (p *Process) Wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(Patience):
		t.Fatalf("%s did not end within %v", p.Name, Patience)
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		return exit.ExitCode()
	}
	if p.err != nil {
		t.Fatalf("%s: %v", p.Name, p.err)
	}
	return 0
}

// Run runs bin/<program> to its end.
func Run(t testing.TB, program string, env []string, args ...string) (code int, output string) {
	t.Helper()
	p := Start(t, program, env, args...)
	code = p.Wait(t)
	return code, p.Tail(1 << 20)
}

// Eventually repeats check until it returns nil.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	limit := time.After(Patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: not within %v: %v", what, Patience, err)
		}
	}
}
