// Package bus is everything gpulet does on NATS: queues of requests, pulls, replies, dead letters,
// and the documents that planner and workers share.
//
// It is the only package besides shared/embedded that knows NATS. Every name on the bus is in
// names.go, every permission in permissions.go. It decides nothing: when to pull, what to reply
// and which plan to publish is its callers' business. Delivery is at least once.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Errors that callers branch on; test with errors.Is.
var (
	// ErrOverloaded: the model's queue is full. The request was not taken.
	ErrOverloaded = errors.New("overloaded")
	// ErrFull is the ErrOverloaded of a queue that holds as many requests as it may: it takes no other
	// one either, however small.
	ErrFull = fmt.Errorf("%w: full", ErrOverloaded)
	// ErrUnavailable: nobody answered for the queue or document, or the connection is down.
	ErrUnavailable = errors.New("unavailable")
	// ErrNotStored is ErrUnavailable: the model has no queue, or its server is about to stop.
	ErrNotStored = fmt.Errorf("%w: nothing stores this subject", ErrUnavailable)
	// ErrUnacknowledged is an ErrUnavailable that leaves open whether a publish was taken: its
	// acknowledgement did not come.
	ErrUnacknowledged = fmt.Errorf("%w: not acknowledged", ErrUnavailable)
	// ErrTooLarge: a message is larger than the server takes.
	ErrTooLarge = errors.New("too large")
	// ErrUnknownModel: the model has no queue, or its name cannot be one.
	ErrUnknownModel = errors.New("unknown model")
	// ErrConflict: a document was changed by somebody else since it was read.
	ErrConflict = errors.New("conflict")
	// ErrNotFound: there is no such document or result.
	ErrNotFound = errors.New("not found")
	// ErrFixed: what is there differs in something that JetStream does not change.
	ErrFixed = errors.New("it cannot be changed in place")
	// ErrClosed: the bus or the puller is closed.
	ErrClosed = errors.New("closed")
)

// apiTimeout bounds every request to JetStream whose context has no earlier deadline.
const apiTimeout = 5 * time.Second

// Bus is one connection. It is safe for concurrent use.
type Bus struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	log    *slog.Logger
	role   Role
	inbox  string // what this connection's inboxes start with
	acks   *acks
	closed chan struct{} // closed once the connection is
	ahead  atomic.Int64  // nanoseconds that the server's clock is ahead of this host's; see CompareClocks

	mu        sync.Mutex // guards the fields below
	reconnect map[int]func()
	nextHook  int
	replicas  int // of what this connection makes; see Replicate
}

// Close closes the connection and fails what waits for an acknowledgement; nothing that was
// fetched is acknowledged. It may be called more than once.
func (b *Bus) Close() {
	b.nc.Close()
	<-b.closed
	b.acks.fail(fmt.Errorf("%w: the connection was closed", ErrUnacknowledged))
}

// Drain ends all subscriptions, lets their handlers finish, sends what was published and closes.
// When ctx ends first it closes at once and returns ctx's error.
func (b *Bus) Drain(ctx context.Context) error {
	defer b.Close()
	if err := b.nc.Drain(); err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	select {
	case <-b.closed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain: %w", ctx.Err())
	}
}

// Connected reports whether the server can be reached right now.
func (b *Bus) Connected() bool { return b.nc.IsConnected() }

// Replicate makes this connection keep every stream and bucket that it ensures n times, on as many
// servers of a cluster; 1 is the default. Call it before anything is ensured. Planner only.
func (b *Bus) Replicate(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.replicas = n
}

// copies is how often a stream is to be kept that asks for n.
func (b *Bus) copies(n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(n, b.replicas)
}

// OnReconnect registers a function to call after every re-established connection. It must not block.
func (b *Bus) OnReconnect(f func()) { b.hook(f) }

// hook is OnReconnect that can be undone.
func (b *Bus) hook(f func()) (unhook func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := b.nextHook
	b.nextHook++
	b.reconnect[id] = f
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.reconnect, id)
	}
}

func (b *Bus) reconnected() {
	b.mu.Lock()
	hooks := make([]func(), 0, len(b.reconnect))
	for _, f := range b.reconnect {
		hooks = append(hooks, f)
	}
	b.mu.Unlock()
	for _, f := range hooks {
		f()
	}
}

// Flush waits, at most 5 s, until the server has taken everything published so far. What was
// published is sent without it too; Flush is for knowing.
func (b *Bus) Flush() error {
	if err := b.nc.FlushTimeout(apiTimeout); err != nil {
		return fmt.Errorf("flush: %w", unavailable(err))
	}
	return nil
}

// MaxPayload is the largest message in bytes, headers included, that the server takes.
func (b *Bus) MaxPayload() int64 { return b.nc.MaxPayload() }

// unavailable says of an error of the client library what callers branch on.
func unavailable(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrUnavailable):
		return err
	case errors.Is(err, context.Canceled):
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// apiContext bounds ctx for one exchange with the server.
func apiContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, apiTimeout)
}
