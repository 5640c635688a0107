package bus_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
)

// fetcher is a puller with its own channel of events.
type fetcher struct {
	*bus.Puller
	events chan bus.PullEvent
}

func newFetcher(t testing.TB, b *bus.Bus, model string, rank int) fetcher {
	t.Helper()
	events := make(chan bus.PullEvent, 1024)
	p, err := b.NewPuller(model, bus.PullerOptions{Rank: rank, Events: events})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return fetcher{p, events}
}

func (f fetcher) pull(t testing.TB, n int, noWait bool, expires time.Duration) {
	t.Helper()
	if err := f.Pull(n, noWait, expires); err != nil {
		t.Fatal(err)
	}
}

// ended collects messages up to the end of the pull.
func (f fetcher) ended(t testing.TB) ([]*bus.Msg, error) {
	t.Helper()
	var list []*bus.Msg
	for {
		e := receive(t, "pull", f.events)
		if e.Ended {
			return list, e.Err
		}
		list = append(list, e.Msg)
	}
}

func (f fetcher) batch(t testing.TB) []*bus.Msg {
	t.Helper()
	list, err := f.ended(t)
	if err != nil {
		t.Fatalf("pull ended with %v after %d messages", err, len(list))
	}
	return list
}

func ackAll(t testing.TB, list []*bus.Msg) {
	t.Helper()
	for _, m := range list {
		if err := m.DoubleAck(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

func bodies(list []*bus.Msg) []byte {
	var b []byte
	for _, m := range list {
		b = append(b, m.Data...)
	}
	return b
}

// pending waits until the queue's consumer has counted n messages, which it does a moment after they
// were stored.
func (s system) pending(t testing.TB, model string, n uint64) {
	t.Helper()
	eventually(t, func() error {
		lag, err := s.planner.Lag(t.Context(), model)
		if err == nil && lag.Pending != n {
			err = fmt.Errorf("%d are pending, expected %d", lag.Pending, n)
		}
		return err
	})
}

// parked waits until n pulls are parked on a model's queue.
func (s system) parked(t testing.TB, model string, n int) {
	t.Helper()
	eventually(t, func() error {
		lag, err := s.planner.Lag(t.Context(), model)
		if err != nil || lag.Waiting != n {
			return fmt.Errorf("%d pulls are parked, expected %d (error %v)", lag.Waiting, n, err)
		}
		return nil
	})
}

func TestIdlePullTakesTheBacklogAtOnce(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	publish(t, s.connect(t, bus.RoleClient), "m", 3)
	s.pending(t, "m", 3)
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 8, true, time.Minute)
	got := f.batch(t)
	if diff := cmp.Diff([]byte{0, 1, 2}, bodies(got)); diff != "" {
		t.Error(diff)
	}
	for i, m := range got {
		if m.Seq != uint64(i+1) || m.Delivered != 1 || m.Pending != uint64(2-i) || m.Subject != "infer.m" || time.Since(m.Stored) > patience {
			t.Errorf("message %d: seq %d, delivered %d, pending %d, subject %s, stored %v", i, m.Seq, m.Delivered, m.Pending, m.Subject, m.Stored)
		}
	}
	if f.Outstanding() {
		t.Error("the pull is outstanding after its end")
	}
}

func TestIdlePullParksOnAnEmptyQueue(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 8, true, time.Minute)
	s.parked(t, "m", 1)
	publish(t, s.connect(t, bus.RoleClient), "m", 1)
	if got := f.batch(t); len(got) != 1 {
		t.Errorf("%d messages, expected 1", len(got))
	}
}

func TestPullEndsWhenItHasWhatItAskedFor(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	publish(t, s.connect(t, bus.RoleClient), "m", 5)
	s.pending(t, "m", 5)
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 2, true, time.Minute)
	f.batch(t)
	f.pull(t, 2, false, time.Minute)
	if diff := cmp.Diff([]byte{2, 3}, bodies(f.batch(t))); diff != "" {
		t.Error(diff)
	}
}

func TestTopUpExpires(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	publish(t, s.connect(t, bus.RoleClient), "m", 1)
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 4, false, 20*time.Millisecond)
	if got := f.batch(t); len(got) != 1 {
		t.Errorf("%d messages, expected 1", len(got))
	}
}

func TestEmptyQueueWithoutExpiryEndsAtOnce(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 4, true, 0)
	if got := f.batch(t); len(got) != 0 {
		t.Errorf("%d messages, expected none", len(got))
	}
}

