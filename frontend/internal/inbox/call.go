package inbox

import (
	"context"
	"crypto/rand"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/life"
)

// name is what a client calls a request.
type name struct{ model, id string }

// Call is one request in flight. Its owner calls Wait exactly once.
type Call struct {
	// RequestID is the client's own or, where it has none, unique among all requests of all frontends
	// and not to be guessed: whoever knows it may cancel the request.
	RequestID string

	inbox    *Inbox
	model    string
	number   uint64
	own      bool          // the client has chosen the id, and may come back for the answer
	deadline time.Time     // as the queue was told; zero: the model's own
	result   chan outcome  // holds one; only hear sends
	twin     chan struct{} // closed when the request turns out to have been sent before

	sending sync.Mutex   // guards the next two, and the message's body while it goes to the bus
	message *bus.Message // nil once the wait is over
	attempt int          // 1, and one more for each that was answered while nobody could hear it

	// Guarded by inbox.mu.
	seq      uint64 // in the queue; 0: not known yet
	unwanted bool   // cancelled
	twinned  bool   // twin is closed
	again    bool   // it is to be published again, or is just being
	missing  bool   // its queue had it, and did not have it at the last look
}

type outcome struct {
	reply bus.Reply
	err   error
}

func newCall(i *Inbox, model, requestID string) *Call {
	c := &Call{
		RequestID: requestID, own: requestID != "", inbox: i, model: model, attempt: 1,
		result: make(chan outcome, 1), twin: make(chan struct{}),
	}
	if !c.own {
		c.RequestID = rand.Text()[:20]
	}
	return c
}

// compose takes m as what is published of the call, until its wait is over.
func (c *Call) compose(m *bus.Message) {
	c.sending.Lock()
	defer c.sending.Unlock()
	m.RequestID, m.Idempotent = c.RequestID, c.own
	m.ReplyTo = c.inbox.replies.Address(strconv.FormatUint(c.number, 36))
	c.deadline = m.Deadline
	if m.Deadline.IsZero() && m.Timeout > 0 {
		c.deadline = time.Now().Add(m.Timeout)
	}
	c.message = m
}

// errOver: nobody waits for the request any more, so it is not published.
var errOver = errors.New("the wait is over")

// publish hands the request to the bus, with the time that is left. Each attempt has a message id of its
// own, under which its queue takes it once.
func (c *Call) publish(done func(bus.Receipt, error)) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if c.message == nil {
		return errOver
	}
	m := *c.message
	if m.Timeout > 0 {
		if m.Timeout = time.Until(c.deadline); m.Timeout <= 0 {
			return errOver
		}
	}
	m.MsgID = c.RequestID
	if c.attempt > 1 {
		m.MsgID += "." + strconv.Itoa(c.attempt)
	}
	return c.inbox.bus.PublishAsync(&m, done)
}

// anew makes the next publish another attempt.
func (c *Call) anew() {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.attempt++
}

// release gives the message back to its owner: it is not published any more.
func (c *Call) release() {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.message = nil
}

// Wait returns the first reply, the queue's refusal (the bus's errors), ErrCancelled, ErrExpired when
// deadline passes first, or ctx's error when the client leaves. What comes afterwards is only counted.
// A request whose client leaves is cancelled, unless the client has chosen its id.
func (c *Call) Wait(ctx context.Context, deadline time.Time) (bus.Reply, error) {
	defer c.release()
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
