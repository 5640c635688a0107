package epoch

import (
	"maps"
	"slices"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
)

// Offline models fill what interactive ones leave: at run time each gpu-let sees to it, and here a plan
// gives them rates only where that costs interactive models nothing. They ask for no GPUs that are not
// there, and nothing that they lack is a problem: it waits.

// only is the problem with only its offline or only its interactive models.
func (in input) only(offline bool) input {
	in.Models = slices.DeleteFunc(slices.Clone(in.Models), func(m problem.Model) bool { return m.Offline != offline })
	return in
}

// fill packs all models, or the interactive ones alone where these are served better without the others.
func (c Config) fill(in input) solution {
	live := in.only(false)
	if len(live.Models) == len(in.Models) {
		return c.pack(in)
	}
	alone := c.pack(live)
	s := c.pack(in)
	if s.unsound != "" || goodput(live, s.plan) < goodput(live, alone.plan)*(1-slack) {
		s = solution{in: in, plan: alone.plan, unsound: alone.unsound}
	}
	s.plan.DesiredGPUs = alone.plan.DesiredGPUs
	s.plan.Unserved = maps.Clone(alone.plan.Unserved)
	return s
}

// occupied reports whether the plan has a gpu-let on the device: an offline guest beside it, on one of its
// own, would slow it down at any time.
func (s *solution) occupied(device string) bool {
	return slices.ContainsFunc(s.plan.Gpulets, func(g plan.Gpulet) bool { return g.Device() == device })
}
