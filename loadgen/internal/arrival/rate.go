package arrival

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Rate is a rate over time: straight pieces, in order, without gaps.
type Rate struct {
	pieces []piece
}

// piece goes from rate a at start to rate b at end, both in requests/s.
type piece struct {
	start, end time.Duration
	a, b       float64
	before     float64 // expected arrivals before start
}

// Constant is rps requests/s for d.
func Constant(rps float64, d time.Duration) Rate {
	var r Rate
	r.Append(rps, rps, d)
	return r
}

// Append adds a piece of length d that goes from one rate to another, in requests/s. Rates must be
// finite and at least 0 (see CheckRPS); a piece of no length adds nothing.
func (r *Rate) Append(from, to float64, d time.Duration) {
	if d <= 0 {
		return
	}
	p := piece{start: r.End(), a: from, b: to}
	if n := len(r.pieces); n > 0 {
		p.before = r.pieces[n-1].before + r.pieces[n-1].area()
	}
	p.end = p.start + d
	r.pieces = append(r.pieces, p)
}

// CheckRPS reports why rps cannot be a rate.
func CheckRPS(rps float64) error {
	if math.IsNaN(rps) || math.IsInf(rps, 0) || rps < 0 {
		return fmt.Errorf("rate %v: expected a number of requests/s of at least 0", rps)
	}
	return nil
}

// End is when the last piece ends.
func (r Rate) End() time.Duration {
	if len(r.pieces) == 0 {
		return 0
	}
	return r.pieces[len(r.pieces)-1].end
}

// Expected is the expected number of arrivals of the whole.
func (r Rate) Expected() float64 { return r.integral(r.End()) }

// At is the rate at t, in requests/s; 0 outside.
func (r Rate) At(t time.Duration) float64 {
	i := slices.IndexFunc(r.pieces, func(p piece) bool { return t < p.end })
	if i < 0 || t < 0 {
		return 0
	}
	return r.pieces[i].at((t - r.pieces[i].start).Seconds())
}

func (p piece) seconds() float64       { return (p.end - p.start).Seconds() }
func (p piece) at(s float64) float64   { return p.a + (p.b-p.a)*s/p.seconds() }
func (p piece) upTo(s float64) float64 { return s * (p.a + p.at(s)) / 2 }
func (p piece) area() float64          { return p.upTo(p.seconds()) }

// integral is the expected number of arrivals before t.
func (r Rate) integral(t time.Duration) float64 {
	for _, p := range slices.Backward(r.pieces) {
		if t > p.start {
			return p.before + p.upTo((min(t, p.end) - p.start).Seconds())
		}
	}
	return 0
}

// inverse is the time at which n arrivals are expected to have come; false when that is never.
func (r Rate) inverse(n float64) (time.Duration, bool) {
	i, _ := slices.BinarySearchFunc(r.pieces, n, func(p piece, n float64) int {
		if p.before+p.area() <= n {
			return -1
		}
		return 1
	})
	if i == len(r.pieces) {
		return 0, false
	}
	p := r.pieces[i]
	return p.start + time.Duration(p.solve(n-p.before)*float64(time.Second)), true
}

// solve returns the seconds after start at which area has accumulated: the root of
// slope/2 s² + a s = area, in the form that loses no digits when the slope is small.
func (p piece) solve(area float64) float64 {
	slope := (p.b - p.a) / p.seconds()
	root := math.Sqrt(max(p.a*p.a+2*slope*area, 0))
	if p.a+root == 0 {
		return 0
	}
	return min(2*area/(p.a+root), p.seconds())
}
