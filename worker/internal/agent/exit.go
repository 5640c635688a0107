package agent

import (
	"errors"
	"os/exec"
	"time"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// exited notes that a child's process has ended, and what it is to blame for.
func (a *Agent) exited(c *child, e event, now time.Time) {
	c.proc, c.Loaded = nil, nil
	if c.hung == "" {
		c.work = e.work
	}
	asked := !c.DrainedAt.IsZero()
	if deviceFailed(e.err) && c.KilledAt.IsZero() { // to one that is killed, its device says that it failed
		a.faults[c.GPU]++
		c.Fault(now, a.cfg.Limits)
		a.log.Error("device failed: all gpu-lets on it start again", "gpu", c.GPU, "gpulet", c.Child.ID, "faults", a.faults[c.GPU])
	} else {
		c.Exit(now, a.cfg.Limits)
	}
	c.State = plan.Failed
	a.accuse(c, e, now)
	switch {
	case c.hung != "":
		c.detail = c.hung
		a.log.Error("gpu-let hung and was killed", "gpulet", c.Child.ID, "reason", c.hung, "crashes", c.Crashes)
	case asked && e.err == nil:
		a.log.Info("gpu-let ended", "gpulet", c.Child.ID)
	case asked:
		a.log.Warn("gpu-let ended while draining", "gpulet", c.Child.ID, "error", e.err, "last_words", e.lastWords)
	default:
		c.detail = exitWords(e)
		a.log.Error("gpu-let crashed", "gpulet", c.Child.ID, "error", e.err, "crashes", c.Crashes, "last_words", e.lastWords)
	}
	a.putGpulet(c, now)
}

// deviceFailed reports whether a gpu-let ended because its device failed.
func deviceFailed(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == link.ExitDeviceFailed
}

// exitWords says why a process ended that should not have.
func exitWords(e event) string {
	why := "exited without being asked to"
	var exit *exec.ExitError
	if errors.As(e.err, &exit) || e.err != nil {
		why = "exited: " + e.err.Error()
	}
	if e.lastWords != "" {
		why += ": " + e.lastWords
	}
	return why
}
