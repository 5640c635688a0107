package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/bus"
)

// Results lived in memory once. A server that ran since then has them there.
func TestResultsMoveFromMemoryToDisk(t *testing.T) {
	s := newSystem(t)
	js, err := jetstream.New(s.raw(t, bus.RolePlanner))
	if err != nil {
		t.Fatal(err)
	}
	old := jetstream.StreamConfig{Name: bus.StreamResults, Subjects: []string{"result.>"}, Storage: jetstream.MemoryStorage}
	if err := js.DeleteStream(t.Context(), old.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if err := s.planner.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	now, err := js.Stream(t.Context(), old.Name)
	if err != nil || now.CachedInfo().Config.Storage != jetstream.FileStorage {
		t.Errorf("%+v, %v: expected results on disk", now, err)
	}
}

// audit counts the calls that change something in JetStream, by subject.
func audit(t testing.TB, s system) func(least int) map[string]int {
	t.Helper()
	nc := s.raw(t, bus.RolePlanner)
	seen := make(chan string, 1024)
	_, err := nc.Subscribe("$JS.EVENT.ADVISORY.API", func(m *nats.Msg) {
		var call struct{ Subject string }
		if err := json.Unmarshal(m.Data, &call); err != nil {
			t.Error(err)
		}
		seen <- call.Subject
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil { // what happens from now on is seen
		t.Fatal(err)
	}
	return func(least int) map[string]int {
		// A change of our own marks the end of what happened before it. The server may tell of two
		// changes in another order than it made them.
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.CreateStream(context.Background(), jetstream.StreamConfig{Name: "MARK", Storage: jetstream.MemoryStorage}); err != nil {
			t.Fatal(err)
		}
		if err := js.DeleteStream(context.Background(), "MARK"); err != nil {
			t.Fatal(err)
		}
		calls := map[string]int{}
		for found, marked := 0, false; found < least || !marked; {
			switch subject := receive(t, "audit", seen); {
			case subject == "$JS.API.STREAM.DELETE.MARK":
				marked = true
			case subject == "$JS.API.STREAM.CREATE.MARK":
			case strings.Contains(subject, ".INFO."), strings.Contains(subject, ".NAMES"), strings.Contains(subject, ".LIST"):
			default:
				calls[subject]++
				found++
			}
		}
		return calls
	}
}

func TestEnsuringTwiceChangesNothing(t *testing.T) {
	s := newSystem(t)
	q := queueOf("m")
	s.queue(t, q)
	changes := audit(t, s)
	if err := s.planner.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.queue(t, q)
	if diff := cmp.Diff(map[string]int{}, changes(0)); diff != "" {
		t.Errorf("calls that change something: %s", diff)
	}
}

func TestChangedLimitsAreUpdatedInPlace(t *testing.T) {
	s := newSystem(t)
	q := queueOf("m")
	s.queue(t, q)
	publish(t, s.connect(t, bus.RoleClient), "m", 1)
	q.MaxMsgs, q.MaxBytes, q.MaxAge, q.AckWait, q.MaxAckPending = 7, 8<<20, 5*time.Second, 2*time.Second, 9
	changes := audit(t, s)
	s.queue(t, q)
	want := map[string]int{"$JS.API.STREAM.UPDATE.INFER_m": 1, "$JS.API.CONSUMER.CREATE.INFER_m.W": 1}
	if diff := cmp.Diff(want, changes(2)); diff != "" {
		t.Errorf("calls: %s", diff)
	}
	js, err := jetstream.New(s.raw(t, bus.RolePlanner))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), bus.StreamName("m"))
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := stream.Consumer(t.Context(), bus.Consumer)
	if err != nil {
		t.Fatal(err)
	}
	sc, cc := stream.CachedInfo().Config, consumer.CachedInfo().Config
	if sc.MaxMsgs != 7 || sc.MaxBytes != 8<<20 || sc.MaxAge != 5*time.Second || sc.Duplicates != 5*time.Second ||
		cc.AckWait != 2*time.Second || cc.MaxAckPending != 9 || stream.CachedInfo().State.Msgs != 1 {
		t.Errorf("after the update: stream %+v, consumer %+v, %d messages", sc, cc, stream.CachedInfo().State.Msgs)
	}
	if cc.PriorityPolicy != jetstream.PriorityPolicyPrioritized || cc.MaxDeliver != 8 || sc.Discard != jetstream.DiscardNew ||
		sc.Retention != jetstream.WorkQueuePolicy {
		t.Errorf("not a queue: stream %+v, consumer %+v", sc, cc)
	}
}

// A request that is published again while the first may still be waiting or running is a duplicate.
func TestDuplicatesAreKnownForAsLongAsRequestsTake(t *testing.T) {
	s := newSystem(t)
	js, err := jetstream.New(s.raw(t, bus.RolePlanner))
	if err != nil {
		t.Fatal(err)
	}
	for model, c := range map[string]struct{ maxAge, want time.Duration }{
		"short": {5 * time.Second, 5 * time.Second},
		"usual": {time.Minute + 200*time.Millisecond, 10 * time.Second},
		"long":  {time.Minute + 45*time.Second, 45 * time.Second},
	} {
		q := queueOf(model)
		q.MaxAge = c.maxAge
		s.queue(t, q)
		stream, err := js.Stream(t.Context(), bus.StreamName(model))
		if err != nil {
			t.Fatal(err)
		}
		if got := stream.CachedInfo().Config.Duplicates; got != c.want {
			t.Errorf("%s: requests kept for %v, duplicates known for %v: expected %v", model, c.maxAge, got, c.want)
		}
	}
}

func TestWhatAnOperatorSetStays(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	js, err := jetstream.New(s.raw(t, bus.RolePlanner))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), bus.StreamName("m"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.Metadata = map[string]string{"owner": "vision"}
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	q := queueOf("m")
	q.MaxMsgs = 5
	s.queue(t, q)
	stream, err = js.Stream(t.Context(), bus.StreamName("m"))
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().Config; got.Metadata["owner"] != "vision" || got.MaxMsgs != 5 {
		t.Errorf("metadata %v, max messages %d", got.Metadata, got.MaxMsgs)
	}
}

func TestWhatCannotBeUpdatedSaysSo(t *testing.T) {
	s := newSystem(t)
	q := queueOf("m")
	s.queue(t, q)
	q.File = true
	err := s.planner.EnsureQueue(t.Context(), q)
	if err == nil || !strings.Contains(err.Error(), "queue m: stream INFER_m has storage Memory, wanted File") {
		t.Errorf("other storage: %v", err)
	}
	js, err := jetstream.New(s.raw(t, bus.RolePlanner))
	if err != nil {
		t.Fatal(err)
	}
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "INFER_old", Subjects: []string{"infer.old"}, Retention: jetstream.WorkQueuePolicy, Storage: jetstream.MemoryStorage,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateConsumer(t.Context(), "INFER_old", jetstream.ConsumerConfig{Durable: bus.Consumer, AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	err = s.planner.EnsureQueue(t.Context(), queueOf("old"))
	if err == nil || !strings.Contains(err.Error(), "queue old: consumer W of INFER_old has priorities none, wanted prioritized[workers]") {
		t.Errorf("other priorities: %v", err)
	}
}

func TestQueueNamesWhatIsWrong(t *testing.T) {
	s := newSystem(t)
	for want, change := range map[string]func(*bus.Queue){
		`name "A.b"`:        func(q *bus.Queue) { q.Model = "A.b" },
		"max messages 0":    func(q *bus.Queue) { q.MaxMsgs = 0 },
		"max bytes -1":      func(q *bus.Queue) { q.MaxBytes = -1 },
		"max age 1ms":       func(q *bus.Queue) { q.MaxAge = time.Millisecond },
		"ack wait 500ms":    func(q *bus.Queue) { q.AckWait = 500 * time.Millisecond },
		"max ack pending 0": func(q *bus.Queue) { q.MaxAckPending = 0 },
		"replicas 9":        func(q *bus.Queue) { q.Replicas = 9 },
	} {
		q := queueOf("m")
		change(&q)
		if err := s.planner.EnsureQueue(t.Context(), q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, expected one with %q", err, want)
		}
	}
}

func TestQueuesAreListedAndDeleted(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("b"))
	s.queue(t, queueOf("a"))
	got, err := s.planner.Queues(t.Context())
	if diff := cmp.Diff([]string{"a", "b"}, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	for range 2 { // deleting nothing is fine
		if err := s.planner.DeleteQueue(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.planner.Lag(t.Context(), "a"); !errors.Is(err, bus.ErrUnknownModel) {
		t.Errorf("lag of a deleted queue: %v, expected %v", err, bus.ErrUnknownModel)
	}
}

func TestLagCountsWhatIsOut(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	before := time.Now()
	publish(t, s.connect(t, bus.RoleClient), "m", 5)
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 2, true, time.Minute)
	got := f.batch(t)
	ackAll(t, got[:1])
	// A frontend shows lag too. The server counts for a consumer a moment after it has stored.
	frontend := s.connect(t, bus.RoleFrontend)
	var lag bus.Lag
	eventually(t, func() (err error) {
		lag, err = frontend.Lag(t.Context(), "m")
		if lag.Pending != 3 || lag.AckPending != 1 || lag.LastSeq != 5 || lag.Bytes == 0 || lag.Redelivered != 0 {
			return fmt.Errorf("lag %+v, %w: expected 3 pending, 1 out, 5 ever", lag, err)
		}
		return nil
	})
	if lag.Oldest.Before(before.Add(-time.Second)) || lag.Oldest.After(time.Now().Add(time.Second)) || !lag.Oldest.Equal(got[1].Stored) {
		t.Errorf("oldest %v, expected that of message 2, %v", lag.Oldest, got[1].Stored)
	}
}
