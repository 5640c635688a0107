package gpulet

import (
	"slices"
	"time"
)

const (
	// weight of a new measurement in the moving average
	newWeight = 0.2
	// most that one measurement may exceed the average by: a hiccup of the machine is not a
	// reason to give requests up
	maxGrowth = 2
	// doubtAfter is how many requests may be given up, without a batch in between to measure,
	// before the estimate itself is doubted
	doubtAfter = 16
	// maxCurve bounds the batch sizes that are told apart
	maxCurve = 1024
)

// estimate learns how long batches of a model take here, from handing them to the executor until
// the outputs are back. It starts from the plan's figure.
type estimate struct {
	points []point // by samples
	curve  []time.Duration
	gaveUp int // since the last batch
}

// point is the moving average of the batches of one size.
type point struct {
	samples int
	took    float64 // nanoseconds
	planned bool    // not measured yet
}

// newEstimate starts from a planned time for a batch; maxBatch is the largest that may come.
func newEstimate(planned time.Duration, batch, maxBatch int) *estimate {
	e := &estimate{curve: make([]time.Duration, min(max(batch, maxBatch, 1), maxCurve))}
	if planned > 0 && batch > 0 {
		e.points = []point{{batch, float64(planned), true}}
	}
	e.draw()
	return e
}

// exec is how long a batch is expected to take. It never falls as samples grow.
func (e *estimate) exec(samples int) time.Duration {
	if n := len(e.curve); samples > n {
		return e.curve[n-1] * time.Duration(samples) / time.Duration(n)
	}
	return e.curve[max(samples, 1)-1]
}

// measured reports whether any batch has been measured.
func (e *estimate) measured() bool {
	return slices.ContainsFunc(e.points, func(p point) bool { return !p.planned })
}

// ran takes the time of a batch into account.
func (e *estimate) ran(samples int, took time.Duration) {
	e.gaveUp = 0
	samples = min(samples, len(e.curve))
	i, known := slices.BinarySearchFunc(e.points, samples, func(p point, n int) int { return p.samples - n })
	switch {
	case !known:
		e.points = slices.Insert(e.points, i, point{samples: samples, took: float64(took)})
	case e.points[i].planned:
		e.points[i] = point{samples: samples, took: float64(took)}
	default:
		p := &e.points[i]
		p.took += newWeight * (min(float64(took), maxGrowth*p.took) - p.took)
	}
	e.draw()
}

// giveUp notes requests that were given up because of the estimate. An estimate that lets nothing
// run would never be corrected, so after a while it is halved.
func (e *estimate) giveUp(requests int) {
	if e.gaveUp += requests; e.gaveUp < doubtAfter {
		return
	}
	e.gaveUp = 0
	for i := range e.points {
		e.points[i].took /= 2
	}
	e.draw()
}

// draw fills the curve: straight lines between the points; below the first, half of its time is
// taken as fixed; above the last, time grows with the samples. A larger batch that was faster
// pulls smaller ones down.
func (e *estimate) draw() {
	if len(e.points) == 0 {
		return
	}
	i := 0
	for n := 1; n <= len(e.curve); n++ {
		for i < len(e.points) && e.points[i].samples < n {
			i++
		}
		e.curve[n-1] = time.Duration(e.at(n, i))
	}
	for n := len(e.curve) - 1; n > 0; n-- {
		e.curve[n-1] = min(e.curve[n-1], e.curve[n])
	}
}

// at is the time of n samples; i is the first point with at least n.
func (e *estimate) at(n, i int) float64 {
	x := float64(n)
	switch {
	case i == len(e.points):
		last := e.points[i-1]
		return last.took * x / float64(last.samples)
	case i == 0:
		first := e.points[0]
		return first.took * (0.5 + 0.5*x/float64(first.samples))
	}
	lo, hi := e.points[i-1], e.points[i]
	t := (x - float64(lo.samples)) / float64(hi.samples-lo.samples)
	return lo.took + t*(hi.took-lo.took)
}
