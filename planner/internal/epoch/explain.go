package epoch

import (
	"maps"
	"slices"
	"sort"

	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/shared/plan"
)

// Explanation is what can be said of a plan that runs.
type Explanation struct {
	// Verdict is what is wrong with the plan for the given needs; empty: nothing.
	Verdict string
	// Facts lists every assignment with its limits, in the plan's order.
	Facts []Fact
	// Fresh is what the algorithm would do now from nothing but the current plan as a hint, Notes
	// its own words, Reasons why models are not fully served, Bound the fewest GPUs any plan needs.
	Fresh    plan.Plan
	Notes    []pack.Note
	Reasons  map[string]string
	Bound    float64
	Problems []string
}

// Fact is one assignment and how close it is to its limits.
type Fact struct {
	Gpulet plan.Gpulet
	plan.Assignment
	WorstMs float64 // duty cycle and own batch: the longest a request should take
	SLOMs   float64
	// MaxRPS is what the assignment can carry: a batch per duty cycle.
	MaxRPS float64
}

// Explain looks at the current plan of s. needs are the samples per second that each model asks
// for; a model that is missing is not wanted.
func Explain(c Config, s State, needs map[string]float64) Explanation {
	a := assemble(c, s)
	for _, name := range slices.Sorted(maps.Keys(a.needs)) {
		a.needs[name] = needs[name]
	}
	in := a.in.withRates(a.needs)
	opts := c.Options
	opts.Explain = true
	res := c.Algorithm(in.Input, opts)
	e := Explanation{
		Verdict: judge(in, s.Current).reason, Fresh: res.Plan, Notes: res.Explain,
		Reasons: res.Reasons, Bound: res.Bound, Problems: a.problems,
	}
	sort.Strings(e.Problems)
	slos := map[string]float64{}
	for _, m := range s.Models {
		slos[m.Name] = m.SLO.Seconds() * 1000
	}
	for _, g := range s.Current.Gpulets {
		for _, as := range g.Models {
			f := Fact{Gpulet: g, Assignment: as, WorstMs: as.DutyMs + as.ExecMs, SLOMs: slos[as.Model]}
			if as.DutyMs > 0 && as.RateRPS > 0 {
				f.MaxRPS = float64(as.Batch) * 1000 / as.DutyMs
			}
			e.Facts = append(e.Facts, f)
		}
	}
	return e
}
