package pack

import (
	"slices"

	"github.com/gpulet/gpulet/planner/internal/problem"
)

func init() { algorithms["ideal"] = Ideal }

// paperSplits are the cuts of a GPU that the ATC 2022 paper's exhaustive search knows.
var paperSplits = [][]int{{100}, {50, 50}, {60, 40}, {80, 20}}

// idealLimit bounds the combinations of splits that Ideal looks at; it is meant for small fleets.
const idealLimit = 20000

// Ideal is the exhaustive search that the ATC 2022 paper measures itself against: it tries every
// combination of the paper's four splits over the GPUs, and on each lays out the models in both
// orders of demand on the gpu-lets that are there. It is limited to those splits, so it is no
// bound for an algorithm that is not.
func Ideal(in problem.Input, opt Options) Result {
	return newEnv(&in).ideal().result("ideal", opt)
}

func (e *env) ideal() *state {
	var best *state
	e.eachSplit(func(cut [][]int) bool {
		for _, order := range e.bothOrders() {
			s := newState(e)
			s.cut(cut)
			for _, m := range order {
				s.placeFixed(m)
			}
			s.dropEmpty()
			if best == nil || better(s, best) {
				best = s
			}
		}
		return !best.complete()
	})
	if best == nil {
		best = newState(e)
	}
	return best
}

func better(a, b *state) bool {
	x, y := a.goodput(), b.goodput()
	return x > y*(1+1e-9) || x >= y*(1-1e-9) && a.used() < b.used()
}

func (e *env) bothOrders() [][]int {
	down := e.byDemand()
	up := slices.Clone(down)
	slices.Reverse(up)
	return [][]int{down, up}
}

// eachSplit calls try with every assignment of splits to devices, the same for all orders within a
// class, until it returns false.
func (e *env) eachSplit(try func([][]int) bool) {
	cut := make([][]int, len(e.gpus))
	left := idealLimit
	var walk func(gpu, from int) bool
	walk = func(gpu, from int) bool {
		if gpu == len(e.gpus) {
			left--
			return try(cut) && left > 0
		}
		if gpu > 0 && e.gpus[gpu].class != e.gpus[gpu-1].class {
			from = 0
		}
		for k := from; k < len(paperSplits); k++ {
			if !e.allows(e.gpus[gpu].class, paperSplits[k]) {
				continue
			}
			cut[gpu] = paperSplits[k]
			if !walk(gpu+1, k) {
				return false
			}
		}
		return true
	}
	walk(0, 0)
}

func (e *env) allows(c int, shares []int) bool {
	for _, s := range shares {
		if !slices.Contains(e.classes[c].shares, s) {
			return false
		}
	}
	return true
}

// cut prepares empty parts.
func (s *state) cut(cut [][]int) {
	for gpu, shares := range cut {
		parts := make([]part, len(shares))
		for i, share := range shares {
			parts[i].si = slices.Index(s.env.classes[s.env.gpus[gpu].class].shares, share)
		}
		s.gpus[gpu] = parts
	}
}

// placeFixed serves m on parts that are there: empty ones while there are any that help, then
// whatever has slack.
func (s *state) placeFixed(m int) {
	for s.missing(m) > 0 {
		if !s.placeEmpty(m) {
			break
		}
	}
	for s.missing(m) > 0 {
		if !s.elasticTemporal(m, len(s.gpus)) {
			break
		}
	}
}

// placeEmpty uses the smallest empty part that carries all that is missing, else the one that
// carries most.
func (s *state) placeEmpty(m int) bool {
	e := s.env
	bestGPU, bestPart, bestShare, bestRate := -1, 0, 0, 0.0
	missing := s.missing(m)
	for gpu := range s.gpus {
		c := e.gpus[gpu].class
		for i := range s.gpus[gpu] {
			if len(s.gpus[gpu][i].slots) > 0 {
				continue
			}
			si := s.gpus[gpu][i].si
			most, _ := e.best(c, m, si, 0, false)
			if most <= 0 {
				continue
			}
			parts := clone(s.gpus[gpu])
			parts[i].slots = []slot{{m: m}}
			want := min(most, missing)
			rate := e.grow(c, parts, i, 0, want, want/4)
			share := e.classes[c].shares[si]
			if rate > bestRate*(1+1e-9) || rate > 0 && rate >= bestRate*(1-1e-9) && share < bestShare {
				bestGPU, bestPart, bestShare, bestRate = gpu, i, share, rate
			}
		}
	}
	if bestGPU < 0 {
		return false
	}
	parts := clone(s.gpus[bestGPU])
	parts[bestPart].slots = []slot{{m: m, rate: bestRate}}
	if !e.settle(e.gpus[bestGPU].class, parts) {
		return false
	}
	s.set(bestGPU, parts)
	return true
}

// dropEmpty removes parts that serve nothing.
func (s *state) dropEmpty() {
	for gpu := range s.gpus {
		s.gpus[gpu] = slices.DeleteFunc(s.gpus[gpu], func(p part) bool { return len(p.slots) == 0 })
	}
}
