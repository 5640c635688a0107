package pack

import (
	"cmp"
	"math"
	"slices"

	"github.com/gpulet/gpulet/planner/internal/problem"
)

// Bound is a lower bound on the number of GPUs that any sound plan for in needs. It is the dual of
// a linear relaxation over all cuts of a GPU, interference included:
//
//	bound = sum over m of price[m] rate[m] / v(price)
//
// where v is at least the most that a single GPU can earn at these prices. It holds for any prices;
// column generation finds good ones. v is relaxed as follows, and never otherwise:
//
//   - sharing a gpu-let in time is no better than the best of its models alone in it: with
//     D >= sum of t_i, rate_i <= b_i / D makes the worth a convex combination of b_i / t_i, and the
//     gpu-let's pressure is that of its worst model;
//   - the total pressure E on a GPU is known only to lie in an interval [lo, hi]: each gpu-let
//     suffers as from lo less its own, and that pressures sum to at most hi is charged for at a
//     Lagrange multiplier;
//   - every batch takes only as much memory as a batch of one, rounded down to a 24th of the GPU's.
//
// With an interference that has not the form of problem.Pressure it leaves interference out. It is
// +Inf when a model with a rate can run nowhere.
func Bound(in problem.Input) float64 {
	g, d, all := newBounding(&in)
	if d == nil {
		return math.Inf(1)
	}
	if len(d.models) == 0 {
		return 0
	}
	lp := g.generate(*d, newPricer(g.env, d.models, all, bulkIntervals, g.fill.pays), all, bulkReach)
	if lp == nil {
		return math.Inf(1)
	}
	g.converge(lp, newPricer(g.env, d.models, all, boundIntervals, nil), all, proof, boundRounds)
	return lp.bound
}

// QuickBound is Bound at the prices that a search starts with: as true, some per cent lower.
func QuickBound(in problem.Input) float64 {
	g, d, all := newBounding(&in)
	if d == nil {
		return math.Inf(1)
	}
	if len(d.models) == 0 {
		return 0
	}
	pricer := newPricer(g.env, d.models, all, quickIntervals, nil)
	values := make([]float64, len(all))
	for c := range all {
		values[c], _ = pricer.price(c, d.price, proof)
	}
	worth := 0.0
	for k := range d.models {
		worth += d.price[k] * d.left[k]
	}
	return g.env.dual(worth, values)
}

// newBounding prepares a search over all devices; no demand when some model can run nowhere.
func newBounding(in *problem.Input) (*search, *demand, []int) {
	e := newEnv(in)
	g := newSearch(e, Options{Steps: -1})
	for m := range e.models {
		if e.models[m].rate > 0 && g.price[m] == 0 {
			return g, nil, nil
		}
	}
	all := make([]int, len(e.classes))
	for c := range all {
		all[c] = e.classes[c].count
	}
	d := g.demand(newState(e), g.price)
	return g, &d, all
}

// Effort for a bound: into how many intervals the pressure on a GPU is divided, and how often the
// prices of a plan's program are improved.
const (
	boundIntervals = 64
	boundRounds    = 20
	quickIntervals = 12
)

// proof is a reach that covers all intervals, without which prices prove nothing.
const proof = math.MaxInt

// pricer finds what a GPU can earn at most at given prices, and cuts that come close to it.
type pricer struct {
	env  *env
	rows []int // models
	// items[c][iv] are the gpu-lets worth considering on class c while the total pressure is in
	// interval iv, by share.
	items [][][][]item
	lone  [][]item // [class]: gpu-lets without neighbours
	first []int    // [class]: the interval that earned most last time

	intervals float64
	emission  []float64 // [class]: the most that can press on a GPU
	worth     func(c, m, si int) bool
}

// item is a gpu-let of one model: what it gives, takes and emits.
type item struct {
	row   int
	rate  float64
	press float64
	mem   int64 // bytes
}

// newPricer tabulates what gpu-lets give. worth, if not nil, says which shares of a model on a class to
// look at; a bound needs all.
func newPricer(e *env, rows []int, free []int, intervals int, worth func(c, m, si int) bool) *pricer {
	p := &pricer{env: e, rows: rows, first: make([]int, len(e.classes)), intervals: float64(intervals), worth: worth}
	for c := range e.classes {
		p.emission = append(p.emission, e.emission[c])
		n := 1
		if e.pressure && p.emission[c] > 0 {
			n = intervals
		}
		byInterval := make([][][]item, n)
		var lone []item
		if free[c] > 0 {
			for iv := range byInterval {
				byInterval[iv] = p.itemsIn(c, float64(iv)*p.width(c))
			}
			lone = p.loneItems(c)
		}
		p.items = append(p.items, byInterval)
		p.lone = append(p.lone, lone)
		p.first[c] = n / 2
	}
	return p
}

// width is that of an interval of pressure on class c.
func (p *pricer) width(c int) float64 { return p.emission[c] / p.intervals }

