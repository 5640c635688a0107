// Package life is the life of a request: the states it goes through, what may happen in each, and the
// rules by which exactly one answer of it counts.
//
// It decides and does nothing. The frontend's inbox and the load generator's ledger accept answers by
// Fate.Hear, gpu-lets acknowledge by Sent.Acknowledge, queues deliver MaxDeliver times, and
// docs/protocol.md shows Transitions. Package lifetest takes the same rules through every interleaving
// of a small system.
package life

import "github.com/gpulet/gpulet/shared/wire"

// MaxDeliver is how often a queue hands out a request that is not acknowledged: a net below the verdicts
// on suspects, in which those end whose workers vanish without a trace, again and again. Being given back
// counts too, so it is not small.
const MaxDeliver = 8

// State is where a request is. Answered is one with a terminal reply on its way, which the queue may
// still hold; Refused and Gone are the ends.
type State string

// The states.
const (
	Published State = "published" // on its way to the queue
	Refused   State = "refused"   // not taken by the queue
	Queued    State = "queued"    // stored, and waiting for a gpu-let
	Fetched   State = "fetched"   // with a gpu-let, and not launched
	Running   State = "running"
	Dead      State = "dead" // delivered MaxDeliver times: nobody fetches it any more
	Answered  State = "answered"
	Gone      State = "gone" // out of the queue
)

// Event is what takes a request from one state to the next.
type Event string

// The events.
const (
	Store    Event = "stored"
	Full     Event = "limit of the queue reached"
	Nobody   Event = "no queue, or no JetStream"
	Pull     Event = "pulled"
	Launch   Event = "launched"
	Reject   Event = "does not fit the model"
	Late     Event = "cannot finish in time"
	Cancel   Event = "cancelled"
	Convict  Event = "convicted"
	Finish   Event = "outputs are there"
	Fail     Event = "refused by the engine"
	GiveBack Event = "given back"
	Unacked  Event = "not acknowledged within AckWait"
	Exhaust  Event = "not acknowledged, for the last time"
	Bury     Event = "buried"
	Ack      Event = "acknowledged or deleted"
	Age      Event = "older than the queue keeps requests"
	Overdue  Event = "not fetched by its deadline"
	Forget   Event = "its queue is lost"
	Unheard  Event = "acknowledged, and its reply lost"
)

// Transition is one row of the life of a request.
type Transition struct {
	From   State
	Event  Event
	To     State
	Status wire.Status // what the client is told; empty: nothing
}

// Transitions is everything that may happen to a request. The states are those of one delivery: a
// request that was delivered again while its first worker is only slow is in two of them at once.
func Transitions() []Transition {
	return []Transition{
		{Published, Store, Queued, ""},
		{Published, Full, Refused, wire.Overloaded},
		{Published, Nobody, Refused, wire.Unavailable},
		{Queued, Pull, Fetched, ""},
		{Queued, Cancel, Answered, wire.Cancelled},
		{Queued, Overdue, Answered, wire.Expired},
		{Queued, Forget, Published, ""},
		{Queued, Age, Gone, ""},
		{Fetched, Launch, Running, ""},
		{Fetched, Reject, Answered, wire.BadRequest},
		{Fetched, Late, Answered, wire.Expired},
		{Fetched, Cancel, Answered, wire.Cancelled},
		{Fetched, Convict, Answered, wire.Poisoned},
		{Fetched, GiveBack, Queued, ""},
		{Fetched, Unacked, Queued, ""},
		{Fetched, Exhaust, Dead, ""},
		{Running, Finish, Answered, wire.StatusOK},
		{Running, Fail, Answered, wire.Failed},
		{Running, Cancel, Answered, wire.Cancelled},
		{Running, Unacked, Queued, ""},
		{Running, Exhaust, Dead, ""},
		{Answered, Ack, Gone, ""},
		{Answered, Unacked, Queued, ""},
		{Answered, Exhaust, Dead, ""},
		{Answered, Unheard, Published, ""},
		{Dead, Forget, Published, ""},
		{Dead, Bury, Answered, wire.Poisoned},
	}
}

// Fate is how far a client is with a request, as far as answers are concerned.
type Fate uint8

// The fates.
const (
	Unknown   Fate = iota // never sent, or forgotten
	Waiting               // sent, and not answered
	Settled               // by a reply
	Abandoned             // by a refusal, its deadline, or because the client has left
)

// Word is what a client hears of a request.
type Word uint8

// The words.
const (
	Reply   Word = iota // an answer, whatever it says
	Refusal             // the queue has not taken it
	Doubt               // the acknowledgement is lost: the queue may have taken it
	Leave               // the client's own: its deadline has passed, it cancelled, it is gone
)

// Hear takes a word in. Exactly one of all the words about a request is accepted, the first that ends
// it; that one is its outcome. A doubt ends nothing: an answer may still come.
func (f Fate) Hear(w Word) (next Fate, accepted bool) {
	switch {
	case f != Waiting || w == Doubt:
		return f, false
	case w == Reply:
		return Settled, true
	}
	return Abandoned, true
}

// Sent is what became of a worker's reply.
type Sent uint8

// What may become of a reply.
const (
	Handed        Sent = iota // to the server, or stored there
	Undeliverable             // no one can ever send it: its address is bad
	Unsent                    // the bus is down, or does not store it now
)

// Acknowledge reports whether the worker takes the request out of its queue. What could not be said for
// want of a connection, or of a store, is left there, to be answered by somebody who has one.
func (s Sent) Acknowledge() bool { return s != Unsent }
