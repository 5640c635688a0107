package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/life"
	"github.com/gpulet/gpulet/shared/wire"
)

// response is what an HTTP client got.
type response struct {
	code         int
	status, body string
}

// ask posts a request to double, with an id if there is one, and tells when it is answered. A client
// that leaves is told nothing.
func ask(ctx context.Context, t *testing.T, url, id string) <-chan response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v2/models/double/infer", strings.NewReader(goodJSON))
	if err != nil {
		t.Fatal(err)
	}
	if id != "" {
		req.Header.Set(wire.HeaderRequestID, id)
	}
	answered := make(chan response, 1)
	go func() {
		defer close(answered)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			if ctx.Err() == nil {
				t.Error(err)
			}
			return
		}
		defer resp.Body.Close() //nolint:errcheck // read to its end
		var body strings.Builder
		if err := resp.Write(&body); err != nil {
			t.Error(err)
		}
		_, text, _ := strings.Cut(body.String(), "\r\n\r\n")
		answered <- response{resp.StatusCode, resp.Header.Get(wire.HeaderStatus), text}
	}()
	return answered
}

func cancelHTTP(t *testing.T, url, id string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, url+"/v2/models/double/infer/"+id, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // not read
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("cancel %s: HTTP status %s", id, resp.Status)
	}
}

func waitPending(t *testing.T, b *bus.Bus, n uint64) {
	t.Helper()
	harness.Eventually(t, fmt.Sprintf("%d requests in the queue", n), func() error {
		lag, err := b.Lag(t.Context(), "double")
		if err == nil && lag.Pending != n {
			err = fmt.Errorf("%d", lag.Pending)
		}
		return err
	})
}

// TestRequestsAreCancelledAndRepeatedByID has two frontends and, at first, no worker: what is cancelled
// in the queue is gone before there is one, and what is repeated is run once.
func TestRequestsAreCancelledAndRepeatedByID(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir})
	second := s.Start(t, "frontend", "serve", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--nats-url", s.NATS, "--state-dir", s.StateDir, "--refresh", "100ms")
	other := "http://" + second.WaitEvent(t, "frontend is up").Text("http")
	for _, url := range []string{s.HTTP, other} {
		harness.Eventually(t, "double is known", func() error {
			code, body, err := harness.Get(url + "/v2/models/double")
			if err == nil && code != http.StatusOK {
				err = fmt.Errorf("HTTP status %d: %s", code, body)
			}
			return err
		})
	}
	b := s.Bus(t, bus.RoleFrontend)

	cancelled := ask(t.Context(), t, s.HTTP, "job-1")
	waitPending(t, b, 1)
	cancelHTTP(t, other, "job-1") // by way of the frontend that does not know it
	if got := <-cancelled; got.code != http.StatusConflict || got.status != "cancelled" {
		t.Errorf("cancelled by id: %+v", got)
	}
	waitPending(t, b, 0)

	ctx, leave := context.WithCancel(t.Context())
	gone := ask(ctx, t, s.HTTP, "")
	waitPending(t, b, 1)
	leave()
	if got, ok := <-gone; ok {
		t.Errorf("a client that left was answered: %+v", got)
	}
	waitPending(t, b, 0)

	twins := []<-chan response{ask(t.Context(), t, s.HTTP, "job-2"), ask(t.Context(), t, other, "job-2"), ask(t.Context(), t, s.HTTP, "job-2")}
	waitPending(t, b, 1)
	for url, n := range map[*harness.Process]float64{s.Frontend: 2, second: 1} {
		harness.Eventually(t, "all of them wait", func() error {
			if got := metrics(t, url).sum("gpulet_frontend_requests_waiting"); got != n {
				return fmt.Errorf("%v wait, expected %v", got, n)
			}
			return nil
		})
	}
	s.Worker = s.Start(t, "worker", "run", "--metrics-addr", "127.0.0.1:0", "--models", r.dir, "--device", "cpu", "--engine", "ref", "--nats-url", s.NATS, "--state-dir", s.StateDir)
	first := <-twins[0]
	if first.code != http.StatusOK {
		t.Fatalf("job-2: %+v", first)
	}
	again := []<-chan response{ask(t.Context(), t, other, "job-2"), ask(t.Context(), t, s.HTTP, "job-2")}
	for _, c := range append(twins[1:], again...) {
		if got := <-c; got != first {
			t.Errorf("job-2 again: %+v, expected %+v", got, first)
		}
	}
	if got := <-ask(t.Context(), t, other, "job-1"); got.code != http.StatusConflict || got.status != "cancelled" {
		t.Errorf("job-1 after it was cancelled: %+v", got)
	}
	harness.Eventually(t, "the counts", func() error {
		p, w := metrics(t, s.Planner), metrics(t, s.Worker)
		removed, run, ok := p.sum("gpulet_planner_cancelled_requests_total"), w.sum("gpulet_worker_samples_total"), w.sum("gpulet_worker_answers_total", "status", "ok")
		if removed != 2 || run != 1 || ok != 1 {
			return fmt.Errorf("%v removed, %v run, %v answered: expected 2, 1 and 1", removed, run, ok)
		}
		return nil
	})
}

