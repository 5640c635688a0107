package inbox_test

import (
	"errors"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/frontendtest"
	"github.com/gpulet/gpulet/frontend/internal/inbox"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/wire"
)

// flaky is a bus whose connection breaks when the test says so, and which says of publishes what the
// test wants.
type flaky struct {
	*bus.Bus
	mu        sync.Mutex // guards the fields below
	reconnect func()
	say       []error // in place of the next acknowledgements; nil: what the queue says
	published []bus.Message
}

func (f *flaky) OnReconnect(hook func()) { f.reconnect = hook }

func (f *flaky) PublishAsync(m *bus.Message, done func(bus.Receipt, error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.published = append(f.published, *m)
	if len(f.say) == 0 {
		return f.Bus.PublishAsync(m, done)
	}
	err := f.say[0]
	f.say = f.say[1:]
	if err == nil {
		return f.Bus.PublishAsync(m, done)
	}
	if errors.Is(err, bus.ErrUnacknowledged) { // it was taken all the same
		return f.Bus.PublishAsync(m, func(bus.Receipt, error) { done(bus.Receipt{}, err) })
	}
	go done(bus.Receipt{}, err)
	return nil
}

// messages is what was published so far.
func (f *flaky) messages() []bus.Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]bus.Message(nil), f.published...)
}

// unreliable is a system whose frontend is on a flaky bus.
func unreliable(t *testing.T, say ...error) (*system, *flaky, *inbox.Inbox) {
	t.Helper()
	s := start(t)
	f := &flaky{Bus: s.Bus, say: say}
	i, err := inbox.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	return s, f, i
}

// answered waits for the answer of c.
func answered(t *testing.T, c *inbox.Call, want string) {
	t.Helper()
	if r, err := c.Wait(t.Context(), soon()); err != nil || string(r.Body) != want {
		t.Errorf("%q, %v: expected %q", r.Body, err, want)
	}
}

// stored is how many requests the queue ever took.
func (s *system) stored(t *testing.T) uint64 {
	t.Helper()
	lag, err := s.Planner.Lag(t.Context(), "toy")
	if err != nil {
		t.Fatal(err)
	}
	return lag.LastSeq
}

// A publish whose acknowledgement is lost is made again, and the queue takes it once.
func TestAPublishWithoutAnAcknowledgementIsMadeAgain(t *testing.T) {
	s, f, i := unreliable(t, bus.ErrUnacknowledged, bus.ErrUnacknowledged)
	c := send(t, i, "q")
	frontendtest.Eventually(t, "it is sent again", func() bool { return i.Stats().Again == 2 })
	s.reply(t, s.fetch(t), "answer", 1)
	answered(t, c, "answer")
	if n := s.stored(t); n != 1 {
		t.Errorf("%d requests were stored: expected 1", n)
	}
	for n, m := range f.messages() {
		if m.MsgID != c.RequestID || string(m.Body) != "q" {
			t.Errorf("publish %d: id %q, body %q", n, m.MsgID, m.Body)
		}
	}
}

// After a reconnect what still waits in its queue is neither stored again nor told anything else.
func TestAQueueThatKeptARequestTakesItOnce(t *testing.T) {
	s, f, i := unreliable(t)
	c, done := send(t, i, "q"), send(t, i, "done")
	m := s.fetch(t)
	s.reply(t, s.fetch(t), "early", 1)
	answered(t, done, "early")
	f.reconnect()
	frontendtest.Eventually(t, "it is sent again", func() bool { return i.Stats().Again == 1 })
	frontendtest.Eventually(t, "and again", func() bool {
		f.reconnect() // of no effect while the last publish is not acknowledged
		return i.Stats().Again >= 2
	})
	s.reply(t, m, "answer", 1)
	answered(t, c, "answer")
	if n := s.stored(t); n != 2 {
		t.Errorf("%d requests were stored: expected 2", n)
	}
	if n := len(slices.DeleteFunc(f.messages(), func(m bus.Message) bool { return string(m.Body) != "done" })); n != 1 {
		t.Errorf("what was answered was published %d times: expected once", n)
	}
}

