package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/wire"
)

// crash kills the frontend, and the embedded NATS with it, and starts it again on the same ports.
func crash(t *testing.T, s *harness.System) {
	t.Helper()
	s.Frontend.Kill()
	nats, err := url.Parse(s.NATS)
	if err != nil {
		t.Fatal(err)
	}
	s.Frontend = s.StartFrontend(t, "--nats-port", nats.Port(), "--http-addr", strings.TrimPrefix(s.HTTP, "http://"))
	s.Frontend.WaitEvent(t, "frontend is up")
}

// refWorker starts a worker in a system that has none.
func refWorker(t *testing.T, s *harness.System) *harness.Process {
	t.Helper()
	return s.Start(t, "worker", "run", "--metrics-addr", "127.0.0.1:0", "--models", s.Models(), "--device", "cpu",
		"--engine", "ref", "--nats-url", s.NATS, "--state-dir", s.StateDir)
}

// answers collects replies by token.
type answers struct {
	mu   sync.Mutex // guards by
	by   map[string][]string
	from *bus.Inbox
}

func collect(t *testing.T, b *bus.Bus) *answers {
	t.Helper()
	a := &answers{by: map[string][]string{}}
	inbox, err := b.NewInbox(func(r bus.Reply) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.by[r.Token] = append(a.by[r.Token], r.Get(wire.HeaderStatus)+" "+string(r.Body))
	})
	if err != nil {
		t.Fatal(err)
	}
	a.from = inbox
	return a
}

func (a *answers) all() map[string][]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.by)
}

func (a *answers) request(model, id string) *bus.Message {
	return &bus.Message{Model: model, RequestID: id, MsgID: id, ContentType: wire.TypeJSON, ReplyTo: a.from.Address(id), Body: []byte(goodJSON)}
}

// publishing publishes to a model until it fails, and tells after each acknowledgement how many there
// were. It returns the ids that were acknowledged, and the one that was not.
func publishing(t *testing.T, b *bus.Bus, a *answers, model string, tell func(acked int)) (acked []string, failed string, err error) {
	for n := 0; ; n++ {
		id := fmt.Sprintf("%s-%d", model, n)
		if err := b.Publish(t.Context(), a.request(model, id)); err != nil {
			return acked, id, err
		}
		acked = append(acked, id)
		tell(len(acked))
	}
}

// TestCrashOfTheServerLosesNothingThatWasAcceptedOnDisk kills the embedded server under clients that
// publish to a model that waits in a file and to one that waits in memory. What was acknowledged of
// the one is answered afterwards, once each; what was of the other is gone, and its clients are told
// "unavailable" until a planner has made its queue again.
func TestCrashOfTheServerLosesNothingThatWasAcceptedOnDisk(t *testing.T) {
	r := newRepository(t, "kept", "quick")
	r.write(t, "kept/model.yaml", doublingYAML("kept")+"class: offline\n")
	s := harness.Up(t, harness.Config{Models: r.dir})
	admin := s.Bus(t, bus.RolePlanner)
	models := []string{"kept", "quick"}
	for _, m := range models {
		harness.Eventually(t, "queue of "+m, func() error { _, err := admin.Lag(t.Context(), m); return err })
	}

	a := collect(t, s.Bus(t, bus.RoleClient))
	acked, failed := map[string][]string{}, map[string]string{}
	var mu sync.Mutex // guards both
	var publishers, busy sync.WaitGroup
	for _, m := range models {
		b := s.Bus(t, bus.RoleClient)
		busy.Add(1)
		underWay := sync.OnceFunc(busy.Done)
		publishers.Go(func() {
			defer underWay() // whatever happens
			ids, last, err := publishing(t, b, a, m, func(n int) {
				if n == 200 {
					underWay()
				}
			})
			if !errors.Is(err, bus.ErrUnavailable) {
				t.Errorf("%s: clients are told %v, expected %v", m, err, bus.ErrUnavailable)
			}
			mu.Lock()
			defer mu.Unlock()
			acked[m], failed[m] = ids, last
		})
	}
	busy.Wait()
	s.Planner.Kill()
	crash(t, s)
	publishers.Wait()

	lag, err := admin.Lag(t.Context(), "kept")
	for errors.Is(err, bus.ErrUnavailable) { // until it has reconnected
		lag, err = admin.Lag(t.Context(), "kept")
	}
	if n := uint64(len(acked["kept"])); err != nil || lag.Pending < n || lag.Pending > n+1 {
		t.Errorf("kept: %d requests wait, %v; expected the %d that were acknowledged, and perhaps one more", lag.Pending, err, n)
	}
	if _, err := admin.Lag(t.Context(), "quick"); !errors.Is(err, bus.ErrUnknownModel) {
		t.Errorf("quick: %v, expected no queue", err)
	}
	client := s.Bus(t, bus.RoleClient)
	if err := client.Publish(t.Context(), a.request("quick", "too-early")); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("quick, before a planner has made its queue: %v, expected %v", err, bus.ErrUnavailable)
	}
	if err := client.Publish(t.Context(), a.request("kept", "at-once")); err != nil {
		t.Errorf("kept, before a planner runs: %v", err)
	}

	s.Planner = s.StartPlanner(t)
	harness.Eventually(t, "queue of quick", func() error { _, err := admin.Lag(t.Context(), "quick"); return err })
	s.Worker = refWorker(t, s)
	s.WaitReady(t, models...)
	if err := client.Publish(t.Context(), a.request("quick", "in-time")); err != nil {
		t.Errorf("quick, once a planner has made its queue: %v", err)
	}
	want := append(acked["kept"], "at-once", "in-time")
	harness.Eventually(t, "all answers", func() error {
		got := a.all()
		for _, id := range want {
			if len(got[id]) == 0 {
				return fmt.Errorf("none for %s; %d answers", id, len(got))
			}
		}
		return nil
	})
	got := a.all()
	for _, id := range want {
		if len(got[id]) != 1 || !strings.HasPrefix(got[id][0], "ok ") || !strings.Contains(got[id][0], "[2,4,6,8]") {
			t.Errorf("%s: answers %q, expected one, right", id, got[id])
		}
		delete(got, id)
	}
	delete(got, failed["kept"]) // stored, and the acknowledgement lost
	if len(got) > 0 {
		t.Errorf("answers to requests that were lost with the server's memory: %v", got)
	}
}

