package bus_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/wire"
)

// send publishes a request and returns its receipt.
func send(t testing.TB, b *bus.Bus, m *bus.Message) bus.Receipt {
	t.Helper()
	got, failed := make(chan bus.Receipt, 1), make(chan error, 1)
	if err := b.PublishAsync(m, func(r bus.Receipt, err error) {
		failed <- err
		got <- r
	}); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "publish", failed); err != nil {
		t.Fatal(err)
	}
	return receive(t, "receipt", got)
}

// removing runs what a planner does with cancellations until the test ends; models are those of the
// requests that were removed.
func (s system) removing(t testing.TB) (models <-chan string) {
	t.Helper()
	removed := make(chan string, 64)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.planner.RemoveCancelled(ctx, func(model string) { removed <- model }); !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v, expected %v", err, context.Canceled)
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	s.queue(t, queueOf("probe"))
	c := s.connect(t, bus.RoleClient)
	probe := bus.Cancellation{Model: "probe", RequestID: "p", Seq: send(t, c, &bus.Message{Model: "probe", RequestID: "p", ReplyTo: "_INBOX_client.x"}).Seq}
	eventually(t, func() error {
		if err := c.Cancel(probe); err != nil {
			return err
		}
		if len(removed) == 0 {
			return errors.New("nobody listens")
		}
		return nil
	})
	<-removed
	return removed
}

func TestCancellationsAreHeard(t *testing.T) {
	s := newSystem(t)
	w, c := s.connect(t, bus.RoleWorker), s.connect(t, bus.RoleClient)
	heard := make(chan bus.Cancellation, 8)
	stop, err := w.WatchCancellations("m", func(n bus.Cancellation) { heard <- n })
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	sent := []bus.Cancellation{{Model: "other", RequestID: "x"}, {Model: "m", RequestID: "r-1"}, {Model: "m", RequestID: "r_2", Seq: 77}}
	for _, n := range sent {
		if err := c.Cancel(n); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range sent[1:] {
		if got := receive(t, "cancellation", heard); got != want {
			t.Errorf("heard %+v, expected %+v", got, want)
		}
	}
	stop()
	for _, bad := range []bus.Cancellation{{Model: "m"}, {Model: "M", RequestID: "r"}, {Model: "m", RequestID: "a.b"}, {Model: "*", RequestID: "r"}} {
		if err := c.Cancel(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
	if _, err := w.WatchCancellations("a.b", func(bus.Cancellation) {}); !errors.Is(err, bus.ErrUnknownModel) {
		t.Errorf("error %v, expected %v", err, bus.ErrUnknownModel)
	}
}

// What nobody has fetched is taken out of the queue and answered; the rest is left to who has it.
func TestCancelledRequestsAreRemovedFromTheQueue(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	c := s.connect(t, bus.RoleClient)
	removed := s.removing(t)
	replies := make(chan bus.Reply, 8)
	inbox, err := c.NewInbox(func(r bus.Reply) { replies <- r })
	if err != nil {
		t.Fatal(err)
	}
	defer inbox.Close()

	seq := map[string]uint64{}
	for _, m := range []*bus.Message{
		{RequestID: "fetched", ReplyTo: inbox.Address("fetched")},
		{RequestID: "waits", ReplyTo: inbox.Address("waits")},
		{RequestID: "stays", ReplyTo: inbox.Address("stays")},
		{RequestID: "stored"},
		{RequestID: "kept", ReplyTo: inbox.Address("kept"), Idempotent: true},
		{ReplyTo: inbox.Address("6")}, // known by its place
	} {
		m.Model = "m"
		seq[m.RequestID] = send(t, c, m).Seq
	}
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 1, true, patience)
	first := f.batch(t)[0]

	for _, n := range []bus.Cancellation{
		{RequestID: "fetched", Seq: seq["fetched"]}, // its gpu-let has it
		{RequestID: "stays"},                        // nobody says where it is
		{RequestID: "another", Seq: seq["stays"]},   // not the one that is there
		{RequestID: "stays", Seq: 1000},             // nothing is there
		{RequestID: "waits", Seq: seq["waits"]},     //
		{RequestID: "waits", Seq: seq["waits"]},     // once more
		{RequestID: "stored", Seq: seq["stored"]},   //
		{RequestID: "kept", Seq: seq["kept"]},       //
		{RequestID: "6", Seq: 6},                    //
		{RequestID: "nothing", Seq: 7},              // never published
	} {
		n.Model = "m"
		if err := c.Cancel(n); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		if model := receive(t, "removal", removed); model != "m" {
			t.Errorf("removed a request of %q", model)
		}
	}
	for _, id := range []string{"waits", "kept", "6"} {
		r := receive(t, "reply", replies)
		if r.Token != id || r.Get(wire.HeaderStatus) != string(wire.Cancelled) || r.Get(wire.HeaderRequestID) != id {
			t.Errorf("reply %q to %q, expected %s to %q", r.Get(wire.HeaderStatus), r.Token, wire.Cancelled, id)
		}
	}
	for _, id := range []string{"stored", "kept"} {
		if r, err := c.AwaitResult(t.Context(), "m", id); err != nil || r.Get(wire.HeaderStatus) != string(wire.Cancelled) {
			t.Errorf("result of %s: %q, %v", id, r.Get(wire.HeaderStatus), err)
		}
	}
	if err := first.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.pull(t, 10, true, patience)
	var left []string
	for _, m := range f.batch(t) {
		left = append(left, m.Get(wire.HeaderRequestID))
	}
	if d := cmp.Diff([]string{"stays"}, left); d != "" {
		t.Errorf("left in the queue (-want +got):\n%s", d)
	}
	if len(removed)+len(replies) != 0 {
		t.Errorf("%d further removals and %d replies", len(removed), len(replies))
	}
}

// Of several planners that hear of a cancellation one counts it, however close they are.
func TestARequestIsRemovedByOnePlanner(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	c, other := s.connect(t, bus.RoleClient), s.connect(t, bus.RolePlanner)
	const n = 50
	removed := s.removing(t)
	also := make(chan string, 2*n)
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { _ = other.RemoveCancelled(ctx, func(model string) { also <- model }) })
	defer done.Wait()
	defer cancel()
	for i := range n {
		id := strconv.Itoa(i)
		seq := send(t, c, &bus.Message{Model: "m", RequestID: id, ReplyTo: "_INBOX_client.x"}).Seq
		if err := c.Cancel(bus.Cancellation{Model: "m", RequestID: id, Seq: seq}); err != nil {
			t.Fatal(err)
		}
	}
	s.pending(t, "m", 0)
	eventually(t, func() error {
		if got := len(removed) + len(also); got < n {
			return fmt.Errorf("%d removals of %d were counted", got, n)
		}
		return nil
	})
	cancel()
	done.Wait()
	if got := len(removed) + len(also); got != n {
		t.Errorf("%d removals were counted of %d requests", got, n)
	}
}

// A request is not taken out before its client is told: where that cannot be done it stays, for a gpu-let
// to answer.
func TestWhatCannotBeAnsweredIsNotRemoved(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	js, err := jetstream.New(s.raw(t, bus.RolePlanner))
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), bus.StreamResults); err != nil {
		t.Fatal(err)
	}
	c := s.connect(t, bus.RoleClient)
	removed := s.removing(t)
	for _, m := range []*bus.Message{{RequestID: "stored"}, {RequestID: "told", ReplyTo: "_INBOX_client.x"}} {
		m.Model = "m"
		if err := c.Cancel(bus.Cancellation{Model: "m", RequestID: m.RequestID, Seq: send(t, c, m).Seq}); err != nil {
			t.Fatal(err)
		}
	}
	receive(t, "the one that could be told", removed)
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 2, true, patience)
	if got := f.batch(t); len(got) != 1 || got[0].Get(wire.HeaderRequestID) != "stored" {
		t.Errorf("%d requests are left, expected the one that could not be told", len(got))
	}
}

