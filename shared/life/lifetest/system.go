package lifetest

import (
	"errors"
	"fmt"

	"github.com/gpulet/gpulet/shared/life"
	"github.com/gpulet/gpulet/shared/wire"
)

// The size of a system: requests, each with its client, and gpu-lets.
const (
	requests = 2
	workers  = 2
)

// Act is a step of what several programs do in a fixed order.
type Act uint8

// The acts.
const (
	Tell   Act = iota // reply to the client
	Remove            // acknowledge the request, or delete it from its queue
	Letter            // write a dead letter
)

// Rules are what the programs promise. Change one to see what it is for.
type Rules struct {
	// Hear is how a client takes in what it hears.
	Hear func(life.Fate, life.Word) (life.Fate, bool)
	// Acknowledge is what a gpu-let does after a reply.
	Acknowledge func(life.Sent) bool
	// Answer, Burial and Removal are the order in which a gpu-let ends a request, the planner a dead
	// one, and the planner a cancelled one or one that nobody has fetched by its deadline.
	Answer, Burial, Removal []Act
	// SameMsgID: a publish that is made again keeps its Nats-Msg-Id.
	SameMsgID bool
	// Buries: somebody looks after requests that were delivered too often.
	Buries bool
	// Sweeps: somebody looks after requests that nobody fetches.
	Sweeps bool
	// Again: a frontend publishes again what waits when its connection, or an acknowledgement, was lost.
	Again bool
	// Attempts: and as another attempt, what its queue had and has no more.
	Attempts bool
	// MaxDeliver is how often a request is delivered.
	MaxDeliver uint8
}

// deliveries stands in for life.MaxDeliver: so few that a search gets to the last.
const deliveries = 3

// OurRules are those of the programs.
func OurRules() Rules {
	return Rules{
		Hear: life.Fate.Hear, Acknowledge: life.Sent.Acknowledge,
		Answer: []Act{Tell, Remove}, Burial: []Act{Letter, Tell, Remove}, Removal: []Act{Tell, Remove},
		SameMsgID: true, Buries: true, Sweeps: true, Again: true, Attempts: true, MaxDeliver: deliveries,
	}
}

// Budget is how often what need not happen may happen in one run.
type Budget struct {
	Crashes        uint8 // of gpu-lets, which start anew
	PlannerCrashes uint8 // while it buries or removes a request
	Losses         uint8 // messages that the network loses, on any way
	Outages        uint8 // replies that cannot be sent: the bus is down for their gpu-let
	Stalls         uint8 // AckWaits that pass while the gpu-let that holds the request lives
	GiveBacks      uint8
	Drains         uint8
	Retries        uint8 // publishes made again after a doubt
	Cancels        uint8
	Full           uint8 // publishes that find the queue full
	Breaks         uint8 // connections of a frontend that break, with what is on its way over them
	Forgets        uint8 // servers that die, and come back without their queues
	Ages           uint8 // requests that their queue drops, since no planner has run for a minute
}

// Config is a system and what may happen to it.
type Config struct {
	Rules  Rules
	Budget Budget
	// Requests is how many there are, 1 or 2.
	Requests int
	// Deadlines: every deadline passes, sooner or later.
	Deadlines bool
	// Door: clients are frontends. They give a request up when it is cancelled, since they answer their own
	// clients at once, and publish again what may be lost. The others wait for a reply, as the load
	// generator does.
	Door bool
	// Idle: no gpu-let fetches.
	Idle bool
	// Limit bounds the states; 0: two million.
	Limit int
}

// Result is what a search found.
type Result struct {
	States int
	Taken  map[life.Transition]bool
}

// What is never allowed to be. Errors of a counterexample wrap one of these.
var (
	ErrTwice  = errors.New("accepted twice")
	ErrLost   = errors.New("lost: neither answered nor buried")
	ErrSilent = errors.New("its client never heard of it, and no message was lost")
	ErrStuck  = errors.New("left in the queue for ever")
	ErrCopied = errors.New("stored twice")
	ErrRerun  = errors.New("run twice, though nothing failed")
	ErrTable  = errors.New("not a transition of package life")
)

// Where a request is as its queue sees it.
type place uint8

const (
	absent place = iota
	queued
	out // with a gpu-let, unacknowledged
	dead
	gone
)

// What a gpu-let does with a request.
type hold uint8

const (
	nothing hold = iota
	fetched
	running
)

