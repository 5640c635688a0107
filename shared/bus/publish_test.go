package bus_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/wire"
)

func TestPublishCarriesTheRequest(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	deadline := time.Now().Add(time.Minute)
	for _, m := range []bus.Message{
		{
			Model: "m", RequestID: "r-1", ReplyTo: "_INBOX_client.x.1", ContentType: wire.TypeJSON, Deadline: deadline,
			Header: map[string]string{"traceparent": "00-ab"}, Body: []byte("{}"), MsgID: "id",
		},
		{Model: "m", RequestID: "r-2", Timeout: 250 * time.Millisecond},
	} {
		if err := s.connect(t, bus.RoleClient).Publish(t.Context(), &m); err != nil {
			t.Fatal(err)
		}
	}
	f := newFetcher(t, s.connect(t, bus.RoleWorker), "m", 1)
	f.pull(t, 2, true, time.Minute)
	got := f.batch(t)
	for key, want := range map[string]string{
		wire.HeaderRequestID: "r-1", wire.HeaderReplyTo: "_INBOX_client.x.1", wire.HeaderType: wire.TypeJSON,
		"Nats-Msg-Id": "id", "traceparent": "00-ab", "missing": "", wire.HeaderTimeout: "",
	} {
		if v := got[0].Get(key); v != want {
			t.Errorf("header %s is %q, expected %q", key, v, want)
		}
	}
	at, err := wire.ResolveDeadline(got[0].Get, got[0].Stored, time.Second)
	if err != nil || !at.Equal(deadline.Truncate(time.Microsecond)) {
		t.Errorf("deadline %v, %v, expected %v", at, err, deadline)
	}
	at, err = wire.ResolveDeadline(got[1].Get, got[1].Stored, time.Second)
	if err != nil || !at.Equal(got[1].Stored.Add(250*time.Millisecond)) {
		t.Errorf("deadline %v, %v, expected 250ms after %v", at, err, got[1].Stored)
	}
}

func TestFullQueueIsOverloaded(t *testing.T) {
	s := newSystem(t)
	byCount, byBytes := queueOf("count"), queueOf("bytes")
	byCount.MaxMsgs, byBytes.MaxBytes = 2, 3000
	s.queue(t, byCount)
	s.queue(t, byBytes)
	c := s.connect(t, bus.RoleClient)
	for _, model := range []string{"count", "bytes"} {
		for i := range 3 {
			err := c.Publish(t.Context(), &bus.Message{Model: model, Body: make([]byte, 1000)})
			if (i < 2) != (err == nil) || i == 2 && !errors.Is(err, bus.ErrOverloaded) {
				t.Errorf("%s: publish %d: %v, expected the third to be %v", model, i+1, err, bus.ErrOverloaded)
			}
		}
	}
}

func TestNoQueueIsUnavailable(t *testing.T) {
	s := newSystem(t)
	c := s.connect(t, bus.RoleClient)
	if err := c.Publish(t.Context(), &bus.Message{Model: "nobody"}); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("error %v, expected %v", err, bus.ErrUnavailable)
	}
	if err := c.Publish(t.Context(), &bus.Message{Model: "no.body"}); !errors.Is(err, bus.ErrUnknownModel) {
		t.Errorf("error %v, expected %v", err, bus.ErrUnknownModel)
	}
}

func TestTooLargeIsSaidBeforeSending(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	c := s.connect(t, bus.RoleClient)
	if c.MaxPayload() != 8<<20 {
		t.Fatalf("max payload %d, expected 8 MiB", c.MaxPayload())
	}
	err := c.Publish(t.Context(), &bus.Message{Model: "m", Body: make([]byte, 9<<20)})
	if !errors.Is(err, bus.ErrTooLarge) || !strings.Contains(err.Error(), "9437184") || !strings.Contains(err.Error(), "8388608") {
		t.Errorf("error %v, expected %v with size and limit", err, bus.ErrTooLarge)
	}
	// Headers count: the body alone would just fit.
	full := &bus.Message{Model: "m", RequestID: "r", Body: make([]byte, 8<<20)}
	if err := c.Publish(t.Context(), full); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("error %v, expected %v", err, bus.ErrTooLarge)
	}
	// The largest message that passes our check passes the server's too.
	full.Body = full.Body[:len(full.Body)-len("NATS/1.0\r\nGpulet-Request-Id: r\r\n\r\n")]
	if err := c.Publish(t.Context(), full); err != nil {
		t.Errorf("a message of exactly the limit: %v", err)
	}
	if !c.Connected() {
		t.Error("the server closed the connection")
	}
}