// loneItems are gpu-lets that have their GPU to themselves.
func (p *pricer) loneItems(c int) []item {
	var out []item
	for k, m := range p.rows {
		for si := range p.env.classes[c].shares {
			if rate, _ := p.env.best(c, m, si, 0, false); rate > 0 {
				out = append(out, item{row: k, rate: rate * (1 + 4*slack)})
			}
		}
	}
	return out
}

// itemsIn lists, by share, the gpu-lets worth considering while the total pressure is at least lo.
func (p *pricer) itemsIn(c int, lo float64) [][]item {
	e := p.env
	out := make([][]item, len(e.classes[c].shares))
	var points []item
	for k, m := range p.rows {
		t := e.tables[c][m]
		if t == nil {
			continue
		}
		limit := e.models[m].slo / 2
		mem := t.mem[0] + e.in.ContextBytes
		for si := range out {
			if p.worth != nil && !p.worth(c, m, si) {
				continue
			}
			r := &t.rows[si]
			points = points[:0]
			for batch := range r.ms {
				ms, press := r.ms[batch], 0.0
				// A gpu-let without neighbours does no worse with all of its GPU.
				if e.pressure && e.classes[c].shares[si] < 100 {
					q := &r.coupling[batch]
					press = q.Emit
					ms *= max(1, q.Base+q.Gain*max(0, lo-press))
				}
				if ms <= limit {
					points = append(points, item{k, float64(batch+1) / ms * 1000, press, mem})
				}
			}
			out[si] = append(out[si], undominated(points)...)
		}
	}
	return out
}

// undominated keeps the points for which more pressure buys more rate, ascending.
func undominated(points []item) []item {
	if n := pareto(points); n > 0 { // most often pressure rises with the batch
		return points[:n]
	}
	slices.SortStableFunc(points, func(a, b item) int {
		switch {
		case a.press < b.press:
			return -1
		case a.press > b.press:
			return 1
		}
		return 0
	})
	return points[:pareto(points)]
}

// pareto moves the undominated of points that ascend in pressure to the front; 0 when they do not.
func pareto(points []item) int {
	for i := 1; i < len(points); i++ {
		if points[i].press < points[i-1].press {
			return 0
		}
	}
	n := 0
	for _, q := range points {
		if n > 0 && q.rate <= points[n-1].rate {
			continue
		}
		points[n] = q
		n++
	}
	return n
}

// cutting is a choice of gpu-lets for one GPU: indexes of shares and rows, and relaxed rates.
type cutting struct {
	si, row []int
	rate    []float64
	each    []float64 // pressure
	press   float64
	mem     int64
	value   float64 // relaxed
}

// price returns a bound on what a GPU of class c can earn at prices, and cuts worth realising, the
// best first. reach is how many intervals around the last winner it looks at; only a look at all of
// them gives a bound.
func (p *pricer) price(c int, price []float64, reach int) (value float64, cuts []cutting) {
	for _, it := range p.lone[c] {
		value = max(value, price[it.row]*it.rate)
	}
	n := len(p.items[c])
	from := p.first[c]
	for away := 0; away < min(n, reach); away++ {
		for _, iv := range [2]int{from + away, from - away} {
			if iv < 0 || iv >= n || away == 0 && iv != from {
				continue
			}
			if v, found := p.interval(c, iv, price, value); v > value && len(found) > 0 {
				value, p.first[c] = v, iv
				cuts = append(found, cuts...)
			}
			if away == 0 {
				break
			}
		}
	}
	return value, cuts[:min(len(cuts), 9)]
}

// multiplierSteps bounds the search for the multiplier of an interval's pressure.
const multiplierSteps = 8

// interval bounds what can be earned with a total pressure in interval iv. It gives up with no cuts
// once that is no more than floor.
func (p *pricer) interval(c, iv int, price []float64, floor float64) (float64, []cutting) {
	hi := float64(iv+1) * p.width(c)
	free := p.knapsack(c, iv, price, 0)
	if free.value <= floor {
		return 0, nil
	}
	if free.press <= hi || len(p.items[c]) == 1 {
		return free.value, []cutting{free}
	}
	best, over, under := free.value, free, cutting{}
	lambda, top := 0.0, free.value/hi
	for range multiplierSteps {
		mid := (lambda + top) / 2
		k := p.knapsack(c, iv, price, mid)
		best = min(best, k.value+mid*hi)
		if best <= floor {
			return 0, nil
		}
		if k.press > hi {
			lambda, over = mid, k
		} else {
			top, under = mid, k
		}
	}
	return best, append(p.between(c, over, under, hi), under)
}

// between mixes a cut that presses too much with one that does not: it replaces gpu-lets of the
// first, the hardest pressing first, by ones of the second that take the same share together, and
// returns the cuts just after and before the pressure is at most hi. At the multiplier at which both
// are worth as much, so are the mixtures.
func (p *pricer) between(c int, over, under cutting, hi float64) []cutting {
	before, rest := over, under
	keep := cutting{value: over.value}
	order := make([]int, len(over.si))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(over.each[b], over.each[a]) })
	for n, i := range order {
		swapped, left, ok := p.takeShare(c, rest, over.si[i])
		if !ok {
			keep = keep.add(over, i)
			continue
		}
		rest = left
		for j := range swapped.si {
			keep = keep.add(swapped, j)
		}
		mixed := keep
		for _, j := range order[n+1:] {
			mixed = mixed.add(over, j)
		}
		if mixed.press <= hi {
			return []cutting{mixed, before}
		}
		before = mixed
	}
	return nil
}