// request is one request with its client. Counters that can only matter up to some number stop there.
type request struct {
	fate     life.Fate
	accepted uint8 // words, up to 2

	publishes, acks, duplicates, refusals, doubts, replies uint8 // on their way

	// What a frontend has to do: to publish it again, or to look whether the queue still has it. Resent: it
	// has done so, and no refusal ends the wait.
	again, known, resent bool

	place      place
	stored     uint8 // copies, up to 2, that the queue knows of
	copy       uint8 // which one is in the queue: more than one only after a loss
	deliveries uint8
	runs       uint8 // up to 2
	deaths     uint8 // of processes that ran it, up to those that convict it
	held       [workers]hold
	copies     [workers]uint8 // which copy that is

	told    bool // a reply has left its sender
	letter  bool
	missed  bool // the network has lost a reply
	doubted bool // the network has lost a publish, or what the queue said of it
	failed  bool // something has gone wrong that excuses a second run
	past    bool // its deadline
	aged    bool // its queue has dropped it
	asked   bool // its client has cancelled
	burial  uint8
	removal uint8
	expiry  uint8 // acts done, plus one; 0: not begun

	notices [workers + 1]bool // of the cancellation on their way; the last is the planner's
	knows   [workers]bool
}

// convicting is how many processes have died over a request that nobody runs any more.
const convicting = 2

// item is something that a gpu-let has written to its connection. The server reads in that order.
type item struct {
	request uint8
	act     Act
	copy    uint8 // of the request, which an acknowledgement means
}

// connection is what a gpu-let has written and the server has not read.
type connection struct {
	items [8]item
	n     uint8
}

func (c *connection) room() bool { return c.n <= 4 }

func (c *connection) write(it item) {
	c.items[c.n] = it
	c.n++
}

func (c *connection) read() item {
	it := c.items[0]
	copy(c.items[:], c.items[1:])
	c.n--
	c.items[c.n] = item{}
	return it
}

func (c connection) has(r uint8) bool {
	for _, it := range c.items[:c.n] {
		if it.request == r {
			return true
		}
	}
	return false
}

// system is a state of everything.
type system struct {
	requests [requests]request
	conns    [workers]connection
	draining [workers]bool
	left     Budget
}

// Explore takes the system through everything that may happen. The error is a *Counterexample, or says
// that the bounds are too wide to search.
func Explore(cfg Config) (Result, error) {
	if cfg.Limit == 0 {
		cfg.Limit = 2_000_000
	}
	e := &explorer{Config: cfg, taken: map[life.Transition]bool{}, known: map[life.Transition]bool{}}
	for _, t := range life.Transitions() {
		e.known[t] = true
	}
	start := system{left: cfg.Budget}
	for r := range cfg.Requests {
		start.requests[r] = request{fate: life.Waiting, publishes: 1}
	}
	states, err := space[system]{start, e.next, e.check, cfg.Limit}.search()
	if err == nil && len(e.strange) > 0 {
		err = fmt.Errorf("%w: %v", ErrTable, e.strange[0])
	}
	return Result{states, e.taken}, err
}

type explorer struct {
	Config
	taken, known map[life.Transition]bool
	strange      []life.Transition
}

// take notes a transition of package life.
func (e *explorer) take(from life.State, ev life.Event, to life.State, status wire.Status) {
	t := life.Transition{From: from, Event: ev, To: to, Status: status}
	if !e.known[t] {
		e.strange = append(e.strange, t)
	}
	e.taken[t] = true
}

// check judges a state: what must hold always, and what must hold when nothing happens any more.
func (e *explorer) check(s system, end bool) error {
	for i := range e.Requests {
		r := &s.requests[i]
		err := r.always()
		if err == nil && end {
			err = r.finally(e.Deadlines)
		}
		if err != nil {
			return fmt.Errorf("request %d: %w", i+1, err)
		}
	}
	return nil
}

func (r *request) always() error {
	switch {
	case r.accepted > 1:
		return ErrTwice
	case r.stored > 1:
		return ErrCopied
	case r.runs > 1 && !r.failed:
		return ErrRerun
	}
	return nil
}

func (r *request) finally(deadlines bool) error {
	excused := r.missed || r.stored == 0 && r.doubted
	switch {
	case r.place != gone && r.place != absent:
		return ErrStuck
	case r.stored > 0 && !r.told && !r.letter && !r.aged:
		return ErrLost
	case r.accepted == 0 && (deadlines || !excused):
		return ErrSilent
	}
	return nil
}
