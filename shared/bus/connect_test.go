package bus_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
)

// freePort is one that was free a moment ago.
func freePort(t testing.TB) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// records is a log that can be waited for.
type records chan string

func (r records) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r, nil))
}

func (r records) Write(line []byte) (int, error) {
	select {
	case r <- string(line):
	default:
	}
	return len(line), nil
}

func TestConnectSaysWhyItTriesAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	log := make(records, 64)
	done := make(chan error, 1)
	addr := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: freePort(t)}).String()
	go func() {
		_, err := bus.Connect(ctx, bus.Config{URL: "nats://user:secret@" + addr}, bus.RoleWorker, "w", log.logger())
		done <- err
	}()
	line := receive(t, "log", log)
	for _, part := range []string{addr, "no servers available", "nothing listens there", "next_try_in=", "role=worker"} {
		if !strings.Contains(line, part) {
			t.Errorf("the log lacks %q: %s", part, line)
		}
	}
	if strings.Contains(line, "secret") {
		t.Errorf("the log shows a password: %s", line)
	}
	cancel()
	if err := receive(t, "connect", done); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), addr) {
		t.Errorf("error %v, expected cancellation naming %s", err, addr)
	}
}

func TestConnectWaitsForTheServerAndItsKeys(t *testing.T) {
	port, dir := freePort(t), t.TempDir()
	log := make(records, 64)
	done := make(chan error, 1)
	url := "nats://" + (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String()
	go func() {
		b, err := bus.Connect(t.Context(), bus.Config{URL: url, StateDir: dir}, bus.RoleWorker, "w", log.logger())
		if err == nil {
			b.Close()
		}
		done <- err
	}()
	receive(t, "log", log)
	embeddedtest.Start(t, embedded.Config{Port: port, StateDir: dir})
	if err := receive(t, "connect", done); err != nil {
		t.Error(err)
	}
}

func TestConnectWithoutAKeyNamesTheMissingFile(t *testing.T) {
	srv, empty := embeddedtest.StartTest(t), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	log := make(records, 64)
	done := make(chan error, 1)
	go func() {
		_, err := bus.Connect(ctx, bus.Config{URL: srv.URL(), StateDir: empty}, bus.RoleClient, "c", log.logger())
		done <- err
	}()
	if line := receive(t, "log", log); !strings.Contains(line, filepath.Join(empty, "keys", "client.nk")) {
		t.Errorf("the log does not name the file: %s", line)
	}
	cancel()
	if err := receive(t, "connect", done); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "client.nk") {
		t.Errorf("error %v, expected canceled, with why the last try failed", err)
	}
}

// A try with a deadline is a person's: what no waiting mends is said at once. The other server's key
// stands for a wrong --state-dir.
func TestABoundedConnectFailsAtOnceWhenItsKeyIsRefused(t *testing.T) {
	srv, empty, other := embeddedtest.StartTest(t), t.TempDir(), t.TempDir()
	embeddedtest.Stop(t, embeddedtest.Start(t, embedded.Config{StateDir: other}))
	for dir, want := range map[string]string{
		empty: bus.KeyFile(empty, bus.RoleClient) + " does not exist",
		other: "does not know the NKey in " + bus.KeyFile(other, bus.RoleClient),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		_, err := bus.Connect(ctx, bus.Config{URL: srv.URL(), StateDir: dir}, bus.RoleClient, "c", slog.New(slog.DiscardHandler))
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), srv.URL()) {
			t.Errorf("error %v, expected one with %q and %s", err, want, srv.URL())
		}
	}
}

func TestConnectRefusesSettingsThatCannotWork(t *testing.T) {
	garbage := filepath.Join(t.TempDir(), "garbage.nk")
	if err := os.WriteFile(garbage, []byte("SUGARBAGE"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg  bus.Config
		want string
	}{
		"scheme":    {bus.Config{URL: "http://localhost:4222"}, "http://localhost:4222"},
		"no host":   {bus.Config{URL: "nats://"}, "expected nats://host:port"},
		"second":    {bus.Config{URL: "nats://a:4222,::"}, `"::"`},
		"no key":    {bus.Config{NKey: "/does/not/exist.nk"}, "/does/not/exist.nk"},
		"bad key":   {bus.Config{NKey: garbage}, garbage},
		"bad inbox": {bus.Config{InboxPrefix: "infer"}, "infer"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bus.Connect(t.Context(), c.cfg, bus.RoleClient, "c", slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, expected one naming %s", err, c.want)
			}
		})
	}
}

func TestReconnectIsTold(t *testing.T) {
	port, dir := freePort(t), t.TempDir()
	s := system{srv: embeddedtest.Start(t, embedded.Config{Port: port, StateDir: dir})}
	b := s.connect(t, bus.RoleWorker)
	told := make(chan struct{}, 8)
	b.OnReconnect(func() { told <- struct{}{} })
	s.restart(t, port, dir)
	receive(t, "reconnect", told)
	if err := b.Flush(); err != nil {
		t.Error(err)
	}
}

func TestDrainSendsWhatWasPublished(t *testing.T) {
	s := newSystem(t)
	c, w := s.connect(t, bus.RoleClient), s.connect(t, bus.RoleWorker)
	got := make(chan string, 1024)
	in, err := c.NewInbox(func(r bus.Reply) { got <- r.Token })
	if err != nil {
		t.Fatal(err)
	}
	const n = 1000
	for range n {
		if err := w.Reply(in.Address("x"), nil, []byte("body")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range n {
		receive(t, "replies", got)
	}
	in.Close()
	c.Close()
	if c.Connected() {
		t.Error("connected after close")
	}
}

// Keys that an embedded server left behind do not keep us from a server without any.
func TestFoundKeysAreNotForcedOnOtherServers(t *testing.T) {
	dir := t.TempDir()
	embeddedtest.Stop(t, embeddedtest.Start(t, embedded.Config{StateDir: dir}))
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer srv.WaitForShutdown()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(patience) {
		t.Fatal("server not ready")
	}
	b, err := bus.Connect(t.Context(), bus.Config{URL: srv.ClientURL(), StateDir: dir}, bus.RoleWorker, "w", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}
