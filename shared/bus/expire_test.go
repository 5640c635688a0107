package bus_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/wire"
)

// seqs are the sequences of list, and whether each may wait yet.
func seqs(list []bus.Waiting) map[uint64]bool {
	m := map[uint64]bool{}
	for _, w := range list {
		m[w.Seq] = w.Left > 0
	}
	return m
}

// What is late is answered and deleted; what may wait yet, and what a gpu-let may have, stays.
func TestExpiredRequestsAreAnsweredAndRemoved(t *testing.T) {
	s := newSystem(t)
	q := queueOf("m")
	q.MaxAge = 2 * time.Minute // requests that say nothing may wait for one of them
	s.queue(t, q)
	c := s.connect(t, bus.RoleClient)
	replies := make(chan bus.Reply, 8)
	inbox, err := c.NewInbox(func(r bus.Reply) { replies <- r })
	if err != nil {
		t.Fatal(err)
	}
	defer inbox.Close()

	past := time.Now().Add(-time.Second)
	for _, m := range []*bus.Message{
		{RequestID: "fetched", Deadline: past, ReplyTo: inbox.Address("fetched")}, // for AckWait its gpu-let's
		{RequestID: "late", Deadline: past, ReplyTo: inbox.Address("late")},
		{RequestID: "stored", Deadline: past},
		{RequestID: "early", Timeout: time.Minute, ReplyTo: inbox.Address("early")},
		{ReplyTo: inbox.Address("silent")},
		{RequestID: "wrong", Header: map[string]string{wire.HeaderTimeout: "soon"}, ReplyTo: inbox.Address("wrong")},
	} {
		m.Model = "m"
		send(t, c, m)
	}
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 1, true, patience)
	f.batch(t)

	list, err := s.planner.Backlog(t.Context(), "m", 1, 100)
	if err != nil {
		t.Fatal(err)
	}
	want := map[uint64]bool{1: true, 2: false, 3: false, 4: true, 5: true, 6: true}
	if d := cmp.Diff(want, seqs(list)); d != "" {
		t.Errorf("what may wait yet (-want +got):\n%s", d)
	}
	if part, err := s.planner.Backlog(t.Context(), "m", 3, 2); err != nil || len(part) != 2 || part[0].Seq != 3 || part[1].Seq != 4 {
		t.Errorf("two from 3 on: %v, %v", part, err)
	}
	if rest, err := s.planner.Backlog(t.Context(), "m", 7, 2); err != nil || len(rest) != 0 {
		t.Errorf("behind the end: %v, %v", rest, err)
	}

	n, early, err := s.planner.Expire(t.Context(), "m", []uint64{1, 2, 3, 4, 5, 6, 7})
	if err != nil || n != 2 {
		t.Errorf("%d requests expired, %v: expected 2", n, err)
	}
	if d := cmp.Diff(map[uint64]bool{1: true, 4: true, 5: true, 6: true}, seqs(early)); d != "" {
		t.Errorf("told to wait (-want +got):\n%s", d)
	}
	r := receive(t, "reply", replies)
	if r.Token != "late" || r.Get(wire.HeaderStatus) != string(wire.Expired) || r.Get(wire.HeaderRequestID) != "late" {
		t.Errorf("reply %q to %q", r.Get(wire.HeaderStatus), r.Token)
	}
	if r, err := c.AwaitResult(t.Context(), "m", "stored"); err != nil || r.Get(wire.HeaderStatus) != string(wire.Expired) {
		t.Errorf("result %q, %v", r.Get(wire.HeaderStatus), err)
	}
	if n, _, err := s.planner.Expire(t.Context(), "m", []uint64{2, 3}); n != 0 || err != nil {
		t.Errorf("once more: %d, %v", n, err)
	}
	if lag, err := s.planner.Lag(t.Context(), "m"); err != nil || lag.Pending != 3 || lag.AckPending != 1 || lag.FirstSeq != 1 || lag.Deliveries != 1 {
		t.Errorf("left: %+v, %v", lag, err)
	}
	if len(replies) > 0 {
		t.Errorf("%d further replies", len(replies))
	}
}

// A request that was fetched by a gpu-let which died is not left without an answer either.
func TestAFetchedRequestExpiresAnAckWaitLater(t *testing.T) {
	s := newSystem(t)
	q := queueOf("m")
	q.AckWait = time.Second
	s.queue(t, q)
	c := s.connect(t, bus.RoleClient)
	send(t, c, &bus.Message{Model: "m", RequestID: "a", Deadline: time.Now().Add(-2 * time.Second)})
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 1, true, patience)
	f.batch(t)
	if n, _, err := s.planner.Expire(t.Context(), "m", []uint64{1}); n != 1 || err != nil {
		t.Errorf("%d requests expired, %v: expected 1", n, err)
	}
}

// A request that no one can ever be told of, since its reply address or its id is bad, ends like any other:
// it does not keep those behind it waiting, and it does not come back.
func TestARequestThatCannotBeAnsweredHoldsUpNoOther(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	c := s.connect(t, bus.RoleClient)
	past := time.Now().Add(-time.Second)
	for _, m := range []*bus.Message{
		{RequestID: "nowhere", ReplyTo: "somewhere.else"},
		{Header: map[string]string{wire.HeaderRequestID: "a.b"}},
		{RequestID: "kept", ReplyTo: "somewhere.else", Header: map[string]string{wire.HeaderKeep: "true"}},
		{RequestID: "behind"},
	} {
		m.Model, m.Deadline = "m", past
		send(t, c, m)
	}
	if n, early, err := s.planner.Expire(t.Context(), "m", []uint64{1, 2, 3, 4}); n != 4 || len(early) != 0 || err != nil {
		t.Errorf("%d requests expired, %v told to wait, %v: expected 4", n, early, err)
	}
	for _, id := range []string{"kept", "behind"} {
		if r, err := c.Result(t.Context(), "m", id); err != nil || r.Get(wire.HeaderStatus) != string(wire.Expired) {
			t.Errorf("result %q of %s, %v", r.Get(wire.HeaderStatus), id, err)
		}
	}
}
