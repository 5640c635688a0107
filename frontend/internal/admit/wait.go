package admit

import (
	"fmt"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// Backlog is what waited for a model's gpu-lets when that was last looked at, and how fast they work.
type Backlog struct {
	Waiting uint64    // requests that nobody had fetched
	Seen    time.Time // when, or a little before
	PeakRPS float64   // samples/s that the plan's gpu-lets can answer at most; 0: none, or not known
}

// Wait is how long a request that comes now waits at least: nobody may have come since the backlog was
// seen, every request may have one sample, and the gpu-lets may have been busy with nothing else.
func (b Backlog) Wait(now time.Time) time.Duration {
	if b.PeakRPS <= 0 {
		return 0
	}
	wait := time.Duration(float64(b.Waiting) / b.PeakRPS * float64(time.Second))
	return max(0, wait-max(0, now.Sub(b.Seen)))
}

// InTime refuses a request that cannot be answered in the time that is left: what waits before it takes
// longer.
func InTime(m *model.Model, left time.Duration, b Backlog, now time.Time) error {
	wait := b.Wait(now)
	if wait <= left {
		return nil
	}
	return &Refusal{
		Status: wire.Overloaded, Retry: wait - left,
		Detail: fmt.Sprintf("model %s: overloaded: requests wait for at least %v: expected at most %v, the time that is left",
			m.Name, wait.Round(time.Millisecond), left.Round(time.Millisecond)),
	}
}
