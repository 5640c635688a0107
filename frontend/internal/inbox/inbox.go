// Package inbox sends requests to the queue and gives every reply to the one who waits for it.
//
// Delivery on the bus is at least once, and a client may have left before its reply comes. The
// Inbox owns the table of pending requests; which of the words about a request counts is the rule of
// package life. It knows nothing of HTTP or of what a reply says.
package inbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

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
	Cancel(c bus.Cancellation) error
	WatchCancellations(model string, hear func(bus.Cancellation)) (stop func(), err error)
	Result(ctx context.Context, model, requestID string) (bus.Reply, error)
	AwaitResult(ctx context.Context, model, requestID string) (bus.Reply, error)
}

// Stats counts the replies that nobody was waiting for, and the requests in flight.
type Stats struct {
	Pending    int
	Late       uint64 // the waiter had left, or its request was refused
	Duplicates uint64 // the request had been answered
	Strays     uint64 // never one of ours, or forgotten since
}

// Inbox is safe for concurrent use.
type Inbox struct {
	bus     Bus
	replies *bus.Inbox
	deaf    func() // ends hearing of cancellations

	mu      sync.Mutex // guards the fields below
	pending map[uint64]*Call
	named   map[name]map[uint64]*Call // those of pending whose client has chosen the id
	last    uint64                    // number of the newest request
	closed  closedRing
	down    bool
	stats   Stats
}

// Open subscribes to a new inbox on b.
func Open(b Bus) (*Inbox, error) {
	i := &Inbox{bus: b, pending: map[uint64]*Call{}, named: map[name]map[uint64]*Call{}}
	replies, err := b.NewInbox(i.receive)
	if err != nil {
		return nil, fmt.Errorf("open reply inbox: %w", err)
	}
	i.replies = replies
	if i.deaf, err = b.WatchCancellations("", i.cancelled); err != nil {
		replies.Close()
		return nil, err
	}
	return i, nil
}

// Close ends the subscription and every wait that is left, with ErrClosed.
func (i *Inbox) Close() {
	i.deaf()
	i.replies.Close()
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

// name is what a client calls a request.
type name struct{ model, id string }

// Call is one request in flight. Its owner calls Wait exactly once.
type Call struct {
	// RequestID is the client's own or, where it has none, unique among all requests of all frontends
	// and not to be guessed: whoever knows it may cancel the request.
	RequestID string

	inbox  *Inbox
	model  string
	number uint64
	own    bool          // the client has chosen the id, and may come back for the answer
	result chan outcome  // holds one; only hear sends
	twin   chan struct{} // closed when the request turns out to have been sent before

	// Guarded by inbox.mu.
	seq      uint64 // in the queue; 0: not known yet
	unwanted bool   // cancelled
}

type outcome struct {
	reply bus.Reply
	err   error
}

// Send publishes m under a reply address of its own and, unless it has one, a request id. m and its
// body may be reused when Send has returned. An error means that nothing was sent; a later refusal by
// the queue is what Wait returns.
//
// A message that has an id is idempotent: when a request of that id was sent before, by whatever
// frontend or client, Wait returns the answer of that one.
func (i *Inbox) Send(m *bus.Message) (*Call, error) {
	c, err := i.open(m)
	if err != nil {
		return nil, err
	}
	m.RequestID, m.Idempotent = c.RequestID, c.own
	m.ReplyTo = i.replies.Address(strconv.FormatUint(c.number, 36))
	err = i.bus.PublishAsync(m, func(r bus.Receipt, err error) {
		if err != nil {
			i.end(c, life.Refusal, err)
			return
		}
		i.stored(c, r)
	})
	if err != nil {
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

func newCall(i *Inbox, model, requestID string) *Call {
	c := &Call{
		RequestID: requestID, own: requestID != "", inbox: i, model: model,
		result: make(chan outcome, 1), twin: make(chan struct{}),
	}
	if !c.own {
		c.RequestID = rand.Text()[:20]
	}
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

// stored notes where a request is.
func (i *Inbox) stored(c *Call, r bus.Receipt) {
	i.mu.Lock()
	c.seq = r.Seq
	unwanted := c.unwanted
	i.mu.Unlock()
	if r.Duplicate && c.own {
		close(c.twin)
	}
	if unwanted { // cancelled before its place was known
		c.cancel(r.Seq)
	}
}

// Wait returns the first reply, the queue's refusal (the bus's errors), ErrCancelled, ErrExpired when
// deadline passes first, or ctx's error when the client leaves. What comes afterwards is only counted.
// A request whose client leaves is cancelled, unless the client has chosen its id.
func (c *Call) Wait(ctx context.Context, deadline time.Time) (bus.Reply, error) {
	ctx, cancel := context.WithDeadlineCause(ctx, deadline, ErrExpired)
	var seeking sync.WaitGroup
	defer seeking.Wait()
	defer cancel()
	for twin, done := c.twin, ctx.Done(); ; {
		select {
		case o := <-c.result:
			return o.reply, o.err
		case <-twin:
			twin = nil
			seeking.Go(func() { c.seek(ctx) })
		case <-done:
			done = nil
			c.leave(context.Cause(ctx)) // an answer that came in this very moment is in the channel
		}
	}
}

// seek gets the answer that another request of the same id has, or will have.
func (c *Call) seek(ctx context.Context) {
	if r, err := c.inbox.bus.AwaitResult(ctx, c.model, c.RequestID); err == nil {
		c.inbox.mu.Lock()
		defer c.inbox.mu.Unlock()
		c.inbox.hear(c.number, life.Reply, outcome{reply: r})
	}
}

// leave ends the wait because of err. What a queue holds past its deadline ends by itself.
func (c *Call) leave(err error) {
	i := c.inbox
	i.mu.Lock()
	c.unwanted = i.hear(c.number, life.Leave, outcome{err: err}) && !c.own && !errors.Is(err, ErrExpired)
	unwanted, seq := c.unwanted, c.seq
	i.mu.Unlock()
	if unwanted {
		c.cancel(seq)
	}
}

// cancel tells the others that nobody wants the request. It may be lost: then it is answered in vain.
func (c *Call) cancel(seq uint64) {
	_ = c.inbox.bus.Cancel(bus.Cancellation{Model: c.model, RequestID: c.RequestID, Seq: seq})
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

// remembered is how many ended requests are told apart; a reply to an older one is a stray.
const remembered = 1 << 14

// closedRing remembers the fate of the last requests that have ended, by their number.
type closedRing [remembered]struct {
	number uint64
	fate   life.Fate
}

func (r *closedRing) put(n uint64, f life.Fate) {
	slot := &r[n%remembered]
	slot.number, slot.fate = n, f
}

func (r *closedRing) of(n uint64) life.Fate {
	if slot := &r[n%remembered]; slot.number == n {
		return slot.fate
	}
	return life.Unknown
}
