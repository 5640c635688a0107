package inbox_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

// cancellations are those that a gpu-let of toy hears.
func (s *system) cancellations(t *testing.T) <-chan bus.Cancellation {
	t.Helper()
	heard := make(chan bus.Cancellation, 64)
	stop, err := s.worker.WatchCancellations("toy", func(c bus.Cancellation) { heard <- c })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	if err := s.worker.Flush(); err != nil {
		t.Fatal(err)
	}
	return heard
}

func take[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("waited in vain: %s", what)
		panic("not reached")
	}
}

func named(t *testing.T, i *inbox.Inbox, id string) *inbox.Call {
	t.Helper()
	c, err := i.Send(&bus.Message{Model: "toy", RequestID: id, Body: []byte("q")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// another is the inbox of another frontend.
func (s *system) another(t *testing.T) *inbox.Inbox {
	t.Helper()
	i, err := inbox.Open(embeddedtest.Connect(t, s.NATS, bus.RoleFrontend))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	return i
}

// A request whose client leaves is cancelled, with its place in the queue as soon as that is known. One
// whose id the client has chosen is not: the client may come back for the answer.
func TestAClientThatLeavesCancels(t *testing.T) {
	s := start(t)
	heard := s.cancellations(t)
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if _, err := named(t, s.Inbox, "mine").Wait(ctx, soon()); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	c := send(t, s.Inbox, "q")
	if _, err := c.Wait(ctx, soon()); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for {
		n := take(t, "a cancellation with its place", heard)
		if n.RequestID != c.RequestID || n.Model != "toy" {
			t.Fatalf("%+v was cancelled: expected %s", n, c.RequestID)
		}
		if n.Seq == 2 {
			break
		}
		if n.Seq != 0 {
			t.Fatalf("place %d, expected 2", n.Seq)
		}
	}
	// One that is given up for its deadline ends by itself.
	if _, err := send(t, s.Inbox, "q").Wait(t.Context(), time.Now()); !errors.Is(err, inbox.ErrExpired) {
		t.Fatal(err)
	}
	named(t, s.Inbox, "last")
	if err := s.Inbox.Cancel("toy", "last"); err != nil {
		t.Fatal(err)
	}
	for n := take(t, "the last cancellation", heard); n.RequestID != "last"; n = take(t, "the last cancellation", heard) {
		if n.RequestID != c.RequestID {
			t.Errorf("%+v was cancelled: expected nothing before the last", n)
		}
	}
}

// Whichever frontend is asked to cancel a request, the one whose client waits for it ends the wait and
// says where the request is.
func TestCancellingByIDEndsTheWaitAtAnyFrontend(t *testing.T) {
	s := start(t)
	heard, other := s.cancellations(t), s.another(t)
	c := named(t, s.Inbox, "job-1")
	twin := named(t, s.Inbox, "job-1")
	neighbour := named(t, s.Inbox, "job-2")
	m := s.fetch(t)
	frontendtest.Eventually(t, "both are stored", func() bool {
		lag, err := s.Planner.Lag(t.Context(), "toy")
		return err == nil && lag.LastSeq == 2
	})
	if err := other.Cancel("toy", "job-1"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*inbox.Call{c, twin} {
		if _, err := c.Wait(t.Context(), soon()); !errors.Is(err, inbox.ErrCancelled) {
			t.Errorf("%v: expected %v", err, inbox.ErrCancelled)
		}
	}
	// They come from two connections, so in any order.
	got := map[bus.Cancellation]int{}
	got[take(t, "what was asked, or the place", heard)]++
	got[take(t, "the other", heard)]++
	asked := bus.Cancellation{Model: "toy", RequestID: "job-1"}
	placed := asked
	placed.Seq = m.Seq
	if d := cmp.Diff(map[bus.Cancellation]int{asked: 1, placed: 1}, got); d != "" {
		t.Errorf("cancellations (-want +got):\n%s", d)
	}
	s.reply(t, m, "late", 1)
	frontendtest.Eventually(t, "the reply is late", func() bool { return s.Inbox.Stats() == inbox.Stats{Pending: 1, Late: 1} })
	s.reply(t, s.fetch(t), "other", 1)
	if r, err := neighbour.Wait(t.Context(), soon()); err != nil || string(r.Body) != "other" {
		t.Errorf("%q, %v", r.Body, err)
	}
	if err := s.Inbox.Cancel("toy", "no token"); err == nil {
		t.Error("an id that cannot be one was taken")
	}
}

// The same id is one request: it is in the queue once, and everybody who asks has its one answer, while
// it is open and afterwards, at every frontend.
func TestTheSameIDIsTheSameRequest(t *testing.T) {
	s := start(t)
	other := s.another(t)
	if c := other.Answered(t.Context(), "toy", "job-1"); c != nil {
		t.Error("an answer is there before the request")
	}
	calls := []*inbox.Call{named(t, s.Inbox, "job-1"), named(t, s.Inbox, "job-1"), named(t, other, "job-1")}
	m := s.fetch(t)
	s.reply(t, m, "answer", 1)
	if err := s.worker.StoreResult("toy", "job-1", map[string]string{wire.HeaderStatus: "ok"}, []byte("answer")); err != nil {
		t.Fatal(err)
	}
	calls = append(calls, other.Answered(t.Context(), "toy", "job-1"), named(t, other, "job-1"))
	for n, c := range calls {
		if r, err := c.Wait(t.Context(), soon()); err != nil || string(r.Body) != "answer" || c.RequestID != "job-1" {
			t.Errorf("call %d: %q, %v", n, r.Body, err)
		}
	}
	if lag, err := s.Planner.Lag(t.Context(), "toy"); err != nil || lag.LastSeq != 1 {
		t.Errorf("%d requests were stored, %v: expected 1", lag.LastSeq, err)
	}
	if st := s.Inbox.Stats(); st != (inbox.Stats{}) {
		t.Errorf("%+v", st)
	}
	// One who waits for a twin that is never answered expires.
	named(t, s.Inbox, "job-2")
	if _, err := named(t, other, "job-2").Wait(t.Context(), time.Now().Add(20*time.Millisecond)); !errors.Is(err, inbox.ErrExpired) {
		t.Errorf("%v: expected %v", err, inbox.ErrExpired)
	}
}

// Nobody can cancel a request by counting.
func TestGeneratedIDsAreNotToBeGuessed(t *testing.T) {
	s := start(t)
	a, b := send(t, s.Inbox, "q").RequestID, send(t, s.Inbox, "q").RequestID
	same := 0
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			same++
		}
	}
	if len(a) < 20 || len(b) < 20 || same > len(a)/2 {
		t.Errorf("ids %s and %s: expected two long ones with little in common", a, b)
	}
}
