package pack

import (
	"math"
	"slices"

	"github.com/gpulet/gpulet/shared/plan"
)

// burstFactor is how many times its planned batch a gpu-let may run at once when more wait. With no more than
// the batch, what waits behind a burst is answered one batch after the other, each about as long as a
// larger one. Simulated for plans of an H100 that is all but full, 1.5 halves the misses; 2 is no better, and
// with 3 a large batch makes more late that come meanwhile than it helps of those before.
const burstFactor = 1.5

// burst is the largest batch of a slot by burstFactor, as far as profile, model and spare memory, in bytes,
// go; 0: the planned one.
func (e *env) burst(c, si int, sl slot, spare *int64) int {
	t := e.tables[c][sl.m]
	most := min(int(math.Ceil(burstFactor*float64(sl.batch))), len(t.rows[si].ms))
	if most <= sl.batch || t.mem[most-1]-t.mem[sl.batch-1] > *spare {
		return 0
	}
	*spare -= t.mem[most-1] - t.mem[sl.batch-1]
	return most
}

// spare is the memory that parts leave of a GPU of class c, in bytes; no end of it where the GPU's is not known.
func (e *env) spare(c int, parts []part) int64 {
	if e.classes[c].mem <= 0 {
		return math.MaxInt64
	}
	return e.classes[c].mem - e.mem(c, parts)
}

// Rules of light gpu-lets, those whose batches are too small to fill a GPU. They may use more SMs than their
// share: they are done sooner where neighbours pause, and leave these most of the SMs at any time. Others are
// held to their shares: a large batch takes whatever it may, and the small ones beside it wait.
const (
	lightLimit = 40   // percent of the GPU's SMs that they may use
	lightLoss  = 1.15 // most times the time on the whole GPU that their batches take on that
	lightKept  = 1.3  // the same, of one that is one already: no process ends for a batch that grows a little
)

// light reports whether a gpu-let may use lightLimit of its GPU.
func (e *env) light(g plan.Gpulet) bool {
	most := lightLoss
	if e.isLight(g) {
		most = lightKept
	}
	for _, a := range g.Models {
		prof, ok := e.in.Profiles.Get(g.GPUType, a.Model)
		if !ok {
			return false
		}
		limited, err := prof.Latency(lightLimit, a.Batch)
		whole, errWhole := prof.Latency(100, a.Batch)
		if err != nil || errWhole != nil || limited > most*whole {
			return false
		}
	}
	return g.Share < lightLimit
}

// isLight reports whether the current plan has a light gpu-let in the place of g with one of its models.
func (e *env) isLight(g plan.Gpulet) bool {
	return e.in.Current != nil && slices.ContainsFunc(e.in.Current.Gpulets, func(old plan.Gpulet) bool {
		return old.Device() == g.Device() && old.Share == g.Share && old.Limit == lightLimit && inCommon(old, g) > 0
	})
}
