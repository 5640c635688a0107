package pack

import (
	"cmp"
	"slices"

	"github.com/gpulet/gpulet/planner/internal/problem"
)

func init() { algorithms["gpulet"] = Gpulet }

// Gpulet cuts GPUs into as many gpu-lets as pays. It
//
//  1. fills GPUs by knapsack at shadow prices, whole groups of identical GPUs at a time while the
//     rates last for several, then one by one;
//  2. merges what is small in time into gpu-lets with slack;
//  3. repairs: takes GPUs out and fills them anew in another order while something is missing;
//  4. saves GPUs: empties the least used ones into the others while that works.
//
// Every GPU settles with its interference before it is accepted, so whatever the search does, its
// plan is sound; it stops anywhere and returns the best so far.
func Gpulet(in problem.Input, opt Options) Result {
	e := newEnv(&in)
	g := newSearch(e, opt)
	s := g.solve()
	res := s.result("gpulet")
	res.Steps = g.steps
	return res
}

// search is one run of Gpulet.
type search struct {
	env    *env
	fill   *filler
	price  []float64
	steps  int // used
	budget int
	rand   uint64
}

func newSearch(e *env, opt Options) *search {
	f := newFiller(e)
	g := &search{env: e, fill: f, price: f.prices(), budget: opt.Steps, rand: 0x9e3779b97f4a7c15}
	switch {
	case opt.Steps == 0:
		g.budget = 400
	case opt.Steps < 0:
		g.budget = 0
	}
	return g
}

func (g *search) solve() *state {
	s := newState(g.env)
	g.construct(s, g.price)
	if !s.complete() {
		g.repair(s)
	}
	return s
}

// construct fills free devices until nothing is missing or none is left.
func (g *search) construct(s *state, price []float64) {
	for gpu := 0; gpu < len(s.gpus); gpu++ {
		if len(s.gpus[gpu]) > 0 {
			continue
		}
		d := g.demand(s, price)
		if len(d.models) == 0 {
			break
		}
		parts, _ := g.fill.fill(g.env.gpus[gpu].class, d)
		g.steps++
		if len(parts) == 0 {
			continue
		}
		s.set(gpu, parts)
		gpu += g.repeat(s, gpu)
	}
	g.insert(s)
}

// repeat copies the parts of a device to the following free ones of its class while the rates last,
// and returns how many it filled.
func (g *search) repeat(s *state, gpu int) int {
	e := g.env
	parts := s.gpus[gpu]
	per := make(map[int]float64, len(parts))
	for i := range parts {
		for _, sl := range parts[i].slots {
			per[sl.m] += sl.rate
		}
	}
	copies := len(s.gpus)
	for m, rate := range per {
		copies = min(copies, int(s.missing(m)/rate))
	}
	n := 0
	for n < copies && gpu+n+1 < len(s.gpus) && len(s.gpus[gpu+n+1]) == 0 && e.gpus[gpu+n+1].class == e.gpus[gpu].class {
		n++
		s.set(gpu+n, clone(parts))
	}
	return n
}

// demand lists what is missing, in the order of the models.
func (g *search) demand(s *state, price []float64) demand {
	var d demand
	for m := range g.env.models {
		if left := s.missing(m); left > 0 && price[m] > 0 {
			d.models = append(d.models, m)
			d.left = append(d.left, left)
			d.price = append(d.price, price[m])
		}
	}
	return d
}

// lack is what is missing, in GPUs.
func (g *search) lack(s *state) float64 {
	v := 0.0
	for m := range g.env.models {
		v += s.missing(m) * g.price[m]
	}
	return v
}

// insert puts missing rates into the slack of gpu-lets that exist, sharing them in time.
func (g *search) insert(s *state) {
	for m := range g.env.models {
		if s.missing(m) > 0 && g.price[m] > 0 {
			g.insertModel(s, m)
		}
	}
}

func (g *search) insertModel(s *state, m int) {
	e := g.env
	for gpu := range s.gpus {
		if len(s.gpus[gpu]) == 0 {
			continue
		}
		c := e.gpus[gpu].class
		for i := range s.gpus[gpu] {
			left := s.missing(m)
			if left <= 0 {
				return
			}
			parts := clone(s.gpus[gpu])
			k := slices.IndexFunc(parts[i].slots, func(sl slot) bool { return sl.m == m })
			least := left / 16
			if k < 0 {
				k = len(parts[i].slots)
				parts[i].slots = append(parts[i].slots, slot{m: m})
			} else {
				left += parts[i].slots[k].rate
				least = parts[i].slots[k].rate
			}
			if e.grow(c, parts, i, k, left, least) > 0 {
				s.set(gpu, parts)
			}
		}
	}
}

// repair takes a few devices out and fills them anew at disturbed prices, keeping what lacks less.
func (g *search) repair(s *state) {
	lack := g.lack(s)
	busy := g.busiest(s)
	for lack > 0 && g.steps < g.budget && len(busy) > 0 {
		g.steps++
		n := min(len(busy), 1+g.next(3))
		chosen := make([]int, 0, n)
		for len(chosen) < n {
			if gpu := busy[g.next(len(busy))]; !slices.Contains(chosen, gpu) {
				chosen = append(chosen, gpu)
			}
		}
		undo := make([][]part, n)
		for i, gpu := range chosen {
			undo[i] = s.gpus[gpu]
			s.set(gpu, nil)
		}
		price := g.disturbed()
		for _, gpu := range chosen {
			if parts, _ := g.fill.fill(g.env.gpus[gpu].class, g.demand(s, price)); len(parts) > 0 {
				s.set(gpu, parts)
			}
		}
		g.insert(s)
		if now := g.lack(s); now <= lack {
			lack = now
			continue
		}
		for i, gpu := range chosen {
			s.set(gpu, undo[i])
		}
	}
}

// disturbed are the prices times random factors.
func (g *search) disturbed() []float64 {
	price := slices.Clone(g.price)
	for m := range price {
		price[m] *= 0.7 + 0.6*float64(g.next(1024))/1024
	}
	return price
}

// busiest lists the devices in use.
func (g *search) busiest(s *state) []int {
	var out []int
	for gpu := range s.gpus {
		if len(s.gpus[gpu]) > 0 {
			out = append(out, gpu)
		}
	}
	slices.SortStableFunc(out, func(a, b int) int { return cmp.Compare(a, b) })
	return out
}

// next is a random number below n: xorshift, so that a run depends on its input alone.
func (g *search) next(n int) int {
	g.rand ^= g.rand << 13
	g.rand ^= g.rand >> 7
	g.rand ^= g.rand << 17
	return int(g.rand % uint64(n))
}