func TestBadHeadersAreRefused(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	c := s.connect(t, bus.RoleClient)
	for _, m := range []bus.Message{
		{Model: "m", RequestID: "a.b"},
		{Model: "m", Header: map[string]string{"": "x"}},
		{Model: "m", Header: map[string]string{"a b": "x"}},
		{Model: "m", Header: map[string]string{"a:b": "x"}},
		{Model: "m", Header: map[string]string{"a": "x\r\nGpulet-Request-Id: y"}},
	} {
		if err := c.Publish(t.Context(), &m); err == nil {
			t.Errorf("%+v was accepted", m)
		}
	}
	if lag, err := s.planner.Lag(t.Context(), "m"); err != nil || lag.LastSeq != 0 {
		t.Errorf("lag %+v, %v, expected nothing stored", lag, err)
	}
}

func TestSameMsgIDIsStoredOnce(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	c := s.connect(t, bus.RoleClient)
	for _, id := range []string{"a", "a", "b"} {
		if err := c.Publish(t.Context(), &bus.Message{Model: "m", MsgID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if lag, err := s.planner.Lag(t.Context(), "m"); err != nil || lag.LastSeq != 2 {
		t.Errorf("lag %+v, %v, expected 2 stored", lag, err)
	}
}

func TestPublishAsyncTellsEachOnce(t *testing.T) {
	s := newSystem(t)
	q := queueOf("m")
	q.MaxMsgs = 700
	s.queue(t, q)
	c := s.connect(t, bus.RoleClient)
	const n = 1000
	results := make(chan error, n+1)
	m := &bus.Message{Model: "m", Body: []byte("body")} // may be reused
	for range n {
		if err := c.PublishAsync(m, func(_ bus.Receipt, err error) { results <- err }); err != nil {
			t.Fatal(err)
		}
	}
	var stored, refused int
	for range n {
		switch err := receive(t, "acks", results); {
		case err == nil:
			stored++
		case errors.Is(err, bus.ErrOverloaded):
			refused++
		default:
			t.Error(err)
		}
	}
	if stored != 700 || refused != 300 {
		t.Errorf("%d stored and %d refused, expected 700 and 300", stored, refused)
	}
	if err := c.PublishAsync(&bus.Message{Model: "M"}, func(_ bus.Receipt, err error) { results <- err }); !errors.Is(err, bus.ErrUnknownModel) {
		t.Errorf("error %v, expected %v", err, bus.ErrUnknownModel)
	}
	if len(results) != 0 {
		t.Error("a callback came twice, or after an error")
	}
}

func TestPublishEndsWithItsContext(t *testing.T) {
	s := newSystem(t)
	s.queue(t, queueOf("m"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := s.connect(t, bus.RoleClient).Publish(ctx, &bus.Message{Model: "m"})
	if err != nil && !errors.Is(err, context.Canceled) { // the acknowledgement may have been faster
		t.Errorf("error %v, expected %v", err, context.Canceled)
	}
}

// An acknowledgement that can no longer come is not waited for.
func TestLostConnectionFailsWhatWaits(t *testing.T) {
	// A server without JetStream and a subscriber that never answers.
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer srv.WaitForShutdown()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(patience) {
		t.Fatal("server not ready")
	}
	silent, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	asked, err := silent.SubscribeSync("infer.m")
	if err != nil {
		t.Fatal(err)
	}
	if err := silent.Flush(); err != nil {
		t.Fatal(err)
	}
	c, err := bus.Connect(t.Context(), bus.Config{URL: srv.ClientURL()}, bus.RoleClient, "c", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	result := make(chan error, 2)
	if err := c.PublishAsync(&bus.Message{Model: "m"}, func(_ bus.Receipt, err error) { result <- err }); err != nil {
		t.Fatal(err)
	}
	if _, err := asked.NextMsg(patience); err != nil {
		t.Fatal(err)
	}
	srv.Shutdown()
	if err := receive(t, "result", result); !errors.Is(err, bus.ErrUnavailable) || !strings.Contains(err.Error(), "connection was lost") {
		t.Errorf("error %v, expected %v for the lost connection", err, bus.ErrUnavailable)
	}
	if err := c.PublishAsync(&bus.Message{Model: "m"}, func(_ bus.Receipt, err error) { result <- err }); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("error %v, expected %v", err, bus.ErrUnavailable)
	}
	if len(result) != 0 {
		t.Error("a callback came twice, or after an error")
	}
}
