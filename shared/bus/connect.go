package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/lifecycle"
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

// DefaultURL is where the embedded server listens unless it is told otherwise.
const DefaultURL = "nats://127.0.0.1:4222"

// Config is how to reach the bus. Embed it in a service's Config.
type Config struct {
	// URL lists the servers, comma separated. Empty: DefaultURL.
	URL string `env:"NATS_URL" usage:"NATS servers, comma separated (default nats://127.0.0.1:4222)"`
	// NKey is a file with the seed of an NKey. Empty: KeyFile(StateDir, role) where that exists,
	// else no authentication.
	NKey string `env:"NATS_NKEY" usage:"file with the NKey seed to log in with (default <state-dir>/keys/<role>.nk where it exists)"`
	// InboxPrefix is where replies to this connection go. Empty: InboxPrefix(role).
	InboxPrefix string `env:"NATS_INBOX_PREFIX" usage:"subject prefix of this program's inboxes (default _INBOX_<role>)"`
	// StateDir holds keys and other local state.
	StateDir string `env:"STATE_DIR" envDefault:".gpulet" usage:"folder for keys and local state"`
}

// KeyFile is where the NKey seed of a role is kept under a state folder.
func KeyFile(stateDir string, role Role) string {
	return filepath.Join(stateDir, "keys", string(role)+".nk")
}

// Validate checks what can be known to be wrong without a server.
func (c Config) Validate() error {
	for _, one := range strings.Split(c.url(), ",") {
		if err := checkURL(strings.TrimSpace(one)); err != nil {
			return err
		}
	}
	if c.InboxPrefix != "" && !isInbox(c.InboxPrefix+".x") {
		return fmt.Errorf("inbox prefix %q: expected _INBOX_<role>, with further parts after dots", c.InboxPrefix)
	}
	return nil
}

func checkURL(raw string) error {
	full := raw
	if !strings.Contains(raw, "://") {
		full = "nats://" + raw
	}
	u, err := url.Parse(full)
	if err == nil && u.Hostname() != "" && (strings.HasPrefix(u.Host, "[") || !strings.Contains(u.Hostname(), ":")) {
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
			return nil
		}
	}
	return fmt.Errorf("NATS URL %q: expected nats://host:port, or tls, ws or wss in place of nats", raw)
}

func (c Config) url() string {
	if strings.TrimSpace(c.URL) == "" {
		return DefaultURL
	}
	return c.URL
}

// Connect connects as role; name is shown to operators. Until ctx ends it retries with back-off,
// logging each failure with the URL, the reason and the next delay. Settings that can never work
// (a malformed URL, an unreadable NKey file) fail at once. So do refused credentials where ctx has a
// deadline, which is how a command for people bounds its try; a service waits for its keys.
func Connect(ctx context.Context, cfg Config, role Role, name string, log *slog.Logger) (*Bus, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	b := &Bus{
		role: role, log: log, inbox: cfg.InboxPrefix, closed: make(chan struct{}),
		reconnect: map[int]func(){},
	}
	if b.inbox == "" {
		b.inbox = InboxPrefix(role)
	}
	b.acks = newAcks(b)
	retry := lifecycle.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	var last error // why the latest try failed
	for ctx.Err() == nil {
		err := b.dial(cfg, name)
		if err == nil {
			return b, nil
		}
		var never *settingError
		if errors.As(err, &never) {
			return nil, err
		}
		last = hint(err, cfg, role)
		if _, bounded := ctx.Deadline(); bounded && errors.Is(err, nats.ErrAuthorization) {
			return nil, fmt.Errorf("connect to %s: %w", redact(cfg.url()), last)
		}
		delay := retry.Next()
		log.Warn("cannot reach NATS, trying again", "url", redact(cfg.url()), "role", string(role),
			"error", last, "next_try_in", delay.Round(time.Millisecond))
		_ = lifecycle.Sleep(ctx, delay)
	}
	if last == nil {
		return nil, fmt.Errorf("connect to %s: %w", redact(cfg.url()), ctx.Err())
	}
	return nil, fmt.Errorf("connect to %s: %w: %w", redact(cfg.url()), ctx.Err(), last)
}

