package pack

import (
	"cmp"
	"slices"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/profile"
)

func init() { algorithms["elastic"] = Elastic }

// Elastic is the elastic partitioning of Choi et al., "Serving Heterogeneous Machine Learning
// Models on Multi-GPU Servers with Spatio-Temporal Sharing", USENIX ATC 2022, Algorithm 1. For one
// model after the other it takes the smaller of the most efficient share (the knee of the rate over
// the share) and the share that the rest of the rate needs, puts it where it fits best, splitting
// a GPU when it has to, and shares a gpu-let in time when there is no room left. It starts with
// few GPUs and adds one until everything fits.
//
// Unlike the prototype it accepts nothing that breaks an SLO: each placement is settled with its
// neighbours. Options.Original reproduces the prototype instead.
func Elastic(in problem.Input, opt Options) Result {
	if opt.Original {
		return originalElastic(in, opt)
	}
	e := newEnv(&in)
	return e.elastic(elasticRules{}).result("elastic", opt)
}

// elasticRules vary elastic partitioning.
type elasticRules struct {
	noTemporal bool // never put two models into one gpu-let
	wholeFit   bool // take the smallest share that carries the whole rest, not the knee
}

// elastic adds GPUs until everything fits, and otherwise keeps what serves most.
func (e *env) elastic(rules elasticRules) *state {
	order := e.byDemand()
	var best *state
	for n := e.fewest(); ; n += max(1, n/64) {
		n = min(n, len(e.gpus))
		s := newState(e)
		for _, m := range order {
			s.elasticPlace(m, n, rules)
		}
		if best == nil || s.goodput() > best.goodput() {
			best = s
		}
		if s.complete() || n == len(e.gpus) {
			break
		}
	}
	return best
}

// byDemand orders models as the prototype does, by rate x SLO, the largest first.
func (e *env) byDemand() []int {
	order := make([]int, len(e.models))
	for m := range order {
		order[m] = m
	}
	slices.SortStableFunc(order, func(a, b int) int {
		x, y := &e.models[a], &e.models[b]
		return cmp.Or(cmp.Compare(y.rate*y.slo, x.rate*x.slo), cmp.Compare(x.name, y.name))
	})
	return order
}

// fewest bounds from below how many GPUs are needed: each model at its most efficient share, alone.
func (e *env) fewest() int {
	need := 0.0
	for m := range e.models {
		cost := 0.0
		for c := range e.classes {
			for si, share := range e.classes[c].shares {
				if rate, _ := e.best(c, m, si, 0, false); rate > 0 {
					if v := float64(share) / 100 / rate; cost == 0 || v < cost {
						cost = v
					}
				}
			}
		}
		need += cost * e.models[m].rate
	}
	return max(1, min(int(need), len(e.gpus)))
}

// goodput is the served rate by worth.
func (s *state) goodput() float64 {
	v := 0.0
	for m, r := range s.served {
		v += s.env.models[m].worth * min(r, s.env.models[m].rate)
	}
	return v
}

// elasticPlace places model m on the first n devices, as much of it as fits.
func (s *state) elasticPlace(m, n int, rules elasticRules) {
	for s.missing(m) > 0 {
		if !s.elasticSpatial(m, n, rules) && (rules.noTemporal || !s.elasticTemporal(m, n)) {
			return
		}
	}
}

// room is a device with free share, and the index of the share to cut out of it.
type room struct{ gpu, free, si int }

// elasticSpatial cuts one more gpu-let for m out of the room that it fits best. Where the ideal share
// fits nowhere, it readjusts, as the paper does: the largest share that is free somewhere.
func (s *state) elasticSpatial(m, n int, rules elasticRules) bool {
	var ideal, smaller []room
	for g := 0; g < n; g++ {
		c := s.env.gpus[g].class
		free := 100 - s.env.shareSum(c, s.gpus[g])
		si := s.env.idealShare(c, m, s.missing(m), rules)
		switch {
		case si < 0:
		case free >= s.env.classes[c].shares[si]:
			ideal = append(ideal, room{g, free, si})
		case !rules.wholeFit:
			if si := s.env.largestShare(c, m, free); si >= 0 {
				smaller = append(smaller, room{g, free, si})
			}
		}
	}
	slices.SortStableFunc(ideal, func(a, b room) int { return cmp.Compare(a.free, b.free) })
	slices.SortStableFunc(smaller, func(a, b room) int { return cmp.Compare(b.si, a.si) })
	for _, r := range append(ideal, smaller...) {
		c := s.env.gpus[r.gpu].class
		parts := append(clone(s.gpus[r.gpu]), part{r.si, []slot{{m: m}}})
		want, _ := s.env.best(c, m, r.si, 0, false)
		want = min(want, s.missing(m))
		if s.env.grow(c, parts, len(parts)-1, 0, want, want/4) > 0 {
			s.set(r.gpu, parts)
			return true
		}
	}
	return false
}

// largestShare is the index of the largest measured share up to free with which m meets its SLO, -1
// when there is none.
func (e *env) largestShare(c, m, free int) int {
	for si := len(e.classes[c].shares) - 1; si >= 0; si-- {
		if e.classes[c].shares[si] > free || !e.classes[c].measured[si] {
			continue
		}
		if rate, _ := e.best(c, m, si, 0, false); rate > 0 {
			return si
		}
	}
	return -1
}

// elasticTemporal lets m share a gpu-let in time.
func (s *state) elasticTemporal(m, n int) bool {
	e := s.env
	for g := 0; g < n; g++ {
		c := e.gpus[g].class
		for i := range s.gpus[g] {
			if slices.ContainsFunc(s.gpus[g][i].slots, func(sl slot) bool { return sl.m == m }) {
				continue
			}
			parts := clone(s.gpus[g])
			parts[i].slots = append(parts[i].slots, slot{m: m})
			want := s.missing(m)
			if e.grow(c, parts, i, len(parts[i].slots)-1, want, want/8) > 0 {
				s.set(g, parts)
				return true
			}
		}
	}
	return false
}

func (e *env) shareSum(c int, parts []part) int {
	sum := 0
	for i := range parts {
		sum += e.classes[c].shares[parts[i].si]
	}
	return sum
}

// idealShare is min(p_eff, p_req) as an index into the class's shares, -1 when no share serves m.
func (e *env) idealShare(c, m int, rate float64, rules elasticRules) int {
	required := -1
	for si := range e.classes[c].shares {
		v, _ := e.best(c, m, si, 0, false)
		if v <= 0 || !e.classes[c].measured[si] {
			continue
		}
		required = si
		if v >= rate {
			break
		}
	}
	if required < 0 || rules.wholeFit {
		return required
	}
	return min(required, e.knee(c, m))
}

// knee is the knee of the rate over the shares, as an index: what the paper calls the most efficient
// partition. Shares that no profile measured do not count.
func (e *env) knee(c, m int) int {
	var rates []profile.RateAt
	var index []int
	for si, share := range e.classes[c].shares {
		rate, _ := e.best(c, m, si, 0, false)
		if rate <= 0 || !e.classes[c].measured[si] {
			continue
		}
		rates, index = append(rates, profile.RateAt{Share: share, RPS: rate}), append(index, si)
	}
	if k := profile.Knee(rates); k >= 0 {
		return index[k]
	}
	return -1
}