// TestCancellingUnderWay cancels requests of every kind of place while their gpu-lets are stopped, and
// has each accept exactly one answer: those taken out of the queue are cancelled and never run, the
// others are cancelled or answered.
func TestCancellingUnderWay(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")
	frontend, client := s.Bus(t, bus.RoleFrontend), s.Bus(t, bus.RoleClient)
	before := metrics(t, s.Worker).sum("gpulet_worker_samples_total")

	const n = 200
	var mu sync.Mutex // guards the three
	fates, statuses := map[string]life.Fate{}, map[string]wire.Status{}
	duplicates := 0
	inbox, err := client.NewInbox(func(rep bus.Reply) {
		mu.Lock()
		defer mu.Unlock()
		next, accepted := fates[rep.Token].Hear(life.Reply)
		fates[rep.Token] = next
		if !accepted {
			duplicates++
			return
		}
		statuses[rep.Token] = wire.Status(rep.Get(wire.HeaderStatus))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer inbox.Close()
	gpulets := s.Gpulets(t, frontend, "double")
	signal := func(sig syscall.Signal) {
		for _, g := range gpulets {
			if err := syscall.Kill(g.PID, sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	signal(syscall.SIGSTOP)
	defer signal(syscall.SIGCONT)
	body := doubleBody(t)
	seqs := make(chan uint64, n)
	seq := make([]uint64, n)
	for i := range n {
		id := fmt.Sprint("r", i)
		mu.Lock()
		fates[id] = life.Waiting
		mu.Unlock()
		err := client.PublishAsync(&bus.Message{Model: "double", RequestID: id, ReplyTo: inbox.Address(id), Body: body}, func(r bus.Receipt, err error) {
			if err != nil {
				t.Error(err)
			}
			seqs <- r.Seq
		})
		if err != nil {
			t.Fatal(err)
		}
		seq[i] = <-seqs
	}
	// The stopped gpu-lets have been sent a batch or two each, from the head of the queue.
	lag, err := frontend.Lag(t.Context(), "double")
	if err != nil || lag.Pending < n/2 {
		t.Fatalf("%+v, %v: expected most of %d requests to wait", lag, err, n)
	}
	const fromQueue = n / 2 // these wait
	for i := 0; i < n; i += 2 {
		c := bus.Cancellation{Model: "double", RequestID: fmt.Sprint("r", i)}
		if i >= fromQueue {
			c.Seq = seq[i]
		}
		if err := client.Cancel(c); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, "the planner has removed what it was told the place of", func() error {
		if got := metrics(t, s.Planner).sum("gpulet_planner_cancelled_requests_total"); got != n/4 {
			return fmt.Errorf("%v, expected %d", got, n/4)
		}
		return nil
	})
	signal(syscall.SIGCONT)
	harness.Eventually(t, "every request is answered", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(statuses) != n {
			return fmt.Errorf("%d of %d", len(statuses), n)
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	counts := map[wire.Status]int{}
	for i := range n {
		id := fmt.Sprint("r", i)
		got := statuses[id]
		counts[got]++
		switch {
		case i%2 == 1 && got != wire.StatusOK:
			t.Errorf("%s, which nobody cancelled: %s", id, got)
		case i%2 == 0 && i >= fromQueue && got != wire.Cancelled:
			t.Errorf("%s, cancelled in the queue: %s", id, got)
		case got != wire.StatusOK && got != wire.Cancelled:
			t.Errorf("%s: %s", id, got)
		}
	}
	t.Logf("%v, %d duplicates", counts, duplicates)
	harness.Eventually(t, "the worker's counts", func() error {
		m := metrics(t, s.Worker)
		ok, cancelled := m.sum("gpulet_worker_answers_total", "status", "ok"), m.sum("gpulet_worker_answers_total", "status", "cancelled")
		if ok < float64(counts[wire.StatusOK]) || cancelled < float64(counts[wire.Cancelled]-n/4) {
			return fmt.Errorf("%v ok and %v cancelled, expected at least %d and %d", ok, cancelled, counts[wire.StatusOK], counts[wire.Cancelled]-n/4)
		}
		if run := m.sum("gpulet_worker_samples_total") - before; run > float64(n-n/4+duplicates) {
			return fmt.Errorf("%v samples ran of %d requests, of which %d were removed before", run, n, n/4)
		}
		return nil
	})
}

// doubleBody is a request to double, as msgpack.
func doubleBody(t *testing.T) []byte {
	t.Helper()
	req, err := wire.DecodeRequest(wire.TypeJSON, []byte(goodJSON), nil, wire.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	body, err := wire.EncodeRequest(wire.TypeMsgpack, req)
	if err != nil {
		t.Fatal(err)
	}
	return body
}