func (b *Bus) dial(cfg Config, name string) error {
	opts := b.options(name)
	file, err := cfg.keyFile(b.role)
	if err != nil {
		return err
	}
	key, err := login(file)
	if err != nil {
		return err
	}
	nc, err := nats.Connect(cfg.url(), append(opts, key...)...)
	if errors.Is(err, nats.ErrNkeysNotSupported) && cfg.NKey == "" {
		// The key was found, not asked for: it is that of an embedded server, and this is another.
		nc, err = nats.Connect(cfg.url(), opts...)
	}
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(apiTimeout))
	if err != nil {
		nc.Close()
		return &settingError{err}
	}
	b.nc, b.js = nc, js
	b.log.Info("connected to NATS", "url", nc.ConnectedUrlRedacted(), "role", string(b.role))
	return nil
}

func (b *Bus) options(name string) []nats.Option {
	redial := lifecycle.Backoff{Min: 50 * time.Millisecond, Max: 2 * time.Second}
	return []nats.Option{
		nats.Name(name),
		nats.CustomInboxPrefix(b.inbox),
		nats.Timeout(2 * time.Second),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.CustomReconnectDelay(func(tries int) time.Duration {
			if tries <= 1 {
				redial.Reset()
			}
			return redial.Next()
		}),
		nats.DisconnectErrHandler(b.onDisconnect),
		nats.ReconnectHandler(b.onReconnect),
		nats.ClosedHandler(func(*nats.Conn) { close(b.closed) }),
		nats.ErrorHandler(b.onError),
	}
}

// login is the option to log in with a seed file, none for "". It is made anew for each try: the
// file may appear while we wait for the server.
func login(file string) ([]nats.Option, error) {
	if file == "" {
		return nil, nil
	}
	key, err := nats.NkeyOptionFromSeed(file)
	if err != nil {
		return nil, &settingError{fmt.Errorf("NKey file %s: %w: expected the seed of a user NKey (SU...)", file, err)}
	}
	return []nats.Option{key}, nil
}

// keyFile is the file to log in with, "" for none.
func (c Config) keyFile(role Role) (string, error) {
	if c.NKey != "" {
		if _, err := os.Stat(c.NKey); err != nil {
			return "", &settingError{fmt.Errorf("NKey file: %w", err)}
		}
		return c.NKey, nil
	}
	file := KeyFile(c.StateDir, role)
	_, err := os.Stat(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", nil
	case err != nil:
		return "", &settingError{fmt.Errorf("NKey file: %w", err)}
	}
	return file, nil
}

// settingError is one that no retry mends.
type settingError struct{ err error }

func (e *settingError) Error() string { return e.err.Error() }
func (e *settingError) Unwrap() error { return e.err }

// hint adds what to do to the errors whose cause is usually a setting.
func hint(err error, cfg Config, role Role) error {
	if errors.Is(err, nats.ErrNoServers) {
		return fmt.Errorf("%w: nothing listens there", err)
	}
	if !errors.Is(err, nats.ErrAuthorization) {
		return err
	}
	file, _ := cfg.keyFile(role)
	if file == "" {
		return fmt.Errorf("%w: no NKey was given and %s does not exist", err, KeyFile(cfg.StateDir, role))
	}
	return fmt.Errorf("%w: the server does not know the NKey in %s", err, file)
}

// redact takes passwords out of a list of URLs.
func redact(urls string) string {
	list := strings.Split(urls, ",")
	for i, raw := range list {
		if u, err := url.Parse(strings.TrimSpace(raw)); err == nil && u.User != nil {
			list[i] = u.Redacted()
		}
	}
	return strings.Join(list, ",")
}

func (b *Bus) onDisconnect(nc *nats.Conn, err error) {
	if nc.IsClosed() {
		return
	}
	b.log.Warn("lost NATS, reconnecting", "error", err)
	b.acks.fail(fmt.Errorf("%w: the connection was lost", ErrUnacknowledged))
}

func (b *Bus) onReconnect(nc *nats.Conn) {
	b.log.Info("reconnected to NATS", "url", nc.ConnectedUrlRedacted())
	b.reconnected()
}

func (b *Bus) onError(nc *nats.Conn, sub *nats.Subscription, err error) {
	if nc.IsClosed() {
		return
	}
	attrs := []any{"error", err}
	if sub != nil {
		attrs = append(attrs, "subject", sub.Subject)
	}
	b.log.Error("NATS reported an error", attrs...)
}
