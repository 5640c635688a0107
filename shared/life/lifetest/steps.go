package lifetest

import (
	"fmt"

	"github.com/gpulet/gpulet/shared/life"
	"github.com/gpulet/gpulet/shared/wire"
)

// mover makes the states that follow one state.
type mover struct {
	*explorer
	from system
	step func(label func() string, to system)
}

// next calls step with everything that may follow s.
func (e *explorer) next(s system, step func(func() string, system)) {
	m := mover{e, s, step}
	for i := range uint8(e.Requests) {
		m.client(i)
		m.queue(i)
		m.planner(i)
		for w := range workers {
			m.worker(w, i)
		}
	}
	for w := range workers {
		m.connection(w)
		m.process(w)
	}
	m.forgets()
}

// move makes one following state: change alters a copy of the state.
func (m mover) move(change func(s *system), format string, args ...any) {
	to := m.from
	change(&to)
	if to.left.Losses == 0 { // then that a publish was stored is news to nobody
		for i := range to.requests {
			to.requests[i].acks = 0
		}
	}
	m.step(func() string { return fmt.Sprintf(format, args...) }, to)
}

// about is a move of one request.
func (m mover) about(i uint8, change func(s *system, r *request), format string, args ...any) {
	m.move(func(s *system) { change(s, &s.requests[i]) }, "request %d: "+format, append([]any{i + 1}, args...)...)
}

// hear lets a client take a word in.
func (m mover) hear(r *request, w life.Word) {
	var accepted bool
	if r.fate, accepted = m.Rules.Hear(r.fate, w); accepted {
		r.accepted = min(r.accepted+1, 2)
	}
}

func (m mover) client(i uint8) {
	r := m.from.requests[i]
	if r.acks > 0 {
		m.about(i, func(_ *system, r *request) { r.acks-- }, "its client learns that it is stored")
	}
	if r.refusals > 0 {
		m.about(i, func(_ *system, r *request) {
			r.refusals--
			if r.again = r.resent; !r.again { // what may have been taken before is tried again
				m.hear(r, life.Refusal)
			}
		}, "its client learns that it was refused")
	}
	if r.replies > 0 {
		m.about(i, func(_ *system, r *request) { r.replies--; m.hear(r, life.Reply) }, "a reply comes to its client")
	}
	if r.doubts > 0 {
		m.about(i, func(_ *system, r *request) {
			r.doubts--
			r.again = m.insists()
			m.hear(r, life.Doubt)
		}, "its client hears of no acknowledgement")
		if m.from.left.Retries > 0 && r.fate == life.Waiting {
			m.about(i, func(s *system, r *request) { s.left.Retries--; r.doubts--; r.publishes++ }, "its client publishes it again")
		}
	}
	if m.Deadlines && !r.past {
		m.about(i, func(_ *system, r *request) { r.past = true; m.hear(r, life.Leave) }, "its deadline passes")
	}
	if m.from.left.Cancels > 0 && r.fate == life.Waiting && !r.asked {
		m.about(i, func(s *system, r *request) {
			s.left.Cancels--
			r.asked = true
			r.notices = [workers + 1]bool{true, true, true}
			if m.Door {
				m.hear(r, life.Leave)
			}
		}, "its client cancels it")
	}
	m.losses(i)
	m.frontend(i)
}

// losses are what the network may lose of what is on its way from or to the client.
func (m mover) losses(i uint8) {
	r := m.from.requests[i]
	if m.from.left.Losses == 0 {
		return
	}
	lose := func(what string, change func(r *request)) {
		m.about(i, func(s *system, r *request) { s.left.Losses--; change(r) }, "%s is lost", what)
	}
	if r.publishes > 0 {
		lose("the publish", func(r *request) { r.publishes--; r.doubts++; r.doubted = true })
	}
	if r.acks > 0 {
		lose("the acknowledgement of the publish", func(r *request) { r.acks--; r.doubts++; r.doubted = true })
	}
	if r.duplicates > 0 {
		lose("the acknowledgement of the second publish", func(r *request) { r.duplicates--; r.doubts++; r.doubted = true })
	}
	if r.refusals > 0 {
		lose("the refusal", func(r *request) { r.refusals--; r.doubts++; r.doubted = true })
	}
	if r.replies > 0 {
		lose("a reply to the client", func(r *request) { r.replies--; r.missed = true })
	}
	for n := range r.notices {
		if r.notices[n] {
			lose("a notice of its cancellation", func(r *request) { r.notices[n] = false })
		}
	}
}

// queue is what JetStream does.
func (m mover) queue(i uint8) {
	r := m.from.requests[i]
	if r.publishes > 0 {
		m.stores(i)
	}
	if r.place == out && m.mayRedeliver(i) {
		m.redelivers(i)
	}
	// A queue keeps requests for a minute longer than any client waits.
	if r.place == queued && r.past && m.from.left.Ages > 0 {
		m.take(life.Queued, life.Age, life.Gone, "")
		m.about(i, func(s *system, r *request) { s.left.Ages--; r.place, r.aged = gone, true }, "it is too old for the queue")
	}
}