// TestCrashOfTheServerKeepsResults has a result fetched from a server that crashed since.
func TestCrashOfTheServerKeepsResults(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")
	client := s.Bus(t, bus.RoleClient)
	if err := client.Publish(t.Context(), &bus.Message{Model: "double", RequestID: "job-7", ContentType: wire.TypeJSON, Body: []byte(goodJSON)}); err != nil {
		t.Fatal(err)
	}
	result := func() error {
		r, err := client.Result(t.Context(), "double", "job-7")
		if err == nil && !strings.Contains(string(r.Body), "[2,4,6,8]") {
			err = fmt.Errorf("result %s", r.Body)
		}
		return err
	}
	harness.Eventually(t, "the result", result)
	crash(t, s)
	harness.Eventually(t, "the result after a crash", result)
}

// TestLoadGoesOnAfterACrash has worker, planner and loadgen live through a crash of the server: all
// reconnect, and what was accepted on disk and not yet answered is answered.
func TestLoadGoesOnAfterACrash(t *testing.T) {
	r := newRepository(t, "double")
	r.write(t, "double/model.yaml", doublingYAML("double")+"storage: file\n")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")
	b := s.Bus(t, bus.RoleFrontend)
	before := pids(t, s, b)
	report := t.TempDir() + "/run.json"
	loadgen := s.StartLoadgen(t, "--rates", "double=100", "--duration", "10m", "--timeout", "10s", "--json", report)
	answered := func(more uint64) uint64 {
		t.Helper()
		var n uint64
		harness.Eventually(t, "answers", func() error {
			n = 0
			list, err := b.Gpulets(t.Context())
			for _, g := range list {
				for _, m := range g.Models {
					n += m.Requests
				}
			}
			if err == nil && n < more {
				err = fmt.Errorf("%d of %d", n, more)
			}
			return err
		})
		return n
	}
	n := answered(100)
	crash(t, s)
	answered(n + 300)
	loadgen.Signal(syscall.SIGINT)
	loadgen.Wait(t)
	f := readRun(t, report).Total
	if f.OK < 400 || f.Wrong > 0 || f.OK+f.Lost+f.Errors["unavailable"]+f.Errors["expired"] != f.Sent {
		t.Errorf("%+v: expected every request answered, refused as unavailable, too late, or its answer lost with the connection", f)
	}
	if after := pids(t, s, b); !maps.Equal(before, after) {
		t.Errorf("gpu-lets and their processes %v, after %v", after, before)
	}
	t.Logf("through the crash: %+v", f)
}
