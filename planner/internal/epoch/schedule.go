package epoch

import "time"

// Schedule says when to decide: every Epoch, and earlier when something cannot wait.
type Schedule struct {
	Epoch time.Duration
	// MinGap is the least time between a decision and one that traffic makes necessary. While such
	// decisions find nothing better, it doubles, up to Epoch. Other devices, models or profiles wait
	// for a quarter of it, so that several that come together are planned for together.
	MinGap time.Duration

	at   time.Time // of the last decision; zero: none, or it has to be made again
	gap  time.Duration
	seen Seen
}

// Due says whether to decide now, and what for.
func (s *Schedule) Due(now time.Time, st State) (cause, reason string, due bool) {
	since := now.Sub(s.at)
	switch {
	case s.at.IsZero():
		return First, "nothing was decided yet", true
	case since >= s.Epoch:
		return "timer", "an epoch has passed", true
	case since < s.MinGap/4:
		return "", "", false
	}
	cause, reason, changed := Urgent(st, s.seen)
	if cause == "" || !changed && since < max(s.gap, s.MinGap) {
		return "", "", false
	}
	return cause, reason, true
}

// Decided notes that d was decided for st because of cause.
func (s *Schedule) Decided(now time.Time, cause string, st State, d Decision) {
	switch {
	case d.Publish:
		s.gap = s.MinGap
	case cause == Lag || cause == Demand:
		s.gap = min(max(2*s.gap, 2*s.MinGap), s.Epoch)
	}
	s.at, s.seen = now, Look(st)
}

// Again makes the next decision due at once.
func (s *Schedule) Again() { s.at = time.Time{} }
