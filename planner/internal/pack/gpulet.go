package pack

import (
	"math"
	"slices"

	"github.com/gpulet/gpulet/planner/internal/problem"
)

func init() { algorithms["gpulet"] = Gpulet }

// Gpulet cuts GPUs into as many gpu-lets as pays. It
//
//  1. covers the bulk of large rates with patterns, cuts of one GPU that are repeated, found by
//     column generation;
//  2. fills the remaining GPUs one by one, by knapsack at shadow prices, small rates made up into
//     gpu-lets that several models share in time;
//  3. repairs: takes GPUs out and fills them anew in another order while something is missing;
//  4. saves GPUs: empties the least used one into the others while that works.
//
// Every GPU settles with its interference before it is accepted, so whatever the search does, its
// plan is sound; it stops anywhere and returns the best so far.
func Gpulet(in problem.Input, opt Options) Result {
	e := newEnv(&in)
	e.roomy = opt.Headroom
	g := newSearch(e, opt)
	s := g.solve()
	if in.Current != nil {
		s = g.nearCurrent(s)
	}
	s.trim()
	s.spread()
	if opt.Headroom {
		s = g.headroom(s)
		s.burst()
	}
	res := s.result("gpulet", opt)
	if !s.complete() {
		res.Plan.DesiredGPUs = g.desired(s)
	}
	res.Steps = g.steps
	return res
}

// search is one run of Gpulet.
type search struct {
	env    *env
	fill   *filler
	price  []float64 // GPUs per unit of a model's rate
	steps  int       // used
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
	g.bulk(s)
	g.construct(s, g.price)
	if !s.complete() {
		s = g.retry(s)
	}
	if s.complete() {
		g.save(s)
	}
	return s
}

// headroom are factors on the rates for which a plan is tried when none is found for the rates
// themselves: a plan for more is a plan for less, and the knapsack is not monotone.
var headroom = [...]float64{1.01, 1.03, 1.07}

// retry goes on where the first construction left something out: it repairs, tries plans for
// somewhat higher rates, and if it cannot serve everything serves what is worth most.
func (g *search) retry(s *state) *state {
	if g.budget <= 0 || g.nothingFits() {
		return s
	}
	if g.repair(s, g.budget/2, g.lack) {
		return s
	}
	for _, factor := range headroom {
		if more := g.forMore(factor); more.complete() {
			return more
		}
	}
	if g.repair(s, g.budget/2, g.lack) {
		return s
	}
	if other := g.baselines(); other != nil {
		return other
	}
	return g.shed(s)
}

// baselinesUpTo is the largest fleet on which the baselines are asked when the search has failed.
const baselinesUpTo = 8

// baselines asks the other algorithms, so that whatever one of them serves is served; nil when none
// serves everything.
func (g *search) baselines() *state {
	if len(g.env.gpus) > baselinesUpTo {
		return nil
	}
	for _, ask := range []func() *state{
		func() *state { return g.env.squishy(50, 2) },
		func() *state { return g.env.squishy(100, 1) },
		func() *state { return g.env.elastic(elasticRules{}) },
		func() *state { return g.env.elastic(elasticRules{noTemporal: true, wholeFit: true}) },
		g.env.ideal,
	} {
		if s := ask(); s.complete() {
			return s
		}
	}
	return nil
}

// nothingFits reports whether some model with a rate can run nowhere, so that no search helps.
func (g *search) nothingFits() bool {
	for m := range g.env.models {
		if g.env.models[m].rate > 0 && g.price[m] > 0 {
			return false
		}
	}
	return true
}

// forMore plans for rates times factor and then takes back what is too much.
func (g *search) forMore(factor float64) *state {
	h := g.scaled(factor)
	s := newState(h.env)
	h.construct(s, h.price)
	g.steps = h.steps
	s.env = g.env
	s.trim()
	return s
}

