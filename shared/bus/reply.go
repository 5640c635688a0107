package bus

import (
	"context"
	"errors"
)

// Reply sends an answer to a request's Gpulet-Reply-To. It does not wait; an address outside the
// inboxes is an error, and so is a reply that is too large (ErrTooLarge).
func (b *Bus) Reply(to string, header map[string]string, body []byte) error {
	return errors.ErrUnsupported
}

// StoreResult stores an answer for 15 minutes under result.<model>.<request id> and waits for the
// acknowledgement, at most 5 s.
func (b *Bus) StoreResult(model, requestID string, header map[string]string, body []byte) error {
	return errors.ErrUnsupported
}

// Result reads a stored answer; ErrNotFound when there is none (yet, or any more).
func (b *Bus) Result(ctx context.Context, model, requestID string) (Reply, error) {
	return Reply{}, errors.ErrUnsupported
}

// DeadLetter keeps a request that nobody will serve, with its headers, the reason and extra
// headers, in dlq.<model>, and waits for the acknowledgement. Call it before Msg.Term.
func (b *Bus) DeadLetter(ctx context.Context, model string, msg *Msg, reason string, extra map[string]string) error {
	return errors.ErrUnsupported
}

// BuryDead moves requests that JetStream gave up (too many deliveries) from their queues to the
// dead letters and answers them with "poisoned", until ctx ends. Planner only.
func (b *Bus) BuryDead(ctx context.Context) error { return errors.ErrUnsupported }
