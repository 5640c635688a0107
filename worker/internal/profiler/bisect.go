package profiler

import (
	"math"
	"slices"
)

// Curve is the median time in ms by batch on one share.
type Curve map[int]float64

// Wanted lists the shares of an ascending axis that have to be measured next, of a model whose
// curves are known on others; none when the rest can be interpolated. At first that is the middle
// and both ends, then the middle of every interval in which interpolation was found to miss.
//
// The planner interpolates a time linearly over the share (profile.Latency). Where time is convex and
// does not rise with the share, a straight line over an interval that has missed its middle by e
// misses by at most e x length / (length of the shorter part) after the middle was measured; an
// interval is left alone when that is within tolerance of the least time in it. So interpolation of
// such times is never off by more than the tolerance. Tolerance 0 measures every share.
func Wanted(axis []int, tolerance float64, known map[int]Curve) []int {
	if len(axis) == 0 {
		return nil
	}
	last := len(axis) - 1
	var want []int
	for _, i := range []int{last / 2, last, 0} {
		if known[axis[i]] == nil && !slices.Contains(want, axis[i]) {
			want = append(want, axis[i])
		}
	}
	if len(want) > 0 {
		return want
	}
	return within(axis, tolerance, known)
}

// within lists the shares wanted inside an axis whose ends are known.
func within(axis []int, tolerance float64, known map[int]Curve) []int {
	last := len(axis) - 1
	if last < 2 {
		return nil
	}
	mid := last / 2
	low, at, high := axis[0], axis[mid], axis[last]
	if known[at] == nil {
		return []int{at}
	}
	shorter := float64(min(at-low, high-at)) / float64(high-low)
	if tolerance > 0 && miss(low, at, high, known)/shorter <= tolerance {
		return nil
	}
	return append(within(axis[:mid+1], tolerance, known), within(axis[mid:], tolerance, known)...)
}

// miss is how far a straight line from low to high is off in the middle: the worst over the batches
// that all three have, relative to the least of the three times.
func miss(low, at, high int, known map[int]Curve) float64 {
	t := float64(at-low) / float64(high-low)
	worst := 0.0
	for batch, mid := range known[at] {
		a, okA := known[low][batch]
		b, okB := known[high][batch]
		if !okA || !okB {
			continue // a share too small for the batch in the time there was
		}
		worst = max(worst, math.Abs(a+t*(b-a)-mid)/min(a, mid, b))
	}
	return worst
}
