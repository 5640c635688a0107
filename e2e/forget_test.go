package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/wire"
)

// tally counts HTTP answers by their code.
type tally struct {
	mu sync.Mutex // guards by
	by map[int]int
}

func (c *tally) add(code int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by[code]++
}

func (c *tally) all() map[int]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.by)
}

// ask sends a request that may take long, and counts its answer; a right one as 200.
func (c *tally) ask(t *testing.T, url string) {
	code, body, err := harness.Post(url+"/v2/models/double/infer", goodJSON, wire.HeaderTimeout, "50s")
	if err != nil {
		t.Errorf("%v", err)
	}
	if code == http.StatusOK && !strings.Contains(body, "[2,4,6,8]") {
		t.Errorf("wrong answer: %s", body)
	}
	c.add(code)
}

// outsideFrontend is a frontend whose NATS server is another process.
func outsideFrontend(t *testing.T, s *harness.System) (url string) {
	t.Helper()
	p := s.Start(t, "frontend", "serve", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0",
		"--nats-url", s.NATS, "--state-dir", s.StateDir, "--refresh", "100ms")
	return "http://" + p.WaitEvent(t, "frontend is up").Text("http")
}

// TestHTTPRequestsOutliveAServerThatForgets kills the NATS server, whose queue is in memory, under requests
// that wait in another frontend: at first in a queue that nobody serves, then under load. What was waiting is
// answered, and what came while there was no server is refused at once; nothing expires.
func TestHTTPRequestsOutliveAServerThatForgets(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir})
	b := s.Bus(t, bus.RoleFrontend)
	lag := func(want uint64) {
		t.Helper()
		harness.Eventually(t, fmt.Sprintf("%d requests in the queue", want), func() error {
			lag, err := b.Lag(t.Context(), "double")
			if err == nil && lag.Pending != want {
				err = fmt.Errorf("%d", lag.Pending)
			}
			return err
		})
	}
	lag(0)
	url := outsideFrontend(t, s)
	harness.Eventually(t, "the model is known", func() error {
		code, body, err := harness.Get(url + "/v2/models/double")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("HTTP status %d: %s", code, body)
		}
		return err
	})

	waited := tally{by: map[int]int{}}
	var clients sync.WaitGroup
	for range 40 {
		clients.Go(func() { waited.ask(t, url) })
	}
	lag(40)
	crash(t, s)
	lag(40)
	s.Worker = refWorker(t, s)
	clients.Wait()
	if d := cmp.Diff(map[int]int{http.StatusOK: 40}, waited.all()); d != "" {
		t.Errorf("answers to what waited (-want +got):\n%s", d)
	}

	loaded := tally{by: map[int]int{}}
	answers := func(more int) {
		t.Helper()
		harness.Eventually(t, "answers", func() error {
			if n := loaded.all()[http.StatusOK]; n < more {
				return fmt.Errorf("%d of %d", n, more)
			}
			return nil
		})
	}
	stop := make(chan struct{})
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					loaded.ask(t, url)
				}
			}
		})
	}
	answers(200)
	crash(t, s)
	answers(loaded.all()[http.StatusOK] + 200)
	close(stop)
	clients.Wait()
	for code, n := range loaded.all() {
		if code != http.StatusOK && code != http.StatusServiceUnavailable {
			t.Errorf("%d answers with HTTP status %d", n, code)
		}
	}
	t.Logf("under load: %v", loaded.all())
}

// TestRequestsThatNobodyServesExpire has a system without any host: who asks it is told so at the deadline.
func TestRequestsThatNobodyServesExpire(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir})
	client := s.Bus(t, bus.RoleClient)
	a := collect(t, client)
	m := a.request("double", "late")
	m.Timeout = time.Second
	harness.Eventually(t, "the queue", func() error { return client.Publish(t.Context(), m) })
	harness.Eventually(t, "an answer", func() error {
		if got := a.all()["late"]; len(got) != 1 || !strings.HasPrefix(got[0], string(wire.Expired)+" ") {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	lag, err := s.Bus(t, bus.RoleFrontend).Lag(t.Context(), "double")
	if err != nil || lag.Pending != 0 {
		t.Errorf("%d requests wait, %v", lag.Pending, err)
	}
}
