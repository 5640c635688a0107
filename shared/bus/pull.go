package bus

import (
	"context"
	"errors"
	"time"
)

// PullerOptions belong to one puller.
type PullerOptions struct {
	// Rank orders idle pulls of the same model, 1 (served first) to 9; 0 means 1.
	Rank int
	// Events receives what happens; several pullers may share it. A full channel holds up only
	// this puller's deliveries.
	Events chan<- PullEvent
	// MaxBytes bounds the bytes of one pull; 0 and more than 32 MiB mean 32 MiB.
	MaxBytes int
}

// PullEvent is one message, or the end of a pull.
type PullEvent struct {
	Model string
	Msg   *Msg // a delivery; nil: the pull has ended
	// Ended says that the puller has no outstanding pull any more; it comes after the pull's
	// messages and never together with one.
	Ended bool
	// Err is why a pull ended early: the connection or the consumer was lost. It is nil when the
	// pull got what it asked for, found the queue empty or expired.
	Err error
}

// Puller asks for the requests of one model. It has at most one outstanding pull.
type Puller struct{}

// NewPuller returns a puller for a model's queue.
func (b *Bus) NewPuller(model string, opts PullerOptions) (*Puller, error) {
	return nil, errors.ErrUnsupported
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
func (p *Puller) Pull(n int, noWait bool, expires time.Duration) error { return errors.ErrUnsupported }

// Outstanding reports whether a pull has not ended yet.
func (p *Puller) Outstanding() bool { return false }

// Close ends the puller. No event is sent once it returns; messages it was sent and did not hand
// over are given back for others.
func (p *Puller) Close() {}

// Msg is a fetched request. Exactly one of Ack, DoubleAck, Nak and Term ends it; without one it is
// delivered again after the queue's AckWait.
type Msg struct {
	Subject   string
	Data      []byte
	Seq       uint64    // in the model's queue
	Delivered int       // 1 for the first delivery
	Stored    time.Time // when the server stored it
	Pending   uint64    // requests behind it in the queue
}

// Get returns a header, "" where there is none.
func (m *Msg) Get(key string) string { return "" }

// Ack says that the request is done.
func (m *Msg) Ack() error { return errors.ErrUnsupported }

// DoubleAck is an Ack that waits until the server has it.
func (m *Msg) DoubleAck(ctx context.Context) error { return errors.ErrUnsupported }

// Nak gives the request back, to be delivered again after delay.
func (m *Msg) Nak(delay time.Duration) error { return errors.ErrUnsupported }

// Term gives the request up for ever; write a dead letter before.
func (m *Msg) Term(reason string) error { return errors.ErrUnsupported }

// InProgress restarts the AckWait.
func (m *Msg) InProgress() error { return errors.ErrUnsupported }
