package bus_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/wire"
)

// bury publishes a request and makes a dead letter of it, as a gpu-let does.
func (s system) bury(t *testing.T, w *bus.Bus, m bus.Message, reason string) {
	t.Helper()
	s.queue(t, queueOf(m.Model))
	if err := s.connect(t, bus.RoleClient).Publish(t.Context(), &m); err != nil {
		t.Fatal(err)
	}
	f := newFetcher(t, w, m.Model, 1)
	f.pull(t, 1, true, time.Minute)
	msg := f.batch(t)[0]
	extra := map[string]string{bus.HeaderLastWords: "SIGSEGV\nin run", bus.HeaderGpulet: "g-1"}
	if err := w.DeadLetter(t.Context(), m.Model, msg, reason, extra); err != nil {
		t.Fatal(err)
	}
	if err := msg.Ack(); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, b *bus.Bus, model string) []bus.Letter {
	t.Helper()
	var list []bus.Letter
	for l, err := range b.DeadLetters(t.Context(), model) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, l)
	}
	return list
}

func TestDeadLettersAreReadCountedAndTakenAway(t *testing.T) {
	s := newSystem(t)
	w, f := s.connect(t, bus.RoleWorker), s.connect(t, bus.RoleFrontend)
	if got := read(t, f, ""); len(got) != 0 {
		t.Fatalf("%d letters before any was written", len(got))
	}
	s.bury(t, w, bus.Message{Model: "m", RequestID: "r1", Body: []byte("1")}, "first")
	s.bury(t, w, bus.Message{Model: "n", RequestID: "r2", Body: []byte("2")}, "second")
	s.bury(t, w, bus.Message{Model: "m", RequestID: "r3", Body: []byte("3"), Header: map[string]string{bus.HeaderLastWords: "a client's"}}, "third")
	words := func(list []bus.Letter) (got []string) {
		for _, l := range list {
			got = append(got, l.Model+" "+l.RequestID+" "+l.Reason+" "+l.LastWords+" "+l.Gpulet+" "+string(l.Body))
		}
		return got
	}
	if d := cmp.Diff([]string{
		"m r1 first SIGSEGV in run g-1 1", "n r2 second SIGSEGV in run g-1 2", "m r3 third SIGSEGV in run g-1 3",
	}, words(read(t, f, ""))); d != "" {
		t.Error(d)
	}
	list := read(t, f, "m")
	if d := cmp.Diff([]string{"m r1 first SIGSEGV in run g-1 1", "m r3 third SIGSEGV in run g-1 3"}, words(list)); d != "" {
		t.Error(d)
	}
	if err := f.DeleteDeadLetter(t.Context(), list[0].Seq); err != nil {
		t.Fatal(err)
	}
	if err := f.DeleteDeadLetter(t.Context(), list[0].Seq); err != nil {
		t.Errorf("the second time: %v, expected none", err)
	}
	if _, err := f.DeadLetterAt(t.Context(), list[0].Seq); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("error %v, expected %v", err, bus.ErrNotFound)
	}
	got, err := f.CountDeadLetters(t.Context())
	if d := cmp.Diff(map[string]uint64{"m": 1, "n": 1}, got); d != "" || err != nil {
		t.Error(err, d)
	}
	for _, err := range f.DeadLetters(t.Context(), "No Model") {
		if !errors.Is(err, bus.ErrUnknownModel) {
			t.Errorf("error %v, expected %v", err, bus.ErrUnknownModel)
		}
	}
}

// A replay within the duplicate window of the first attempt, and one right after another, are new
// requests, and their letters count on.
func TestAReplayIsARequestOfItsOwn(t *testing.T) {
	s := newSystem(t)
	w, f := s.connect(t, bus.RoleWorker), s.connect(t, bus.RoleFrontend)
	s.bury(t, w, bus.Message{
		Model: "m", RequestID: "r", MsgID: "id", ReplyTo: "_INBOX_client.gone", Deadline: time.Now(), ContentType: wire.TypeJSON,
		Header: map[string]string{"Traceparent": "x"}, Body: []byte("{}"),
	}, "why")
	for attempt := 2; attempt <= 3; attempt++ {
		l := read(t, f, "m")[attempt-2]
		m, err := l.Replay("_INBOX_frontend.me")
		if err != nil {
			t.Fatal(err)
		}
		if again, err := l.Replay(""); err != nil || again.MsgID == m.MsgID || !strings.HasPrefix(m.MsgID, "id.attempt-"+string(rune('0'+attempt))+".") {
			t.Errorf("message ids %q and %q, %v: expected two of their own", m.MsgID, again.MsgID, err)
		}
		want := &bus.Message{
			Model: "m", RequestID: "r", ReplyTo: "_INBOX_frontend.me", Body: []byte("{}"), MsgID: m.MsgID,
			Header: map[string]string{"Traceparent": "x", wire.HeaderType: wire.TypeJSON, bus.HeaderAttempt: string(rune('0' + attempt))},
		}
		if d := cmp.Diff(want, m); d != "" {
			t.Fatal(d)
		}
		s.bury(t, w, *m, "again")
	}
	if got := read(t, f, "m"); len(got) != 3 || got[2].Attempt != 3 {
		t.Errorf("%d letters, expected 3, the last of the third attempt", len(got))
	}
}

// What a client told JetStream about its publish was meant for the queue: it neither keeps the letter from
// being written nor a replay from being published, and what the server said of the client stays out too.
func TestALetterLeavesBehindWhatWasSaidToTheQueue(t *testing.T) {
	s := newSystem(t)
	w, f := s.connect(t, bus.RoleWorker), s.connect(t, bus.RoleFrontend)
	s.bury(t, w, bus.Message{Model: "m", RequestID: "r", MsgID: "id", Header: map[string]string{
		jetstream.ExpectedStreamHeader: "INFER_m", jetstream.ExpectedLastSeqHeader: "0", jetstream.ExpectedLastSubjSeqHeader: "0", "Traceparent": "x",
	}}, "why")
	l := read(t, f, "m")[0]
	for key := range l.Header() {
		if strings.HasPrefix(key, "Nats-") && key != jetstream.MsgIDHeader {
			t.Errorf("the letter has the header %s: %s", key, l.Header()[key])
		}
	}
	if got := l.Header(); got["Traceparent"] != "x" || got[bus.HeaderMsgID] != "id" {
		t.Errorf("headers %v: expected the request's own among them", got)
	}
	m, err := l.Replay("")
	if err == nil {
		err = f.Publish(t.Context(), m)
	}
	if err != nil {
		t.Errorf("replay: %v", err)
	}
}

func TestALetterWithoutItsBodyIsNotReplayed(t *testing.T) {
	if _, err := (bus.Letter{Seq: 7, Dropped: 100}).Replay(""); err == nil {
		t.Error("it was replayed")
	}
}

func TestSuspectsAreKnownByQueueSequenceAndTime(t *testing.T) {
	s := newSystem(t)
	w := s.connect(t, bus.RoleWorker)
	stored := time.Now().UTC()
	if _, err := w.Suspect(t.Context(), "m", 1, stored); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("error %v, expected %v", err, bus.ErrNotFound)
	}
	want := plan.Suspect{Model: "m", Seq: 1, Stored: stored, Deaths: 1, Alone: true, Reason: "exit status 2"}
	if err := w.PutSuspect(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	got, err := w.Suspect(t.Context(), "m", 1, stored)
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(err, d)
	}
	// The queue was made anew, and counts from the start.
	if _, err := w.Suspect(t.Context(), "m", 1, stored.Add(time.Second)); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("error %v, expected %v", err, bus.ErrNotFound)
	}
}
