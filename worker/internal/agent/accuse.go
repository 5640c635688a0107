package agent

import (
	"cmp"
	"context"
	"errors"
	"os/exec"
	"syscall"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
)

// accuseLimit is how long an accusation is tried to be written: later, the requests have come again.
const accuseLimit = 30 * time.Second

// itsOwnFault reports whether a process ended over what it worked on: it crashed, or its device failed.
// SIGKILL comes from outside, from an operator or the kernel; cli.ExitFailed is an orderly end.
func itsOwnFault(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return !(ok && status.Signaled() && status.Signal() == syscall.SIGKILL) && exit.ExitCode() != cli.ExitFailed
}

// accuse holds a death against the requests that were being worked on, and against their model.
func (a *Agent) accuse(c *child, e event, now time.Time) {
	hung := c.hung != ""
	if !hung && !itsOwnFault(e.err) || len(c.work) == 0 {
		return
	}
	if model, sole := soleModel(c.work); sole && (len(c.gpulet.Models) > 1 || a.quarantined(model)) {
		if a.blame(model, now) {
			c.Crashes = 0 // those that are left had no part in it, and start at once
		}
	}
	suspects := suspectsOf(c.work)
	alone := len(suspects) == 1 && (hung || !deviceFailed(e.err) || !a.othersWorked(c))
	for i := range suspects {
		s := &suspects[i]
		s.Alone, s.Gpulet, s.Reason, s.LastWords, s.Time = alone, c.Child.ID, cmp.Or(c.hung, exitWords(e)), e.tail, now
	}
	if len(suspects) == 0 {
		return
	}
	a.accused += len(suspects)
	a.log.Warn("requests were running when a gpu-let died: they run alone next time", "gpulet", c.Child.ID,
		"model", suspects[0].Model, "requests", len(suspects), "alone", alone)
	a.accusing.Go(func() { a.write(suspects) })
}

// soleModel is the model that everything is about, if it is one.
func soleModel(work []blackbox.Work) (model string, sole bool) {
	for _, w := range work {
		if model != "" && w.Model != model {
			return "", false
		}
		model = w.Model
	}
	return model, true
}

func suspectsOf(work []blackbox.Work) []plan.Suspect {
	var list []plan.Suspect
	for _, w := range work {
		for _, r := range w.Requests {
			list = append(list, plan.Suspect{Model: w.Model, Seq: r.Seq, Stored: r.Stored})
		}
	}
	return list
}

// othersWorked reports whether another gpu-let on c's device works on requests, or died while it did
// and has not been replaced: when a device fails, any of them may be why.
func (a *Agent) othersWorked(c *child) bool {
	for _, o := range a.children {
		work := o.work
		if o.proc != nil {
			work = o.proc.working()
		}
		if o != c && o.GPU == c.GPU && len(suspectsOf(work)) > 0 {
			return true
		}
	}
	return false
}

// write adds one death to what is held against each suspect.
func (a *Agent) write(suspects []plan.Suspect) {
	ctx, cancel := context.WithTimeout(context.Background(), accuseLimit)
	defer cancel()
	retry := lifecycle.Backoff{Min: 100 * time.Millisecond, Max: 2 * time.Second}
	for _, s := range suspects {
		err := a.accuseOne(ctx, s)
		for err != nil && lifecycle.Sleep(ctx, retry.Next()) == nil {
			err = a.accuseOne(ctx, s)
		}
		if err != nil {
			a.log.Error("cannot accuse a request", "model", s.Model, "seq", s.Seq, "error", err)
		}
	}
}

func (a *Agent) accuseOne(ctx context.Context, s plan.Suspect) error {
	before, err := a.bus.Suspect(ctx, s.Model, s.Seq, s.Stored)
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return err
	}
	return a.bus.PutSuspect(ctx, before.Again(s))
}
