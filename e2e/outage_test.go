package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
)

// TestPlannerMayBeAway kills the planner under load: what is planned goes on, and the planner's
// successor takes over without moving anything.
func TestPlannerMayBeAway(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")
	b := s.Bus(t, bus.RoleFrontend)
	before := pids(t, s, b)

	s.Planner.Kill()
	allRight(t, "without a planner", load(t, s, "--rates", "double=100", "--duration", "3s").Total)
	s.Planner = s.StartPlanner(t)
	s.Planner.WaitEvent(t, "connected to NATS")
	allRight(t, "with another planner", load(t, s, "--rates", "double=100", "--duration", "3s").Total)
	if d := cmp.Diff(before, pids(t, s, b)); d != "" {
		t.Errorf("gpu-lets and their processes (-before +after):\n%s", d)
	}
}

// pids are the processes of the gpu-lets that serve double, by gpu-let.
func pids(t *testing.T, s *harness.System, b *bus.Bus) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, g := range s.Gpulets(t, b, "double") {
		out[g.ID] = g.PID
	}
	if len(out) == 0 {
		t.Fatal("no gpu-let serves double")
	}
	return out
}

// TestTheBusMayCrash kills the frontend, and with it the embedded NATS and everything it held in
// memory. When it is back, planner, worker and gpu-lets find it and set themselves up again.
func TestTheBusMayCrash(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")
	allRight(t, "before", load(t, s, "--rates", "double=50", "--duration", "1s").Total)

	crash(t, s)
	s.WaitReady(t, "double")
	harness.Eventually(t, "an answer", func() error {
		code, body, err := harness.Post(s.HTTP+"/v2/models/double/infer", goodJSON)
		if err == nil && code != 200 {
			err = fmt.Errorf("HTTP status %d: %s", code, body)
		}
		return err
	})
	allRight(t, "afterwards", load(t, s, "--rates", "double=100", "--duration", "3s").Total)
	for _, p := range []*harness.Process{s.Worker, s.Planner} {
		p.Signal(syscall.SIGINT)
		if code := p.Wait(t); code != 0 {
			t.Errorf("%s: exit %d", p.Name, code)
		}
	}
}

// TestSimulatedGPUs runs the whole system on GPUs that there are not.
func TestSimulatedGPUs(t *testing.T) {
	profiles := filepath.Join(harness.Root(t), "profiles")
	s := harness.Up(t, harness.Config{
		Models: lenetOnly(t), Engine: "sim", Device: "sim:h100x2",
		Profiles: profiles, WorkerArgs: []string{"--profiles", profiles},
	})
	s.WaitReady(t, "lenet")
	// Random inputs, from a folder without samples: a simulated GPU computes nothing.
	f := load(t, s, "--rates", "lenet=200", "--duration", "3s", "--models", t.TempDir()).Total
	allRight(t, "lenet on simulated GPUs", f)
	code, out := harness.Run(t, "planner", nil, "status", "--nats-url", s.NATS, "--state-dir", s.StateDir)
	if code != 0 || !strings.Contains(out, "h100") || !strings.Contains(strings.ToLower(out), "sim") {
		t.Errorf("planner status does not say what is simulated: exit %d\n%s", code, out)
	}
}