func TestOnePullAtATime(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 1, true, time.Minute)
	if err := f.Pull(1, true, time.Minute); err == nil {
		t.Error("a second pull was accepted")
	}
	for _, bad := range []struct {
		n       int
		noWait  bool
		expires time.Duration
	}{{0, true, time.Second}, {1, false, 0}, {1, true, -1}} {
		if err := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1).Pull(bad.n, bad.noWait, bad.expires); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// Of four parked pulls the better ranked is filled before the next gets anything.
func TestRankKeepsBatchesWhole(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	w := s.connect(t, bus.RoleWorker)
	var pulls []fetcher
	for rank := 4; rank >= 1; rank-- {
		f := newFetcher(t, w, "m", rank)
		f.pull(t, 8, true, time.Minute)
		pulls = append(pulls, f)
	}
	s.parked(t, "m", 4)
	topUp := newFetcher(t, w, "m", 9)
	topUp.pull(t, 2, false, time.Minute)
	s.parked(t, "m", 5)
	publish(t, s.connect(t, bus.RoleClient), "m", 3)
	if diff := cmp.Diff([]byte{0, 1}, bodies(topUp.batch(t))); diff != "" {
		t.Errorf("the top-up comes first: %s", diff)
	}
	if diff := cmp.Diff([]byte{2}, bodies([]*bus.Msg{receive(t, "rank 1", pulls[3].events).Msg})); diff != "" {
		t.Errorf("then rank 1: %s", diff)
	}
	for i, f := range pulls[:3] {
		if len(f.events) != 0 {
			t.Errorf("the pull of rank %d was served too", 4-i)
		}
	}
}

func TestPullersShareAChannel(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("a"))
	s.queue(t, queueOf("b"))
	w, c := s.connect(t, bus.RoleWorker), s.connect(t, bus.RoleClient)
	publish(t, c, "a", 2)
	publish(t, c, "b", 3)
	s.pending(t, "a", 2)
	s.pending(t, "b", 3)
	events := make(chan bus.PullEvent)
	for _, m := range []string{"a", "b"} {
		p, err := w.NewPuller(m, bus.PullerOptions{Events: events})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if err := p.Pull(8, true, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]int{}
	for ends := 0; ends < 2; {
		e := receive(t, "events", events)
		if e.Ended {
			ends++
			continue
		}
		got[e.Model]++
	}
	if diff := cmp.Diff(map[string]int{"a": 2, "b": 3}, got); diff != "" {
		t.Error(diff)
	}
}

func TestPullOfAMissingQueueSaysSo(t *testing.T) {
	s := newSystem(t)
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "nobody", 1)
	f.pull(t, 1, true, time.Minute)
	if _, err := f.ended(t); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("error %v, expected %v", err, bus.ErrUnavailable)
	}
}

func TestParkedPullEndsWithItsQueue(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 1, true, time.Minute)
	s.parked(t, "m", 1)
	if err := s.planner.DeleteQueue(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ended(t); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("error %v, expected %v", err, bus.ErrUnavailable)
	}
}

func TestMaxBytesEndsAPull(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	c := s.connect(t, bus.RoleClient)
	for range 3 {
		if err := c.Publish(t.Context(), &bus.Message{Model: "m", Body: make([]byte, 4000)}); err != nil {
			t.Fatal(err)
		}
	}
	events := make(chan bus.PullEvent, 16)
	p, err := s.connect(t, bus.RoleWorker).NewPuller("m", bus.PullerOptions{Events: events, MaxBytes: 10000})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	f := fetcher{p, events}
	f.pull(t, 3, false, time.Minute)
	if got := f.batch(t); len(got) != 2 {
		t.Errorf("%d messages of 4000 bytes in 10000, expected 2", len(got))
	}
}

// A client may give its request any header. One without a body that looks like the server's word on a pull
// is a request like any other, and is answered.
func TestARequestIsNotTakenForAStatus(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	c := s.connect(t, bus.RoleClient)
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	for _, status := range []string{"100", "404", "409", "503"} {
		send(t, c, &bus.Message{Model: "m", Header: map[string]string{"Status": status, "Description": "Server Shutdown"}})
		f.pull(t, 1, true, time.Minute)
		list := f.batch(t)
		if len(list) != 1 || list[0].Get("Status") != status {
			t.Fatalf("status %s: %d messages, expected the request", status, len(list))
		}
		ackAll(t, list)
	}
}

