// Package search finds the border between rates that are good and rates that are too high.
//
// It is pure: the caller measures a rate and tells the outcome. Rates double until one is too
// high, or halve until one is good, and the gap is then bisected geometrically. Measurements near
// the border are noisy, so the answer is a rate that was good and not far below one that was not.
package search

import "math"

// Search is one search. Call Next and Tell in turn.
type Search struct {
	most      float64
	precision float64
	good, bad float64 // the highest good and the lowest bad rate; 0: none yet
	rate      float64 // being tried
	floor     float64
	done      bool
}

// downward is how far below the first rate a search goes before it finds that none is good.
const downward = 64

// New begins at rate from. It goes no higher than most and ends when the lowest bad rate is at
// most 1+precision times the highest good one. All are above 0.
func New(from, most, precision float64) *Search {
	return &Search{most: most, precision: precision, rate: from, floor: from / downward}
}

// Next is the rate to try; false when the search is over.
func (s *Search) Next() (rate float64, more bool) { return s.rate, !s.done }

// Tell says whether the rate of the last Next was good.
func (s *Search) Tell(good bool) {
	if good {
		s.good = s.rate
	} else {
		s.bad = s.rate
	}
	switch {
	case s.bad == 0:
		s.done = s.good >= s.most
		s.rate = min(2*s.good, s.most)
	case s.good == 0:
		s.done = s.bad/2 < s.floor
		s.rate = s.bad / 2
	default:
		s.done = s.bad <= s.good*(1+s.precision)
		s.rate = math.Sqrt(s.good * s.bad)
	}
}

// Border is the highest rate that was good and the lowest that was not; 0 where there is none.
func (s *Search) Border() (good, bad float64) { return s.good, s.bad }
