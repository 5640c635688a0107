package lifetest

import "github.com/gpulet/gpulet/shared/life"

// insists: clients are frontends, and those publish again.
func (m mover) insists() bool { return m.Door && m.Rules.Again }

// frontend is what a client does that publishes again.
func (m mover) frontend(i uint8) {
	r := m.from.requests[i]
	if m.Door && m.from.left.Breaks > 0 && r.fate == life.Waiting {
		m.about(i, func(s *system, r *request) { s.left.Breaks--; m.cutOff(r) }, "its frontend loses its connection, and has another")
	}
	if r.fate != life.Waiting {
		return
	}
	if r.again {
		m.about(i, func(_ *system, r *request) { r.again, r.resent = false, true; r.publishes++ }, "its frontend publishes it again")
	}
	if r.duplicates > 0 {
		m.about(i, func(_ *system, r *request) { r.duplicates--; r.known = true }, "its frontend learns that the queue had it")
	}
	// It looks twice, so what the queue sent before it deleted the request has come.
	if r.known && r.place == gone && r.replies == 0 && m.Rules.Attempts {
		m.take(life.Answered, life.Unheard, life.Published, "")
		m.about(i, func(_ *system, r *request) { r.lose(); r.again, r.place = true, absent }, "its frontend finds that it was answered unheard")
	}
}

// cutOff is the end of a client's connection, and of what is on its way.
func (m mover) cutOff(r *request) {
	r.publishes, r.acks, r.duplicates, r.refusals, r.doubts, r.replies = 0, 0, 0, 0, 0, 0
	r.known, r.again, r.failed = false, m.insists() && r.fate == life.Waiting, true
}

// lose makes the queue forget a request, so that what is published next is another copy.
func (r *request) lose() {
	r.stored, r.deliveries, r.deaths, r.known, r.failed = 0, 0, 0, false, true
	r.burial, r.removal, r.expiry = 0, 0, 0
	r.copy++
}

// forgets is a server that dies, with its queues and everything that is on its way.
func (m mover) forgets() {
	if m.from.left.Forgets == 0 {
		return
	}
	for _, r := range m.from.requests[:m.Requests] {
		switch r.place {
		case queued:
			m.take(life.Queued, life.Forget, life.Published, "")
		case dead:
			m.take(life.Dead, life.Forget, life.Published, "")
		}
	}
	m.move(func(s *system) {
		s.left.Forgets--
		s.conns = [workers]connection{}
		for i := range s.requests[:m.Requests] {
			r := &s.requests[i]
			m.cutOff(r)
			r.lose()
			r.place, r.notices = absent, [workers + 1]bool{}
		}
	}, "the server dies, and comes back without its queues")
}
