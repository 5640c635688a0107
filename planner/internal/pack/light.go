package pack

import (
	"slices"

	"github.com/gpulet/gpulet/shared/plan"
)

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
	if g.Share >= lightLimit {
		return false
	}
	most := lightLoss
	if e.wasLight(g) {
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
	return true
}

// wasLight reports whether the current plan has a light gpu-let in the place of g with one of its models.
func (e *env) wasLight(g plan.Gpulet) bool {
	g.Limit = lightLimit
	return slices.ContainsFunc(e.lightBefore[place(g)], func(old plan.Gpulet) bool { return inCommon(old, g) > 0 })
}

// lightIn lists the light gpu-lets of a plan by their place; none without a plan.
func lightIn(current *plan.Plan) map[string][]plan.Gpulet {
	if current == nil {
		return nil
	}
	out := map[string][]plan.Gpulet{}
	for _, g := range current.Gpulets {
		if g.Limit == lightLimit && g.Share < lightLimit {
			out[place(g)] = append(out[place(g)], g)
		}
	}
	return out
}
