package pack

import (
	"math"
	"slices"
)

// filler finds, for one GPU at a time, the cut and the models that are worth most at given prices.
//
// It is a knapsack over the shares of the GPU. Interference couples the pieces, so the knapsack
// runs at a few assumed levels of pressure, and what it finds is then settled exactly: the level
// only guides the choice, it never decides what is sound.
type filler struct {
	env    *env
	levels []float64
	// rates[c][l][m] is the most that model m gets out of a total share on class c at level l.
	rates [][][]*split
	// emission[c] is the pressure of a whole GPU of class c full of its worst emitter.
	emission []float64
	units    []int // 100/unit by class
}

// split says how best to cut a total share into pieces for one model: by total share in units.
type split struct {
	piece []float64 // rate of one gpu-let, by index of its share
	rate  []float64
	last  []int8 // index of the last piece's share; -1: the same as with one unit less
}

// assumedLevels are the pressures assumed by the knapsack, relative to a GPU full of the worst
// emitter.
var assumedLevels = []float64{0.3, 0.55, 0.8}

func newFiller(e *env) *filler {
	f := &filler{env: e, levels: assumedLevels}
	if e.alone {
		f.levels = []float64{0}
	}
	for c := range e.classes {
		f.units = append(f.units, 100/e.classes[c].unit)
		f.emission = append(f.emission, e.emission[c])
		byLevel := make([][]*split, len(f.levels))
		for l := range byLevel {
			byLevel[l] = make([]*split, len(e.models))
		}
		f.rates = append(f.rates, byLevel)
	}
	return f
}

// worstEmission is the largest pressure per whole GPU that any model's row reaches.
func (e *env) worstEmission(c int) float64 {
	worst := 0.0
	if !e.pressure {
		return 0
	}
	for _, t := range e.tables[c] {
		if t == nil {
			continue
		}
		for si, r := range t.rows {
			for _, q := range r.coupling {
				worst = max(worst, q.Emit*100/float64(e.classes[c].shares[si]))
			}
		}
	}
	return worst
}

// split returns the table of model m on class c at level l, computing it on first use.
func (f *filler) split(c, l, m int) *split {
	if s := f.rates[c][l][m]; s != nil {
		return s
	}
	e := f.env
	cl := &e.classes[c]
	n := f.units[c]
	piece := make([]float64, len(cl.shares))
	s := &split{piece, make([]float64, n+1), make([]int8, n+1)}
	s.last[0] = -1
	for si := range cl.shares {
		piece[si] = f.piece(c, l, m, si)
	}
	for q := 1; q <= n; q++ {
		s.rate[q], s.last[q] = s.rate[q-1], -1
		for si, share := range cl.shares {
			k := share / cl.unit
			if k > q || piece[si] <= 0 {
				continue
			}
			if v := s.rate[q-k] + piece[si]; v > s.rate[q]*(1+1e-12) {
				s.rate[q], s.last[q] = v, int8(si)
			}
		}
	}
	f.rates[c][l][m] = s
	return s
}

// piece is the rate of one gpu-let at a level's assumed pressure. A gpu-let of the whole GPU has no
// neighbours.
func (f *filler) piece(c, l, m, si int) float64 {
	e := f.env
	share := e.classes[c].shares[si]
	if e.alone || share == 100 {
		rate, _ := e.best(c, m, si, 0, false)
		return rate
	}
	rate, _ := e.best(c, m, si, f.assumed(c, l, share), true)
	return rate
}

// pays reports whether one gpu-let of a share gives a model nearly as much as the best split of
// that share, at some level.
func (f *filler) pays(c, m, si int) bool {
	units := f.env.classes[c].shares[si] / f.env.classes[c].unit
	for l := range f.levels {
		if s := f.split(c, l, m); s.piece[si] > 0 && s.piece[si] >= 0.98*s.rate[units] {
			return true
		}
	}
	return false
}

// pieceOf is piece, from the table of all shares of a model at a level.
func (f *filler) pieceOf(c, l, m, si int) float64 { return f.split(c, l, m).piece[si] }

// assumed is the pressure on a share at a level: that of the rest of the GPU.
func (f *filler) assumed(c, l, share int) float64 {
	return f.levels[l] * f.emission[c] * float64(100-share) / 100
}

// demand is what a fill may serve: the models, what each lacks, and what a unit of rate is worth.
type demand struct {
	models []int
	left   []float64 // by position in models
	price  []float64 // by position in models
	// bundles are gpu-lets made up beforehand, to be taken whole or not at all.
	bundles []bundle
}

// bundle is a gpu-let shared in time by models that lack too little to fill one alone.
type bundle struct {
	class int
	part  part
	worth float64
}

// fill returns settled parts for one GPU of class c that serve demand, and their worth. It tries
// every level and keeps the best; nil when nothing can be served.
func (f *filler) fill(c int, d demand) ([]part, float64) {
	var best []part
	worth := 0.0
	for l := range f.levels {
		parts := f.realise(c, l, d, f.knapsack(c, l, d))
		if v := d.worth(parts); v > worth*(1+1e-9) {
			best, worth = parts, v
		}
	}
	if best == nil {
		return f.lone(c, d)
	}
	return best, worth
}

