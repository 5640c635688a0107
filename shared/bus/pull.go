package bus

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// MaxPullBytes bounds the bytes of one pull: the server cuts a connection off that has 64 MiB
// waiting to be sent.
const MaxPullBytes = 32 << 20

// pullGrace is how much later than the server our own clock gives a pull up: the server's word
// ends a pull unless it was lost.
const pullGrace = 200 * time.Millisecond

// PullerOptions belong to one puller.
type PullerOptions struct {
	// Rank orders idle pulls of the same model, 1 (served first) to 9; 0 means 1, more than 9
	// means 9.
	Rank int
	// Events receives what happens; several pullers may share it. A full channel holds up only
	// this puller's deliveries.
	Events chan<- PullEvent
	// MaxBytes bounds the bytes of one pull; 0 and more than MaxPullBytes mean MaxPullBytes.
	MaxBytes int
}

// PullEvent is one message, or the end of a pull.
type PullEvent struct {
	Model string
	Msg   *Msg // a delivery; nil: the pull has ended
	// Ended says that the puller has no outstanding pull any more; it comes after the pull's
	// messages and never together with one.
	Ended bool
	// Err is why a pull ended early: the connection or the consumer was lost, or the server
	// refused it. Wait before the next pull. It is nil when the pull got what it asked for, found
	// the queue empty or expired.
	Err error
}

// Puller asks for the requests of one model. It has at most one outstanding pull.
type Puller struct {
	bus      *Bus
	model    string
	subject  string // of the pull requests
	inbox    string // the server answers to <inbox>.<number of the pull>
	rank     int
	maxBytes int
	events   chan<- PullEvent
	sub      *nats.Subscription
	unhook   func()
	done     chan struct{} // closed by Close

	send sync.Mutex // held while an event is sent, so that an end never overtakes a message

	mu     sync.Mutex // guards the fields below
	pulls  uint64     // made so far
	cur    *pull      // nil: none outstanding
	closed bool
}

// pull is an outstanding request for messages.
type pull struct {
	id         uint64
	left       int         // messages that it may still bring
	reconnects uint64      // of the connection when it was made
	timer      *time.Timer // our clock beside the server's
}

// NewPuller returns a puller for a model's queue.
func (b *Bus) NewPuller(model string, opts PullerOptions) (*Puller, error) {
	if err := CheckModel(model); err != nil {
		return nil, err
	}
	if opts.Events == nil {
		return nil, fmt.Errorf("puller of %s: no events channel", model)
	}
	p := &Puller{
		bus: b, model: model, events: opts.Events, done: make(chan struct{}),
		subject:  "$JS.API.CONSUMER.MSG.NEXT." + StreamName(model) + "." + Consumer,
		inbox:    b.nc.NewInbox(),
		rank:     min(max(opts.Rank, 1), 9),
		maxBytes: opts.MaxBytes,
	}
	if p.maxBytes <= 0 || p.maxBytes > MaxPullBytes {
		p.maxBytes = MaxPullBytes
	}
	sub, err := b.nc.Subscribe(p.inbox+".*", p.receive)
	if err != nil {
		return nil, fmt.Errorf("puller of %s: %w", model, unavailable(err))
	}
	// What a pull asked for is bounded by the pull itself; dropping it would only delay it.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, fmt.Errorf("puller of %s: %w", model, unavailable(err))
	}
	p.sub = sub
	p.unhook = b.hook(p.reconnected)
	return p, nil
}

// Pull asks for up to n requests.
//
// With noWait it is an idle pull, of the puller's rank: a backlog is delivered at once and ends
// the pull; an empty queue parks it until the first message or until expires. Without noWait it
// is a top-up: it comes before all idle pulls and waits for n messages or until expires.
//
// The end is always reported by an event, with Err when the connection was lost; while it is
// down, that event comes when it is back. A message may still come after its pull was given up by
// the clock: treat it like any other. It is an error to pull while a pull is outstanding.
func (p *Puller) Pull(n int, noWait bool, expires time.Duration) error {
	if n < 1 {
		return fmt.Errorf("pull of %s: %d messages: expected 1 or more", p.model, n)
	}
	if expires < 0 || expires == 0 && !noWait {
		return fmt.Errorf("pull of %s: expires %v: expected more than 0", p.model, expires)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed, p.bus.nc.IsClosed():
		return fmt.Errorf("pull of %s: %w", p.model, ErrClosed)
	case p.cur != nil:
		return fmt.Errorf("pull of %s: one is outstanding", p.model)
	}
	p.pulls++
	pl := &pull{id: p.pulls, left: n, reconnects: p.bus.nc.Stats().Reconnects}
	p.cur = pl
	if !p.bus.nc.IsConnected() {
		return nil // reconnected ends it
	}
	if err := p.bus.nc.PublishRequest(p.subject, p.reply(pl.id), p.request(n, noWait, expires)); err != nil {
		p.cur = nil
		return fmt.Errorf("pull of %s: %w", p.model, unavailable(err))
	}
	pl.timer = time.AfterFunc(expires+pullGrace, func() { p.end(pl.id, p.overdue()) })
	return nil
}

// reply makes the ends of different pulls distinguishable.
func (p *Puller) reply(id uint64) string { return p.inbox + "." + strconv.FormatUint(id, 36) }

