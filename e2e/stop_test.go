package e2e

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
)

// nothingLeft waits until no process of the system runs.
func nothingLeft(t *testing.T, s *harness.System) {
	t.Helper()
	harness.Eventually(t, "no process is left", func() error {
		var left []string
		for _, pid := range s.Processes(t) {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			left = append(left, fmt.Sprintf("%d %q", pid, cmdline))
		}
		if len(left) > 0 {
			return fmt.Errorf("%d left: %v", len(left), left)
		}
		return nil
	})
}

// TestCtrlCLeavesNothing stops a system as a terminal does: every process gets SIGINT at once.
func TestCtrlCLeavesNothing(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")
	programs := []*harness.Process{s.Worker, s.Planner, s.Frontend}
	for _, p := range programs {
		p.SignalGroup(syscall.SIGINT)
	}
	for _, p := range programs {
		if code := p.Wait(t); code != 0 {
			t.Errorf("%s: exit %d after Ctrl-C\n%s", p.Name, code, p.Tail(20))
		}
	}
	nothingLeft(t, s)
}

// TestStoppingTheWorkerFinishesWhatItHolds stops the worker under load: what it has taken is
// answered, and what it has not taken waits for the next worker.
func TestStoppingTheWorkerFinishesWhatItHolds(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")
	b := s.Bus(t, bus.RoleFrontend)
	loadgen := s.StartLoadgen(t, "--rates", "double=100", "--duration", "8s", "--json", "/dev/null")
	harness.Eventually(t, "requests are answered", func() error {
		for _, g := range s.Gpulets(t, b, "double") {
			if g.Models[0].Requests > 50 {
				return nil
			}
		}
		return fmt.Errorf("fewer than 50")
	})
	s.Worker.Signal(syscall.SIGTERM)
	if code := s.Worker.Wait(t); code != 0 {
		t.Errorf("worker: exit %d after SIGTERM", code)
	}
	s.Worker = s.StartWorker(t)
	if code := loadgen.Wait(t); code != 0 {
		t.Errorf("loadgen: exit %d\n%s", code, loadgen.Tail(20))
	}
}

// TestKilledAgentLeavesNoGpulets kills the agent without warning: its gpu-lets end by themselves.
func TestKilledAgentLeavesNoGpulets(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")
	pids := map[int]bool{}
	for _, g := range s.Gpulets(t, s.Bus(t, bus.RoleFrontend), "double") {
		pids[g.PID] = true
	}
	if len(pids) == 0 {
		t.Fatal("no gpu-let reports its process")
	}
	s.Worker.Signal(syscall.SIGKILL)
	harness.Eventually(t, "the gpu-lets end", func() error {
		for _, pid := range s.Processes(t) {
			if pids[pid] {
				return fmt.Errorf("process %d still runs", pid)
			}
		}
		return nil
	})
}
