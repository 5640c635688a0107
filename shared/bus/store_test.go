package bus_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/tensor"
)

func planOf(revision uint64) plan.Plan {
	return plan.Plan{Revision: revision, Gpulets: []plan.Gpulet{}, Unserved: map[string]float64{"m": 1.5}}
}

func putPlan(t testing.TB, b *bus.Bus, revision, over uint64) uint64 {
	t.Helper()
	rev, err := b.PutPlan(context.Background(), planOf(revision), over)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestPlansAreSwappedNotOverwritten(t *testing.T) {
	s := newSystem(t)
	p, rev, err := s.planner.GetPlan(t.Context())
	if err != nil || rev != 0 || p.Revision != 0 {
		t.Fatalf("plan %+v, revision %d, %v before the first", p, rev, err)
	}
	first := putPlan(t, s.planner, 1, 0)
	if _, err := s.planner.PutPlan(t.Context(), planOf(9), 0); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("a second first plan: %v, expected %v", err, bus.ErrConflict)
	}
	second := putPlan(t, s.planner, 2, first)
	if _, err := s.planner.PutPlan(t.Context(), planOf(9), first); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("a plan over an old one: %v, expected %v", err, bus.ErrConflict)
	}
	p, rev, err = s.connect(t, bus.RoleWorker).GetPlan(t.Context())
	if diff := cmp.Diff(planOf(2), p); diff != "" || rev != second || err != nil {
		t.Errorf("revision %d, expected %d; %v; %s", rev, second, err, diff)
	}
}

func TestPlanHistoryKeepsSixteen(t *testing.T) {
	s := newSystem(t)
	var rev uint64
	for i := range uint64(20) {
		rev = putPlan(t, s.planner, i+1, rev)
	}
	plans, err := s.connect(t, bus.RoleFrontend).PlanHistory(t.Context())
	if err != nil || len(plans) != 16 {
		t.Fatalf("%d plans, %v, expected 16", len(plans), err)
	}
	for i, p := range plans {
		if p.Revision != uint64(i+5) {
			t.Errorf("plan %d has revision %d, expected %d", i, p.Revision, i+5)
		}
	}
}