// lone is the single gpu-let, with the GPU to itself, that is worth most: for models that have no place
// beside others, and that run faster on a part of the GPU than on all of it.
func (f *filler) lone(c int, d demand) ([]part, float64) {
	var best []part
	worth := 0.0
	for k, m := range d.models {
		for si := range f.env.classes[c].shares {
			rate, _ := f.env.best(c, m, si, 0, false)
			rate = min(rate, d.left[k])
			parts := []part{{si, []slot{{m: m, rate: rate}}}}
			if v := d.price[k] * rate; v > worth*(1+1e-9) && f.env.settle(c, parts) {
				best, worth = parts, v
			}
		}
	}
	return best, worth
}

// worth prices the rates of parts, each model's up to what it lacks; a bundle counts as a whole.
func (d demand) worth(parts []part) float64 {
	v := 0.0
	for k, m := range d.models {
		rate := 0.0
		for i := range parts {
			for _, sl := range parts[i].slots {
				if sl.m == m {
					rate += sl.rate
				}
			}
		}
		v += d.price[k] * min(rate, d.left[k])
	}
	for _, b := range d.bundles {
		if slices.ContainsFunc(parts, b.in) {
			v += b.worth
		}
	}
	return v
}

// in reports whether p serves what the bundle is made of.
func (b bundle) in(p part) bool { return len(p.slots) > 0 && p.slots[0].m == b.part.slots[0].m }

// cut is what the knapsack chose: units by position in the demand, and the bundles taken.
type cut struct {
	units   []int
	bundles []int
}

// knapsack distributes the units of a GPU over the demand.
func (f *filler) knapsack(c, l int, d demand) cut {
	n := f.units[c]
	value := make([]float64, n+1)
	choice := make([]uint8, (len(d.models)+len(d.bundles))*(n+1))
	gain := make([]float64, n+1)
	for k, m := range d.models {
		top := f.gains(gain, c, l, m, d.price[k], d.left[k])
		row := choice[k*(n+1) : (k+1)*(n+1)]
		for q := n; q > 0; q-- {
			best, units := value[q], 0
			for u := 1; u <= min(q, top); u++ {
				if gain[u] == gain[u-1] {
					continue
				}
				if v := value[q-u] + gain[u]; v > best*(1+1e-12) {
					best, units = v, u
				}
			}
			value[q], row[q] = best, uint8(units)
		}
	}
	for k, b := range d.bundles {
		if b.class != c {
			continue
		}
		u := f.bundleUnits(b)
		row := choice[(len(d.models)+k)*(n+1):][:n+1]
		for q := n; q >= u; q-- {
			if v := value[q-u] + b.worth; v > value[q]*(1+1e-12) {
				value[q], row[q] = v, 1
			}
		}
	}
	return f.trace(d, choice, n)
}

func (f *filler) bundleUnits(b bundle) int {
	cl := &f.env.classes[b.class]
	return cl.shares[b.part.si] / cl.unit
}

// trace reads the knapsack's choices backwards.
func (f *filler) trace(d demand, choice []uint8, n int) cut {
	out := cut{units: make([]int, len(d.models))}
	q := n
	for k := len(d.bundles) - 1; k >= 0; k-- {
		if choice[(len(d.models)+k)*(n+1)+q] == 1 {
			out.bundles = append(out.bundles, k)
			q -= f.bundleUnits(d.bundles[k])
		}
	}
	for k := len(d.models) - 1; k >= 0; k-- {
		out.units[k] = int(choice[k*(n+1)+q])
		q -= out.units[k]
	}
	return out
}

// gains fills gain[u] with the worth of u units for a model and returns the number of units after
// which more is worth nothing.
func (f *filler) gains(gain []float64, c, l, m int, price, left float64) (top int) {
	if f.env.tables[c][m] == nil {
		return 0
	}
	s := f.split(c, l, m)
	for u := 1; u < len(gain); u++ {
		gain[u] = price * min(left, s.rate[u])
		if gain[u] > gain[u-1] {
			top = u
		}
	}
	return top
}

// realise cuts the GPU as the knapsack chose and finds the rates that settle.
func (f *filler) realise(c, l int, d demand, chosen cut) []part {
	e := f.env
	var parts []part
	for k, m := range d.models {
		if chosen.units[k] > 0 {
			parts = f.pieces(parts, c, l, m, chosen.units[k], d.left[k])
		}
	}
	for _, k := range chosen.bundles {
		b := d.bundles[k]
		parts = append(parts, part{b.part.si, slices.Clone(b.part.slots)})
	}
	if !e.settle(c, parts) && !f.settleDown(c, parts) {
		parts = f.shrinkToFit(c, parts)
	}
	f.raise(c, d, parts)
	return parts
}

