package pack

import (
	"cmp"
	"math"
	"slices"
)

// bulkGPUs is from how many GPUs' worth of demand on patterns are repeated.
const bulkGPUs = 6

// pattern is a cut of one GPU of a class, settled, with what it gives of each model.
type pattern struct {
	class int
	parts []part
	rate  []float64 // by row
}

// program is a covering program solved by column generation over the rows' models.
type program struct {
	*cover
	rows     []int
	patterns []pattern // by tag
	bound    float64   // the best lower bound that its prices proved, if all intervals were looked at
}

// bulk covers large demands with repeated patterns, class after class while devices last.
func (g *search) bulk(s *state) {
	for range len(g.env.classes) {
		free := s.freeByClass()
		if g.lack(s) < bulkGPUs || slices.Max(free) == 0 {
			return
		}
		d := g.demand(s, g.price)
		if lp := g.generate(d, newPricer(g.env, d.models, free, bulkIntervals, g.fill.pays), free, bulkReach); lp != nil {
			g.use(s, lp)
		}
	}
}

func (s *state) freeByClass() []int {
	free := make([]int, len(s.env.classes))
	for gpu := range s.gpus {
		if len(s.gpus[gpu]) == 0 {
			free[s.env.gpus[gpu].class]++
		}
	}
	return free
}

// bulkIntervals is into how many intervals pressure is divided to find patterns for a plan, and
// bulkReach how far around the last winner they are looked for.
const (
	bulkIntervals = 16
	bulkReach     = 3
)

// hopeless is the price, in GPUs, of serving all of a model that runs on none of the classes.
const hopeless = 1e6

// closeEnough is the relative gain below which another pattern is not worth its time.
const closeEnough = 1e-3

// generate solves the covering program over the classes with free devices; nil when nothing can be
// covered.
func (g *search) generate(d demand, pricer *pricer, free []int, reach int) *program {
	lp := &program{}
	var need, alone []float64
	for k, m := range d.models {
		p := g.pureBest(d, k, free)
		if p.class < 0 { // not on the classes that are left: price it out
			p = pattern{-1, nil, []float64{d.left[k] / hopeless}}
		}
		lp.rows = append(lp.rows, m)
		need = append(need, d.left[k])
		alone = append(alone, p.rate[0])
		lp.patterns = append(lp.patterns, p)
	}
	if len(need) == 0 {
		return nil
	}
	lp.cover = newCover(need, alone)
	g.converge(lp, pricer, free, reach, 2*len(need)+40)
	return lp
}

// converge prices until nothing improves, at most rounds times.
func (g *search) converge(lp *program, pricer *pricer, free []int, reach, rounds int) {
	for range rounds {
		if !g.improve(lp, pricer, free, reach) {
			return
		}
	}
}

// improve prices once: it tightens the bound and lets the pattern in that really earns most; false
// when none is worth it.
func (g *search) improve(lp *program, pricer *pricer, free []int, reach int) bool {
	values := make([]float64, len(free))
	var found []pattern
	for c := range free {
		if free[c] == 0 {
			continue
		}
		v, cuts := pricer.price(c, lp.cover.price, reach)
		values[c] = v
		if v <= 1+closeEnough {
			continue
		}
		for _, k := range cuts {
			found = append(found, g.realiseCut(lp, c, k))
		}
	}
	worth := 0.0
	for k, need := range lp.need {
		worth += lp.cover.price[k] * need
	}
	if reach == proof {
		lp.bound = max(lp.bound, g.env.dual(worth, values))
	}
	slices.SortStableFunc(found, func(a, b pattern) int { return cmp.Compare(lp.worth(b), lp.worth(a)) })
	entered := false
	for _, p := range found { // prices change with every pattern that enters
		if lp.worth(p) > 1+closeEnough && lp.enter(column{1, p.rate, len(lp.patterns)}) {
			lp.patterns = append(lp.patterns, p)
			entered = true
		}
	}
	return entered
}

// worth is what a pattern earns at the program's prices.
func (lp *program) worth(p pattern) float64 {
	v := 0.0
	for k, r := range p.rate {
		v += r * lp.cover.price[k]
	}
	return v
}

// pureBest is the best pattern for a model alone, over the classes with free devices.
func (g *search) pureBest(d demand, k int, free []int) pattern {
	best := pattern{class: -1}
	top := 0.0
	one := demand{models: d.models[k : k+1], left: []float64{math.Inf(1)}, price: []float64{1}}
	for c := range free {
		if free[c] == 0 {
			continue
		}
		parts, _ := g.fill.fill(c, one)
		v := 0.0
		for i := range parts {
			v += parts[i].slots[0].rate
		}
		if v > top {
			best, top = pattern{c, parts, []float64{v}}, v
		}
	}
	return best
}

// realiseCut finds the rates that a cut really gives.
func (g *search) realiseCut(lp *program, c int, k cutting) pattern {
	f := g.fill
	var parts []part
	for i, si := range k.si {
		parts = append(parts, part{si, []slot{{m: lp.rows[k.row[i]], rate: k.rate[i]}}})
	}
	if !g.env.settle(c, parts) && !f.settleDown(c, parts) {
		parts = f.shrinkToFit(c, parts)
	}
	p := pattern{c, parts, make([]float64, len(lp.rows))}
	for i := range parts {
		f.raisePart(c, parts, i, math.Inf(1))
	}
	for i := range parts {
		for r, m := range lp.rows {
			if m == parts[i].slots[0].m {
				p.rate[r] += parts[i].slots[0].rate
			}
		}
	}
	return p
}

// use places patterns as often as the program needs them in full.
func (g *search) use(s *state, lp *program) {
	type times struct{ tag, n int }
	var list []times
	for i, col := range lp.basis {
		if col.tag >= 0 && lp.x[i] >= 1 {
			list = append(list, times{col.tag, int(lp.x[i] + 1e-9)})
		}
	}
	slices.SortFunc(list, func(a, b times) int { return cmp.Or(cmp.Compare(b.n, a.n), cmp.Compare(a.tag, b.tag)) })
	next := make([]int, len(g.env.classes)) // where to look for a free device, by class
	for _, t := range list {
		p := lp.patterns[t.tag]
		if p.class < 0 {
			continue
		}
		for range t.n {
			gpu := s.nextFree(next[p.class], p.class)
			if gpu < 0 {
				break
			}
			next[p.class] = gpu + 1
			s.set(gpu, g.capped(s, p))
			g.steps++
		}
	}
}

// capped copies a pattern, serving no more of a model than is missing.
func (g *search) capped(s *state, p pattern) []part {
	parts := clone(p.parts)
	left := map[int]float64{}
	changed := false
	for i := range parts {
		sl := &parts[i].slots[0]
		if _, ok := left[sl.m]; !ok {
			left[sl.m] = s.missing(sl.m)
		}
		if left[sl.m] < sl.rate {
			sl.rate, changed = left[sl.m], true
		}
		left[sl.m] -= sl.rate
	}
	if changed {
		parts = slices.DeleteFunc(parts, func(q part) bool { return q.slots[0].rate <= 0 })
		g.env.settle(p.class, parts)
	}
	return parts
}

// nextFree is the first free device of a class from index on; -1 when there is none.
func (s *state) nextFree(from, class int) int {
	for gpu := from; gpu < len(s.gpus); gpu++ {
		if s.env.gpus[gpu].class == class && len(s.gpus[gpu]) == 0 {
			return gpu
		}
	}
	return -1
}
