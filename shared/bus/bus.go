// Package bus is everything gpulet does on NATS: queues of requests, pulls, replies, dead letters,
// and the documents that planner and workers share.
//
// It is the only package besides shared/embedded that knows NATS. Every name on the bus is in
// names.go. It decides nothing: when to pull, what to reply and which plan to publish is its
// callers' business. Delivery is at least once.
package bus

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Errors that callers branch on; test with errors.Is.
var (
	// ErrOverloaded: the model's queue is full. The request was not taken.
	ErrOverloaded = errors.New("overloaded")
	// ErrUnavailable: nobody answered for the queue or document, or the connection is down.
	// A publish may still have been taken: retry it with the same MsgID.
	ErrUnavailable = errors.New("unavailable")
	// ErrTooLarge: a message is larger than the server takes.
	ErrTooLarge = errors.New("too large")
	// ErrUnknownModel: the model has no queue, or its name cannot be one.
	ErrUnknownModel = errors.New("unknown model")
	// ErrConflict: a document was changed by somebody else since it was read.
	ErrConflict = errors.New("conflict")
	// ErrNotFound: there is no such document or result.
	ErrNotFound = errors.New("not found")
	// ErrClosed: the bus or the puller is closed.
	ErrClosed = errors.New("closed")
)

// Role is what a connection may do; each role has its own NKey.
type Role string

// The roles. A frontend is a client that also reads the documents.
const (
	RoleClient   Role = "client"
	RoleWorker   Role = "worker"
	RolePlanner  Role = "planner"
	RoleFrontend Role = "frontend"
)

// Roles lists all roles.
func Roles() []Role { return []Role{RoleClient, RoleWorker, RolePlanner, RoleFrontend} }

// Config is how to reach the bus. Embed it in a service's Config.
type Config struct {
	// URL lists the servers, comma separated. Empty: nats://127.0.0.1:4222.
	URL string `env:"NATS_URL" usage:"NATS servers, comma separated (default nats://127.0.0.1:4222)"`
	// NKey is a file with the seed of an NKey. Empty: <StateDir>/keys/<role>.nk where that exists,
	// else no authentication.
	NKey string `env:"NATS_NKEY" usage:"file with the NKey seed to log in with (default <state-dir>/keys/<role>.nk where it exists)"`
	// InboxPrefix is where replies to this connection go. Empty: the role's own (see InboxPrefix).
	InboxPrefix string `env:"NATS_INBOX_PREFIX" usage:"subject prefix of this program's inboxes (default _INBOX_<role>)"`
	// StateDir holds keys and other local state.
	StateDir string `env:"STATE_DIR" envDefault:".gpulet" usage:"folder for keys and local state"`
}

// Bus is one connection. It is safe for concurrent use.
type Bus struct {
	nc   *nats.Conn
	js   jetstream.JetStream
	log  *slog.Logger
	role Role

	mu        sync.Mutex // guards the fields below
	reconnect []func()
}

// Connect connects as role; name is shown to operators. Until ctx ends it retries with back-off,
// logging each failure with the URL, the reason and the next delay. Settings that can never work
// (an unreadable NKey file) fail at once.
func Connect(ctx context.Context, cfg Config, role Role, name string, log *slog.Logger) (*Bus, error) {
	return nil, errors.ErrUnsupported
}

// Close closes the connection; nothing that was held is acknowledged.
func (b *Bus) Close() {}

// Drain flushes what was published, ends all subscriptions and closes, waiting until ctx ends.
func (b *Bus) Drain(ctx context.Context) error { return errors.ErrUnsupported }

// Connected reports whether the server can be reached right now.
func (b *Bus) Connected() bool { return false }

// OnReconnect registers a function to call after every re-established connection. It must not block.
func (b *Bus) OnReconnect(f func()) {}

// Flush waits until the server has taken everything published so far.
func (b *Bus) Flush() error { return errors.ErrUnsupported }

// MaxPayload is the largest message in bytes, headers included, that the server takes.
func (b *Bus) MaxPayload() int64 { return 0 }
