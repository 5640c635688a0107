package reconcile

import (
	"time"

	"github.com/gpulet/gpulet/shared/plan"
)

// Child is a gpu-let process as its agent knows it.
type Child struct {
	ID         string
	GPU, Share int
	Limit      int               // percent of its GPU's SMs that it may use; 0: Share
	State      plan.GpuletState  // as it last reported
	Revision   uint64            // as it last reported: what it serves
	Assigned   uint64            // the revision it was last told to serve; 0: none yet
	Models     []plan.Assignment // what it was last told to serve
	MemBytes   int64             // of its device, by the plan; 0: not known
	Loaded     []string          // as it last reported: the models that it does serve
	Short      bool              // as it last reported: memory is why it does not serve all
	Hung       string            // as it last reported: what does not return from its engine
	StartedAt  time.Time
	Heard      time.Time // its last sign of life, at first its start
	ReadyAt    time.Time // when it became ready; zero: not yet
	DrainedAt  time.Time // when it was told to drain; zero: it was not
	KilledAt   time.Time // when it was killed; zero: it was not
	ExitedAt   time.Time // zero: it runs
	FaultedAt  time.Time // when it exited because the device failed; zero: it did not
	Crashes    int       // in a row, of this gpu-let
	CameUp     bool      // it was ready before it exited
}

// Fault notes that the process ended because its device failed.
func (c *Child) Fault(now time.Time, lim Limits) {
	c.Exit(now, lim)
	c.FaultedAt = now
}

// Exit notes that the process ended. Only an exit that nobody asked for is a crash.
func (c *Child) Exit(now time.Time, lim Limits) {
	c.ExitedAt, c.CameUp = now, !c.ReadyAt.IsZero()
	switch stable := !c.ReadyAt.IsZero() && now.Sub(c.ReadyAt) >= lim.Stable; {
	case !c.DrainedAt.IsZero():
		c.Crashes = 0
	case stable:
		c.Crashes = 1
	default:
		c.Crashes++
	}
}

// Hear notes a report.
func (c *Child) Hear(now time.Time, r plan.GpuletReport) {
	state := r.State
	c.Heard, c.State, c.Revision, c.Hung, c.Loaded, c.Short = now, state, r.Revision, r.Hung, nil, false
	for _, m := range r.Models {
		if m.Loaded {
			c.Loaded = append(c.Loaded, m.Model)
		}
		c.Short = c.Short || m.OutOfMemory && !m.Loaded
	}
	switch {
	case state != plan.Ready:
		c.ReadyAt = time.Time{}
	case c.ReadyAt.IsZero():
		c.ReadyAt = now
	}
}