func TestWatchPlanSendsEveryNewPlan(t *testing.T) {
	s := newSystem(t)
	rev := putPlan(t, s.planner, 1, 0)
	ctx, cancel := context.WithCancel(t.Context())
	plans, err := s.connect(t, bus.RoleWorker).WatchPlan(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= 10; i++ {
		if p := receive(t, "plan", plans); p.Revision != i {
			t.Fatalf("revision %d, expected %d", p.Revision, i)
		}
		rev = putPlan(t, s.planner, i+1, rev)
	}
	cancel()
	for range plans { // closed at the end
	}
}

func TestSlowReaderGetsTheNewestPlan(t *testing.T) {
	s := newSystem(t)
	plans, err := s.connect(t, bus.RoleWorker).WatchPlan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var rev uint64
	for i := uint64(1); i <= 12; i++ {
		rev = putPlan(t, s.planner, i, rev)
	}
	for last := uint64(0); last < 12; {
		p := receive(t, "plan", plans)
		if p.Revision <= last {
			t.Fatalf("revision %d after %d", p.Revision, last)
		}
		last = p.Revision
	}
}

// A plan that was put again by a new leader is one plan; the newest copy of it counts.
func TestPlanHistoryShowsAPlanOnce(t *testing.T) {
	s := newSystem(t)
	rev := putPlan(t, s.planner, 1, 0)
	again := planOf(1)
	again.Term = 3
	rev, err := s.planner.PutPlan(t.Context(), again, rev)
	if err != nil {
		t.Fatal(err)
	}
	putPlan(t, s.planner, 2, rev)
	plans, err := s.planner.PlanHistory(t.Context())
	if diff := cmp.Diff([]plan.Plan{again, planOf(2)}, plans); diff != "" || err != nil {
		t.Errorf("%v; %s", err, diff)
	}
}

// Compare-and-set keeps such plans off the bus; a tool that writes past it does not move workers.
func TestWatchPlanRefusesPlansOfALowerTerm(t *testing.T) {
	s := newSystem(t)
	plans, err := s.connect(t, bus.RoleWorker).WatchPlan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var rev uint64
	for _, c := range []struct {
		revision, term uint64
		taken          bool
	}{{1, 0, true}, {2, 5, true}, {3, 4, false}, {4, 0, false}, {5, 5, true}, {6, 6, true}} {
		p := planOf(c.revision)
		p.Term = c.term
		if rev, err = s.planner.PutPlan(t.Context(), p, rev); err != nil {
			t.Fatal(err)
		}
		if c.taken {
			if got := receive(t, "plan", plans); got.Revision != c.revision {
				t.Errorf("revision %d of term %d, expected revision %d", got.Revision, got.Term, c.revision)
			}
		}
	}
}

func TestFenceStopsPlansFromBeforeIt(t *testing.T) {
	s := newSystem(t)
	fence, err := s.planner.FencePlan(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.planner.PutPlan(t.Context(), planOf(1), 0); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("a plan from before the fence: %v, expected %v", err, bus.ErrConflict)
	}
	if p, rev, err := s.planner.GetPlan(t.Context()); p.Revision != 0 || rev != fence || err != nil {
		t.Errorf("plan %+v, revision %d, %v; expected none, at revision %d", p, rev, err, fence)
	}
	rev := putPlan(t, s.planner, 1, fence)
	if _, err := s.planner.FencePlan(t.Context(), fence); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("a fence over a plan: %v, expected %v", err, bus.ErrConflict)
	}
	if p, got, err := s.planner.GetPlan(t.Context()); p.Revision != 1 || got != rev || err != nil {
		t.Errorf("plan %+v, revision %d, %v; expected the first, at revision %d", p, got, err, rev)
	}
}

func TestWatchPlanWorksBeforeThereIsAnything(t *testing.T) {
	srv := embeddedtest.StartTest(t)
	plans, err := embeddedtest.Connect(t, srv, bus.RoleWorker).WatchPlan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	planner := embeddedtest.Connect(t, srv, bus.RolePlanner)
	if err := planner.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	putPlan(t, planner, 1, 0)
	if p := receive(t, "plan", plans); p.Revision != 1 {
		t.Errorf("revision %d, expected 1", p.Revision)
	}
}

func TestWatchesSurviveARestart(t *testing.T) {
	port, dir := freePort(t), t.TempDir()
	s := system{srv: embeddedtest.Start(t, embedded.Config{Port: port, StateDir: dir})}
	s.planner = s.connect(t, bus.RolePlanner)
	if err := s.planner.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	rev := putPlan(t, s.planner, 1, 0)
	w := s.connect(t, bus.RoleWorker)
	plans, err := w.WatchPlan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	models, err := w.WatchModels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	receive(t, "first plan", plans)
	if got := receive(t, "no models", models); len(got) != 0 {
		t.Errorf("models %v, expected none", got)
	}
	s.restart(t, port, dir)
	eventually(t, func() error { return s.planner.EnsureBase(t.Context()) })
	putPlan(t, s.planner, 2, rev)
	if err := s.planner.PutModel(t.Context(), model.Model{Config: model.Config{Name: "m"}}); err != nil {
		t.Fatal(err)
	}
	if p := receive(t, "plan after the restart", plans); p.Revision != 2 {
		t.Errorf("revision %d, expected 2", p.Revision)
	}
	if got := receive(t, "models after the restart", models); len(got) != 1 || got[0].Name != "m" {
		t.Errorf("models %+v, expected m", got)
	}
}

