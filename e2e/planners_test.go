package e2e

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
)

// lease waits for a state of the lease.
func lease(t *testing.T, b *bus.Bus, what string, ok func(l plan.Lease, rev uint64) bool) (l plan.Lease, rev uint64) {
	t.Helper()
	harness.Eventually(t, what, func() (err error) {
		if l, rev, _, err = b.Lease(t.Context()); err == nil && !ok(l, rev) {
			err = fmt.Errorf("lease %+v, revision %d", l, rev)
		}
		return err
	})
	return l, rev
}

func holds(p *harness.Process, term uint64) func(plan.Lease, uint64) bool {
	return func(l plan.Lease, _ uint64) bool {
		var pid int
		_, err := fmt.Sscanf(filepath.Base(l.Holder), "%d", &pid)
		return err == nil && pid == p.PID() && l.Term == term
	}
}

// planned waits for a plan.
func planned(t *testing.T, b *bus.Bus, what string, ok func(plan.Plan) bool) (p plan.Plan) {
	t.Helper()
	harness.Eventually(t, what, func() (err error) {
		if p, _, err = b.GetPlan(t.Context()); err == nil && !ok(p) {
			err = fmt.Errorf("plan %d of term %d", p.Revision, p.Term)
		}
		return err
	})
	return p
}

// TestPlannersTakeTurns stops the leading planner in its tracks under load. The other leads, and goes
// on leading when the first one wakes; then it is killed, and the first one leads again. Meanwhile
// nothing is moved and no request is lost.
func TestPlannersTakeTurns(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref", PlannerArgs: []string{"--lease", "2s"}})
	s.WaitReady(t, "double")
	b, admin := s.Bus(t, bus.RoleFrontend), s.Bus(t, bus.RolePlanner)
	first := s.Planner
	lease(t, admin, "the first planner leads", holds(first, 1))
	second := s.StartPlanner(t)
	harness.Eventually(t, "the second planner stands by", func() error {
		list, err := admin.Standbys(t.Context())
		if err == nil && len(list) != 1 {
			err = fmt.Errorf("standbys %+v", list)
		}
		return err
	})
	before := planned(t, admin, "plan of the first", func(p plan.Plan) bool { return p.Term == 1 && len(p.Gpulets) > 0 })
	processes := pids(t, s, b)
	report := filepath.Join(t.TempDir(), "run.json")
	loadgen := s.StartLoadgen(t, "--rates", "double=50", "--duration", "10m", "--json", report)

	first.Signal(syscall.SIGSTOP)
	_, taken := lease(t, admin, "the second planner leads", holds(second, 2))
	marked := planned(t, admin, "plan of the second", func(p plan.Plan) bool { return p.Term == 2 })
	if change := plan.Diff(before, marked); marked.Revision != before.Revision || !change.Empty() {
		t.Errorf("revision %d after %d: %s", marked.Revision, before.Revision, change)
	}
	first.Signal(syscall.SIGCONT)
	first.WaitEvent(t, "this planner does not lead any more")
	// Ten more writes of the lease are ten more chances to lose it.
	lease(t, admin, "the second planner goes on leading", func(_ plan.Lease, rev uint64) bool { return rev >= taken+10 })
	lease(t, admin, "the second planner still leads", holds(second, 2))
	r.doubling(t, "more")
	planned(t, admin, "plan of the second with another model", func(p plan.Plan) bool { return p.Term == 2 && p.Revision > before.Revision })
	s.WaitReady(t, "more")

	second.Kill()
	lease(t, admin, "the first planner leads again", holds(first, 3))
	planned(t, admin, "plan of the first again", func(p plan.Plan) bool { return p.Term == 3 })
	r.doubling(t, "most")
	s.WaitReady(t, "most")

	loadgen.Signal(syscall.SIGINT)
	loadgen.Wait(t)
	allRight(t, "all the time", readRun(t, report).Total)
	for id, pid := range pids(t, s, b) {
		if was, ok := processes[id]; ok && was != pid {
			t.Errorf("gpu-let %s: process %d after %d", id, pid, was)
		}
	}
	first.Signal(syscall.SIGINT)
	if code := first.Wait(t); code != 0 {
		t.Errorf("the first planner: exit %d", code)
	}
}

// TestWorkersServeWithoutAnyPlanner restarts a host's agent, killed and stopped, while there is no
// planner. The plan lies on the bus.
func TestWorkersServeWithoutAnyPlanner(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")
	admin := s.Bus(t, bus.RolePlanner)
	before, rev, err := admin.GetPlan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Planner.Kill()
	allRight(t, "without a planner", load(t, s, "--rates", "double=50", "--duration", "1s").Total)
	for what, end := range map[string]func(){
		"killed":  s.Worker.Kill,
		"stopped": func() { s.Worker.Signal(syscall.SIGTERM); s.Worker.Wait(t) },
	} {
		end()
		s.Worker = s.StartWorker(t)
		s.Worker.WaitEvent(t, "gpu-let: start")
		s.WaitReady(t, "double")
		allRight(t, "without a planner, with an agent that was "+what, load(t, s, "--rates", "double=50", "--duration", "1s").Total)
	}
	after, again, err := admin.GetPlan(t.Context())
	if diff := cmp.Diff(before, after); diff != "" || again != rev || err != nil {
		t.Errorf("revision %d after %d, %v: %s", again, rev, err, diff)
	}
}