// request is the body of a pull request; the client library has none with both no_wait and expires.
func (p *Puller) request(n int, noWait bool, expires time.Duration) []byte {
	b := make([]byte, 0, 128)
	b = append(b, `{"batch":`...)
	b = strconv.AppendInt(b, int64(n), 10)
	if expires > 0 {
		b = append(b, `,"expires":`...)
		b = strconv.AppendInt(b, int64(expires), 10)
	}
	priority := 0
	if noWait {
		b = append(b, `,"no_wait":true`...)
		priority = p.rank
	}
	b = append(b, `,"max_bytes":`...)
	b = strconv.AppendInt(b, int64(p.maxBytes), 10)
	b = append(b, `,"group":"`+PriorityGroup+`","priority":`...)
	b = strconv.AppendInt(b, int64(priority), 10)
	return append(b, '}')
}

// overdue is why our own clock had to end a pull.
func (p *Puller) overdue() error {
	if p.bus.nc.IsConnected() {
		return nil
	}
	return fmt.Errorf("%w: the connection is down", ErrUnavailable)
}

// Outstanding reports whether a pull has not ended yet.
func (p *Puller) Outstanding() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cur != nil
}

// Close ends the puller. No event is sent once it returns; what the server still sends is given
// back for others. It does not wait for that.
func (p *Puller) Close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	p.finish()
	p.mu.Unlock()
	close(p.done)
	p.unhook()
	p.send.Lock() // an event that is being sent has been sent or given up
	defer p.send.Unlock()
	_ = p.sub.Drain() // fails only on a closed connection, which has no subscriptions
}

// finish forgets the outstanding pull; p.mu is held.
func (p *Puller) finish() {
	if p.cur != nil && p.cur.timer != nil {
		p.cur.timer.Stop()
	}
	p.cur = nil
}

// end reports the end of pull id, unless that is not the outstanding one any more.
func (p *Puller) end(id uint64, err error) {
	p.mu.Lock()
	ours := p.cur != nil && p.cur.id == id
	if ours {
		p.finish()
	}
	p.mu.Unlock()
	if ours {
		p.emit(PullEvent{Model: p.model, Ended: true, Err: err})
	}
}

// reconnected ends a pull that was made on an earlier connection: the server has forgotten it.
func (p *Puller) reconnected() {
	p.mu.Lock()
	var id uint64
	if p.cur != nil && p.cur.reconnects < p.bus.nc.Stats().Reconnects {
		id = p.cur.id
	}
	p.mu.Unlock()
	if id != 0 {
		// Not from the library's own goroutine: a full channel must not hold up other callbacks.
		go p.end(id, fmt.Errorf("%w: the connection was lost", ErrUnavailable))
	}
}

func (p *Puller) receive(m *nats.Msg) {
	// What the server says comes to the pull's own subject. A request comes under its queue's subject, and
	// its headers are its client's: one that says Status speaks for nobody.
	if id, ours := strings.CutPrefix(m.Subject, p.inbox+"."); ours {
		p.receiveStatus(id, m.Header)
		return
	}
	msg, err := newFetched(p.bus, m)
	if err != nil {
		p.bus.log.Error("delivery without metadata", "model", p.model, "error", err)
		return
	}
	last := p.count()
	if !p.emit(PullEvent{Model: p.model, Msg: msg}) {
		_ = msg.Nak(0)
	}
	if last {
		p.emit(PullEvent{Model: p.model, Ended: true})
	}
}

// receiveStatus ends the pull that a status is about.
func (p *Puller) receiveStatus(pull string, h nats.Header) {
	id, err := strconv.ParseUint(pull, 36, 64)
	status := h.Get("Status")
	if err != nil || status == "" || status == "100" { // the last is a heartbeat
		return
	}
	p.end(id, statusError(p.model, status, h.Get("Description")))
}

// count takes one message off the outstanding pull and reports whether that was its last.
//
// A delivery carries the subject it was published to and not that of its pull. One that comes
// after its pull was given up by the clock is therefore counted to the next: that pull ends a
// message early, and nothing is lost.
func (p *Puller) count() (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cur == nil {
		return false
	}
	p.cur.left--
	if p.cur.left > 0 {
		return false
	}
	p.finish()
	return true
}

// emit sends an event unless the puller is closed.
func (p *Puller) emit(e PullEvent) bool {
	p.send.Lock()
	defer p.send.Unlock()
	select {
	case <-p.done:
		return false
	default:
	}
	select {
	case p.events <- e:
		return true
	case <-p.done:
		return false
	}
}

// statusError is what the end of a pull with this status means to its maker.
func statusError(model, status, description string) error {
	switch {
	case status == "404", status == "408":
		return nil // nothing there, or not enough in time
	case status == "409" && (description == "Message Size Exceeds MaxBytes" || description == "Batch Completed"):
		return nil // a full load in bytes
	case status == "503":
		return fmt.Errorf("pull of %s: %w: its queue does not exist or has no leader", model, ErrUnavailable)
	case status == "409", status == "423":
		return fmt.Errorf("pull of %s: %w: %s", model, ErrUnavailable, description)
	}
	return fmt.Errorf("pull of %s: %w", model, errors.New(status+" "+description))
}