func (m mover) stores(i uint8) {
	r := m.from.requests[i]
	if r.stored > 0 && m.Rules.SameMsgID {
		m.about(i, func(_ *system, r *request) {
			r.publishes--
			if m.Door {
				r.duplicates++
			} else {
				r.acks++
			}
		}, "the queue has it already, and says so")
		return
	}
	m.take(life.Published, life.Store, life.Queued, "")
	m.about(i, func(_ *system, r *request) {
		r.publishes--
		r.acks++
		r.stored = min(r.stored+1, 2)
		r.place = queued
	}, "it is stored")
	if m.from.left.Full > 0 {
		m.take(life.Published, life.Full, life.Refused, wire.Overloaded)
		m.take(life.Published, life.Nobody, life.Refused, wire.Unavailable)
		m.about(i, func(s *system, r *request) { s.left.Full--; r.publishes--; r.refusals++ }, "the queue does not take it")
	}
}

// mayRedeliver: AckWait passes when nobody holds a request any more; and in a bounded number of cases
// although its gpu-let lives and is only slow, or its acknowledgement is still on its way.
func (m mover) mayRedeliver(i uint8) bool { return !m.holds(i) || m.from.left.Stalls > 0 }

func (m mover) holds(i uint8) bool {
	for w := range workers {
		if m.from.requests[i].held[w] != nothing || m.from.conns[w].has(i) {
			return true
		}
	}
	return false
}

func (m mover) redelivers(i uint8) {
	states := m.deliveryStates(i)
	event, to, next, text := life.Unacked, life.Queued, queued, "AckWait passes, and it is queued again"
	if m.from.requests[i].deliveries >= m.Rules.MaxDeliver {
		event, to, next, text = life.Exhaust, life.Dead, dead, "AckWait passes for the last time"
	}
	for _, s := range states {
		m.take(s, event, to, "")
	}
	m.about(i, func(s *system, r *request) {
		if m.holds(i) {
			s.left.Stalls--
		}
		r.place, r.failed = next, true
	}, "%s", text)
}

// deliveryStates are the states of the request's deliveries, of which the last may have died.
func (m mover) deliveryStates(i uint8) []life.State {
	states := []life.State{}
	for w := range workers {
		switch m.from.requests[i].held[w] {
		case fetched:
			states = append(states, life.Fetched)
		case running:
			states = append(states, life.Running)
		default:
			if m.from.conns[w].has(i) {
				states = append(states, life.Answered)
			}
		}
	}
	return states
}

// planner buries the dead and removes requests that nobody has fetched: cancelled ones, and late ones.
func (m mover) planner(i uint8) {
	r := m.from.requests[i]
	if r.place == dead && m.Rules.Buries || r.burial > 0 {
		m.act(i, m.Rules.Burial, func(r *request) *uint8 { return &r.burial }, life.Dead, life.Bury, wire.Poisoned, "buries it")
	}
	if r.notices[workers] {
		m.about(i, func(_ *system, r *request) {
			r.notices[workers] = false
			if r.place == queued && r.deliveries == 0 {
				r.removal = 1
			}
		}, "the planner hears of its cancellation")
	}
	if r.removal > 0 {
		m.act(i, m.Rules.Removal, func(r *request) *uint8 { return &r.removal }, life.Queued, life.Cancel, wire.Cancelled, "removes it")
	}
	if r.place == queued && r.past && m.Rules.Sweeps || r.expiry > 0 {
		m.act(i, m.Rules.Removal, func(r *request) *uint8 { return &r.expiry }, life.Queued, life.Overdue, wire.Expired, "ends it")
	}
	if m.from.left.PlannerCrashes > 0 && (r.burial > 0 || r.removal > 0 || r.expiry > 0) {
		m.about(i, func(s *system, r *request) {
			s.left.PlannerCrashes--
			r.burial, r.removal, r.expiry = 0, 0, 0
		}, "the planner dies, and starts anew")
	}
}

// act does the next of the planner's acts. Progress counts those done, plus one for having begun.
func (m mover) act(i uint8, acts []Act, progress func(*request) *uint8, from life.State, ev life.Event, status wire.Status, text string) {
	r := m.from.requests[i]
	done := int(*progress(&r))
	if done > 0 {
		done--
	}
	last := done == len(acts)-1
	m.take(from, ev, life.Answered, status)
	m.about(i, func(_ *system, r *request) {
		*progress(r) = uint8(done + 2)
		if last {
			*progress(r) = 0
		}
		switch acts[done] {
		case Letter:
			r.letter = true
		case Tell:
			m.reply(r)
		case Remove:
			r.place = gone
		}
	}, "the planner %s: %s", text, []string{"tells its client", "deletes it", "writes a dead letter"}[acts[done]])
}
