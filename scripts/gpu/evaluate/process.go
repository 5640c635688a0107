package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a program that runs in the background. Its log goes to a file, and its events, which are
// JSON lines, are kept.
type process struct {
	name string
	cmd  *exec.Cmd
	file *os.File
	done chan struct{} // closed when it has exited
	err  error         // how; valid then

	mu      sync.Mutex // guards the fields below
	rest    []byte     // of a line that is not complete
	events  []event
	changed chan struct{} // closed at every event
}

// event is one line of a log.
type event struct {
	at   time.Time
	text map[string]any
}

// msg is what happened; a lack of it is "".
func (e event) msg() string { return e.str("msg") }

// str is an attribute as text, "" where there is none.
func (e event) str(key string) string {
	s, _ := e.text[key].(string)
	return s
}

// duration is an attribute in nanoseconds, as slog's JSON has durations.
func (e event) duration(key string) time.Duration {
	ns, _ := e.text[key].(float64)
	return time.Duration(ns)
}

// startProcess starts a program whose log goes to dir.
func startProcess(dir, name, path string, args ...string) (*process, error) {
	file, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: exec.Command(path, args...), file: file, done: make(chan struct{}), changed: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "GPULET_LOG_FORMAT=json")
	p.cmd.Stderr = p
	// A signal from the terminal is for this program alone, which then ends the others in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		p.file.Close()
		close(p.done)
	}()
	return p, nil
}

// Write takes what the program logs.
func (p *process) Write(data []byte) (int, error) {
	if _, err := p.file.Write(data); err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rest = append(p.rest, data...)
	for {
		line, rest, complete := bytes.Cut(p.rest, []byte("\n"))
		if !complete {
			return len(data), nil
		}
		e := event{}
		if json.Unmarshal(line, &e.text) == nil {
			e.at, _ = time.Parse(time.RFC3339Nano, e.str("time"))
			p.events = append(p.events, e)
			close(p.changed)
			p.changed = make(chan struct{})
		}
		p.rest = rest
	}
}

// since lists the events from the n-th on; their number is where to go on from.
func (p *process) since(n int) ([]event, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.events[n:], p.changed
}

// count is the number of events so far.
func (p *process) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.events)
}

// await waits for an event. It may be among the last words of a program that has ended.
func (p *process) await(ctx context.Context, msg string) (event, error) {
	done := p.done
	for n := 0; ; {
		events, changed := p.since(n)
		for _, e := range events {
			if e.msg() == msg {
				return e, nil
			}
		}
		n += len(events)
		if done == nil {
			return event{}, fmt.Errorf("%s has ended while it was waited for %q: %v: %s", p.name, msg, p.cmd.ProcessState, p.lastWords())
		}
		select {
		case <-changed:
		case <-done:
			done = nil // and all that it has logged is there
		case <-ctx.Done():
			return event{}, fmt.Errorf("%s: waited for %q: %w", p.name, msg, ctx.Err())
		}
	}
}

// lastWords are the end of the log.
func (p *process) lastWords() string {
	data, _ := os.ReadFile(p.file.Name())
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// stopTime is how long a program may take to end in order.
const stopTime = 20 * time.Second

// stop ends the program, by force when it takes too long.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTime):
		say("%s did not end within %v: killing it", p.name, stopTime)
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

// output runs a program to its end and returns what it wrote to standard output. An error holds the end
// of its standard error.
func output(ctx context.Context, env []string, path string, args ...string) ([]byte, *os.ProcessState, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(path), args[0], err, tail(words.String(), 600))
	}
	return out.Bytes(), cmd.ProcessState, err
}

// tail is the end of a text, on one line.
func tail(text string, most int) string {
	text = strings.ReplaceAll(strings.TrimSpace(text), "\n", " | ")
	return text[max(0, len(text)-most):]
}
