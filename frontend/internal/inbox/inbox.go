// Package inbox sends requests to the queue and gives every reply to the one who waits for it.
//
// Delivery on the bus is at least once, and a client may have left before its reply comes. The
// Inbox owns the table of pending requests, and nothing else decides which reply counts: the first
// one. It knows nothing of HTTP or of what a reply says.
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
	for n, c := range i.pending {
		i.settle(n, c, outcome{err: ErrClosed}, abandoned)
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
	result chan outcome // holds one; only settle sends
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
			i.refused(c, err)
		}
	})
	if err != nil {
		i.abandon(c)
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
	var err error
	select {
	case o := <-c.result:
		return o.reply, o.err
	case <-timer.C:
		err = ErrExpired
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if !c.inbox.abandon(c) { // settled in this very moment: an answer beats a timeout
		o := <-c.result
		return o.reply, o.err
	}
	return bus.Reply{}, err
}

// receive is the only place where replies come in.
func (i *Inbox) receive(r bus.Reply) {
	n, err := strconv.ParseUint(r.Token, 36, 64)
	i.mu.Lock()
	defer i.mu.Unlock()
	if c, waiting := i.pending[n]; err == nil && waiting {
		i.settle(n, c, outcome{reply: r}, answered)
		return
	}
	switch fate := i.closed.of(n); {
	case err != nil || fate == unknown:
		i.stats.Strays++
	case fate == answered:
		i.stats.Duplicates++
	default:
		i.stats.Late++
	}
}

func (i *Inbox) refused(c *Call, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, waiting := i.pending[c.number]; waiting {
		i.settle(c.number, c, outcome{err: err}, abandoned)
	}
}

// abandon takes c out of the table; false means that it has been settled.
func (i *Inbox) abandon(c *Call) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, waiting := i.pending[c.number]; !waiting {
		return false
	}
	delete(i.pending, c.number)
	i.closed.put(c.number, abandoned)
	return true
}

// settle ends a pending call; i.mu is held. The channel has room: a call is settled once.
func (i *Inbox) settle(n uint64, c *Call, o outcome, f fate) {
	delete(i.pending, n)
	i.closed.put(n, f)
	c.result <- o
}

// fate is how a request ended, as far as replies are concerned.
type fate uint8

const (
	unknown fate = iota
	answered
	abandoned
)

// remembered is how many ended requests are told apart; a reply to an older one is a stray.
const remembered = 1 << 14

// closedRing remembers the fate of the last requests by their number.
type closedRing [remembered]struct {
	number uint64
	fate   fate
}

func (r *closedRing) put(n uint64, f fate) {
	slot := &r[n%remembered]
	slot.number, slot.fate = n, f
}

func (r *closedRing) of(n uint64) fate {
	if slot := &r[n%remembered]; slot.number == n {
		return slot.fate
	}
	return unknown
}