// A request that was answered while nobody heard it runs again, under an id of its own for the queue.
func TestALostAnswerIsAskedForAgain(t *testing.T) {
	s, f, i := unreliable(t)
	c := send(t, i, "q")
	lost := s.fetch(t)
	if err := lost.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.reconnect()
	m := s.fetch(t)
	if m.Seq == lost.Seq || m.Get(wire.HeaderRequestID) != c.RequestID || m.Get(wire.HeaderReplyTo) != lost.Get(wire.HeaderReplyTo) {
		t.Errorf("request %d, %q: expected another one of %q", m.Seq, m.Get(wire.HeaderRequestID), c.RequestID)
	}
	s.reply(t, m, "answer", 1)
	answered(t, c, "answer")
}

// The answer of a request whose client has chosen its id is kept: it does not run again.
func TestALostAnswerThatIsKeptIsRead(t *testing.T) {
	s, f, i := unreliable(t)
	c := named(t, i, "job-1")
	if err := s.fetch(t).DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.worker.StoreResult("toy", "job-1", map[string]string{wire.HeaderStatus: "ok"}, []byte("kept")); err != nil {
		t.Fatal(err)
	}
	f.reconnect()
	f.reconnect() // whoever learns of its twin twice
	answered(t, c, "kept")
	if n := s.stored(t); n != 1 {
		t.Errorf("%d requests were stored: expected 1", n)
	}
}

