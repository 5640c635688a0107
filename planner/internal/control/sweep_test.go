package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/wire"
)

// shelf is queues whose requests are due at fixed moments.
type shelf struct {
	Bus
	mu    sync.Mutex // guards the fields below
	due   map[string]map[uint64]time.Time
	log   []string
	fails bool
}

// set changes it while a sweeper runs.
func (s *shelf) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *shelf) Backlog(_ context.Context, model string, from uint64, n int) ([]bus.Waiting, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf("read %s from %d", model, from))
	if s.fails {
		return nil, errors.New("the bus is away")
	}
	var list []bus.Waiting
	for seq := from; seq < from+uint64(n); seq++ {
		if at, ok := s.due[model][seq]; ok {
			list = append(list, bus.Waiting{Seq: seq, Left: time.Until(at)})
		}
	}
	return list, nil
}

func (s *shelf) Expire(_ context.Context, model string, seqs []uint64) (int, []bus.Waiting, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf("expire %s %v", model, seqs))
	var early []bus.Waiting
	n := 0
	for _, seq := range seqs {
		at, ok := s.due[model][seq]
		switch left := time.Until(at); {
		case ok && left > 0:
			early = append(early, bus.Waiting{Seq: seq, Left: left})
		case ok:
			n++
			delete(s.due[model], seq)
		}
	}
	return n, early, nil
}

// sweeping runs a sweeper over a shelf in a bubble of its own time; steps tells it of looks and lets time
// pass. It returns what the sweeper did, and how many requests of m it has ended.
func sweeping(t *testing.T, due map[uint64]time.Duration, steps func(s *shelf, tell func(bus.Lag), pass func(time.Duration))) (did []string, expired float64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{due: map[string]map[uint64]time.Time{"m": {}}}
		for seq, after := range due {
			s.due["m"][seq] = time.Now().Add(after)
		}
		reg := prometheus.NewRegistry()
		w := newSweeper(s, NewMetrics(reg), slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		go w.run(ctx)
		steps(s, func(lag bus.Lag) { w.tell(map[string]bus.Lag{"m": lag}); synctest.Wait() }, func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		})
		cancel()
		synctest.Wait()
		did, expired = s.log, counted(t, reg, "gpulet_planner_expired_requests_total")
	})
	return did, expired
}

// counted is the value of a counter over all its series.
func counted(t *testing.T, reg *prometheus.Registry, name string) (total float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, series := range f.GetMetric() {
				total += series.GetCounter().GetValue()
			}
		}
	}
	return total
}

// A queue that stands still is read once, and each of its requests ends at its own moment.
func TestDeadlinesFireWhereNobodyFetches(t *testing.T) {
	due := map[uint64]time.Duration{3: 2 * time.Second, 4: 1500 * time.Millisecond, 5: time.Minute}
	did, expired := sweeping(t, due, func(_ *shelf, tell func(bus.Lag), pass func(time.Duration)) {
		lag := bus.Lag{Pending: 3, Deliveries: 2, FirstSeq: 3, LastSeq: 5}
		for range 2 { // the first says nothing of whether anybody fetches
			tell(lag)
			pass(time.Second)
		}
		tell(lag)
		tell(lag)
		pass(time.Second)
	})
	want := []string{"read m from 3", "expire m [4]", "expire m [3]"}
	if d := cmp.Diff(want, did); d != "" || expired != 2 {
		t.Errorf("%v requests expired (-want +got):\n%s", expired, d)
	}
}

