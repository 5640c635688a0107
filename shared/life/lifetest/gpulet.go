package lifetest

import (
	"github.com/gpulet/gpulet/shared/life"
	"github.com/gpulet/gpulet/shared/wire"
)

// worker is what a gpu-let does with a request.
func (m mover) worker(w int, i uint8) {
	r := m.from.requests[i]
	if !m.from.conns[w].room() {
		return
	}
	if r.notices[w] {
		m.about(i, func(_ *system, r *request) { r.notices[w] = false; r.knows[w] = true }, "gpu-let %d hears of its cancellation", w+1)
	}
	switch {
	case r.held[w] == nothing && r.place == queued && !m.from.draining[w] && !m.Idle:
		m.take(life.Queued, life.Pull, life.Fetched, "")
		m.about(i, func(_ *system, r *request) {
			r.place, r.held[w], r.copies[w] = out, fetched, r.copy
			r.deliveries++
		}, "gpu-let %d fetches it", w+1)
	case r.held[w] == fetched:
		m.holding(w, i)
	case r.held[w] == running && r.knows[w]:
		m.answer(w, i, life.Running, life.Cancel, wire.Cancelled)
	case r.held[w] == running:
		m.take(life.Running, life.Fail, life.Answered, wire.Failed)
		m.answer(w, i, life.Running, life.Finish, wire.StatusOK)
	}
}

// holding is what may become of a fetched request.
func (m mover) holding(w int, i uint8) {
	r := m.from.requests[i]
	if m.from.left.GiveBacks > 0 {
		m.giveBack(w, i)
	}
	switch {
	case r.deaths == convicting && !r.letter:
		m.about(i, func(_ *system, r *request) { r.letter = true }, "gpu-let %d writes a dead letter", w+1)
	case r.deaths == convicting:
		m.answer(w, i, life.Fetched, life.Convict, wire.Poisoned)
	case r.knows[w]:
		m.answer(w, i, life.Fetched, life.Cancel, wire.Cancelled)
	case r.past:
		m.answer(w, i, life.Fetched, life.Late, wire.Expired)
	default:
		m.take(life.Fetched, life.Launch, life.Running, "")
		m.about(i, func(_ *system, r *request) { r.held[w] = running; r.runs = min(r.runs+1, 2) }, "gpu-let %d runs it", w+1)
		m.take(life.Fetched, life.Reject, life.Answered, wire.BadRequest)
		m.answer(w, i, life.Fetched, life.Late, wire.Expired)
	}
}

func (m mover) giveBack(w int, i uint8) {
	next := queued
	if m.from.requests[i].deliveries >= m.Rules.MaxDeliver {
		next = dead
		m.take(life.Fetched, life.Exhaust, life.Dead, "")
	} else {
		m.take(life.Fetched, life.GiveBack, life.Queued, "")
	}
	m.about(i, func(s *system, r *request) {
		s.left.GiveBacks--
		r.held[w], r.failed = nothing, true
		if r.place == out && r.copies[w] == r.copy {
			r.place = next
		}
	}, "gpu-let %d gives it back", w+1)
}

// answer ends a request at its gpu-let: the reply and the acknowledgement go into the connection, one
// behind the other; or the reply cannot be sent.
func (m mover) answer(w int, i uint8, from life.State, ev life.Event, status wire.Status) {
	m.take(from, ev, life.Answered, status)
	m.about(i, func(s *system, r *request) {
		r.held[w] = nothing
		for _, act := range m.Rules.Answer {
			if act != Remove || m.Rules.Acknowledge(life.Handed) {
				s.conns[w].write(item{i, act, r.copies[w]})
			}
		}
	}, "gpu-let %d answers it: %s", w+1, status)
	if m.from.left.Outages > 0 {
		m.about(i, func(s *system, r *request) {
			s.left.Outages--
			r.held[w] = nothing
			if m.Rules.Acknowledge(life.Unsent) {
				s.conns[w].write(item{i, Remove, r.copies[w]})
			}
		}, "gpu-let %d cannot send its answer: %s", w+1, status)
	}
}

// connection is what the server reads from a gpu-let, and what is lost with a connection.
func (m mover) connection(w int) {
	if m.from.conns[w].n == 0 {
		return
	}
	head := m.from.conns[w].items[0]
	if head.act == Tell {
		m.about(head.request, func(s *system, r *request) {
			s.conns[w].read()
			m.reply(r)
		}, "the server has gpu-let %d's reply", w+1)
	} else {
		m.take(life.Answered, life.Ack, life.Gone, "")
		m.about(head.request, func(s *system, r *request) {
			s.conns[w].read()
			if head.copy == r.copy {
				r.place = gone
			}
		}, "the server has gpu-let %d's acknowledgement", w+1)
	}
	if m.from.left.Losses > 0 {
		m.about(head.request, func(s *system, r *request) {
			s.left.Losses--
			s.conns[w].read()
			r.failed = true
			if head.act == Tell {
				r.told, r.missed = true, true
			}
		}, "what gpu-let %d sent first is lost", w+1)
	}
}

// reply is on its way to the client.
func (m mover) reply(r *request) {
	r.told = true
	r.replies = min(r.replies+1, 3)
}

// process is what happens to a gpu-let as a whole.
func (m mover) process(w int) {
	if m.from.left.Crashes > 0 {
		m.move(func(s *system) { s.left.Crashes--; s.restart(w) }, "gpu-let %d dies, and starts anew", w+1)
	}
	if m.from.left.Drains > 0 && !m.from.draining[w] {
		m.move(func(s *system) { s.left.Drains--; s.draining[w] = true }, "gpu-let %d drains", w+1)
	}
	if !m.from.draining[w] || m.from.conns[w].n > 0 {
		return
	}
	for i := range m.Requests {
		if m.from.requests[i].held[w] != nothing {
			return
		}
	}
	m.move(func(s *system) { s.restart(w) }, "gpu-let %d is drained, and another takes its place", w+1)
}

// restart puts a new process in the place of gpu-let w: what the old one held and had not sent is lost.
func (s *system) restart(w int) {
	for i := range s.requests {
		r := &s.requests[i]
		if r.held[w] != nothing || s.conns[w].has(uint8(i)) {
			r.failed = true
		}
		if r.held[w] == running {
			r.deaths = min(r.deaths+1, convicting)
		}
		r.held[w], r.knows[w], r.notices[w] = nothing, false, false
	}
	s.conns[w], s.draining[w] = connection{}, false
}
