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

// Bus is what the Inbox needs of the bus.
type Bus interface {
	NewInbox(receive func(bus.Reply)) (*bus.Inbox, error)
	PublishAsync(m *bus.Message, done func(error)) error
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
	prefix  string // of the request ids, different in every process

	mu      sync.Mutex // guards the fields below
	pending map[uint64]*Call
	last    uint64 // number of the newest request
	closed  closedRing
	down    bool
	stats   Stats
}

// Open subscribes to a new inbox on b.
func Open(b Bus) (*Inbox, error) {
	i := &Inbox{bus: b, prefix: rand.Text()[:10], pending: map[uint64]*Call{}}
	replies, err := b.NewInbox(i.receive)
	if err != nil {
		return nil, fmt.Errorf("open reply inbox: %w", err)
	}
	i.replies = replies
	return i, nil
}

// Close ends the subscription and every wait that is left, with ErrClosed.
func (i *Inbox) Close() {
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

// Call is one request in flight. Its owner calls Wait exactly once.
type Call struct {
	// RequestID is unique among all requests of all frontends.
	RequestID string

	inbox  *Inbox
	number uint64
	result chan outcome // holds one; only hear sends
}

type outcome struct {
	reply bus.Reply
	err   error
}

// Send publishes m under a request id and a reply address of its own. m and its body may be reused
// when Send has returned. An error means that nothing was sent; a later refusal by the queue is
// what Wait returns.
func (i *Inbox) Send(m *bus.Message) (*Call, error) {
	c, err := i.open()
	if err != nil {
		return nil, err
	}
	m.RequestID = c.RequestID
	m.ReplyTo = i.replies.Address(strconv.FormatUint(c.number, 36))
	err = i.bus.PublishAsync(m, func(err error) {
		if err != nil {
			i.end(c, life.Refusal, err)
		}
	})
	if err != nil {
		i.end(c, life.Refusal, err)
		return nil, err
	}
	return c, nil
}

func (i *Inbox) open() (*Call, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.down {
		return nil, ErrClosed
	}
	i.last++
	c := &Call{
		RequestID: i.prefix + "-" + strconv.FormatUint(i.last, 36),
		inbox:     i, number: i.last, result: make(chan outcome, 1),
	}
	i.pending[c.number] = c
	return c, nil
}

// Wait returns the first reply, the queue's refusal (the bus's errors), ErrExpired when deadline
// passes first, or ctx's error when the client leaves. What comes afterwards is only counted.
func (c *Call) Wait(ctx context.Context, deadline time.Time) (bus.Reply, error) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case o := <-c.result:
		return o.reply, o.err
	case <-timer.C:
		c.inbox.end(c, life.Leave, ErrExpired)
	case <-ctx.Done():
		c.inbox.end(c, life.Leave, context.Cause(ctx))
	}
	o := <-c.result // an answer that came in this very moment beats the end of the wait
	return o.reply, o.err
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
	i.closed.put(n, next)
	c.result <- o
	return true
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
