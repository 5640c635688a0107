// Package inbox sends requests to the queue and gives every reply to the one who waits for it.
//
// Delivery on the bus is at least once, and a client may have left before its reply comes. The
// Inbox owns the table of pending requests; which of the words about a request counts is the rule of
// package life. It knows nothing of HTTP or of what a reply says.
package inbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/life"
)

// ErrExpired: the deadline passed before a reply came. The request may still be run.
var ErrExpired = errors.New("no answer before the deadline")

// ErrClosed: the frontend is going down.
var ErrClosed = errors.New("the frontend is shutting down")

// ErrCancelled: somebody has cancelled the request by its id.
var ErrCancelled = errors.New("cancelled")

// Bus is what the Inbox needs of the bus.
type Bus interface {
	NewInbox(receive func(bus.Reply)) (*bus.Inbox, error)
	PublishAsync(m *bus.Message, done func(bus.Receipt, error)) error
	OnReconnect(f func())
	Lag(ctx context.Context, model string) (bus.Lag, error)
	Cancel(c bus.Cancellation) error
	WatchCancellations(model string, hear func(bus.Cancellation)) (stop func(), err error)
	Result(ctx context.Context, model, requestID string) (bus.Reply, error)
	AwaitResult(ctx context.Context, model, requestID string) (bus.Reply, error)
}

// Stats counts the replies that nobody was waiting for, the requests in flight, and what was sent again.
type Stats struct {
	Pending    int
	Again      uint64 // publishes made again, of requests whose answer may not come otherwise
	Late       uint64 // the waiter had left, or its request was refused
	Duplicates uint64 // the request had been answered
	Strays     uint64 // never one of ours, or forgotten since
}

// Inbox is safe for concurrent use.
type Inbox struct {
	bus     Bus
	replies *bus.Inbox
	deaf    func() // ends hearing of cancellations

	begin   func(f func(context.Context)) // runs f beside everything else, until Close
	stop    func()                        // ends what has begun
	running sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	pending map[uint64]*Call
	named   map[name]map[uint64]*Call // those of pending whose client has chosen the id
	lines   map[string]*line          // by model: what is to be sent again
	lost    map[string][]*Call        // by model: what nothing stored, while its queue is asked for
	last    uint64                    // number of the newest request
	closed  closedRing
	down    bool
	stats   Stats
}

