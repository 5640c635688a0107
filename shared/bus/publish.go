package bus

import (
	"context"
	"errors"
	"time"
)

// Message is a request to publish.
type Message struct {
	Model       string
	RequestID   string        // [A-Za-z0-9_-]{1,128}
	ReplyTo     string        // an Inbox.Address; empty: the result is only stored
	ContentType string        // empty: application/msgpack
	Deadline    time.Time     // when the request is given up; zero: Timeout
	Timeout     time.Duration // from when it is stored; zero: the model's own
	Header      map[string]string
	Body        []byte
	// MsgID de-duplicates: within 10 s a second message of the same id is acknowledged and
	// dropped. Keep it when re-publishing after a lost acknowledgement; change it for a retry.
	MsgID string
}

// Publish stores m in its model's queue and waits for the acknowledgement. Errors are
// ErrOverloaded, ErrUnavailable, ErrTooLarge, ErrUnknownModel or ctx's.
func (b *Bus) Publish(ctx context.Context, m *Message) error { return errors.ErrUnsupported }

// PublishAsync sends m and returns; done is called exactly once, from another goroutine, when the
// message was stored (nil) or refused. An error returned here means that nothing was sent and done
// will not be called. done must not block. m and its Body may be reused once done was called.
func (b *Bus) PublishAsync(m *Message, done func(error)) error { return errors.ErrUnsupported }
