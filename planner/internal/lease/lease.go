// Package lease decides which of several planners leads.
//
// The lease is one document on the bus that is only ever replaced by compare-and-set. A planner that
// holds it writes it again well within its time to live; the others take it once they have seen one
// and the same revision of it for that long. No two clocks are compared: everybody measures with
// its own, and only for how long.
//
// A holder stops counting itself as the leader before anybody else may take the lease, reckoned from
// the moment at which it asked for the last write that succeeded. That is enough where all clocks
// run at about the same speed and nobody sleeps between looking at its clock and acting. A planner
// may sleep, so plans are fenced as well: see Fence.
//
// The package is pure: time and what was read come in as values.
package lease

import (
	"time"

	"github.com/gpulet/gpulet/shared/plan"
)

// margin is the part of the time to live by which a holder gives up early: one in so many. Clocks
// whose speeds differ by less cannot make two leaders.
const margin = 10

// Config is how a planner takes part.
type Config struct {
	Holder string // the planner's name, for people
	ID     string // of this process, unlike any other's
	// TTL is for how long a lease holds that is not written again. Shorter takes over faster, and
	// changes the leader for shorter pauses.
	TTL time.Duration
}

// Poll is the time between looks at the lease.
func (c Config) Poll() time.Duration { return c.TTL / 5 }

// Takeover bounds the time from the death of a leader to its successor's first act, as long as the
// bus answers: the rest of the lease, and a look that comes late.
func (c Config) Takeover() time.Duration { return c.TTL + 2*c.Poll() }

// State is what one planner knows of the lease. The zero value, with its Config set, knows nothing.
type State struct {
	Config

	rev   uint64    // of the lease as last read or written
	since time.Time // since when that revision is known to be unchanged; zero: not known
	term  uint64    // that this process holds or held
	began time.Time // when that term began
	until time.Time // leads until then, unless it writes the lease again
	floor uint64    // the highest term seen in a plan: none below it leads
}

// View is the lease as it was read; revision 0 and the zero lease where there is none yet.
type View struct {
	Lease plan.Lease
	Rev   uint64
}

// Leads is the term that this planner leads at now; 0: it does not lead.
func (s *State) Leads(now time.Time) uint64 {
	if s.term == 0 || s.term < s.floor || !now.Before(s.until) {
		return 0
	}
	return s.term
}

// Next takes what was read between asked and read, and returns the lease to write over v.Rev, if any.
func (s *State) Next(asked, read time.Time, v View) (write plan.Lease, ok bool) {
	if v.Rev != s.rev || s.since.IsZero() {
		s.rev, s.since = v.Rev, read
	}
	held := v.Rev != 0 && v.Lease.Holder != ""
	mine := held && v.Lease.ID == s.ID
	if !mine {
		s.until = time.Time{}
	}
	switch {
	case mine && v.Lease.Term >= s.floor:
		return s.lease(v.Lease.Term, v.Lease.Since), true
	case held && !mine && asked.Sub(s.since) < time.Duration(v.Lease.TTLMs)*time.Millisecond:
		return plan.Lease{}, false
	}
	return s.lease(max(v.Lease.Term, s.floor, s.term)+1, read), true
}

func (s *State) lease(term uint64, since time.Time) plan.Lease {
	return plan.Lease{Holder: s.Holder, ID: s.ID, Term: term, TTLMs: s.TTL.Milliseconds(), Since: since}
}

// Wrote notes that l, which was asked to be written at asked, is revision rev of the lease.
func (s *State) Wrote(asked time.Time, l plan.Lease, rev uint64) {
	s.rev, s.since, s.term, s.began = rev, asked, l.Term, l.Since
	s.until = asked.Add(s.TTL - s.TTL/margin)
}

// Lost notes that a write met another revision: somebody else has written the lease.
func (s *State) Lost() { s.until, s.since = time.Time{}, time.Time{} }

// Blind notes that the lease could not be read. What was seen before says nothing of the time
// since: a holder that was cut off just as well may come back and write it again.
func (s *State) Blind() { s.since = time.Time{} }

// Saw notes the term of a plan that was read.
func (s *State) Saw(term uint64) { s.floor = max(s.floor, term) }

// Release is the lease to write over the returned revision when this planner ends: without a holder,
// so that others need not wait. Not ok: there is nothing to give back.
func (s *State) Release(now time.Time) (l plan.Lease, rev uint64, ok bool) {
	if s.Leads(now) == 0 {
		return plan.Lease{}, 0, false
	}
	l = s.lease(s.term, s.began)
	l.Holder, s.until = "", time.Time{}
	return l, s.rev, true
}

// Fence says whether a leader of term may replace a plan that carries the term current. A plan
// document is replaced by compare-and-set against the revision that was read with it. So once a
// leader has written its term into the document, which it does before all else, every write that an
// earlier leader prepared meets another revision, and every later read tells it that its time is
// over, however long it slept and whatever its clock says.
func Fence(term, current uint64) bool { return term > 0 && term >= current }
