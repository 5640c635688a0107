package v2_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/gpulet/gpulet/frontend/internal/frontendtest"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/wire"
)

func TestARequestIsCancelledByItsID(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.RemoveCancelled(t, "toy")
	cancelled := make(chan answer, 1)
	go func() { cancelled <- d.post(t, toyInfer, goodToy, wire.HeaderRequestID, "order-1") }()
	d.WaitQueued(t, "toy", 1)
	got := d.do(t, "DELETE", toyInfer+"/order-1", nil)
	if got.code != http.StatusAccepted || string(got.body) != `{"id":"order-1"}` {
		t.Errorf("%d %s", got.code, got.body)
	}
	got = <-cancelled
	if got.code != http.StatusConflict || got.header.Get(wire.HeaderStatus) != "cancelled" || got.header.Get(wire.HeaderRequestID) != "order-1" {
		t.Errorf("%d %s", got.code, got.body)
	}
	d.WaitQueued(t, "toy", 0)
	if n := d.counter(t, "toy", "cancelled"); n != 1 {
		t.Errorf("%v requests counted as cancelled", n)
	}
	// It stays cancelled: the id is that of a request which has its answer.
	frontendtest.Eventually(t, "the answer is kept", func() bool {
		_, err := d.Bus.Result(t.Context(), "toy", "order-1")
		return err == nil
	})
	got = d.post(t, toyInfer, goodToy, wire.HeaderRequestID, "order-1")
	if got.code != http.StatusConflict || got.header.Get(wire.HeaderStatus) != "cancelled" {
		t.Errorf("asked again: %d %s", got.code, got.body)
	}
	for _, c := range []struct {
		method, path string
		code         int
		want         string
	}{
		{"DELETE", toyInfer + "/a.b", 400, `request id "a.b": expected 1 to 128 of`},
		{"DELETE", "/v2/models/none/infer/x", 404, `unknown model "none"`},
		{"GET", toyInfer + "/order-1", 405, "expected DELETE"},
		{"DELETE", toyInfer + "/nobody", 202, ""},
	} {
		if got := d.do(t, c.method, c.path, nil); got.code != c.code || c.want != "" && !strings.Contains(got.errorText(), c.want) {
			t.Errorf("%s %s: %d %s", c.method, c.path, got.code, got.body)
		}
	}
	got = d.post(t, toyInfer, goodToy, wire.HeaderRequestID, "two words")
	if got.code != 400 || !strings.Contains(got.errorText(), `header Gpulet-Request-Id "two words": expected`) {
		t.Errorf("%d %s", got.code, got.body)
	}
}

// A client that closes its connection takes its request out of the queue.
func TestAClientThatLeavesTakesItsRequestOutOfTheQueue(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.RemoveCancelled(t, "toy")
	ctx, leave := context.WithCancel(t.Context())
	var client sync.WaitGroup
	client.Go(func() {
		req, err := http.NewRequestWithContext(ctx, "POST", d.url+toyInfer, strings.NewReader(goodToy))
		if err != nil {
			t.Error(err)
			return
		}
		if resp, err := d.client.Do(req); err == nil {
			_ = resp.Body.Close()
			t.Error("the request was answered although its client left")
		}
	})
	d.WaitQueued(t, "toy", 1)
	leave()
	client.Wait()
	d.WaitQueued(t, "toy", 0)
	frontendtest.Eventually(t, "the end is counted", func() bool { return d.counter(t, "toy", "cancelled") == 1 })
}

// The same request id gives the same answer and runs once: at the same time, afterwards, at another
// frontend, and for who publishes on the bus.
func TestTheSameRequestIDGivesTheSameAnswer(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	d := open(t, s)
	release := make(chan struct{})
	var mu sync.Mutex
	runs := 0
	worker := embeddedtest.Connect(t, s.NATS, bus.RoleWorker)
	d.Work(t, frontendtest.Toy(), func(m *bus.Msg, req wire.Request) wire.Reply {
		<-release
		mu.Lock()
		defer mu.Unlock()
		runs++
		rep := frontendtest.ToyWorker(m, req)
		rep.RequestID = m.Get(wire.HeaderRequestID)
		if m.Get(wire.HeaderKeep) == "" {
			return rep
		}
		header, body, err := wire.EncodeReply(m.Get(wire.HeaderType), rep)
		if err == nil {
			err = worker.StoreResult("toy", rep.RequestID, header, body)
		}
		if err != nil {
			t.Error(err)
		}
		return rep
	})
	answers := make(chan answer, 3)
	for range 3 {
		go func() { answers <- d.post(t, toyInfer, goodToy, wire.HeaderRequestID, "order-1") }()
	}
	frontendtest.Eventually(t, "three wait", func() bool { return d.Inbox.Stats().Pending == 3 })
	close(release)
	first := <-answers
	for range 2 {
		if got := <-answers; got.code != 200 || string(got.body) != string(first.body) {
			t.Errorf("%d %s: expected %s", got.code, got.body, first.body)
		}
	}
	got := d.post(t, toyInfer, goodToy, wire.HeaderRequestID, "order-1")
	if got.code != 200 || string(got.body) != string(first.body) || got.header.Get(wire.HeaderRequestID) != "order-1" {
		t.Errorf("afterwards: %d %s", got.code, got.body)
	}
	mu.Lock()
	defer mu.Unlock()
	if runs != 1 || first.code != 200 {
		t.Errorf("it ran %d times and was answered %d %s", runs, first.code, first.body)
	}
}
