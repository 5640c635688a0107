package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
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
	tail      string          // of its log
	work      []blackbox.Work // what it was working on when it ended
}

// process is a running gpu-let, or one that is about to be told which. Its goroutines end when it has
// exited and its event was taken.
type process struct {
	id       string
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	stdout   io.Reader
	stderr   io.Reader
	commands chan link.Command
	gone     chan struct{} // closed when it has exited
	log      *slog.Logger
	words    lastWords
	box      *blackbox.Box // nil: there is none
}

// startProcess starts a gpu-let.
func startProcess(id string, cmd *exec.Cmd, events chan<- event, log *slog.Logger) (*process, error) {
	p, err := spawn(cmd, log)
	if err != nil {
		return nil, err
	}
	p.serve(id, events)
	return p, nil
}

// spawn starts cmd in a process group of its own, so that Ctrl-C on a terminal reaches only the agent,
// which drains its children, and without a way to gain privileges. Nobody listens to it yet.
func spawn(cmd *exec.Cmd, log *slog.Logger) (p *process, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	p = &process{cmd: cmd, commands: make(chan link.Command, 64), gone: make(chan struct{}), log: log}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if p.stdout, err = cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if p.stderr, err = cmd.StderrPipe(); err != nil {
		return nil, err
	}
	p.giveBox()
	if err := privilege.Start(cmd); err != nil {
		p.closeBox()
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// serve listens to the process from now on, as gpu-let id, until it has ended.
func (p *process) serve(id string, events chan<- event) {
	p.id = id
	var readers sync.WaitGroup
	readers.Go(func() { p.readReports(p.stdout, events) })
	readers.Go(func() { p.forward(p.stderr, os.Stderr) })
	go p.write(p.stdin)
	go func() {
		readers.Wait() // both pipes ended: the process has gone, or is about to
		err := p.cmd.Wait()
		close(p.gone)
		e := event{id: id, proc: p, exited: true, err: err, lastWords: p.words.String(), tail: p.words.tail(), work: p.working()}
		p.closeBox()
		events <- e
	}()
}

// firstExtra is where a child finds the first of its extra files: after its standard streams.
const firstExtra = 3

// giveBox gives the process a black box. One that has none can still serve.
func (p *process) giveBox() {
	box, err := blackbox.New()
	if err != nil {
		p.log.Warn("gpu-let gets no black box: if it dies, nobody will know over what", "error", err)
		return
	}
	p.box = box
	fd := firstExtra + len(p.cmd.ExtraFiles)
	p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, box.File())
	p.cmd.Env = append(p.cmd.Environ(), link.BoxVariable+"="+strconv.Itoa(fd))
}

// working is what the process is working on, or was when it ended. Only the goroutine that waits
// for the process closes the box, after which there is nothing to read.
func (p *process) working() []blackbox.Work {
	if p.box == nil {
		return nil
	}
	work, err := p.box.Read()
	if err != nil {
		p.log.Debug("black box not read", "gpulet", p.id, "error", err)
	}
	return work
}

func (p *process) closeBox() {
	if p.box != nil {
		p.box.Close()
	}
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

// lastWords keeps the last lines of a log: those before a crash and the first ones of what the runtime
// says of it, whose stacks and registers would push everything else out.
type lastWords struct {
	mu      sync.Mutex // guards the fields below
	lines   []string
	crashed int // lines kept since the crash, its own first line included; 0: there was none
}

const (
	keptLines = 5
	keptCrash = 6
	keptBytes = 500 // of a line
)

// crashes are what the first line of a crash begins with.
var crashes = []string{"panic: ", "fatal error: ", "SIG", "unexpected fault address", "runtime: "}

func (w *lastWords) add(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(line) > keptBytes {
		line = line[:keptBytes] + "..."
	}
	begins := slices.ContainsFunc(crashes, func(c string) bool { return strings.HasPrefix(line, c) })
	switch {
	case w.crashed >= keptCrash:
		return
	case w.crashed > 0 || begins:
		w.crashed++
		w.lines = append(w.lines, line)
	default:
		w.lines = append(w.lines, line)
		w.lines = w.lines[max(0, len(w.lines)-keptLines):]
	}
}

// tail is everything that was kept.
func (w *lastWords) tail() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.lines, "\n")
}

// String is the last error line of the log: of a crash, what a library wrote before the runtime did,
// else the runtime's first line.
func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if before := len(w.lines) - w.crashed; w.crashed > 0 {
		if line := lastError(w.lines[:before]); line != "" {
			return line
		}
		return w.lines[before]
	}
	return lastError(w.lines)
}

func lastError(lines []string) string {
	for i := len(lines) - 1; i >= 0; i-- {
		if !strings.HasPrefix(lines[i], "time=") && !strings.HasPrefix(lines[i], "{") || strings.Contains(lines[i], "level=ERROR") {
			return lines[i]
		}
	}
	return ""
}
