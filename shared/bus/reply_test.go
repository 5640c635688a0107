package bus_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/wire"
)

func newInbox(t testing.TB, b *bus.Bus) (*bus.Inbox, chan bus.Reply) {
	t.Helper()
	replies := make(chan bus.Reply, 1024)
	in, err := b.NewInbox(func(r bus.Reply) { replies <- r })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.Close)
	return in, replies
}

func TestRepliesComeToTheirInbox(t *testing.T) {
	s := newSystem(t)
	w := s.connect(t, bus.RoleWorker)
	for _, role := range []bus.Role{bus.RoleClient, bus.RoleFrontend} {
		in, replies := newInbox(t, s.connect(t, role))
		_, others := newInbox(t, s.connect(t, role))
		if !strings.HasPrefix(in.Address("t"), bus.InboxPrefix(role)+".") {
			t.Errorf("address %s, expected one of the role's inboxes", in.Address("t"))
		}
		if err := w.Reply(in.Address("t-1"), map[string]string{wire.HeaderStatus: "ok"}, []byte("body")); err != nil {
			t.Fatal(err)
		}
		got := receive(t, "reply", replies)
		if got.Token != "t-1" || got.Get(wire.HeaderStatus) != "ok" || got.Get("missing") != "" || string(got.Body) != "body" {
			t.Errorf("reply %s %s %q", got.Token, got.Get(wire.HeaderStatus), got.Body)
		}
		if len(others) != 0 {
			t.Error("another inbox received the reply")
		}
	}
}

func TestRepliesGoNowhereElse(t *testing.T) {
	w := newSystem(t).connect(t, bus.RoleWorker)
	for _, to := range []string{
		"", "infer.m", "$JS.ACK.x", "_INBOX_client", "_INBOX_client.", "_INBOX_client.*", "_INBOX_client.>", "_INBOX_client.a b",
	} {
		if err := w.Reply(to, nil, nil); err == nil {
			t.Errorf("a reply to %q was accepted", to)
		}
	}
	if err := w.Reply("_INBOX_client.a", nil, make([]byte, 9<<20)); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("error %v, expected %v", err, bus.ErrTooLarge)
	}
}

func TestResultsAreKept(t *testing.T) {
	s := newSystem(t)
	w, c := s.connect(t, bus.RoleWorker), s.connect(t, bus.RoleClient)
	if _, err := c.Result(t.Context(), "m", "r-1"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("error %v, expected %v", err, bus.ErrNotFound)
	}
	// The first one stands; only what was buried may be answered again.
	for _, r := range []struct {
		id     string
		status wire.Status
		body   string
		want   string
	}{
		{"r-1", wire.StatusOK, "first", "first"},
		{"r-1", wire.StatusOK, "second", "first"},
		{"r-1", wire.Poisoned, "third", "first"},
		{"r-2", wire.Expired, "late", "late"},
		{"r-2", wire.StatusOK, "later", "late"},
		{"r-3", wire.Poisoned, "dead", "dead"},
		{"r-3", wire.StatusOK, "alive", "alive"},
		{"r-3", wire.Poisoned, "dead again", "alive"},
	} {
		if err := w.StoreResult("m", r.id, map[string]string{wire.HeaderStatus: string(r.status)}, []byte(r.body)); err != nil {
			t.Fatal(err)
		}
		got, err := c.Result(t.Context(), "m", r.id)
		if err != nil || string(got.Body) != r.want {
			t.Errorf("after %s %q the result of %s is %q, %v: expected %q", r.status, r.body, r.id, got.Body, err, r.want)
		}
	}
	for _, id := range []string{"", "a.b", "*", strings.Repeat("x", 129)} {
		if err := w.StoreResult("m", id, nil, nil); err == nil {
			t.Errorf("request id %q was accepted", id)
		}
		if _, err := c.Result(t.Context(), "m", id); err == nil || errors.Is(err, bus.ErrNotFound) {
			t.Errorf("reading request id %q: %v", id, err)
		}
	}
}

// Whoever answers leaves a request in its queue when its result is refused for now, so that has to be told
// from a name that no try can store.
func TestAResultThatIsRefusedForNowIsUnavailable(t *testing.T) {
	s := newSystem(t)
	w := s.connect(t, bus.RoleWorker)
	js, err := jetstream.New(s.raw(t, bus.RolePlanner))
	if err != nil {
		t.Fatal(err)
	}
	results, err := js.Stream(t.Context(), bus.StreamResults)
	if err != nil {
		t.Fatal(err)
	}
	full := results.CachedInfo().Config
	full.MaxBytes, full.Discard = 1, jetstream.DiscardNew
	if _, err := js.UpdateStream(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	if err := w.StoreResult("m", "r", nil, nil); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("a store without room: %v, expected %v", err, bus.ErrUnavailable)
	}
	if err := w.StoreResult("m", "a.b", nil, nil); err == nil || errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("a bad id: %v, expected another error than %v", err, bus.ErrUnavailable)
	}
}

