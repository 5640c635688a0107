package gpulet_test

import (
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
)

// tap is a connection that keeps what a worker says to the server.
type tap struct {
	mu   sync.Mutex // guards said
	said []byte
}

// connect connects a worker through the tap; both ends close when the test ends.
func (p *tap) connect(t testing.TB, srv *embedded.Server) *bus.Bus {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			worker, err := ln.Accept()
			if err != nil {
				return // closed
			}
			server, err := net.Dial("tcp", strings.TrimPrefix(srv.URL(), "nats://"))
			if err != nil {
				t.Errorf("tap: %v", err)
				_ = worker.Close()
				return
			}
			done.Go(func() {
				_, _ = io.Copy(io.MultiWriter(p, server), worker)
				_ = server.Close()
			})
			done.Go(func() {
				_, _ = io.Copy(worker, server)
				_ = worker.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		done.Wait()
	})
	b, err := bus.Connect(t.Context(), bus.Config{URL: "nats://" + ln.Addr().String(), StateDir: srv.StateDir()},
		bus.RoleWorker, "tapped", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// Write keeps b; it is called with what goes to the server, before that gets it.
func (p *tap) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said = append(p.said, b...)
	return len(b), nil
}

// sent is what was said to the server so far.
func (p *tap) sent() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.said)
}
