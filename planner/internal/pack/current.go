package pack

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/gpulet/gpulet/shared/plan"
)

// moveCost is what loading a model somewhere new costs, in GPUs: a warm-up, and memory for two
// copies until the old one is gone. Twenty moves are worth one GPU.
const moveCost = 0.05

// nearCurrent chooses between a fresh plan and two that keep the current gpu-lets: the one that serves
// more, else the one with the lower cost in GPUs and moves.
func (g *search) nearCurrent(fresh *state) *state {
	kept := g.keep()
	if same := g.asItIs(); same != nil && (!kept.complete() || g.cost(same) < g.cost(kept)) {
		kept = same
	}
	fresh.match(g.env.in.Current)
	switch a, b := kept.goodput(), fresh.goodput(); {
	case a > b*(1+1e-9):
		return kept
	case b > a*(1+1e-9):
		return fresh
	}
	if g.cost(kept) <= g.cost(fresh) {
		return kept
	}
	return fresh
}

// cost prices a state by the GPUs it uses and the moves it takes to get there.
func (g *search) cost(s *state) float64 {
	return float64(s.used()) + moveCost*float64(g.moves(s))
}

// moves counts the models that a state would load somewhere new; none without a current plan.
func (g *search) moves(s *state) int {
	if g.env.in.Current == nil {
		return 0
	}
	return plan.Diff(*g.env.in.Current, s.result("", Options{}).Plan).Moves()
}

// asItIs keeps every gpu-let, with the same part of its models' rates as in the current plan; nil where
// that does not carry the rates. It moves nothing, however the plan was found.
func (g *search) asItIs() *state {
	s := newState(g.env)
	s.adopt(g.env.in.Current)
	s.recount()
	for gpu, parts := range s.gpus {
		for i := range parts {
			for k := range parts[i].slots {
				sl := &parts[i].slots[k]
				sl.rate *= g.env.models[sl.m].rate / s.served[sl.m]
			}
			parts[i].slots = slices.DeleteFunc(parts[i].slots, func(sl slot) bool { return !(sl.rate > 0) })
		}
		parts = slices.DeleteFunc(parts, func(p part) bool { return len(p.slots) == 0 })
		if len(parts) > 0 && !g.env.settle(g.env.gpus[gpu].class, parts) {
			return nil
		}
		s.gpus[gpu] = parts
	}
	if s.recount(); !s.complete() {
		return nil
	}
	return s
}

// keep starts from the current gpu-lets, gives them the new rates, and only then adds to them.
func (g *search) keep() *state {
	s := newState(g.env)
	s.adopt(g.env.in.Current)
	for gpu := range s.gpus {
		g.rerate(s, gpu)
	}
	s.dropEmpty()
	g.insert(s)
	g.extend(s)
	g.construct(s, g.price)
	if !s.complete() && g.budget > 0 {
		g.repair(s, g.budget/4, g.lack)
	}
	return s
}

// adopt cuts the devices as the current plan does, at its rates. Nothing of it is settled or counted.
func (s *state) adopt(current *plan.Plan) {
	e := s.env
	device := map[string]int{}
	for gpu, d := range e.gpus {
		device[d.gpu.Name()] = gpu
	}
	index := map[string]int{}
	for m := range e.models {
		index[e.models[m].name] = m
	}
	for _, old := range current.Gpulets {
		gpu, ok := device[old.Device()]
		if !ok || e.gpus[gpu].gpu.Type != old.GPUType {
			continue
		}
		si := slices.Index(e.classes[e.gpus[gpu].class].shares, old.Share)
		if si < 0 {
			continue
		}
		p := part{si: si}
		for _, a := range old.Models {
			if m, ok := index[a.Model]; ok && e.tables[e.gpus[gpu].class][m] != nil {
				p.slots = append(p.slots, slot{m: m, rate: a.RateRPS})
			}
		}
		s.gpus[gpu] = append(s.gpus[gpu], p)
	}
}

// rerate gives the slots of a device as much of what is missing as they take.
func (g *search) rerate(s *state, gpu int) {
	c := g.env.gpus[gpu].class
	parts := clone(s.gpus[gpu])
	for i := range parts {
		parts[i].slots = nil
	}
	for i := range s.gpus[gpu] {
		for _, sl := range s.gpus[gpu][i].slots {
			left := s.missing(sl.m)
			if left <= 0 {
				continue
			}
			trial := clone(parts)
			k := len(trial[i].slots)
			trial[i].slots = append(trial[i].slots, slot{m: sl.m})
			if rate := g.env.grow(c, trial, i, k, left, left/1024); rate > 0 {
				parts = trial
				s.served[sl.m] += rate
			}
		}
	}
	s.gpus[gpu] = parts
	s.recount()
}

// extend cuts gpu-lets for what is missing out of the free share of devices in use.
func (g *search) extend(s *state) {
	for _, gpu := range s.busy() {
		for m := range g.env.models {
			if s.missing(m) > 0 && g.price[m] > 0 {
				g.extendWith(s, gpu, m)
			}
		}
	}
}