// letters reads the dead letters.
func (s system) letters(t testing.TB) []*jetstream.RawStreamMsg {
	t.Helper()
	js, err := jetstream.New(s.raw(t, bus.RolePlanner))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(context.Background(), bus.StreamDLQ)
	if err != nil {
		t.Fatal(err)
	}
	var list []*jetstream.RawStreamMsg
	state := stream.CachedInfo().State
	for seq := state.FirstSeq; state.Msgs > 0 && seq <= state.LastSeq; seq++ {
		m, err := stream.GetMsg(context.Background(), seq)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
	}
	return list
}

func TestDeadLetterKeepsRequestAndReason(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	err := s.connect(t, bus.RoleClient).Publish(t.Context(), &bus.Message{Model: "m", RequestID: "r", Body: []byte("body"), MsgID: "id"})
	if err != nil {
		t.Fatal(err)
	}
	w := s.connect(t, bus.RoleWorker)
	f := newFetcher(t, w, "m", 1)
	f.pull(t, 1, true, time.Minute)
	msg := f.batch(t)[0]
	for range 2 { // the second is the same
		err := w.DeadLetter(t.Context(), "m", msg, "engine:\nno such input", map[string]string{"Gpulet-Host": "h1"})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := msg.Term("engine: no such input"); err != nil {
		t.Fatal(err)
	}
	letters := s.letters(t)
	if len(letters) != 1 {
		t.Fatalf("%d letters, expected 1", len(letters))
	}
	l := letters[0]
	if l.Subject != "dlq.m" || string(l.Data) != "body" {
		t.Errorf("letter to %s: %q", l.Subject, l.Data)
	}
	for key, want := range map[string]string{
		bus.HeaderReason: "engine: no such input", bus.HeaderSubject: "infer.m", bus.HeaderSequence: "1", bus.HeaderDelivered: "1",
		bus.HeaderMsgID: "id", wire.HeaderRequestID: "r", "Gpulet-Host": "h1", bus.HeaderStored: msg.Stored.UTC().Format(time.RFC3339Nano),
	} {
		if got := l.Header.Get(key); got != want {
			t.Errorf("header %s is %q, expected %q", key, got, want)
		}
	}
	eventually(t, func() error {
		if lag, err := s.planner.Lag(t.Context(), "m"); err != nil || lag.Pending+lag.AckPending != 0 {
			return fmt.Errorf("lag %+v, %w: expected an empty queue after Term", lag, err)
		}
		return nil
	})
}

func TestLargestRequestStillHasADeadLetter(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	body := make([]byte, 8<<20)
	if err := s.connect(t, bus.RoleClient).Publish(t.Context(), &bus.Message{Model: "m", Body: body}); err != nil {
		t.Fatal(err)
	}
	w := s.connect(t, bus.RoleWorker)
	f := newFetcher(t, w, "m", 1)
	f.pull(t, 1, true, time.Minute)
	if err := w.DeadLetter(t.Context(), "m", f.batch(t)[0], "why", nil); err != nil {
		t.Fatal(err)
	}
	if l := s.letters(t); len(l) != 1 || l[0].Header.Get("Gpulet-Body-Dropped") != "8388608" || l[0].Header.Get(bus.HeaderReason) != "why" {
		t.Errorf("letters %+v", l)
	}
}

func TestRequestsThatAreNeverAcknowledgedAreBuried(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	c, w := s.connect(t, bus.RoleClient), s.connect(t, bus.RoleWorker)
	in, replies := newInbox(t, c)
	for _, m := range []bus.Message{
		{Model: "m", RequestID: "asked", ReplyTo: in.Address("asked"), Body: []byte("1")},
		{Model: "m", Body: []byte("2")}, // known by its place in the queue
	} {
		if err := c.Publish(t.Context(), &m); err != nil {
			t.Fatal(err)
		}
	}
	f := newFetcher(t, w, "m", 1)
	for n := 0; n < 16; { // eight deliveries of each
		f.pull(t, 1, true, time.Minute)
		for _, m := range f.batch(t) {
			n++
			if err := m.Nak(0); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.pull(t, 1, true, time.Minute) // the server notices when it looks for the next

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.planner.BuryDead(ctx) }()
	r := receive(t, "answer", replies)
	reply, err := wire.DecodeReply(r.Get, r.Body)
	if err != nil || r.Token != "asked" || reply.Status != wire.Poisoned || !strings.Contains(reply.Detail, "8 times") {
		t.Errorf("reply %+v, %v", reply, err)
	}
	eventually(t, func() error { _, err := c.Result(t.Context(), "m", "2"); return err })
	eventually(t, func() error {
		if lag, err := s.planner.Lag(t.Context(), "m"); err != nil || !lag.Oldest.IsZero() {
			return fmt.Errorf("lag %+v, %w: expected an empty queue", lag, err)
		}
		return nil
	})
	var got []string
	for _, l := range s.letters(t) {
		got = append(got, string(l.Data)+" "+l.Header.Get(bus.HeaderReason))
	}
	if diff := cmp.Diff([]string{"1 delivered 8 times and never acknowledged", "2 delivered 8 times and never acknowledged"}, got); diff != "" {
		t.Error(diff)
	}
	cancel()
	if err := receive(t, "end", done); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, expected %v", err, context.Canceled)
	}
}
