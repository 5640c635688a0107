package bus_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits that end by themselves when the code is right.
const patience = 10 * time.Second

// system is a server that a planner has set up.
type system struct {
	srv     *embedded.Server
	planner *bus.Bus
}

func newSystem(t testing.TB) system {
	t.Helper()
	srv := embeddedtest.StartTest(t)
	s := system{srv, embeddedtest.Connect(t, srv, bus.RolePlanner)}
	if err := s.planner.EnsureBase(context.Background()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s system) connect(t testing.TB, role bus.Role) *bus.Bus {
	t.Helper()
	return embeddedtest.Connect(t, s.srv, role)
}

// raw is a connection of the client library with a role's key, for what the bus does not offer.
func (s system) raw(t testing.TB, role bus.Role) *nats.Conn {
	t.Helper()
	key, err := nats.NkeyOptionFromSeed(bus.KeyFile(s.srv.StateDir(), role))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(s.srv.URL(), key, nats.CustomInboxPrefix(bus.InboxPrefix(role)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func queueOf(model string) bus.Queue {
	return bus.Queue{
		Model: model, MaxMsgs: 1 << 20, MaxBytes: 256 << 20, MaxAge: time.Minute,
		AckWait: 30 * time.Second, MaxAckPending: 1 << 16,
	}
}

func (s system) queue(t testing.TB, q bus.Queue) {
	t.Helper()
	if err := s.planner.EnsureQueue(context.Background(), q); err != nil {
		t.Fatal(err)
	}
}

// publish stores n requests of one byte, 0, 1, 2, ...
func publish(t testing.TB, b *bus.Bus, model string, n int) {
	t.Helper()
	for i := range n {
		if err := b.Publish(context.Background(), &bus.Message{Model: model, Body: []byte{byte(i)}}); err != nil {
			t.Fatal(err)
		}
	}
}

// receive takes one value or fails the test.
func receive[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-ch:
		if !ok {
			t.Fatalf("%s: the channel was closed", what)
		}
		return v
	case <-time.After(patience):
		t.Fatalf("%s: nothing within %v", what, patience)
	}
	panic("not reached")
}

// eventually repeats check until it returns nil.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
}
