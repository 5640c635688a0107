// Package embeddedtest gives tests a real bus: an embedded server on free ports with its data in
// the test's own folder.
package embeddedtest

import (
	"log/slog"
	"testing"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
)

// StartTest starts a server that is stopped when the test ends.
func StartTest(t testing.TB) *embedded.Server {
	t.Helper()
	srv, err := embedded.Start(embedded.Config{Port: -1, StateDir: t.TempDir()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return srv
}

// Connect connects to srv as role; the connection is closed when the test ends.
func Connect(t testing.TB, srv *embedded.Server, role bus.Role) *bus.Bus {
	t.Helper()
	cfg := bus.Config{URL: srv.URL(), StateDir: srv.StateDir()}
	b, err := bus.Connect(t.Context(), cfg, role, "test-"+string(role), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