// Once a request waits it is not refused for want of a queue or of room, but for what no time mends.
func TestWhatIsSentAgainTriesUntilItsDeadline(t *testing.T) {
	again := []error{nil, bus.ErrUnavailable, bus.ErrOverloaded}
	t.Run("and is taken", func(t *testing.T) {
		s, f, i := unreliable(t, again...)
		c := send(t, i, "q")
		m := s.fetch(t)
		f.reconnect()
		frontendtest.Eventually(t, "it is sent for the third time", func() bool { return i.Stats().Again == 3 })
		s.reply(t, m, "answer", 1)
		answered(t, c, "answer")
	})
	t.Run("and cannot be", func(t *testing.T) {
		_, f, i := unreliable(t, append(again, bus.ErrTooLarge)...)
		c := send(t, i, "q")
		f.reconnect()
		if _, err := c.Wait(t.Context(), soon()); !errors.Is(err, bus.ErrTooLarge) {
			t.Errorf("%v: expected %v", err, bus.ErrTooLarge)
		}
	})
	t.Run("with the time that is left", func(t *testing.T) {
		_, f, i := unreliable(t)
		c, err := i.Send(&bus.Message{Model: "toy", Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		frontendtest.Eventually(t, "it is sent again, twice", func() bool {
			f.reconnect() // of no effect while the last publish is not acknowledged
			return i.Stats().Again >= 2
		})
		if _, err := c.Wait(t.Context(), time.Now()); !errors.Is(err, inbox.ErrExpired) {
			t.Errorf("%v: expected %v", err, inbox.ErrExpired)
		}
		sent := f.messages()
		for n := 1; n < len(sent); n++ {
			if sent[n].Timeout >= sent[n-1].Timeout || sent[n].Timeout <= 0 {
				t.Errorf("publish %d has %v left, after %v", n, sent[n].Timeout, sent[n-1].Timeout)
			}
		}
	})
}

// A body belongs to the sender again when Wait has returned, whatever is sent again at that moment. (The
// race detector sees to it.)
func TestABodyIsLeftAloneOnceTheWaitIsOver(t *testing.T) {
	_, f, i := unreliable(t)
	var senders sync.WaitGroup
	for n := range 8 {
		senders.Go(func() {
			body := make([]byte, 1024)
			for k := range 50 {
				c, err := i.Send(&bus.Message{Model: "toy", Body: body})
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = c.Wait(t.Context(), time.Now().Add(time.Duration(k)*100*time.Microsecond))
				for at := range body {
					body[at] = byte(n)
				}
			}
		})
	}
	over := make(chan struct{})
	go func() {
		senders.Wait()
		close(over)
	}()
	for {
		select {
		case <-over:
			return
		default:
			f.reconnect()
		}
	}
}

// A server that comes back without its queues is sent what waits as soon as the queues are there again,
// all of it once, and nothing that was answered.
func TestAServerThatForgotIsSentWhatWaits(t *testing.T) {
	cfg := embedded.Config{Port: -1, StateDir: t.TempDir()}
	srv := embeddedtest.Start(t, cfg)
	sys := frontendtest.StartOn(t, srv, toy)
	worker := embeddedtest.Connect(t, srv, bus.RoleWorker)

	// One is answered, the others wait: nobody serves the model any more.
	s := &system{System: sys, worker: worker, events: make(chan bus.PullEvent, 64)}
	p, err := worker.NewPuller("toy", bus.PullerOptions{Events: s.events})
	if err != nil {
		t.Fatal(err)
	}
	done := send(t, sys.Inbox, "done")
	if err := p.Pull(1, true, time.Minute); err != nil {
		t.Fatal(err)
	}
	s.reply(t, s.fetch(t), "early", 1)
	answered(t, done, "early")
	p.Close()
	const waiting = 3 * 16 // more than are sent at once
	calls := map[string]*inbox.Call{}
	for n := range waiting {
		body := strconv.Itoa(n)
		calls[body] = send(t, sys.Inbox, body)
	}

	u, err := url.Parse(srv.URL())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Port, err = strconv.Atoi(u.Port()); err != nil {
		t.Fatal(err)
	}
	embeddedtest.Stop(t, srv)
	srv = embeddedtest.Start(t, cfg)
	planner := embeddedtest.Connect(t, srv, bus.RolePlanner)
	if err := planner.EnsureQueue(t.Context(), frontendtest.Queue("toy")); err != nil {
		t.Fatal(err)
	}
	s.worker, s.events = embeddedtest.Connect(t, srv, bus.RoleWorker), make(chan bus.PullEvent, 64)
	p, err = s.worker.NewPuller("toy", bus.PullerOptions{Events: s.events})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Pull(waiting, false, time.Minute); err != nil {
		t.Fatal(err)
	}
	for range waiting {
		m := s.fetch(t)
		s.reply(t, m, "answer to "+string(m.Data), 1)
	}
	for body, c := range calls {
		answered(t, c, "answer to "+body)
	}
	if lag, err := planner.Lag(t.Context(), "toy"); err != nil || lag.LastSeq != waiting {
		t.Errorf("%d requests were stored, %v: expected %d", lag.LastSeq, err, waiting)
	}
}

// Of a model whose queue was made anew everything that waits is sent again; of others nothing.
func TestWhatALostQueueHeldIsSentAgain(t *testing.T) {
	s, _, i := unreliable(t)
	c := send(t, i, "q")
	i.QueueLost("other")
	s.fetch(t)
	if err := s.Planner.DeleteQueue(t.Context(), "toy"); err != nil {
		t.Fatal(err)
	}
	if err := s.Planner.EnsureQueue(t.Context(), frontendtest.Queue("toy")); err != nil {
		t.Fatal(err)
	}
	i.QueueLost("toy")
	frontendtest.Eventually(t, "it is stored again", func() bool { return s.stored(t) == 1 })
	if n := i.Stats().Again; n != 1 {
		t.Errorf("%d requests were sent again: expected 1", n)
	}
	s.events = make(chan bus.PullEvent, 8)
	p, err := s.worker.NewPuller("toy", bus.PullerOptions{Events: s.events})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Pull(1, true, time.Minute); err != nil {
		t.Fatal(err)
	}
	s.reply(t, s.fetch(t), "answer", 1)
	answered(t, c, "answer")
}

// A server that stops closes its queues before its connections: that nothing stored a request is believed of a model
// that has no queue alone.
func TestWhatNothingStoredIsSentAgainWhereThereIsAQueue(t *testing.T) {
	s, _, i := unreliable(t, bus.ErrNotStored, bus.ErrNotStored)
	first, second := send(t, i, "a"), send(t, i, "b")
	for range 2 {
		m := s.fetch(t)
		s.reply(t, m, "answer to "+string(m.Data), 1)
	}
	answered(t, first, "answer to a")
	answered(t, second, "answer to b")
	if err := s.Planner.DeleteQueue(t.Context(), "toy"); err != nil {
		t.Fatal(err)
	}
	if r, err := send(t, i, "c").Wait(t.Context(), soon()); !errors.Is(err, bus.ErrNotStored) {
		t.Errorf("without a queue: %q, %v: expected %v", r.Body, err, bus.ErrNotStored)
	}
}