func TestWhatHappensToAFetchedRequest(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	publish(t, s.connect(t, bus.RoleClient), "m", 1)
	f.pull(t, 1, true, time.Minute)
	first := f.batch(t)[0]
	if err := errors.Join(first.InProgress(), first.Nak(0)); err != nil {
		t.Fatal(err)
	}
	f.pull(t, 1, true, time.Minute)
	again := f.batch(t)[0]
	if again.Seq != first.Seq || again.Delivered != 2 {
		t.Errorf("seq %d delivered %d after a Nak, expected seq %d delivered 2", again.Seq, again.Delivered, first.Seq)
	}
	if err := again.Nak(time.Millisecond); err != nil {
		t.Fatal(err)
	}
	f.pull(t, 1, true, time.Minute)
	if err := f.batch(t)[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	lag, err := s.planner.Lag(t.Context(), "m")
	if err != nil || lag.Pending+lag.AckPending != 0 || !lag.Oldest.IsZero() || lag.LastSeq != 1 {
		t.Errorf("lag %+v, %v after the acknowledgement, expected nothing left", lag, err)
	}
}

func TestClosedPullerGivesBackWhatItWasSent(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	w := s.connect(t, bus.RoleWorker)
	events := make(chan bus.PullEvent) // nobody reads
	p, err := w.NewPuller("m", bus.PullerOptions{Events: events})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, s.connect(t, bus.RoleClient), "m", 3)
	if err := p.Pull(3, true, time.Minute); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if lag, err := s.planner.Lag(t.Context(), "m"); err != nil || lag.AckPending != 3 {
			return fmt.Errorf("%d are out, expected 3 (error %v)", lag.AckPending, err)
		}
		return nil
	})
	p.Close()
	p.Close()
	if err := p.Pull(1, true, time.Minute); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("pull after close: %v, expected %v", err, bus.ErrClosed)
	}
	f := newFetcher(t, w, "m", 1)
	got := 0
	for got < 3 { // long before the AckWait of 30s
		f.pull(t, 3-got, true, time.Minute)
		list := f.batch(t)
		ackAll(t, list)
		got += len(list)
	}
}

// restart stops the server and starts it again on the same port with the same data.
func (s *system) restart(t testing.TB, port int, dir string) {
	t.Helper()
	embeddedtest.Stop(t, s.srv)
	s.srv = embeddedtest.Start(t, embedded.Config{Port: port, StateDir: dir})
}

func TestPullerSurvivesARestartOfTheServer(t *testing.T) {
	port, dir := freePort(t), t.TempDir()
	srv := embeddedtest.Start(t, embedded.Config{Port: port, StateDir: dir})
	s := system{srv, embeddedtest.Connect(t, srv, bus.RolePlanner)}
	if err := s.planner.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	q := queueOf("m")
	q.File = true
	s.queue(t, q)
	w, c := s.connect(t, bus.RoleWorker), s.connect(t, bus.RoleClient)
	f, down := newFetcher(t, w, "m", 1), newFetcher(t, w, "m", 2)
	f.pull(t, 1, true, time.Minute)
	s.parked(t, "m", 1)
	embeddedtest.Stop(t, s.srv)
	eventually(t, func() error {
		if w.Connected() || c.Connected() {
			return errors.New("still connected")
		}
		return nil
	})
	down.pull(t, 1, true, time.Minute) // made while the connection is down
	if err := c.Publish(t.Context(), &bus.Message{Model: "m"}); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("publish without a connection: %v, expected %v", err, bus.ErrUnavailable)
	}
	s.srv = embeddedtest.Start(t, embedded.Config{Port: port, StateDir: dir})
	for _, p := range []fetcher{f, down} {
		if _, err := p.ended(t); !errors.Is(err, bus.ErrUnavailable) {
			t.Errorf("error %v, expected %v", err, bus.ErrUnavailable)
		}
	}
	eventually(t, func() error { return c.Publish(t.Context(), &bus.Message{Model: "m", Body: []byte{7}}) })
	f.pull(t, 1, true, time.Minute)
	if diff := cmp.Diff([]byte{7}, bodies(f.batch(t))); diff != "" {
		t.Error(diff)
	}
}

func TestOwnClockEndsAPullThatNobodyAnswers(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 1, true, 500*time.Millisecond)
	s.parked(t, "m", 1)
	embeddedtest.Stop(t, s.srv)
	if _, err := f.ended(t); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("error %v, expected %v", err, bus.ErrUnavailable)
	}
}
