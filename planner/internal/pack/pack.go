// Package pack assigns models to gpu-lets: which GPU is cut how, and what each part serves.
//
// Every algorithm is a pure function of its problem: it reads no clock, does no I/O, logs nothing
// and returns the same plan for the same input, so that the planner, the tools and the simulator
// run the same code.
package pack

import (
	"fmt"
	"sort"
	"strings"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
)

// Algorithm solves one problem. It never fails: what it cannot place is in Plan.Unserved, with the
// reason in Result.Reasons. Its plan must satisfy check.Plan, except for algorithms that reproduce
// a published scheduler's unsoundness (see Options.Original).
type Algorithm func(problem.Input, Options) Result

// Options tune an algorithm; the zero value is the default of each.
type Options struct {
	// Steps bounds the search of the any-time algorithms, in units of one candidate GPU built or
	// one move tried, so that the same budget gives the same plan on every machine. 0: a default
	// by size; negative: the first plan found.
	Steps int
	// Original reproduces the published prototype where it differs from the paper: at most two
	// gpu-lets a GPU and its partition set (elastic).
	Original bool
	// Explain asks for Result.Explain and Result.Bound.
	Explain bool
	// Headroom gives what is left of the GPUs in use to their gpu-lets, or cuts as many GPUs for a
	// multiple of the rates: for bursts (gpulet).
	Headroom bool
}

// Result is a plan and why it is so.
type Result struct {
	Plan plan.Plan
	// Reasons says, per model that is not fully served, what stood in the way.
	Reasons map[string]string
	// Bound is a lower bound on the GPUs that any sound plan needs, computed with Options.Explain; 0
	// when there is none, since some model can run nowhere.
	Bound float64
	// Steps is how much of the budget was used.
	Steps int
	// Explain holds the notes asked for with Options.Explain, in the order of the plan's gpu-lets.
	Explain []Note
}

// Note explains one assignment.
type Note struct {
	Gpulet string
	Model  string
	Chosen string
	// Rejected lists what was tried instead and why it lost.
	Rejected []string
	// Load says what a little less and more load would change.
	Load []string
}

var algorithms = map[string]Algorithm{}

// ByName returns the algorithm called name; the error lists the known ones.
func ByName(name string) (Algorithm, error) {
	if a, ok := algorithms[name]; ok {
		return a, nil
	}
	return nil, fmt.Errorf("algorithm %q: expected one of %s", name, strings.Join(Names(), ", "))
}

// Names lists the algorithms, sorted.
func Names() []string {
	names := make([]string, 0, len(algorithms))
	for name := range algorithms {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