// takeShare takes gpu-lets out of k that sum to the share with index si.
func (p *pricer) takeShare(c int, k cutting, si int) (taken, left cutting, ok bool) {
	need := p.env.classes[c].shares[si]
	for i, s := range k.si {
		if share := p.env.classes[c].shares[s]; share <= need {
			need -= share
			taken = taken.add(k, i)
		} else {
			left = left.add(k, i)
		}
	}
	return taken, left, need == 0
}

// add appends gpu-let i of o; what k held before stays as it was.
func (k cutting) add(o cutting, i int) cutting {
	k.si = append(slices.Clip(k.si), o.si[i])
	k.row = append(slices.Clip(k.row), o.row[i])
	k.rate = append(slices.Clip(k.rate), o.rate[i])
	k.each = append(slices.Clip(k.each), o.each[i])
	k.press += o.each[i]
	return k
}

// memoryUnits is into how many units a GPU's memory is divided where memory limits.
const memoryUnits = 24

// knapsack is unbounded, over the share, and over memory where that limits. Of the items with the
// same share and memory only the one that earns most, its pressure charged for at lambda, counts.
// So it is as fast for 200 models as for 2.
func (p *pricer) knapsack(c, iv int, price []float64, lambda float64) cutting {
	room := p.env.classes[c].mem
	out := p.knapsackIn(c, iv, price, lambda, 0)
	if room <= 0 || out.mem <= room {
		return out
	}
	return p.knapsackIn(c, iv, price, lambda, memoryUnits)
}

// knapsackIn divides memory into units; 0 ignores it.
func (p *pricer) knapsackIn(c, iv int, price []float64, lambda float64, units int) cutting {
	cl := &p.env.classes[c]
	n, w := 100/cl.unit, units+1
	use := p.choices(c, iv, price, lambda, units)
	value := make([]float64, (n+1)*w)
	last := make([]int16, (n+1)*w)
	for q := 1; q <= n; q++ {
		for u := range w {
			at := q*w + u
			value[at], last[at] = value[at-w], -1
			for i := range use {
				dq, du := cl.shares[use[i].si]/cl.unit, use[i].units
				if dq > q || du > u {
					continue
				}
				if v := value[at-dq*w-du] + use[i].worth; v > value[at] {
					value[at], last[at] = v, int16(i)
				}
			}
		}
	}
	out := cutting{value: value[n*w+units]}
	for q, u := n, units; q > 0; {
		i := last[q*w+u]
		if i < 0 {
			q--
			continue
		}
		it := use[i].it
		out.si = append(out.si, use[i].si)
		out.row = append(out.row, it.row)
		out.rate = append(out.rate, it.rate)
		out.each = append(out.each, it.press)
		out.press += it.press
		out.mem += it.mem
		q -= cl.shares[use[i].si] / cl.unit
		u -= use[i].units
	}
	return out
}

// choice is an item worth its place in a knapsack.
type choice struct {
	it    *item
	si    int
	units int // of memory
	worth float64
}

// choices are the items that earn most for their share and memory; more memory must earn more.
func (p *pricer) choices(c, iv int, price []float64, lambda float64, units int) []choice {
	cl := &p.env.classes[c]
	w := units + 1
	best := make([]choice, len(cl.shares)*w)
	for si, items := range p.items[c][iv] {
		for i := range items {
			it := &items[i]
			u := 0
			if units > 0 {
				u = min(units, int(it.mem*int64(units)/cl.mem))
			}
			if v := price[it.row]*it.rate - lambda*it.press; v > best[si*w+u].worth {
				best[si*w+u] = choice{it, si, u, v}
			}
		}
	}
	use := best[:0]
	for si := range cl.shares {
		top := 0.0
		for u := range w {
			if b := best[si*w+u]; b.worth > top {
				use, top = append(use, b), b.worth
			}
		}
	}
	return use
}

// dual is the bound that prices prove when a GPU of class c earns at most values[c]: GPUs are used
// up in the order of what they can earn.
func (e *env) dual(worth float64, values []float64) float64 {
	order := make([]int, 0, len(values))
	for c, v := range values {
		if v > 0 {
			order = append(order, c)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case values[a] > values[b]:
			return -1
		case values[a] < values[b]:
			return 1
		}
		return 0
	})
	gpus := 0.0
	for i, c := range order {
		n := worth / values[c]
		if i < len(order)-1 { // when even all devices are too few, the last class counts on
			n = min(n, float64(e.classes[c].count))
		}
		gpus += n
		worth -= n * values[c]
	}
	return gpus
}
