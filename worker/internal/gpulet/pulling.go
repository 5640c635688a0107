package gpulet

import (
	"math"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
)

// pull asks the queues for the next batch of every model, once the executor is about to be free.
func (l *loop) pull(now time.Time) {
	if l.draining || l.paused {
		return
	}
	l.ahead = l.batchesAhead()
	for _, w := range l.wants() {
		m := l.models[w.Model]
		if at := l.pullTime(m); at.IsZero() || at.After(now) {
			continue
		}
		if n := w.N - m.decoding - m.judging; n > 0 {
			l.ask(m, m.toAsk(n), now)
		}
	}
}

// pullTime is when the model may pull; zero: not before something else happens.
func (l *loop) pullTime(m *bound) time.Time {
	if m.puller == nil || m.pulling || l.draining || l.paused || l.batcher.Held(m.name())+m.decoding+m.judging >= l.ahead*m.batch() {
		return time.Time{}
	}
	at := m.pullAt
	if m.yields {
		quiet := l.quietAt()
		if quiet.IsZero() || l.batcher.Taken() {
			return time.Time{}
		}
		at = later(at, quiet)
	}
	if l.busy {
		if free := l.busyUntil.Add(-l.lead.time() - m.decodeLead); free.After(at) {
			at = free
		}
	}
	if at.IsZero() {
		at = time.Unix(0, 0) // any time
	}
	return at
}

// maxAhead bounds what is fetched while measurements are off.
const maxAhead = 32

// batchesAhead is how many batches of every model may be held. It is one, so that requests wait in
// the queue and not here, unless a round of all models takes less than the way to the queue and
// back: then the executor would have nothing to do most of the time. What is held is never more
// than that way takes to run, but for images, of which as many rounds as begin while one is fetched
// and decoded are on their way.
func (l *loop) batchesAhead() int {
	round, decoding := time.Duration(0), time.Duration(0)
	for _, m := range l.order {
		if m.puller != nil && !m.yields {
			round += m.estimate.exec(m.batch())
			decoding = max(decoding, m.decodeLead)
		}
	}
	if round <= 0 {
		return 1 // nothing is known yet
	}
	way := l.lead.roundTrip * 3 / 2
	if decoding > 0 {
		way += decoding + round - 1 // rounds up
	}
	return int(min(max(way/round, 1), maxAhead))
}

const (
	wasteWeight = 1. / 16 // of one request in the moving average
	maxWaste    = 7. / 8
)

// toAsk is how many requests to ask for to get n that can still be run. An overloaded model's
// queue begins with requests that are too late; asking only for n would leave the executor without
// work while they are got rid of, one round trip after the other.
func (m *bound) toAsk(n int) int {
	return int(math.Ceil(float64(n) / (1 - min(m.waste, maxWaste))))
}

// ask makes an idle pull: it brings the backlog at once, or waits for the first request.
func (l *loop) ask(m *bound, n int, now time.Time) {
	if err := m.puller.Pull(n, true, idleExpires); err != nil {
		m.trouble = err.Error()
		m.pullAt = now.Add(m.pace.Next())
		l.log.Warn("pull failed", "model", m.name(), "error", err)
		return
	}
	m.pulling, m.asked, m.got, m.pulled = true, n, 0, now
}

// delivering reports whether a pull has brought something and not ended yet: the rest of a
// backlog is right behind, and a batch without it would be needlessly small.
func (l *loop) delivering(now time.Time) bool {
	return slices.ContainsFunc(l.order, func(m *bound) bool { return m.delivering(now) })
}

func (m *bound) delivering(now time.Time) bool {
	return m.pulling && m.got > 0 && m.got < m.asked && now.Before(m.first.Add(endGrace))
}

// pullEvents takes an event and those that wait behind it.
func (l *loop) pullEvents(e bus.PullEvent) {
	now := time.Now()
	for range cap(l.events) {
		l.pullEvent(e, now)
		select {
		case e = <-l.events:
		default:
			return
		}
	}
	l.pullEvent(e, now)
}

func (l *loop) pullEvent(e bus.PullEvent, now time.Time) {
	m := l.models[e.Model]
	switch {
	case e.Msg != nil && (m == nil || m.loaded == nil):
		_ = e.Msg.Nak(0) // came after its model went; others serve it
	case e.Msg != nil:
		if m.got++; m.got == 1 {
			m.first = now
			m.pace.Reset()
			m.trouble = ""
		}
		if m.got == 1 && e.Msg.Pending > 0 && e.Msg.Stored.Before(m.pulled) {
			l.lead.met(now.Sub(m.pulled))
		}
		l.admit(m, e.Msg, now)
	case e.Ended && m != nil && m.pulling:
		l.pullEnded(m, e.Err, now)
	}
}

func (l *loop) pullEnded(m *bound, err error, now time.Time) {
	m.pulling = false
	switch {
	case err != nil:
		wait := m.pace.Next()
		m.pullAt = now.Add(wait)
		if m.trouble == "" {
			l.log.Warn("pull ended", "model", m.name(), "error", err, "retry_in", wait)
		}
		m.trouble = err.Error()
	case m.got == 0 && now.Sub(m.pulled) < endGrace:
		// The server answers an idle pull like this when others are about to take the backlog.
		m.pullAt = now.Add(endGrace)
	default:
		m.trouble = ""
	}
}

// startPulling lets the model take requests.
func (l *loop) startPulling(m *bound) {
	if m.puller != nil && m.rank == m.Rank || l.draining || l.paused {
		return
	}
	l.stopPulling(m)
	err := l.hearCancellations(m)
	var p *bus.Puller
	if err == nil {
		p, err = l.cfg.Bus.NewPuller(m.name(), bus.PullerOptions{Rank: m.Rank, Events: l.events})
	}
	if err != nil {
		m.problem = err.Error()
		m.loadAt = time.Now().Add(m.again.Next())
		l.log.Error("cannot pull", "model", m.name(), "error", err)
		return
	}
	m.puller, m.rank, m.pulling, m.pullAt = p, m.Rank, false, time.Time{}
	l.demanded(m, time.Now()) // that nobody asked before says nothing
}

// stopPulling ends the model's puller. What it has handed over is taken.
func (l *loop) stopPulling(m *bound) {
	if m.puller == nil {
		return
	}
	m.puller.Close()
	m.puller = nil
	// No event comes from it any more; those that wait must not be taken for a successor's.
	for len(l.events) > 0 {
		l.pullEvent(<-l.events, time.Now())
	}
	m.pulling = false
}

// lead is how long before the executor is free a pull has to be made for its messages to be there
// in time: a round trip to the queue, measured on pulls that met a backlog, and the lateness of
// timers.
type lead struct{ roundTrip time.Duration }

const (
	timerLateness = time.Millisecond
	maxLead       = 50 * time.Millisecond
)

func newLead() lead { return lead{500 * time.Microsecond} }

func (d *lead) time() time.Duration { return min(timerLateness+d.roundTrip*3/2, maxLead) }

// met notes how long the first message of a backlog took to come. Whether it was a backlog is
// judged by another machine's clock, so only a shorter way is believed at once.
func (d *lead) met(after time.Duration) {
	if after < d.roundTrip {
		d.roundTrip += (after - d.roundTrip) / 4
		return
	}
	d.roundTrip += (min(after, maxLead) - d.roundTrip) / 64
}
