// Package embeddedtest gives tests a real bus: an embedded server on free ports with its data in
// the test's own folder.
package embeddedtest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
)

// StartTest starts a server that is stopped when the test ends.
func StartTest(t testing.TB) *embedded.Server {
	t.Helper()
	return Start(t, embedded.Config{Port: -1, StateDir: t.TempDir()})
}

// Start starts a server with settings of the test's own; it is stopped when the test ends.
func Start(t testing.TB, cfg embedded.Config) *embedded.Server {
	t.Helper()
	srv, err := embedded.Start(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("start embedded NATS: %v", err)
	}
	t.Cleanup(func() { Stop(t, srv) })
	return srv
}

// Stop stops a server before the test's end, as a crash or a restart would.
func Stop(t testing.TB, srv *embedded.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Errorf("stop embedded NATS: %v", err)
	}
}

// Connect connects to srv as role; the connection is closed when the test ends.
func Connect(t testing.TB, srv *embedded.Server, role bus.Role) *bus.Bus {
	t.Helper()
	cfg := bus.Config{URL: srv.URL(), StateDir: srv.StateDir()}
	b, err := bus.Connect(t.Context(), cfg, role, "test-"+string(role), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("connect as %s: %v", role, err)
	}
	t.Cleanup(b.Close)
	return b
}
