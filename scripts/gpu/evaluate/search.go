package main

import "math"

// search looks for the highest good rate in few tries. It begins where the answer is expected, steps up
// or down by its first ratio twice, then ever further, until it has found both a good and a bad rate, and
// then halves the ratio between them.
type search struct {
	rate      float64 // to try next
	good, bad float64 // the highest good and the lowest bad rate; 0: none yet
	first     float64 // ratio of the first rates, over 1
	step      float64 // next ratio between two rates while only one kind was found; 0: the first
}

// searchPrecision is the ratio of the lowest bad rate to the highest good one that is near enough.
const searchPrecision = 1.05

// tell says whether the rate was good.
func (s *search) tell(good bool) {
	if good {
		s.good = s.rate
	} else {
		s.bad = s.rate
	}
	switch step := math.Max(s.first, s.step); {
	case s.good > 0 && s.bad > 0:
		s.rate = math.Sqrt(s.good * s.bad)
	case good:
		s.rate, s.step = s.rate*step, step*math.Max(1, s.step)
	default:
		s.rate, s.step = s.rate/step, step*math.Max(1, s.step)
	}
}

// done reports whether the answer is near enough.
func (s *search) done() bool { return s.good > 0 && s.bad > 0 && s.bad <= s.good*searchPrecision }
