package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/link"
	"github.com/gpulet/gpulet/worker/internal/privilege"
)

// event is what a process did.
type event struct {
	id        string
	proc      *process
	report    *plan.GpuletReport
	exited    bool
	err       error // how it exited: nil for 0
	lastWords string
}

// process is a running gpu-let. Its goroutines end when it has exited and its event was taken.
type process struct {
	id       string
	cmd      *exec.Cmd
	commands chan link.Command
	gone     chan struct{} // closed when it has exited
	log      *slog.Logger
	words    lastWords
}

// startProcess starts cmd in a process group of its own, so that Ctrl-C on a terminal reaches only
// the agent, which drains its children, and without a way to gain privileges.
func startProcess(id string, cmd *exec.Cmd, events chan<- event, log *slog.Logger) (*process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := privilege.Start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p := &process{id: id, cmd: cmd, commands: make(chan link.Command, 64), gone: make(chan struct{}), log: log}
	var readers sync.WaitGroup
	readers.Go(func() { p.readReports(stdout, events) })
	readers.Go(func() { p.forward(stderr, os.Stderr) })
	go p.write(stdin)
	go func() {
		readers.Wait() // both pipes ended: the process has gone, or is about to
		err := cmd.Wait()
		close(p.gone)
		events <- event{id: id, proc: p, exited: true, err: err, lastWords: p.words.String()}
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// send hands over a command without waiting. A process that takes none is beyond help.
func (p *process) send(c link.Command) {
	select {
	case p.commands <- c:
	default:
		p.log.Error("gpu-let takes no commands", "gpulet", p.id)
		p.kill()
	}
}

// kill ends the process, and whatever it may have started, at once. It is harmless once it was
// waited for.
func (p *process) kill() {
	if p.cmd.Process.Signal(syscall.Signal(0)) == nil {
		_ = syscall.Kill(-p.pid(), syscall.SIGKILL) // its process group
	}
}

func (p *process) write(stdin io.WriteCloser) {
	defer stdin.Close()
	w := link.NewWriter(stdin)
	for {
		select {
		case c := <-p.commands:
			if w.Write(c) != nil {
				return // it has exited; that is reported where it is waited for
			}
		case <-p.gone:
			return
		}
	}
}

func (p *process) readReports(stdout io.Reader, events chan<- event) {
	r := link.NewReportReader(stdout)
	for {
		rep, err := r.Read()
		switch {
		case err == nil:
			events <- event{id: p.id, proc: p, report: &rep}
		case link.IsLineError(err):
			p.log.Warn("gpu-let wrote something else than a report", "gpulet", p.id, "error", err)
		case errors.Is(err, io.EOF):
			return
		default:
			p.log.Warn("cannot read reports", "gpulet", p.id, "error", err)
			_, _ = io.Copy(io.Discard, stdout)
			return
		}
	}
}

// forward passes the child's log on, line by line, and keeps the last lines. Lines that the
// child's logger did not write (a library's last words) are marked with the gpu-let's name.
func (p *process) forward(stderr io.Reader, to io.Writer) {
	lines := bufio.NewReaderSize(stderr, 64<<10)
	for {
		line, err := lines.ReadString('\n')
		if line = strings.TrimRight(line, "\n"); line != "" {
			p.words.add(line)
			if !strings.HasPrefix(line, "time=") && !strings.HasPrefix(line, "{") {
				line = p.id + ": " + line
			}
			_, _ = io.WriteString(to, line+"\n")
		}
		if err != nil {
			return
		}
	}
}

// lastWords keeps the last lines of a log.
type lastWords struct {
	mu    sync.Mutex // guards lines
	lines []string
}

const (
	keptLines = 5
	keptBytes = 500 // of a line
)

func (w *lastWords) add(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(line) > keptBytes {
		line = line[:keptBytes] + "..."
	}
	w.lines = append(w.lines, line)
	w.lines = w.lines[max(0, len(w.lines)-keptLines):]
}

// String is the last error line of the log: of a crash, what the runtime or a library wrote.
func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := len(w.lines) - 1; i >= 0; i-- {
		if !strings.HasPrefix(w.lines[i], "time=") && !strings.HasPrefix(w.lines[i], "{") || strings.Contains(w.lines[i], "level=ERROR") {
			return w.lines[i]
		}
	}
	return ""
}
