package pack

import "math"

// cover is the linear program of column generation: GPUs cut by patterns, as few as possible, so
// that the rates of all models are covered.
//
//	minimise  sum over p of x_p
//	such that sum over p of rate[p][m] x_p >= rate[m]   for every model m
//	          x_p >= 0
//
// It is a revised simplex with an explicit inverse of the basis: there are as many rows as models
// and columns appear one at a time, from outside, at the prices that the program asks for.
type cover struct {
	rows    int
	need    []float64
	inverse [][]float64 // of the basis
	x       []float64   // of the basis
	basis   []column    // by row
	price   []float64   // dual: GPUs per unit of a model's rate
}

// column is a pattern, or the surplus of a row.
type column struct {
	cost float64
	rate []float64 // by row
	tag  int       // the caller's name for a pattern; -1 for a surplus
}

// newCover starts from one pattern per row that serves only that row: alone[m] of it, per GPU. The
// pattern of row m has the tag m.
func newCover(need, alone []float64) *cover {
	n := len(need)
	c := &cover{rows: n, need: need, x: make([]float64, n), basis: make([]column, n), price: make([]float64, n)}
	c.inverse = make([][]float64, n)
	for m := range n {
		c.inverse[m] = make([]float64, n)
		c.inverse[m][m] = 1 / alone[m]
		c.x[m] = need[m] / alone[m]
		rate := make([]float64, n)
		rate[m] = alone[m]
		c.basis[m] = column{1, rate, m}
	}
	c.reprice()
	return c
}

// reprice computes the duals, and lets surplus columns in until none is negative.
func (c *cover) reprice() {
	for {
		for m := range c.price {
			c.price[m] = 0
		}
		for i := range c.basis {
			if c.basis[i].cost == 0 {
				continue
			}
			for m, v := range c.inverse[i] {
				c.price[m] += v
			}
		}
		worst := -1
		for m, v := range c.price {
			if v < -1e-12/c.need[m] && (worst < 0 || v*c.need[m] < c.price[worst]*c.need[worst]) {
				worst = m
			}
		}
		if worst < 0 {
			return
		}
		rate := make([]float64, c.rows)
		rate[worst] = -1
		if !c.pivot(column{0, rate, -1}) {
			c.price[worst] = 0
			return
		}
	}
}

// enter brings a pattern into the basis; false when it does not pay or cannot.
func (c *cover) enter(p column) bool {
	value := 0.0
	for m, v := range p.rate {
		value += c.price[m] * v
	}
	if value <= p.cost*(1+1e-9) || !c.pivot(p) {
		return false
	}
	c.reprice()
	return true
}

func (c *cover) pivot(p column) bool {
	d := make([]float64, c.rows)
	for i, row := range c.inverse {
		v := 0.0
		for m, r := range p.rate {
			if r != 0 {
				v += row[m] * r
			}
		}
		d[i] = v
	}
	out, step := -1, math.Inf(1)
	for i, v := range d {
		if v > 1e-11 && c.x[i]/v < step {
			out, step = i, c.x[i]/v
		}
	}
	if out < 0 {
		return false
	}
	pr := c.inverse[out]
	f := 1 / d[out]
	for m := range pr {
		pr[m] *= f
	}
	for i, row := range c.inverse {
		if i == out || d[i] == 0 {
			continue
		}
		v := d[i]
		for m := range row {
			row[m] -= v * pr[m]
		}
		c.x[i] = max(0, c.x[i]-v*step)
	}
	c.x[out] = step
	c.basis[out] = p
	return true
}
