package agent

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/device"
)

// shared is a host whose gpu-lets are shells: each says what it is, and then waits for its end.
type shared struct {
	*Agent
	t *testing.T

	mu       sync.Mutex // guards the fields below
	started  []string
	released []int
	limits   map[string]int64
}

// Release implements Sharing.
func (s *shared) Release(_ context.Context, gpu, pid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = append(s.released, gpu)
	if pid <= 0 {
		s.t.Errorf("released process %d", pid)
	}
	return nil
}

// Problems implements Sharing.
func (s *shared) Problems() <-chan []string { return nil }

// newShared has a plan of gpu-lets, given as "id gpu script mem".
func newShared(t *testing.T, gpulets map[string]string) *shared {
	t.Helper()
	s := &shared{t: t, limits: map[string]int64{}}
	p := plan.Plan{Revision: 1}
	scripts := map[string]string{}
	for id, spec := range gpulets {
		g := plan.Gpulet{ID: id, Host: "h", Share: 30}
		if _, err := fmt.Sscanf(spec, "%d %d %s", &g.GPU, &g.MemBytes, new(string)); err != nil {
			t.Fatal(err)
		}
		p.Gpulets = append(p.Gpulets, g)
		scripts[id] = strings.SplitN(spec, " ", 3)[2]
	}
	slices.SortFunc(p.Gpulets, func(a, b plan.Gpulet) int { return strings.Compare(a.ID, b.ID) })
	s.Agent = New(Config{
		Host: "h", Log: quiet, Sharing: s,
		Inventory: device.Inventory{Kind: device.CUDA, Devices: []plan.Device{{Index: 0, MemBytes: 100}, {Index: 2, MemBytes: 100}}},
		Command: func(st Start) *exec.Cmd {
			s.mu.Lock()
			defer s.mu.Unlock()
			id := st.Gpulet.ID
			s.limits[id] = st.MemBytes
			again := slices.Contains(s.started, id)
			s.started = append(s.started, id)
			if again {
				return exec.Command("/bin/sh", "-c", "cat >/dev/null")
			}
			return exec.Command("/bin/sh", "-c", scripts[id])
		},
	}, newBoard(), prometheus.NewRegistry())
	s.plan, s.planned = p, true
	s.report = startReporter(newBoard(), quiet)
	ctx, cancel := context.WithCancel(t.Context())
	s.peers = startPeers(ctx, newBoard(), quiet)
	t.Cleanup(func() { stopAll(s.Agent, cancel) })
	return s
}

// stopAll ends what a test's agent has started, as Run does at its end.
func stopAll(a *Agent, cancel context.CancelFunc) {
	cancel()
	a.peers.wait()
	a.dismiss()
	a.killAll()
	for _, c := range a.children {
		if c.proc != nil {
			<-c.proc.gone
		}
	}
	a.report.stop("h")
}

// ends waits for a process of the gpu-let to end and takes note of it.
func (s *shared) ends(id string) {
	s.t.Helper()
	select {
	case e := <-s.events:
		if e.id != id || !e.exited {
			s.t.Fatalf("event %+v: expected the end of %s", e, id)
		}
		s.handle(e)
	case <-time.After(60 * time.Second):
		s.t.Fatalf("waited 60s for the end of %s", id)
	}
}

// TestAGpuletWithALimitIsThePlans: one whose limit was forgotten would be ended and started for ever.
func TestAGpuletWithALimitIsThePlans(t *testing.T) {
	s := newShared(t, map[string]string{"a": "0 0 cat >/dev/null"})
	s.plan.Gpulets[0].Limit = 40
	s.reconcile(time.Now())
	s.reconcile(time.Now())
	if c := s.children["a"]; c == nil || !c.DrainedAt.IsZero() {
		t.Errorf("child %+v: expected it to be left alone", c)
	}
}

func TestADeviceFaultStartsAllGpuletsOfItsGPUAgain(t *testing.T) {
	s := newShared(t, map[string]string{
		"a": "0 0 read line; exit 3", // ends when it is told what to serve
		"b": "0 0 exec sleep 600",
		"c": "2 0 cat >/dev/null",
	})
	s.reconcile(time.Now())
	s.ends("a")
	s.reconcile(time.Now())
	if diff := cmp.Diff([]string{"a", "b", "c"}, s.started); diff != "" {
		t.Fatalf("before b has ended:\n%s", diff)
	}
	s.ends("b") // killed
	s.reconcile(time.Now())
	if diff := cmp.Diff([]string{"a", "b", "c", "a", "b"}, s.started); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]int{0}, s.released); diff != "" {
		t.Errorf("GPUs that let go of a process:\n%s", diff)
	}
	if s.faults[0] != 1 || s.faults[2] != 0 {
		t.Errorf("faults %v: expected one, on GPU 0", s.faults)
	}
}

func TestAGpuletMayTakeWhatThePlanGivesToNoOther(t *testing.T) {
	s := newShared(t, map[string]string{
		"a": "0 30 cat >/dev/null",
		"b": "0 50 cat >/dev/null",
		"c": "2 0 cat >/dev/null", // its plan says nothing of memory
	})
	s.reconcile(time.Now())
	if diff := cmp.Diff(map[string]int64{"a": 50, "b": 70, "c": 0}, s.limits); diff != "" {
		t.Error(diff)
	}
}

func TestAGPUThatIsNotTheHostsIsReported(t *testing.T) {
	s := newShared(t, map[string]string{"a": "1 0 cat"})
	s.reconcile(time.Now())
	if len(s.started) > 0 {
		t.Errorf("started %v", s.started)
	}
	want := []string{"gpu-let a: the plan puts it on GPU 1: expected one of [0 2]"}
	if diff := cmp.Diff(want, s.trouble()); diff != "" {
		t.Error(diff)
	}
}