// pieces appends the gpu-lets into which a model's units are best split.
func (f *filler) pieces(parts []part, c, l, m, units int, left float64) []part {
	cl := &f.env.classes[c]
	s := f.split(c, l, m)
	for q := units; left > 0; {
		for q > 0 && s.last[q] < 0 {
			q--
		}
		if q == 0 {
			break
		}
		si := int(s.last[q])
		rate := min(left, s.piece[si])
		parts = append(parts, part{si, []slot{{m: m, rate: rate}}})
		left -= rate
		q -= cl.shares[si] / cl.unit
	}
	return parts
}

// backOff is by how much rates fall while the pieces do not settle together: little by little at
// first, since assumptions are close.
var backOff = [...]float64{0.996, 0.996, 0.996, 0.994, 0.992, 0.99, 0.98, 0.97, 0.97, 0.97, 0.95, 0.95, 0.9}

// settleDown settles parts, lowering all rates a little while they do not.
func (f *filler) settleDown(c int, parts []part) bool {
	for _, factor := range backOff {
		for i := range parts {
			for k := range parts[i].slots {
				parts[i].slots[k].rate *= factor
			}
		}
		if f.env.settle(c, parts) {
			return true
		}
	}
	return false
}

// shrinkToFit drops the piece that needs most memory, until what is left settles.
func (f *filler) shrinkToFit(c int, parts []part) []part {
	for len(parts) > 0 {
		worst := 0
		for i := range parts {
			if f.memory(c, &parts[i]) > f.memory(c, &parts[worst]) {
				worst = i
			}
		}
		parts = slices.Delete(parts, worst, worst+1)
		if f.env.settle(c, parts) || f.settleDown(c, parts) {
			return parts
		}
	}
	return nil
}

func (f *filler) memory(c int, p *part) int64 {
	var v int64
	for _, sl := range p.slots {
		mem := f.env.tables[c][sl.m].mem
		v += mem[len(mem)-1]
	}
	return v
}

// raise lifts each piece to the rate that it can really have beside the others.
func (f *filler) raise(c int, d demand, parts []part) {
	for k, m := range d.models {
		left := d.left[k]
		for i := range parts {
			for _, sl := range parts[i].slots {
				if sl.m == m {
					left -= sl.rate
				}
			}
		}
		for i := range parts {
			if sl := &parts[i].slots[0]; sl.m == m && left > sl.rate*1e-6 {
				left -= f.raisePart(c, parts, i, left)
			}
		}
	}
}

// raiseSteps bounds the bisection when lifting a piece.
const raiseSteps = 5

// raisePart lifts part i by at most more and returns by how much it did. Parts stay settled.
func (f *filler) raisePart(c int, parts []part, i int, more float64) float64 {
	e := f.env
	sl := &parts[i].slots[0]
	before := sl.rate
	most, _ := e.best(c, sl.m, parts[i].si, e.pressureOn(c, parts, i), crowded(parts, i))
	lo, hi := before, min(before+more, most)
	if hi <= lo*(1+1e-6) {
		return 0
	}
	sl.rate = hi
	if e.settle(c, parts) {
		return hi - before
	}
	for range raiseSteps {
		mid := (lo + hi) / 2
		sl.rate = mid
		if e.settle(c, parts) {
			lo = mid
		} else {
			hi = mid
		}
	}
	sl.rate = lo
	e.settle(c, parts)
	return lo - before
}

// pressureOn is what the neighbours of part i press with at their present batches.
func (e *env) pressureOn(c int, parts []part, i int) float64 {
	v := 0.0
	for k := range parts {
		if k != i {
			v += e.emit(c, &parts[k])
		}
	}
	return v
}

// prices values a unit of each model's rate by the share of a GPU that it costs where it runs best,
// in GPUs; 0 for a model that runs nowhere.
func (f *filler) prices() []float64 {
	e := f.env
	out := make([]float64, len(e.models))
	for m := range e.models {
		cost := math.Inf(1)
		for c := range e.classes {
			if e.tables[c][m] == nil {
				continue
			}
			s := f.split(c, len(f.levels)/2, m)
			for q := 1; q < len(s.rate); q++ {
				if s.rate[q] > 0 {
					cost = min(cost, float64(q)/float64(f.units[c])/s.rate[q])
				}
			}
		}
		if math.IsInf(cost, 1) { // beside others; alone on a GPU, a part of it may be faster than all of it
			if rate := e.aloneBest(m); rate > 0 {
				cost = 1 / rate
			}
		}
		if !math.IsInf(cost, 1) {
			out[m] = cost
		}
	}
	return out
}

// aloneBest is the most that a gpu-let with a GPU to itself gives model m, on any share of any class.
func (e *env) aloneBest(m int) float64 {
	most := 0.0
	for c := range e.classes {
		for si := range e.classes[c].shares {
			rate, _ := e.best(c, m, si, 0, false)
			most = max(most, rate)
		}
	}
	return most
}