// scaled is the search for rates times factor, those of offline models aside.
func (g *search) scaled(factor float64) *search {
	env := *g.env
	env.models = slices.Clone(g.env.models)
	for m := range env.models {
		if !env.models[m].offline {
			env.models[m].rate *= factor
		}
	}
	h, fill := *g, *g.fill
	h.env, fill.env, h.fill = &env, &env, &fill
	return &h
}

// trim takes back what is served beyond the rates, from the last devices first.
func (s *state) trim() {
	for gpu := len(s.gpus) - 1; gpu >= 0; gpu-- {
		parts := clone(s.gpus[gpu])
		changed := false
		for i := range parts {
			for k := range parts[i].slots {
				sl := &parts[i].slots[k]
				over := s.served[sl.m] - s.env.models[sl.m].rate
				if cut := min(over, sl.rate); cut > s.env.models[sl.m].rate*1e-9 {
					s.served[sl.m] -= cut
					sl.rate -= cut
					changed = true
				}
			}
			parts[i].slots = slices.DeleteFunc(parts[i].slots, func(sl slot) bool { return sl.rate <= 0 })
		}
		if !changed {
			continue
		}
		parts = slices.DeleteFunc(parts, func(p part) bool { return len(p.slots) == 0 })
		s.env.settle(s.env.gpus[gpu].class, parts)
		s.gpus[gpu] = parts
	}
	s.recount()
}

// recount sums up what is served.
func (s *state) recount() {
	clear(s.served)
	for _, parts := range s.gpus {
		for i := range parts {
			for _, sl := range parts[i].slots {
				s.served[sl.m] += sl.rate
			}
		}
	}
}

// shed looks for the plan with the most goodput by worth: from what there is, and from a
// construction in which worth is the price.
func (g *search) shed(s *state) *state {
	worth := make([]float64, len(g.env.models))
	for m := range worth {
		if g.price[m] > 0 {
			worth[m] = g.env.models[m].worth
		}
	}
	other := newState(g.env)
	g.construct(other, worth)
	if other.goodput() > s.goodput() {
		s = other
	}
	h := *g
	h.price = worth
	h.repair(s, g.budget/4, func(s *state) float64 { return -s.goodput() })
	g.steps, g.rand = h.steps, h.rand
	return s
}

// desired is how many GPUs would serve everything: the devices there are and as many more, of the
// most frequent class, as a construction needs.
func (g *search) desired(s *state) int {
	n := len(g.env.gpus)
	if n == 0 || g.nothingFits() {
		return n
	}
	more := g.lack(s)
	if n > desiredExactly || more > desiredAtMost {
		return n + int(math.Ceil(more))
	}
	in := *g.env.in
	in.Current = nil
	in.Models = slices.DeleteFunc(slices.Clone(in.Models), func(m problem.Model) bool {
		return !slices.ContainsFunc(g.env.models, func(x model) bool { return x.name == m.Name && g.priceOf(x.name) > 0 })
	})
	for range 8 {
		extra := max(1, int(math.Ceil(more)))
		in.GPUs = append(slices.Clip(g.env.in.GPUs), make([]problem.GPU, extra)...)
		for i := range extra {
			v := g.env.gpus[g.mostFrequent()].gpu
			v.Host, v.Index = "one-more", i
			in.GPUs[n+i] = v
		}
		e := newEnv(&in)
		h := newSearch(e, Options{Steps: -1})
		t := newState(e)
		h.construct(t, h.price)
		if t.complete() {
			return max(n+1, t.used()) // on other types it may be fewer, but those there are do not do
		}
		more = float64(extra) + max(1, h.lack(t))
	}
	return n + int(math.Ceil(more))
}

// desiredExactly is the largest fleet, and desiredAtMost the most GPUs lacking, for which the GPUs
// that would do are planned, not estimated.
const (
	desiredExactly = 64
	desiredAtMost  = 1000
)

func (g *search) priceOf(name string) float64 {
	for m := range g.env.models {
		if g.env.models[m].name == name {
			return g.price[m]
		}
	}
	return 0
}

