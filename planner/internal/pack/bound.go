package pack

import (
	"math"

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
//     suffers as from lo less its own, and pressures, rounded down, sum to at most hi;
//   - memory is ignored.
//
// With an interference that has not the form of problem.Pressure it leaves interference out. It is
// +Inf when a model with a rate can run nowhere.
func Bound(in problem.Input) float64 {
	e := newEnv(&in)
	b := newBounder(e)
	return b.bound(400)
}

// bounder prices relaxed patterns.
type bounder struct {
	env *env
	// rows are the models with a rate; alone[k] is the most of rows[k] that one GPU can give.
	rows  []int
	items [][][]item // [class][interval][]
	lone  [][]item   // [class]: gpu-lets without neighbours
}

// item is a gpu-let of one model: what it gives, takes and emits.
type item struct {
	row      int
	units    int // of share
	pressure int // in intervals, rounded down
	rate     float64
}

// intervals is into how many parts the total pressure on a GPU is divided.
const intervals = 24

func newBounder(e *env) *bounder {
	b := &bounder{env: e}
	for m := range e.models {
		if e.models[m].rate > 0 {
			b.rows = append(b.rows, m)
		}
	}
	for c := range e.classes {
		width := e.worstEmission(c) / intervals
		byInterval := make([][]item, intervals)
		var lone []item
		for k, m := range b.rows {
			lone = append(lone, b.loneItems(c, k, m)...)
			for iv := range byInterval {
				if width == 0 && iv > 0 {
					break
				}
				byInterval[iv] = append(byInterval[iv], b.itemsAt(c, k, m, iv, width)...)
			}
		}
		b.items = append(b.items, byInterval)
		b.lone = append(b.lone, lone)
	}
	return b
}

// loneItems are gpu-lets that have their GPU to themselves.
func (b *bounder) loneItems(c, k, m int) []item {
	var out []item
	for si := range b.env.classes[c].shares {
		if rate, _ := b.env.best(c, m, si, 0, false); rate > 0 {
			out = append(out, item{row: k, rate: rate * (1 + 4*slack)})
		}
	}
	return out
}

// itemsAt are the gpu-lets of m worth considering while the total pressure is at least iv x width:
// for every share and rounded pressure, the batch with the highest rate.
func (b *bounder) itemsAt(c, k, m, iv int, width float64) []item {
	e := b.env
	t := e.tables[c][m]
	if t == nil {
		return nil
	}
	var out []item
	limit := e.models[m].slo / 2
	for si, share := range e.classes[c].shares {
		r := &t.rows[si]
		best := map[int]float64{}
		for batch := range r.ms {
			ms, pressure := r.ms[batch], 0
			if e.pressure {
				q := &r.coupling[batch]
				ms *= max(1, q.Base+q.Gain*max(0, float64(iv)*width-q.Emit))
				if width > 0 {
					pressure = int(q.Emit / width)
				}
			}
			if ms <= limit {
				best[pressure] = max(best[pressure], float64(batch+1)/ms*1000)
			}
		}
		out = append(out, undominated(k, share/e.classes[c].unit, best)...)
	}
	return out
}

// undominated keeps the items for which more pressure buys more rate.
func undominated(row, units int, best map[int]float64) []item {
	var out []item
	top := 0.0
	for pressure := 0; pressure <= intervals; pressure++ {
		if rate := best[pressure]; rate > top {
			out = append(out, item{row, units, pressure, rate})
			top = rate
		}
	}
	return out
}

// price returns the most that a GPU of class c can earn at prices, and what it then gives.
func (b *bounder) price(c int, price []float64) (value float64, rate []float64) {
	for _, it := range b.lone[c] {
		if v := price[it.row] * it.rate; v > value {
			value = v
			rate = make([]float64, len(b.rows))
			rate[it.row] = it.rate
		}
	}
	for iv := range b.items[c] {
		if v, r := b.knapsack(c, iv, price, value); v > value {
			value, rate = v, r
		}
	}
	return value, rate
}

// knapsack is unbounded, over share and pressure. Of the items with the same share and pressure
// only the dearest counts, which makes it as fast for 200 models as for 2. It returns 0 when it
// cannot beat floor.
func (b *bounder) knapsack(c, iv int, price []float64, floor float64) (float64, []float64) {
	units := 100 / b.env.classes[c].unit
	width := intervals + 1
	best := make([]int, (units+1)*width) // index+1 into items, by share and pressure
	items := b.items[c][iv]
	for i := range items {
		it := &items[i]
		cell := &best[it.units*width+it.pressure]
		if *cell == 0 || price[it.row]*it.rate > price[items[*cell-1].row]*items[*cell-1].rate {
			*cell = i + 1
		}
	}
	var use []item
	worth := []float64{}
	densest := 0.0
	for u := 1; u <= units; u++ {
		top := 0.0
		for p := 0; p < width; p++ {
			i := best[u*width+p]
			if i == 0 {
				continue
			}
			v := price[items[i-1].row] * items[i-1].rate
			if v <= top { // a smaller pressure gives as much
				continue
			}
			top = v
			use = append(use, items[i-1])
			worth = append(worth, v)
			densest = max(densest, v/float64(u))
		}
	}
	if densest*float64(units) <= floor {
		return 0, nil
	}
	caps := iv + 1 // pressures sum to at most hi, the interval's upper edge
	value := make([]float64, (units+1)*(caps+1))
	choice := make([]int16, (units+1)*(caps+1))
	for u := 1; u <= units; u++ {
		for p := 0; p <= caps; p++ {
			at := u*(caps+1) + p
			value[at], choice[at] = value[at-caps-1], -1
			for i := range use {
				if use[i].units > u || use[i].pressure > p {
					continue
				}
				if v := value[(u-use[i].units)*(caps+1)+p-use[i].pressure] + worth[i]; v > value[at] {
					value[at], choice[at] = v, int16(i)
				}
			}
		}
	}
	at := units*(caps+1) + caps
	if value[at] <= floor {
		return 0, nil
	}
	rate := make([]float64, len(b.rows))
	for u, p := units, caps; u > 0; {
		i := choice[u*(caps+1)+p]
		if i < 0 {
			u--
			continue
		}
		rate[use[i].row] += use[i].rate
		u, p = u-use[i].units, p-use[i].pressure
	}
	return value[at], rate
}

// bound runs column generation for at most steps columns.
func (b *bounder) bound(steps int) float64 {
	if len(b.rows) == 0 {
		return 0
	}
	need := make([]float64, len(b.rows))
	alone := make([]float64, len(b.rows))
	for k, m := range b.rows {
		need[k] = b.env.models[m].rate
		unit := make([]float64, len(b.rows))
		unit[k] = 1
		for c := range b.env.classes {
			v, _ := b.price(c, unit)
			alone[k] = max(alone[k], v)
		}
		if alone[k] == 0 {
			return math.Inf(1)
		}
	}
	lp := newCover(need, alone)
	best := 0.0
	for range steps {
		value, rate := 0.0, []float64(nil)
		values := make([]float64, len(b.env.classes))
		for c := range b.env.classes {
			v, r := b.price(c, lp.price)
			if values[c] = v; v > value {
				value, rate = v, r
			}
		}
		best = max(best, b.dual(lp.price, values))
		if value <= 1+1e-6 || !lp.enter(column{1, rate, 0}) {
			break
		}
	}
	return best
}

// dual is the bound that prices prove: GPUs are used up in the order of what they can earn.
func (b *bounder) dual(price, values []float64) float64 {
	worth := 0.0
	for k, m := range b.rows {
		worth += price[k] * b.env.models[m].rate
	}
	gpus := 0.0
	taken := make([]bool, len(values))
	for worth > 0 {
		best := -1
		for c := range values {
			if !taken[c] && values[c] > 0 && (best < 0 || values[c] > values[best]) {
				best = c
			}
		}
		if best < 0 {
			return math.Inf(1)
		}
		taken[best] = true
		last := true
		for c := range values {
			last = last && (taken[c] || values[c] <= 0)
		}
		n := worth / values[best]
		if have := float64(b.env.classes[best].count); n > have && !last {
			n = have
		}
		gpus += n
		worth -= n * values[best]
		if last {
			break
		}
	}
	return gpus
}
