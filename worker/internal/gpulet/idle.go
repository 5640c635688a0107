package gpulet

import (
	"time"

	"github.com/gpulet/gpulet/shared/batch"
)

// Models of a lower standing than others of the gpu-let get only what these leave: their requests are
// fetched and run while the executor has nothing else to do, in batches that end before anybody else is
// late.

func (m *bound) standing() batch.Standing { return batch.StandingOf(m.RateRPS, m.Config.Offline()) }

// yield sets which models yield. One that goes runs in its turn, so that it is gone soon.
func (l *loop) yield() {
	first := batch.Offline
	for _, m := range l.order {
		if !m.retiring {
			first = min(first, m.standing())
		}
	}
	for _, m := range l.order {
		m.yields = !m.retiring && m.standing() > first
	}
}

// quietAt is from when on it is sure that no request waits for the models that do not yield: all of them
// have asked for more, and an answer would have come. Zero: not before something else happens.
func (l *loop) quietAt() time.Time {
	at := time.Unix(0, 0) // any time
	if l.paused {
		return at // nothing is fetched, and suspects count as requests that are judged
	}
	for _, m := range l.order {
		switch {
		case m.yields:
		case m.decoding+m.judging > 0:
			return time.Time{}
		case m.puller == nil || m.trouble != "": // it cannot ask
		case !m.pulling || m.got > 0:
			return time.Time{}
		default:
			at = later(at, m.pulled.Add(l.lead.time()))
		}
	}
	return at
}

// quietFor is how many times as long as a batch nobody else must have asked for the executor before a
// batch may take longer than the slack: at most one in so many requests comes in the middle of it.
const quietFor = 100

// emptying reports whether somebody waits for everything that is held to be gone: the end of the process, or a
// suspect. Then what yields runs in any case, however long that takes.
func (l *loop) emptying() bool { return l.draining || l.paused }

// idleAt is when a batch of a yielding model may be launched; zero: not before something else happens.
func (l *loop) idleAt(now time.Time) time.Time {
	shortest, ok := l.batcher.Idle()
	if !ok || l.busy || l.delivering(now) {
		return time.Time{}
	}
	at := l.quietAt()
	if !at.IsZero() && !l.emptying() && shortest > l.batcher.Slack() {
		at = later(at, l.asked.Add(quietFor*shortest))
	}
	return at
}

// demanded notes that m has something to run, or had until now, as far as is known.
func (l *loop) demanded(m *bound, now time.Time) {
	if !m.yields {
		l.asked = now
	}
}

// nextIdle decides what runs when nothing is left to do for the models that do not yield.
func (l *loop) nextIdle(now time.Time) batch.Decision {
	within := max(l.batcher.Slack(), now.Sub(l.asked)/quietFor)
	if l.emptying() {
		within = time.Hour
	}
	return l.batcher.NextIdle(now, within)
}

// wants is what to ask the queues for.
func (l *loop) wants() []batch.Want {
	return append(l.batcher.WantAhead(l.ahead), l.batcher.WantIdle()...)
}

// later returns the later of two moments.
func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