// mostFrequent is a device of the class with the most devices.
func (g *search) mostFrequent() int {
	best := 0
	for gpu := range g.env.gpus {
		if g.env.classes[g.env.gpus[gpu].class].count > g.env.classes[g.env.gpus[best].class].count {
			best = gpu
		}
	}
	return best
}

// construct fills free devices one by one until nothing is missing or none is left. What is small
// first goes where there is slack in the devices that it has filled.
func (g *search) construct(s *state, price []float64) {
	var filled []int
	for gpu := range s.gpus {
		if len(s.gpus[gpu]) > 0 {
			continue
		}
		c := g.env.gpus[gpu].class
		g.insertSmall(s, c, filled)
		d := g.demand(s, price)
		if len(d.models) == 0 {
			return
		}
		parts, _ := g.fill.fill(c, g.fill.bundle(c, d))
		g.steps++
		if len(parts) > 0 {
			s.set(gpu, parts)
			filled = append(filled, gpu)
		}
	}
	g.insert(s)
}

// insertSmall inserts demands too small for a gpu-let of their own on class c into devices.
func (g *search) insertSmall(s *state, c int, devices []int) {
	for m := range g.env.models {
		if left := s.missing(m); left > 0 && g.price[m] > 0 {
			if si, rate := g.fill.smallest(c, len(g.fill.levels)-1, m); si >= 0 && left < smallPiece*rate {
				g.insertModel(s, m, devices)
			}
		}
	}
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

// unservedCost is what a model that is not fully served costs, in GPUs, however little it lacks.
const unservedCost = 0.05

// lack is what is missing, in GPUs.
func (g *search) lack(s *state) float64 {
	v := 0.0
	for m := range g.env.models {
		if missing := s.missing(m); missing > 0 && g.price[m] > 0 {
			v += missing*g.price[m] + unservedCost
		}
	}
	return v
}

// insert puts missing rates into the slack of gpu-lets that exist, sharing them in time.
func (g *search) insert(s *state) {
	busy := s.busy()
	for m := range g.env.models {
		if s.missing(m) > 0 && g.price[m] > 0 {
			g.insertModel(s, m, busy)
		}
	}
}

func (g *search) insertModel(s *state, m int, devices []int) {
	for _, gpu := range devices {
		for i := range s.gpus[gpu] {
			left := s.missing(m)
			if left <= 0 {
				return
			}
			if g.env.mayHold(g.env.gpus[gpu].class, &s.gpus[gpu][i], m) {
				g.insertPart(s, gpu, i, m, left)
			}
		}
	}
}

// mayHold is a quick necessary condition for a settled part to take some of m: with one batch of one
// more in its duty cycle, every model still has to meet its SLO.
func (e *env) mayHold(c int, p *part, m int) bool {
	t := e.tables[c][m]
	if t == nil || len(t.rows[p.si].ms) == 0 {
		return false
	}
	duty := 0.0
	for k := range p.slots {
		duty += p.slots[k].ms
		if p.slots[k].m == m {
			return p.slots[k].batch < t.maxBatch
		}
	}
	one := t.rows[p.si].ms[0]
	if duty += one; duty+one > e.models[m].slo {
		return false
	}
	for k := range p.slots {
		if duty+p.slots[k].ms > e.models[p.slots[k].m].slo {
			return false
		}
	}
	return true
}

// insertPart gives as much of left as it can to part i of a device.
func (g *search) insertPart(s *state, gpu, i, m int, left float64) {
	parts := clone(s.gpus[gpu])
	k := slices.IndexFunc(parts[i].slots, func(sl slot) bool { return sl.m == m })
	least := left / 16
	if k < 0 {
		k = len(parts[i].slots)
		parts[i].slots = append(parts[i].slots, slot{m: m})
	} else {
		least += parts[i].slots[k].rate
		left += parts[i].slots[k].rate
	}
	if g.env.grow(g.env.gpus[gpu].class, parts, i, k, left, least) > 0 {
		s.set(gpu, parts)
	}
}

// repair takes a few devices out and fills them anew at disturbed prices, keeping what makes the
// objective no worse, until nothing is missing or the steps are used up.
func (g *search) repair(s *state, steps int, objective func(*state) float64) bool {
	lack := objective(s)
	busy := s.busy()
	for n := 0; n < steps && len(busy) > 0 && !s.complete(); n++ {
		g.steps++
		chosen := g.choose(busy)
		undo := s.take(chosen)
		g.refill(s, chosen)
		if now := objective(s); now <= lack {
			lack = now
			continue
		}
		s.put(chosen, undo)
	}
	return s.complete()
}

// choose picks one to three of the devices.
func (g *search) choose(busy []int) []int {
	n := min(len(busy), 1+g.next(3))
	chosen := make([]int, 0, n)
	for len(chosen) < n {
		if gpu := busy[g.next(len(busy))]; !slices.Contains(chosen, gpu) {
			chosen = append(chosen, gpu)
		}
	}
	return chosen
}

// refill fills devices that were taken out.
func (g *search) refill(s *state, chosen []int) {
	price := g.disturbed()
	for _, gpu := range chosen {
		c := g.env.gpus[gpu].class
		d := g.demand(s, price)
		if g.next(2) == 0 {
			d = g.fill.bundle(c, d)
		}
		if parts, _ := g.fill.fill(c, d); len(parts) > 0 {
			s.set(gpu, parts)
		}
	}
	g.insert(s)
}

// take empties devices and returns what they held.
func (s *state) take(chosen []int) [][]part {
	held := make([][]part, len(chosen))
	for i, gpu := range chosen {
		held[i] = s.gpus[gpu]
		s.set(gpu, nil)
	}
	return held
}

// put is the inverse of take.
func (s *state) put(chosen []int, held [][]part) {
	for i, gpu := range chosen {
		s.set(gpu, held[i])
	}
}

// save empties the least used device into the others while that works.
func (g *search) save(s *state) {
	for {
		gpu := g.leastUsed(s)
		if gpu < 0 || g.steps >= g.budget {
			return
		}
		before := s.copy()
		s.set(gpu, nil)
		g.insert(s)
		if !s.complete() && !g.repair(s, min(saveSteps, g.budget-g.steps), g.lack) {
			*s = *before
			return
		}
	}
}

// saveSteps bounds the repair that follows the emptying of a device.
const saveSteps = 24

// leastUsed is the device in use that does the least work; -1 when emptying it could not help.
func (g *search) leastUsed(s *state) int {
	least, at := math.Inf(1), -1
	total := 0.0
	n := 0
	for gpu := range s.gpus {
		if len(s.gpus[gpu]) == 0 {
			continue
		}
		work := 0.0
		for _, p := range s.gpus[gpu] {
			for _, sl := range p.slots {
				work += sl.rate * g.price[sl.m]
			}
		}
		total += work
		n++
		if work < least {
			least, at = work, gpu
		}
	}
	if n == 0 || total > float64(n-1) { // prices are optimistic: the rest cannot hold it
		return -1
	}
	return at
}

func (s *state) copy() *state {
	return &state{env: s.env, gpus: slices.Clone(s.gpus), served: slices.Clone(s.served)}
}

// busy lists the devices in use.
func (s *state) busy() []int {
	var out []int
	for gpu := range s.gpus {
		if len(s.gpus[gpu]) > 0 {
			out = append(out, gpu)
		}
	}
	return out
}

// disturbed are the prices times random factors.
func (g *search) disturbed() []float64 {
	price := slices.Clone(g.price)
	for m := range price {
		price[m] *= 0.7 + 0.6*float64(g.next(1024))/1024
	}
	return price
}

// next is a random number below n: xorshift, so that a run depends on its input alone.
func (g *search) next(n int) int {
	g.rand ^= g.rand << 13
	g.rand ^= g.rand >> 7
	g.rand ^= g.rand << 17
	return int(g.rand % uint64(n))
}
