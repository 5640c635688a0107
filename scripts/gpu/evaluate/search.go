package main

import "math"

// search looks for the highest good rate in few tries. It begins where the answer is expected, steps up
// or down by a fifth, then ever further, until it has found both a good and a bad rate, and then halves
// the ratio between them.
type search struct {
	rate      float64 // to try next
	good, bad float64 // the highest good and the lowest bad rate; 0: none yet
	step      float64 // last ratio between two rates while only one kind was found; 0: none yet
}

const (
	searchStep      = 1.2
	searchPrecision = 1.05 // ratio of the lowest bad rate to the highest good one that is near enough
)

// tell says whether the rate was good.
func (s *search) tell(good bool) {
	if good {
		s.good = s.rate
	} else {
		s.bad = s.rate
	}
	if s.step = math.Max(searchStep, s.step*s.step); s.good > 0 && s.bad > 0 {
		s.rate = math.Sqrt(s.good * s.bad)
		return
	}
	if good {
		s.rate *= s.step
	} else {
		s.rate /= s.step
	}
}

// done reports whether the answer is near enough.
func (s *search) done() bool { return s.good > 0 && s.bad > 0 && s.bad <= s.good*searchPrecision }
