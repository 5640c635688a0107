package bus

import (
	"context"
	"errors"
	"time"
)

// Queue is how a model's requests are held.
type Queue struct {
	Model         string
	File          bool          // on disk instead of in memory
	MaxMsgs       int64         // further requests are refused as overloaded
	MaxBytes      int64         // the same, in bytes
	MaxAge        time.Duration // requests are dropped at this age; a little over the model's timeout
	AckWait       time.Duration // a fetched request that is not acknowledged for so long is delivered again
	MaxAckPending int           // requests that may be fetched and not acknowledged at once
	Replicas      int           // default 1
}

// Lag is how far a queue is behind.
type Lag struct {
	Pending     uint64    // stored and not fetched
	AckPending  uint64    // fetched and not acknowledged
	Redelivered uint64    // of those, delivered more than once
	Waiting     int       // pulls that are parked
	LastSeq     uint64    // requests ever stored; differences of it are the arrival rate
	Bytes       uint64    // stored
	Oldest      time.Time // when the oldest request was stored; zero when there is none
}

// EnsureBase creates or updates what all models share: the buckets and the streams of results and
// dead letters. It is idempotent. Planner only.
func (b *Bus) EnsureBase(ctx context.Context) error { return errors.ErrUnsupported }

// EnsureQueue creates or updates the queue of a model. It is idempotent: the same queue twice
// changes nothing, changed limits are updated in place, and what cannot be updated is an error
// that says what is there, what was wanted and what to do. Planner only.
func (b *Bus) EnsureQueue(ctx context.Context, q Queue) error { return errors.ErrUnsupported }

// DeleteQueue deletes the queue of a model with everything in it; none is fine. Planner only.
func (b *Bus) DeleteQueue(ctx context.Context, model string) error { return errors.ErrUnsupported }

// Lag reads how far a model's queue is behind; ErrUnknownModel when it has none.
func (b *Bus) Lag(ctx context.Context, model string) (Lag, error) {
	return Lag{}, errors.ErrUnsupported
}
