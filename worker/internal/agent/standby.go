package agent

import (
	"errors"
	"io"
	"os/exec"
	"reflect"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// launch starts the process of a gpu-let: the one that stands by, if it can become that, else a new one.
func (a *Agent) launch(id string, cmd *exec.Cmd) (*process, error) {
	if p := a.standby; p != nil {
		a.standby = nil
		err := p.become(id, cmd, a.events)
		if err == nil {
			a.log.Info("the process that stood by becomes a gpu-let", "gpulet", id, "pid", p.pid())
			return p, nil
		}
		p.discard()
		a.log.Warn("the process that stood by is of no use, starting another", "gpulet", id, "pid", p.pid(), "error", err,
			"exit", p.cmd.ProcessState.String(), "last_words", p.words.String())
	}
	return startProcess(id, cmd, a.events, a.log)
}

// standBy starts the process that will become the next gpu-let, once all those that are starting have
// come up: they need the cores.
func (a *Agent) standBy() {
	if a.cfg.Standby == nil || a.standby != nil || a.stopping {
		return
	}
	for _, c := range a.children {
		if c.proc != nil && c.State == plan.Starting {
			return
		}
	}
	p, err := spawn(a.cfg.Standby(), a.log)
	if err != nil {
		a.log.Warn("no process stands by: gpu-lets will start from scratch", "error", err)
		a.cfg.Standby = nil
		return
	}
	a.standby = p
	a.log.Info("a process stands by", "pid", p.pid())
}

// dismiss ends the process that stands by.
func (a *Agent) dismiss() {
	if a.standby != nil {
		a.standby.discard()
		a.standby = nil
	}
}

// become makes a process that stands by what cmd would have started.
func (p *process) become(id string, cmd *exec.Cmd, events chan<- event) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	extra := p.cmd.ExtraFiles
	if p.box != nil {
		extra = extra[:len(extra)-1]
	}
	switch {
	case cmd.Path != p.cmd.Path, !reflect.DeepEqual(cmd.SysProcAttr, p.cmd.SysProcAttr), !slices.Equal(cmd.ExtraFiles, extra):
		return errors.New("it was started as another program, as another user or with other files")
	case p.ended():
		return errors.New("it has ended")
	}
	own := p.cmd.Environ()
	env := slices.DeleteFunc(cmd.Environ(), func(v string) bool { return slices.Contains(own, v) })
	if err := link.NewWriter(p.stdin).Write(link.Become{Args: cmd.Args[1:], Env: env}); err != nil {
		return err
	}
	p.serve(id, events)
	return nil
}

// ended reports whether the process has exited, although nobody has waited for it.
func (p *process) ended() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, p.pid(), &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}

// discard ends a process that nobody listens to, and keeps its last words.
func (p *process) discard() {
	p.kill()
	p.forward(p.stderr, io.Discard)
	_ = p.cmd.Wait()
	close(p.gone)
	p.closeBox()
}
