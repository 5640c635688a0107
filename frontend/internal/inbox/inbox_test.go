package inbox_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/frontend/internal/frontendtest"
	"github.com/gpulet/gpulet/frontend/internal/inbox"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var toy = frontendtest.Toy()

// system has a queue and a puller whose events the test itself answers.
type system struct {
	*frontendtest.System
	worker *bus.Bus
	events chan bus.PullEvent
}

func start(t *testing.T, models ...model.Model) *system {
	t.Helper()
	s := &system{System: frontendtest.Start(t, append(models, toy)...), events: make(chan bus.PullEvent, 64)}
	s.worker = embeddedtest.Connect(t, s.NATS, bus.RoleWorker)
	p, err := s.worker.NewPuller("toy", bus.PullerOptions{Events: s.events})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if err := p.Pull(64, false, time.Minute); err != nil {
		t.Fatal(err)
	}
	return s
}

// fetch takes the next request out of the queue.
func (s *system) fetch(t *testing.T) *bus.Msg {
	t.Helper()
	select {
	case e := <-s.events:
		if e.Msg == nil {
			t.Fatalf("the pull ended: %v", e.Err)
		}
		return e.Msg
	case <-time.After(10 * time.Second):
		t.Fatal("no request came")
		return nil
	}
}

// reply answers m with body, as often as times says.
func (s *system) reply(t *testing.T, m *bus.Msg, body string, times int) {
	t.Helper()
	for range times {
		if err := s.worker.Reply(m.Get(wire.HeaderReplyTo), map[string]string{wire.HeaderStatus: "ok"}, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.worker.Flush(); err != nil {
		t.Fatal(err)
	}
}

func send(t *testing.T, i *inbox.Inbox, body string) *inbox.Call {
	t.Helper()
	c, err := i.Send(&bus.Message{Model: "toy", Body: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func soon() time.Time { return time.Now().Add(10 * time.Second) }

func TestTheFirstReplyCountsAndTheOthersAreCounted(t *testing.T) {
	s := start(t)
	c := send(t, s.Inbox, "q")
	m := s.fetch(t)
	if string(m.Data) != "q" || m.Get(wire.HeaderRequestID) != c.RequestID {
		t.Errorf("the queue holds %q of %q: expected %q of %q", m.Data, m.Get(wire.HeaderRequestID), "q", c.RequestID)
	}
	s.reply(t, m, "first", 1)
	s.reply(t, m, "second", 2)
	r, err := c.Wait(t.Context(), soon())
	if err != nil || string(r.Body) != "first" || r.Get(wire.HeaderStatus) != "ok" {
		t.Errorf("%q, %v", r.Body, err)
	}
	frontendtest.Eventually(t, "both duplicates are counted", func() bool {
		return s.Inbox.Stats() == inbox.Stats{Duplicates: 2}
	})
}

func TestARequestThatNobodyAnswersExpires(t *testing.T) {
	s := start(t)
	c := send(t, s.Inbox, "q")
	m := s.fetch(t)
	if _, err := c.Wait(t.Context(), time.Now().Add(5*time.Millisecond)); !errors.Is(err, inbox.ErrExpired) {
		t.Errorf("%v: expected %v", err, inbox.ErrExpired)
	}
	s.reply(t, m, "late", 1)
	frontendtest.Eventually(t, "the late reply is counted", func() bool { return s.Inbox.Stats() == inbox.Stats{Late: 1} })
}

func TestTheClientLeaves(t *testing.T) {
	s := start(t)
	ctx, leave := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	leave(gone)
	if _, err := send(t, s.Inbox, "q").Wait(ctx, soon()); !errors.Is(err, gone) {
		t.Errorf("%v: expected %v", err, gone)
	}
	s.reply(t, s.fetch(t), "late", 1)
	frontendtest.Eventually(t, "the late reply is counted", func() bool { return s.Inbox.Stats() == inbox.Stats{Late: 1} })
}

func TestARefusalOfTheQueueEndsTheWait(t *testing.T) {
	s := start(t, frontendtest.Model("gone", nil, nil))
	if err := s.Planner.DeleteQueue(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	c, err := s.Inbox.Send(&bus.Message{Model: "gone"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), soon()); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("%v: expected %v", err, bus.ErrUnavailable)
	}
	if _, err := s.Inbox.Send(&bus.Message{Model: "No Name"}); !errors.Is(err, bus.ErrUnknownModel) {
		t.Errorf("%v: expected %v", err, bus.ErrUnknownModel)
	}
	if st := s.Inbox.Stats(); st != (inbox.Stats{}) {
		t.Errorf("%+v", st)
	}
}

func TestRepliesToNobodyAreStrays(t *testing.T) {
	s := start(t)
	send(t, s.Inbox, "q")
	to := s.fetch(t).Get(wire.HeaderReplyTo)
	for _, address := range []string{to + "zzz", to + "-"} {
		if err := s.worker.Reply(address, nil, []byte("?")); err != nil {
			t.Fatal(err)
		}
	}
	frontendtest.Eventually(t, "the strays are counted", func() bool {
		return s.Inbox.Stats() == inbox.Stats{Pending: 1, Strays: 2}
	})
}

func TestCloseEndsAllWaits(t *testing.T) {
	s := start(t)
	c := send(t, s.Inbox, "q")
	s.Inbox.Close()
	if _, err := c.Wait(t.Context(), soon()); !errors.Is(err, inbox.ErrClosed) {
		t.Errorf("%v: expected %v", err, inbox.ErrClosed)
	}
	if _, err := s.Inbox.Send(&bus.Message{Model: "toy"}); !errors.Is(err, inbox.ErrClosed) {
		t.Errorf("send: %v: expected %v", err, inbox.ErrClosed)
	}
}

// Whatever the race between replies, deadlines and duplicates: every wait ends once, and every
// reply is either the one that counted or counted.
func TestEveryReplyIsDeliveredOrCounted(t *testing.T) {
	s := start(t)
	const requests, copies = 60, 3
	var answered atomic.Uint64
	var waits sync.WaitGroup
	for i := range requests {
		c := send(t, s.Inbox, "q")
		waits.Go(func() {
			deadline := soon()
			if i%2 == 0 {
				deadline = time.Now().Add(time.Duration(i%7) * 100 * time.Microsecond)
			}
			switch _, err := c.Wait(t.Context(), deadline); {
			case err == nil:
				answered.Add(1)
			case !errors.Is(err, inbox.ErrExpired):
				t.Error(err)
			}
		})
	}
	for range requests {
		s.reply(t, s.fetch(t), "a", copies)
	}
	waits.Wait()
	frontendtest.Eventually(t, "all replies are accounted for", func() bool {
		st := s.Inbox.Stats()
		return st.Pending == 0 && st.Strays == 0 && answered.Load()+st.Late+st.Duplicates == requests*copies
	})
	if n := answered.Load(); n < requests/2 {
		t.Errorf("%d of %d requests were answered: expected at least half", n, requests)
	}
}