func (g *search) extendWith(s *state, gpu, m int) {
	e := g.env
	c := e.gpus[gpu].class
	free := 100 - e.shareSum(c, s.gpus[gpu])
	for si, share := range e.classes[c].shares {
		if share > free {
			return
		}
		most, _ := e.best(c, m, si, 0, false)
		if most <= 0 {
			continue
		}
		want := min(most, s.missing(m))
		if want < s.missing(m) && si+1 < len(e.classes[c].shares) && e.classes[c].shares[si+1] <= free {
			continue // a larger share still fits
		}
		parts := append(clone(s.gpus[gpu]), part{si, []slot{{m: m}}})
		if e.grow(c, parts, len(parts)-1, 0, want, want/4) > 0 {
			s.set(gpu, parts)
			return
		}
	}
}

// match moves the contents of devices within their class to where the current plan has the most
// like them: first devices that are exactly alike, then those with most in common.
func (s *state) match(current *plan.Plan) {
	byDevice := map[string][]string{}
	for _, g := range current.Gpulets {
		for _, a := range g.Models {
			byDevice[g.Device()] = append(byDevice[g.Device()], fmt.Sprint(g.Share, a.Model))
		}
	}
	var want, have []contents
	for gpu, d := range s.env.gpus {
		want = append(want, newContents(gpu, d.class, byDevice[d.gpu.Name()]))
		have = append(have, newContents(gpu, d.class, s.contents(gpu)))
	}
	to := pair(want, have)
	moved := make([][]part, len(s.gpus))
	for gpu := range s.gpus {
		moved[to[gpu]] = s.gpus[gpu]
	}
	s.gpus = moved
}

// contents says what is on a device, as sorted words of share and model.
type contents struct {
	gpu, class int
	words      []string
	key        string
}

func newContents(gpu, class int, words []string) contents {
	sort.Strings(words)
	return contents{gpu, class, words, fmt.Sprint(class, " ", strings.Join(words, ","))}
}

func (s *state) contents(gpu int) []string {
	var out []string
	cl := &s.env.classes[s.env.gpus[gpu].class]
	for _, p := range s.gpus[gpu] {
		for _, sl := range p.slots {
			out = append(out, fmt.Sprint(cl.shares[p.si], s.env.models[sl.m].name))
		}
	}
	return out
}

// pair assigns each of have to one of want, of the same class; the result is by index of have.
func pair(want, have []contents) []int {
	to := make([]int, len(have))
	for i := range to {
		to[i] = -1
	}
	taken := make([]bool, len(want))
	exact := map[string][]int{}
	for w := range want {
		exact[want[w].key] = append(exact[want[w].key], w)
	}
	for h := range have {
		if list := exact[have[h].key]; len(list) > 0 {
			to[h], exact[have[h].key] = list[0], list[1:]
			taken[list[0]] = true
		}
	}
	for h := range have {
		if to[h] >= 0 {
			continue
		}
		best, most := -1, -1
		for w := range want {
			if taken[w] || want[w].class != have[h].class {
				continue
			}
			if n := common(want[w].words, have[h].words); n > most {
				best, most = w, n
			}
		}
		to[h], taken[best] = best, true
	}
	return to
}

// common counts words that two sorted lists share.
func common(a, b []string) int {
	n := 0
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] == b[j]:
			n, i, j = n+1, i+1, j+1
		case a[i] < b[j]:
			i++
		default:
			j++
		}
	}
	return n
}

// spread swaps gpu-lets of the same share between devices of a class where a model has several
// gpu-lets and all on one device, so that a device that fails does not take the model along. It
// only swaps what settles.
func (s *state) spread() {
	for m := range s.env.models {
		at := s.placesOf(m)
		if len(at) < 2 || len(s.gpus) < 2 || s.env.in.Current != nil {
			continue
		}
		same := true
		for _, p := range at[1:] {
			same = same && p[0] == at[0][0]
		}
		if same {
			s.swapAway(at[0][0], at[0][1])
		}
	}
}

// placesOf lists the (device, part) of a model.
func (s *state) placesOf(m int) [][2]int {
	var out [][2]int
	for gpu := range s.gpus {
		for i := range s.gpus[gpu] {
			if slices.ContainsFunc(s.gpus[gpu][i].slots, func(sl slot) bool { return sl.m == m }) {
				out = append(out, [2]int{gpu, i})
			}
		}
	}
	return out
}

func (s *state) swapAway(gpu, i int) {
	c := s.env.gpus[gpu].class
	for other := range s.gpus {
		if other == gpu || s.env.gpus[other].class != c {
			continue
		}
		for j := range s.gpus[other] {
			if s.gpus[other][j].si != s.gpus[gpu][i].si || s.concentrates(other, j, gpu) {
				continue
			}
			a, b := clone(s.gpus[gpu]), clone(s.gpus[other])
			a[i], b[j] = b[j], a[i]
			if s.env.settle(c, a) && s.env.settle(c, b) {
				s.gpus[gpu], s.gpus[other] = a, b
				return
			}
		}
	}
}

// concentrates reports whether moving part j of a device to another would put all gpu-lets of one
// of its models there.
func (s *state) concentrates(gpu, j, to int) bool {
	for _, sl := range s.gpus[gpu][j].slots {
		at := s.placesOf(sl.m)
		there := 0
		for _, p := range at {
			if p[0] == to {
				there++
			}
		}
		if len(at) > 1 && there == len(at)-1 {
			return true
		}
	}
	return false
}