// Open subscribes to a new inbox on b.
func Open(b Bus) (*Inbox, error) {
	i := &Inbox{bus: b, pending: map[uint64]*Call{}, named: map[name]map[uint64]*Call{}, lines: map[string]*line{}, lost: map[string][]*Call{}}
	replies, err := b.NewInbox(i.receive)
	if err != nil {
		return nil, fmt.Errorf("open reply inbox: %w", err)
	}
	i.replies = replies
	if i.deaf, err = b.WatchCancellations("", i.cancelled); err != nil {
		replies.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	i.stop = cancel
	i.begin = func(f func(context.Context)) { i.running.Go(func() { f(ctx) }) }
	b.OnReconnect(i.reconnected)
	return i, nil
}

// Close ends the subscription and every wait that is left, with ErrClosed.
func (i *Inbox) Close() {
	i.deaf()
	i.replies.Close()
	i.stop()
	defer i.running.Wait()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = true
	for n := range i.pending {
		i.hear(n, life.Leave, outcome{err: ErrClosed})
	}
}

// Stats reads the counters.
func (i *Inbox) Stats() Stats {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.stats
	s.Pending = len(i.pending)
	return s
}

// Send publishes m under a reply address of its own and, unless it has one, a request id. m and its body
// are the call's until Wait has returned: it may be published again. An error means that nothing was sent,
// and they are the caller's; a later refusal by the queue is what Wait returns.
//
// A message that has an id is idempotent: when a request of that id was sent before, by whatever
// frontend or client, Wait returns the answer of that one.
func (i *Inbox) Send(m *bus.Message) (*Call, error) {
	c, err := i.open(m)
	if err != nil {
		return nil, err
	}
	c.compose(m)
	err = c.publish(func(r bus.Receipt, err error) {
		switch {
		case err == nil:
			i.stored(c, r)
		case errors.Is(err, bus.ErrUnacknowledged):
			i.end(c, life.Doubt, err)
			i.doubt(c)
		case errors.Is(err, bus.ErrNotStored):
			i.notStored(c, err)
		default:
			i.end(c, life.Refusal, err)
		}
	})
	if err != nil {
		c.release()
		i.end(c, life.Refusal, err)
		return nil, err
	}
	return c, nil
}

// Answered returns a Call whose answer is kept already, from an earlier request of the same id; nil
// when there is none, or when that cannot be found out.
func (i *Inbox) Answered(ctx context.Context, model, requestID string) *Call {
	r, err := i.bus.Result(ctx, model, requestID)
	if err != nil {
		return nil
	}
	c := newCall(i, model, requestID)
	c.result <- outcome{reply: r}
	return c
}

func (i *Inbox) open(m *bus.Message) (*Call, error) {
	c := newCall(i, m.Model, m.RequestID)
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.down {
		return nil, ErrClosed
	}
	i.last++
	c.number = i.last
	i.pending[c.number] = c
	if c.own {
		n := name{c.model, c.RequestID}
		if i.named[n] == nil {
			i.named[n] = map[uint64]*Call{}
		}
		i.named[n][c.number] = c
	}
	return c, nil
}

// stored notes where a request is. Of one that was there before the answer may be lost: it is looked for,
// among the results where the client has chosen its id.
func (i *Inbox) stored(c *Call, r bus.Receipt) {
	i.mu.Lock()
	c.seq, c.again, c.missing = r.Seq, false, false
	unwanted, l := c.unwanted, i.lines[c.model]
	switch {
	case !r.Duplicate:
	case c.own && !c.twinned:
		c.twinned = true
		close(c.twin)
	case !c.own && l != nil:
		l.known = append(l.known, c)
	}
	i.mu.Unlock()
	if unwanted { // cancelled before its place was known
		c.cancel(r.Seq)
	}
}

// Cancel cancels a request by its id, wherever it was sent and wherever it is.
func (i *Inbox) Cancel(model, requestID string) error {
	return i.bus.Cancel(bus.Cancellation{Model: model, RequestID: requestID})
}

// cancelled ends the waits for a request that somebody has cancelled, and tells the planner its place in
// the queue, which only its sender knows.
func (i *Inbox) cancelled(n bus.Cancellation) {
	if n.Seq != 0 {
		return // told by one who knew
	}
	i.mu.Lock()
	for number, c := range i.named[name{n.Model, n.RequestID}] {
		c.unwanted = i.hear(number, life.Leave, outcome{err: ErrCancelled})
		n.Seq = max(n.Seq, c.seq) // they all have the same place
	}
	i.mu.Unlock()
	if n.Seq != 0 {
		_ = i.bus.Cancel(n)
	}
}

// receive is the only place where replies come in.
func (i *Inbox) receive(r bus.Reply) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n, err := strconv.ParseUint(r.Token, 36, 64)
	if err != nil {
		i.stats.Strays++
		return
	}
	switch fate := i.fate(n); {
	case i.hear(n, life.Reply, outcome{reply: r}):
	case fate == life.Settled:
		i.stats.Duplicates++
	case fate == life.Abandoned:
		i.stats.Late++
	default:
		i.stats.Strays++
	}
}

// end ends the wait for c with err, unless it has ended.
func (i *Inbox) end(c *Call, w life.Word, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.hear(c.number, w, outcome{err: err})
}

// fate is what has become of request n; i.mu is held.
func (i *Inbox) fate(n uint64) life.Fate {
	if i.pending[n] != nil {
		return life.Waiting
	}
	return i.closed.of(n)
}

// hear takes a word about request n in, and reports whether it ended it with o; i.mu is held. The
// channel has room: one word is accepted.
func (i *Inbox) hear(n uint64, w life.Word, o outcome) bool {
	next, accepted := i.fate(n).Hear(w)
	if !accepted {
		return false
	}
	c := i.pending[n]
	delete(i.pending, n)
	if c.own {
		i.forget(c)
	}
	i.closed.put(n, next)
	c.result <- o
	return true
}

func (i *Inbox) forget(c *Call) {
	n := name{c.model, c.RequestID}
	delete(i.named[n], c.number)
	if len(i.named[n]) == 0 {
		delete(i.named, n)
	}
}