// What comes later is read when it is there, and what was read is not read again.
func TestOnlyWhatIsNewIsRead(t *testing.T) {
	due := map[uint64]time.Duration{1: time.Minute, 2: time.Minute}
	did, _ := sweeping(t, due, func(s *shelf, tell func(bus.Lag), pass func(time.Duration)) {
		tell(bus.Lag{Pending: 2, FirstSeq: 1, LastSeq: 2})
		tell(bus.Lag{Pending: 2, FirstSeq: 1, LastSeq: 2})
		s.set(func() { s.due["m"][3] = time.Now().Add(2 * time.Second) })
		tell(bus.Lag{Pending: 3, FirstSeq: 1, LastSeq: 3})
		tell(bus.Lag{Pending: 3, FirstSeq: 1, LastSeq: 3})
		pass(3 * time.Second)
	})
	if d := cmp.Diff([]string{"read m from 1", "read m from 3", "expire m [3]"}, did); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Where anybody fetches, deadlines are the gpu-lets' business.
func TestAQueueThatIsServedIsLeftAlone(t *testing.T) {
	did, _ := sweeping(t, map[uint64]time.Duration{1: time.Second, 2: time.Second}, func(_ *shelf, tell func(bus.Lag), pass func(time.Duration)) {
		still := bus.Lag{Pending: 2, FirstSeq: 1, LastSeq: 2}
		tell(still)
		tell(still)
		for n := range uint64(3) { // a gpu-let comes up before the first deadline
			tell(bus.Lag{Pending: 1, AckPending: 1, Deliveries: n + 1, FirstSeq: 1, LastSeq: 2})
			pass(time.Second)
		}
		tell(bus.Lag{LastSeq: 2})
		pass(time.Minute)
	})
	if d := cmp.Diff([]string{"read m from 1"}, did); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// What may wait longer than was thought, since a gpu-let has fetched it meanwhile, is asked for again; a
// queue that was made anew, or could not be read, is read from its begin.
func TestTheSweeperBeginsAnew(t *testing.T) {
	did, expired := sweeping(t, map[uint64]time.Duration{7: time.Second}, func(s *shelf, tell func(bus.Lag), pass func(time.Duration)) {
		still := bus.Lag{Pending: 1, FirstSeq: 7, LastSeq: 7}
		s.set(func() { s.fails = true })
		tell(still)
		tell(still)
		s.set(func() { s.fails = false })
		tell(still)
		tell(still)
		s.set(func() { s.due["m"][7] = s.due["m"][7].Add(time.Second) })
		pass(3 * time.Second)
		anew := bus.Lag{Pending: 8, FirstSeq: 1, LastSeq: 8, Created: time.Now()} // longer than the old one already
		s.set(func() { s.due["m"][1] = time.Now() })
		tell(anew)
		tell(anew)
		pass(time.Second)
	})
	want := []string{"read m from 7", "read m from 7", "expire m [7]", "expire m [7]", "read m from 1", "expire m [1]"}
	if d := cmp.Diff(want, did); d != "" || expired != 2 {
		t.Errorf("%v requests expired (-want +got):\n%s", expired, d)
	}
}

// Of a queue in which all is due at once a part ends at a time: the others have their turn, and where somebody
// fetches at last the rest is left to that one.
func TestAFloodExpiresInParts(t *testing.T) {
	due := map[uint64]time.Duration{}
	for seq := range uint64(2*endAtOnce + 1) {
		due[seq+1] = time.Second
	}
	var left int
	did, expired := sweeping(t, due, func(s *shelf, tell func(bus.Lag), pass func(time.Duration)) {
		still := bus.Lag{Pending: uint64(len(due)), FirstSeq: 1, LastSeq: uint64(len(due))}
		tell(still)
		tell(still)
		pass(2 * time.Second)
		s.set(func() { left = len(s.due["m"]) })
	})
	if len(did) != 1+3 || left != 0 || expired != float64(len(due)) {
		t.Errorf("%v expired in %d steps, %d are left: expected all in 3", expired, len(did)-1, left)
	}
}

// A model that cannot be placed has a queue that takes requests. Their clients are told when their time is
// over, by whatever their requests say.
func TestRequestsOfAModelThatNobodyServesExpire(t *testing.T) {
	w := newWorld(t)
	w.model("lenet", 20*time.Millisecond)
	w.model("googlenet", 66*time.Millisecond)
	w.start()
	replies := make(chan bus.Reply, 4)
	inbox, err := w.client.NewInbox(func(r bus.Reply) { replies <- r })
	w.must(err)
	defer inbox.Close()
	for _, m := range []bus.Message{
		{Model: "lenet", RequestID: "own", Timeout: 30 * time.Millisecond},
		{Model: "lenet", RequestID: "model", ReplyTo: inbox.Address("model")},
		{Model: "googlenet", RequestID: "other", ReplyTo: inbox.Address("other")},
	} {
		w.eventually("the queue of "+m.Model, func() error { return w.client.Publish(t.Context(), &m) })
	}
	for range 2 {
		select {
		case r := <-replies:
			if r.Get(wire.HeaderStatus) != string(wire.Expired) || r.Get(wire.HeaderRequestID) != r.Token {
				t.Errorf("reply %q to %q", r.Get(wire.HeaderStatus), r.Token)
			}
		case <-time.After(patience):
			t.Fatal("a client was told nothing")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if r, err := w.client.AwaitResult(ctx, "lenet", "own"); err != nil || r.Get(wire.HeaderStatus) != string(wire.Expired) {
		t.Errorf("result %q, %v", r.Get(wire.HeaderStatus), err)
	}
	w.eventually("both queues are empty", func() error {
		for _, m := range []string{"lenet", "googlenet"} {
			if lag, err := w.admin.Lag(t.Context(), m); err != nil || lag.Pending > 0 {
				return fmt.Errorf("%s: %+v, %v", m, lag, err)
			}
		}
		return nil
	})
}