// A request with an id is run once and has one answer, whoever publishes it again and wherever from.
func TestAnIdempotentRequestIsStoredOnceAndItsAnswerIsFound(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	a, b, w := s.connect(t, bus.RoleClient), s.connect(t, bus.RoleFrontend), s.connect(t, bus.RoleWorker)
	m := &bus.Message{Model: "m", RequestID: "order-7", Idempotent: true, Body: []byte("x")}
	first, second := send(t, a, m), send(t, b, m)
	if first.Duplicate || !second.Duplicate || first.Seq != second.Seq || first.Seq != 1 {
		t.Errorf("receipts %+v and %+v, expected a request and its duplicate", first, second)
	}
	f := newFetcher(t, w, "m", 1)
	f.pull(t, 1, true, patience)
	got := f.batch(t)[0]
	if got.Get(wire.HeaderKeep) != "true" || got.Get("Nats-Msg-Id") != "order-7" {
		t.Errorf("headers: keep %q, message id %q", got.Get(wire.HeaderKeep), got.Get("Nats-Msg-Id"))
	}
	answer := make(chan string, 1)
	go func() {
		r, err := b.AwaitResult(context.Background(), "m", "order-7")
		if err != nil {
			t.Error(err)
		}
		answer <- string(r.Body)
	}()
	if err := w.StoreResult("m", "order-7", map[string]string{wire.HeaderStatus: "ok"}, []byte("done")); err != nil {
		t.Fatal(err)
	}
	if body := receive(t, "answer", answer); body != "done" {
		t.Errorf("answer %q", body)
	}
	if _, err := a.Result(t.Context(), "m", "order-7"); err != nil {
		t.Error(err)
	}
	if err := a.PublishAsync(&bus.Message{Model: "m", Idempotent: true}, func(bus.Receipt, error) {}); err == nil {
		t.Error("an idempotent request without an id was accepted")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.AwaitResult(ended, "m", "nobody"); err == nil {
		t.Error("a result that there is not was found")
	}
}