// Somebody deleted the bucket: revisions start again at 1, and the new plans count.
func TestWatchPlanFollowsABucketThatWasMadeAnew(t *testing.T) {
	s := newSystem(t)
	var rev uint64
	for i := range uint64(5) {
		rev = putPlan(t, s.planner, i+1, rev)
	}
	plans, err := s.connect(t, bus.RoleWorker).WatchPlan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if p := receive(t, "plan", plans); p.Revision != 5 {
		t.Fatalf("revision %d, expected 5", p.Revision)
	}
	js, err := jetstream.New(s.raw(t, bus.RolePlanner))
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteKeyValue(t.Context(), bus.BucketPlan); err != nil {
		t.Fatal(err)
	}
	if err := s.planner.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rev := putPlan(t, s.planner, 6, 0); rev != 1 {
		t.Fatalf("revision %d on the bus, expected 1", rev)
	}
	if p := receive(t, "plan of the new bucket", plans); p.Revision != 6 {
		t.Errorf("revision %d, expected 6", p.Revision)
	}
}

func TestReportsAreSortedAndDeleted(t *testing.T) {
	s := newSystem(t)
	w, f := s.connect(t, bus.RoleWorker), s.connect(t, bus.RoleFrontend)
	for _, name := range []string{"b.example.org", "a"} {
		if err := w.PutHost(t.Context(), plan.HostReport{Host: name, Engine: "sim"}); err != nil {
			t.Fatal(err)
		}
		if err := w.PutGpulet(t.Context(), plan.GpuletReport{ID: "g-" + name, State: plan.Ready}); err != nil {
			t.Fatal(err)
		}
	}
	hosts, err := f.Hosts(t.Context())
	if err != nil || len(hosts) != 2 || hosts[0].Host != "a" || hosts[1].Host != "b.example.org" || hosts[0].Engine != "sim" {
		t.Errorf("hosts %+v, %v", hosts, err)
	}
	gpulets, err := f.Gpulets(t.Context())
	if err != nil || len(gpulets) != 2 || gpulets[0].ID != "g-a" || gpulets[0].State != plan.Ready {
		t.Errorf("gpu-lets %+v, %v", gpulets, err)
	}
	if one, err := w.Gpulet(t.Context(), "g-a"); err != nil || one.ID != "g-a" || one.State != plan.Ready {
		t.Errorf("gpu-let %+v, %v", one, err)
	}
	for range 2 { // deleting nothing is fine
		if err := errors.Join(w.DeleteHost(t.Context(), "a"), w.DeleteGpulet(t.Context(), "g-a")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Gpulet(t.Context(), "g-a"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("a report that was taken back: %v, expected %v", err, bus.ErrNotFound)
	}
	hosts, herr := f.Hosts(t.Context())
	gpulets, gerr := f.Gpulets(t.Context())
	if len(hosts) != 1 || len(gpulets) != 1 || herr != nil || gerr != nil {
		t.Errorf("%d hosts and %d gpu-lets, %v %v, expected one each", len(hosts), len(gpulets), herr, gerr)
	}
	for _, host := range []string{"", "a b", "a..b", "*"} {
		if err := w.PutHost(t.Context(), plan.HostReport{Host: host}); err == nil {
			t.Errorf("host %q was accepted", host)
		}
	}
}

func TestWatchHostsTellsOfComingAndGoing(t *testing.T) {
	s := newSystem(t)
	w := s.connect(t, bus.RoleWorker)
	hosts, err := s.planner.WatchHosts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	expect := func(n int) {
		t.Helper()
		if got := receive(t, "hosts", hosts); len(got) != n {
			t.Fatalf("hosts %+v, expected %d", got, n)
		}
	}
	expect(0)
	if err := w.PutHost(t.Context(), plan.HostReport{Host: "a"}); err != nil {
		t.Fatal(err)
	}
	expect(1)
	if err := w.DeleteHost(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	expect(0)
}

func TestPlannerReport(t *testing.T) {
	s := newSystem(t)
	f := s.connect(t, bus.RoleFrontend)
	if _, err := f.Planner(t.Context()); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("error %v, expected %v", err, bus.ErrNotFound)
	}
	want := plan.PlannerReport{Planner: "p", Models: []plan.ModelDemand{{Model: "m", RateRPS: 2}}}
	if err := s.planner.PutPlanner(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	got, err := f.Planner(t.Context())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
}

func TestModelsAreRegistered(t *testing.T) {
	s := newSystem(t)
	want := model.Model{Config: model.Config{
		Name: "a", SLO: 5 * time.Millisecond, Timeout: 10 * time.Millisecond, MaxBatch: 32, Precision: "fp16", Weight: 1, Class: "interactive",
		Inputs:     []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{1, -1}}},
		Outputs:    []tensor.Spec{{Name: "y", DType: tensor.INT64, Shape: []int64{}}},
		Preprocess: map[string]model.Preprocess{"x": {Accept: []tensor.DType{tensor.UINT8}, Scale: 0.5}},
	}, Version: 3, Hash: "abc"}
	stored := want
	stored.Path = "/models/a/3/model.pt"
	for _, m := range []model.Model{{Config: model.Config{Name: "b"}}, stored} {
		if err := s.planner.PutModel(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	for _, role := range []bus.Role{bus.RoleWorker, bus.RoleFrontend, bus.RoleClient} {
		got, err := s.connect(t, role).Models(t.Context())
		if err != nil || len(got) != 2 || got[1].Name != "b" {
			t.Fatalf("%s: models %+v, %v", role, got, err)
		}
		if diff := cmp.Diff(want, got[0]); diff != "" {
			t.Errorf("%s: %s", role, diff)
		}
	}
	if err := s.planner.DeleteModel(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.planner.Models(t.Context()); err != nil || len(got) != 1 {
		t.Errorf("models %+v, %v after a deletion", got, err)
	}
	if err := s.planner.PutModel(t.Context(), model.Model{Config: model.Config{Name: "No"}}); !errors.Is(err, bus.ErrUnknownModel) {
		t.Errorf("error %v, expected %v", err, bus.ErrUnknownModel)
	}
}

func TestOneBrokenValueHidesNoOther(t *testing.T) {
	s := newSystem(t)
	if err := s.planner.PutModel(t.Context(), model.Model{Config: model.Config{Name: "good"}}); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(s.raw(t, bus.RolePlanner))
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), bus.BucketModels)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(t.Context(), "broken", "{"); err != nil {
		t.Fatal(err)
	}
	got, err := s.planner.Models(t.Context())
	if err != nil || len(got) != 1 || got[0].Name != "good" {
		t.Errorf("models %+v, %v", got, err)
	}
}

func TestProfilesOfManyHosts(t *testing.T) {
	s := newSystem(t)
	w := s.connect(t, bus.RoleWorker)
	watched, err := s.planner.WatchProfiles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	receive(t, "no profiles", watched)
	const n = 400 // more than a watcher of the client library holds
	for i := range n {
		p := profile.Profile{GPUType: fmt.Sprintf("cpu-x-%dc", i%4), Model: fmt.Sprintf("m%03d", i), Points: []profile.Point{{Share: 100, Batch: 1, P50Ms: 1}}}
		if err := w.PutProfile(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.planner.Profiles(t.Context())
	if err != nil || len(got) != n {
		t.Fatalf("%d profiles, %v, expected %d", len(got), err, n)
	}
	for i, p := range got[1:] {
		if q := got[i]; q.GPUType > p.GPUType || q.GPUType == p.GPUType && q.Model >= p.Model {
			t.Errorf("%s %s before %s %s", q.GPUType, q.Model, p.GPUType, p.Model)
		}
	}
	for len(receive(t, "profiles", watched)) < n {
	}
}

func TestReportsBeforeThePlannerSayWhatIsMissing(t *testing.T) {
	w := embeddedtest.Connect(t, embeddedtest.StartTest(t), bus.RoleWorker)
	if err := w.PutHost(t.Context(), plan.HostReport{Host: "a"}); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("error %v, expected %v", err, bus.ErrUnavailable)
	}
	if got, err := w.Models(t.Context()); len(got) != 0 || err != nil {
		t.Errorf("models %v, %v, expected none", got, err)
	}
}
