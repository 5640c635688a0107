package epoch

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/tensor"
)

var midnight = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// fleet is a system of RTX 2080 Ti hosts that changes from epoch to epoch.
type fleet struct {
	t     testing.TB
	cfg   Config
	state State
}

// shipped reads the shipped profiles once; nothing changes them.
var shipped = sync.OnceValues(func() (*profile.Set, *interference.Set) {
	set, errs := profile.LoadDir("../../../profiles")
	if len(errs) > 0 {
		panic(errs[0])
	}
	predict, err := interference.New(set)
	if err != nil {
		panic(err)
	}
	return set, predict
})

func newFleet(t testing.TB, algorithm string) *fleet {
	t.Helper()
	set, predict := shipped()
	a, err := pack.ByName(algorithm)
	if err != nil {
		t.Fatal(err)
	}
	return &fleet{
		t: t,
		cfg: Config{
			Algorithm: a, AlgorithmName: algorithm, Demand: demand.DefaultConfig(10 * time.Second),
			WarmRPS: 1, Hold: 30 * time.Second, MoveSeconds: 2,
		},
		state: State{Now: midnight, Files: set, Interference: predict, Loads: map[string]Load{}},
	}
}

func (f *fleet) host(name string, gpus int) {
	h := plan.HostReport{Host: name}
	for i := range gpus {
		h.Devices = append(h.Devices, plan.Device{Index: i, GPUType: "rtx2080ti", MemBytes: 11 << 30})
	}
	f.state.Hosts = append(f.state.Hosts, h)
}

func (f *fleet) model(name string, slo time.Duration, rate float64) {
	f.state.Models = append(f.state.Models, model.Model{
		Config: model.Config{Name: name, SLO: slo, Timeout: 2 * slo, Weight: 1, MaxBatch: 32}, Hash: "h-" + name, Version: 1,
	})
	f.rate(name, rate)
}

func (f *fleet) rate(name string, rate float64) {
	f.state.Loads[name] = Load{Estimate: demand.Estimate{RateRPS: rate, Window: 20 * time.Second}}
}

// epoch decides, follows the plan, and lets ten seconds pass.
func (f *fleet) epoch() Decision {
	f.t.Helper()
	d := Decide(f.cfg, f.state)
	if d.Publish {
		if d.Plan.Revision <= f.state.Current.Revision {
			f.t.Fatalf("revision %d after %d", d.Plan.Revision, f.state.Current.Revision)
		}
		if err := d.Plan.Validate(); err != nil {
			f.t.Fatalf("published %v", err)
		}
	} else if !reflect.DeepEqual(d.Plan, f.state.Current) {
		f.t.Fatalf("%s (%s) does not publish and yet changes the plan", d.Cause, d.Reason)
	}
	f.state.Current, f.state.History = d.Plan, d.History
	f.state.Now = f.state.Now.Add(10 * time.Second)
	return d
}

// expect runs epochs until the cause comes, at most so many.
func (f *fleet) expect(cause string, within int) Decision {
	f.t.Helper()
	var seen []string
	for range within {
		d := f.epoch()
		if d.Cause == cause {
			return d
		}
		seen = append(seen, d.Cause+": "+d.Reason)
	}
	f.t.Fatalf("no %s within %d epochs: %s", cause, within, strings.Join(seen, "; "))
	return Decision{}
}

func ids(p plan.Plan) map[string]bool {
	m := map[string]bool{}
	for _, g := range p.Gpulets {
		m[g.ID] = true
	}
	return m
}

func loaded(p plan.Plan) map[string]bool {
	m := map[string]bool{}
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			m[a.Model] = true
		}
	}
	return m
}

func hasProblem(d Decision, parts ...string) bool {
	for _, p := range d.Problems {
		ok := true
		for _, part := range parts {
			ok = ok && strings.Contains(p, part)
		}
		if ok {
			return true
		}
	}
	return false
}

func TestFirstPlanLoadsEveryModelWithoutTraffic(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	for _, name := range []string{"resnet50", "vgg16", "googlenet"} {
		f.model(name, 200*time.Millisecond, 0)
	}
	d := f.expect(First, 1)
	if len(loaded(d.Plan)) != 3 {
		t.Errorf("loaded %v, expected all three", loaded(d.Plan))
	}
	f.expect(Steady, 1)
}

func TestNothingIsPlannedWithoutHosts(t *testing.T) {
	f := newFleet(t, "elastic")
	f.model("resnet50", 108*time.Millisecond, 10)
	if d := f.expect(Nothing, 1); !hasProblem(d, "no host reports a device") {
		t.Errorf("problems %q", d.Problems)
	}
}

func TestPlanStaysWhenAllHostsAreGone(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.model("resnet50", 108*time.Millisecond, 10)
	f.expect(First, 1)
	f.state.Hosts = nil
	f.expect(Nothing, 1)
}

func TestLostHostIsReplaced(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.host("b", 1)
	f.model("resnet50", 108*time.Millisecond, 100)
	before := f.expect(First, 1).Plan
	lost := before.Gpulets[0].Host
	f.state.Hosts = nil
	for _, name := range []string{"a", "b"} {
		if name != lost {
			f.host(name, 1)
		}
	}
	d := f.expect(Hosts, 1)
	for _, g := range d.Plan.Gpulets {
		if g.Host == lost {
			t.Errorf("gpu-let %s is on the lost host %s", g.ID, lost)
		}
	}
}

func TestSteadyTrafficWithNoiseMovesNothing(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 4)
	f.model("resnet50", 108*time.Millisecond, 300)
	f.model("vgg16", 142*time.Millisecond, 200)
	f.expect(First, 1)
	moves := 0
	for i := range 30 {
		noise := []float64{0, 4, -3, 2, -5, 1, 5, -4}[i%8]
		f.rate("resnet50", 300+noise)
		f.rate("vgg16", 200-noise)
		moves += f.epoch().Moves
	}
	if moves > 2 {
		t.Errorf("%d moves at ±2 %% noise, expected next to none", moves)
	}
}

func TestRisingDemandIsMetAtOnceAndFallingAfterTheHold(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 8)
	f.model("vgg16", 142*time.Millisecond, 100)
	low := f.expect(First, 1).Plan.GPUsUsed
	f.rate("vgg16", 900)
	high := f.expect(Demand, 1).Plan.GPUsUsed
	if high <= low {
		t.Fatalf("%d GPUs for 900/s, %d for 100/s", high, low)
	}
	f.rate("vgg16", 100)
	for range 2 {
		f.expect(Steady, 1)
	}
	if d := f.expect(Shrink, 3); d.Plan.GPUsUsed != low {
		t.Errorf("%d GPUs after shrinking, had %d", d.Plan.GPUsUsed, low)
	}
}

func TestGPUsAreNotGivenBackWhenMovesCostMore(t *testing.T) {
	f := newFleet(t, "elastic")
	f.cfg.MoveSeconds = 1e6
	f.host("a", 8)
	f.model("vgg16", 142*time.Millisecond, 900)
	f.model("resnet50", 108*time.Millisecond, 500)
	f.expect(First, 1)
	f.rate("vgg16", 600)
	for range 10 {
		if d := f.epoch(); d.Cause == Shrink && d.Moves > 0 {
			t.Fatalf("gave GPUs back with %d moves: %s", d.Moves, d.Reason)
		}
	}
}

func TestDemandBeyondTheGPUsIsServedInPartAndSaid(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.model("vgg16", 142*time.Millisecond, 2000)
	f.model("resnet50", 108*time.Millisecond, 2000)
	f.model("lenet", 5*time.Millisecond, 1)
	d := f.expect(First, 1)
	if len(d.Plan.Unserved) == 0 || d.DesiredGPUs <= 1 {
		t.Errorf("unserved %v, desired %d GPUs", d.Plan.Unserved, d.DesiredGPUs)
	}
	if len(loaded(d.Plan)) != 3 {
		t.Errorf("loaded %v, expected every model to have some place", loaded(d.Plan))
	}
	if !hasProblem(d, "vgg16", "have no place") {
		t.Errorf("problems %q", d.Problems)
	}
	if d := f.epoch(); d.Publish {
		t.Errorf("published again without anything better: %s", d.Reason)
	}
}

func TestModelThatCannotMeetItsSLOIsPlannedForALongerOne(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.model("vgg16", 3*time.Millisecond, 1)
	f.model("resnet50", 108*time.Millisecond, 50)
	d := f.expect(First, 1)
	if !loaded(d.Plan)["vgg16"] || !hasProblem(d, "vgg16", "SLO of 3ms") {
		t.Errorf("loaded %v, problems %q", loaded(d.Plan), d.Problems)
	}
	if !hasProblem(d, "vgg16", "SLO of 3ms cannot be met: the fastest possible is") {
		t.Errorf("problems %q: expected that the SLO cannot be met", d.Problems)
	}
	f.expect(Steady, 1)
	f.rate("vgg16", 100)
	if d := f.epoch(); d.Plan.Unserved["vgg16"] == 0 || hasProblem(d, "vgg16", "would serve all") {
		t.Errorf("unserved %v, problems %q: expected no word of GPUs that would serve all", d.Plan.Unserved, d.Problems)
	}
}

// cpu makes one host of so many cores, with profiles as they were measured on a small machine.
func (f *fleet) cpu(cores int) {
	gpuType := fmt.Sprintf("cpu-test-%dc", cores)
	d := plan.Device{GPUType: gpuType, MemBytes: 4 << 30}
	for i := 1; i <= cores; i++ {
		d.Shares = append(d.Shares, 100*i/cores)
	}
	f.state.Hosts = []plan.HostReport{{Host: "laptop", Devices: []plan.Device{d}}}
	for name, ms := range map[string]float64{"lenet": 0.6, "bert_tiny": 5, "mobilenet_v2": 40} {
		p := profile.Profile{Model: name, GPUType: gpuType, ModelHash: "h-" + name}
		for _, share := range d.Shares {
			speed := 1 + 0.7*(float64(share*cores)/100-1)
			for _, b := range []int{1, 2, 4, 8} {
				p.Points = append(p.Points, profile.Point{Share: share, Batch: b, P50Ms: ms * (0.3 + 0.7*float64(b)) / speed})
			}
		}
		f.state.Measured = append(f.state.Measured, p)
	}
}

func TestSmallComputersServeThreeModels(t *testing.T) {
	for _, cores := range []int{1, 2, 4} {
		f := newFleet(t, "elastic")
		f.cpu(cores)
		f.model("lenet", 50*time.Millisecond, 100)
		f.model("bert_tiny", 100*time.Millisecond, 5)
		f.model("mobilenet_v2", 300*time.Millisecond, 3)
		d := f.expect(First, 1)
		if len(loaded(d.Plan)) != 3 {
			t.Errorf("%d cores: loaded %v, problems %q", cores, loaded(d.Plan), d.Problems)
		}
	}
}

func TestModelWithoutAnyPlaceIsAGuest(t *testing.T) {
	f := newFleet(t, "elastic")
	f.cpu(1)
	f.model("lenet", 2*time.Millisecond, 300)       // leaves no time for a batch of 40 ms
	f.model("mobilenet_v2", 41*time.Millisecond, 1) // needs 80 ms
	d := f.expect(First, 1)
	if len(loaded(d.Plan)) != 2 {
		t.Fatalf("loaded %v, problems %q", loaded(d.Plan), d.Problems)
	}
	guests := 0
	for _, g := range d.Plan.Gpulets {
		for _, a := range g.Models {
			if a.RateRPS == 0 {
				guests++
				if a.Batch != 1 {
					t.Errorf("guest %s has batches of %d", a.Model, a.Batch)
				}
			}
		}
	}
	if guests != 1 || !hasProblem(d, "a guest on") {
		t.Errorf("%d guests, problems %q", guests, d.Problems)
	}
	for range 3 {
		if d := f.epoch(); d.Publish {
			t.Errorf("published again without anything better: %s: %s", d.Cause, d.Reason)
		}
	}
}

func TestProfileOfAnotherArchiveIsRefused(t *testing.T) {
	f := newFleet(t, "elastic")
	f.cpu(2)
	f.model("lenet", 50*time.Millisecond, 10)
	f.model("bert_tiny", 100*time.Millisecond, 1)
	for i := range f.state.Measured {
		if f.state.Measured[i].Model == "lenet" {
			f.state.Measured[i].ModelHash = "feedfacefeedface"
		}
	}
	d := f.expect(First, 1)
	if loaded(d.Plan)["lenet"] || !loaded(d.Plan)["bert_tiny"] {
		t.Errorf("loaded %v", loaded(d.Plan))
	}
	if !hasProblem(d, "lenet", "feedfacefeed", "h-lenet", "refused") {
		t.Errorf("problems %q", d.Problems)
	}
}

func TestGpuletsKeepTheirIDs(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("node-A.example", 4)
	f.model("resnet50", 108*time.Millisecond, 200)
	first := f.expect(First, 1).Plan
	f.model("googlenet", 66*time.Millisecond, 50)
	second := f.epoch().Plan
	kept := 0
	for id := range ids(second) {
		if ids(first)[id] {
			kept++
		}
	}
	if kept == 0 {
		t.Errorf("no id of %v is in %v", ids(first), ids(second))
	}
	for id := range ids(second) {
		if !strings.HasPrefix(id, "node-a-example-gpu") {
			t.Errorf("id %q", id)
		}
	}
}

// TestAnotherLimitIsAnotherGpulet: a process keeps its limit, so an id does.
func TestAnotherLimitIsAnotherGpulet(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	g := plan.Gpulet{ID: "x", Host: "a", GPUType: "rtx2080ti", Share: 20, Models: []plan.Assignment{{Model: "bert", Batch: 1, RateRPS: 1}}}
	for _, c := range []struct {
		was, is int
		same    bool
	}{{0, 0, true}, {40, 40, true}, {0, 20, true}, {0, 40, false}, {40, 0, false}} {
		running, packed := g, g
		running.Limit, packed.Limit = c.was, c.is
		f.state.Current = plan.Plan{Revision: 7, Gpulets: []plan.Gpulet{running}}
		if got := settle(plan.Plan{Gpulets: []plan.Gpulet{packed}}, f.state).Gpulets[0].ID; (got == "x") != c.same {
			t.Errorf("limit %d, then %d: id %q: the same one %v expected", c.was, c.is, got, c.same)
		}
	}
}

func TestContentsChangePlacesForTheFewestMoves(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 3)
	gpulet := func(gpu, share int, models ...string) plan.Gpulet {
		g := plan.Gpulet{ID: fmt.Sprintf("x-%d-%d", gpu, share), Host: "a", GPU: gpu, GPUType: "rtx2080ti", Share: share}
		for _, m := range models {
			g.Models = append(g.Models, plan.Assignment{Model: m, Batch: 1, RateRPS: 1})
		}
		return g
	}
	f.state.Current = plan.Plan{Revision: 7, Gpulets: []plan.Gpulet{gpulet(0, 50, "vgg16"), gpulet(0, 40, "resnet50"), gpulet(2, 100, "bert")}}
	packed := plan.Plan{Gpulets: []plan.Gpulet{gpulet(0, 100, "bert"), gpulet(1, 50, "vgg16"), gpulet(1, 40, "lenet", "resnet50")}}
	got := settle(packed, f.state)
	want := map[string]string{"x-2-100": "a/2 bert", "x-0-50": "a/0 vgg16", "x-0-40": "a/0 lenet resnet50"}
	have := map[string]string{}
	for _, g := range got.Gpulets {
		have[g.ID] = g.Device() + " " + modelNames(g)
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Error(diff)
	}
	if moves := plan.Diff(f.state.Current, got).Moves(); moves != 1 {
		t.Errorf("%d moves, only lenet is new", moves)
	}
}

func TestRevisionIsAboveWhatWorkersHaveSeen(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.state.Hosts[0].Revision = 41
	f.model("resnet50", 108*time.Millisecond, 1)
	if d := f.expect(First, 1); d.Plan.Revision != 42 {
		t.Errorf("revision %d, a worker has seen 41", d.Plan.Revision)
	}
}

func TestGpuletsOfAModelAreRankedByRate(t *testing.T) {
	p := plan.Plan{}
	for i := range 12 {
		p.Gpulets = append(p.Gpulets, plan.Gpulet{Models: []plan.Assignment{{Model: "m", RateRPS: float64(100 - i)}}})
	}
	rank(&p)
	for i, g := range p.Gpulets {
		if want := min(i+1, 9); g.Models[0].Rank != want {
			t.Errorf("gpu-let %d has rank %d, want %d", i, g.Models[0].Rank, want)
		}
	}
}

func TestPinnedPlanStays(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.model("resnet50", 108*time.Millisecond, 1)
	f.expect(First, 1)
	f.state.Current.Pinned = true
	f.model("vgg16", 142*time.Millisecond, 100)
	if d := f.expect(Pinned, 1); !hasProblem(d, "is pinned") {
		t.Errorf("problems %q", d.Problems)
	}
}

func TestUnsoundPlanIsNeverUsed(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.model("resnet50", 108*time.Millisecond, 500)
	f.cfg.AlgorithmName = "careless"
	f.cfg.Algorithm = func(in problem.Input, _ pack.Options) pack.Result {
		return pack.Result{Plan: plan.Plan{GPUsUsed: 1, Gpulets: []plan.Gpulet{{
			ID: "a-gpu0-r1-1", Host: "a", GPUType: "rtx2080ti", Share: 10,
			Models: []plan.Assignment{{Model: "resnet50", Batch: 32, RateRPS: in.Models[0].Rate, DutyMs: 1, ExecMs: 1}},
		}}}}
	}
	d := f.expect(Stuck, 1)
	if d.Publish || !hasProblem(d, "careless made an unsound plan") {
		t.Errorf("publish %v, problems %q", d.Publish, d.Problems)
	}
}

func TestIdleModelIsTakenOffAndComesBack(t *testing.T) {
	f := newFleet(t, "elastic")
	f.cfg.IdleAfter = time.Minute
	f.host("a", 1)
	f.model("resnet50", 108*time.Millisecond, 100)
	f.model("vgg16", 142*time.Millisecond, 0)
	f.expect(First, 1)
	l := f.state.Loads["vgg16"]
	l.Idle = 2 * time.Minute
	f.state.Loads["vgg16"] = l
	if d := f.expect(Idle, 1); loaded(d.Plan)["vgg16"] {
		t.Errorf("vgg16 is still loaded")
	}
	f.expect(Steady, 1)
	l.Backlog = 1
	f.state.Loads["vgg16"] = l
	if cause, _, _ := Urgent(f.state, Look(f.state)); cause != Demand {
		t.Errorf("a request for a model that is not loaded does not start an epoch: %q", cause)
	}
	if d := f.expect(Demand, 1); !loaded(d.Plan)["vgg16"] {
		t.Errorf("vgg16 did not come back")
	}
}

func TestRemovedModelIsTakenOff(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.model("resnet50", 108*time.Millisecond, 10)
	f.model("vgg16", 142*time.Millisecond, 10)
	f.expect(First, 1)
	f.state.Models = f.state.Models[:1]
	if d := f.expect(Models, 1); loaded(d.Plan)["vgg16"] {
		t.Errorf("loaded %v", loaded(d.Plan))
	}
}

func TestRequestsOfSeveralSamplesCountAsSuch(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 4)
	f.model("resnet50", 108*time.Millisecond, 50)
	one := f.expect(First, 1).Needs["resnet50"]
	l := f.state.Loads["resnet50"]
	l.SamplesPerRequest = 8
	f.state.Loads["resnet50"] = l
	if eight := f.epoch().Needs["resnet50"]; eight < 7.9*one {
		t.Errorf("need %v samples/s for requests of 8, %v for requests of 1", eight, one)
	}
}

func TestLagIsUrgent(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.model("resnet50", 108*time.Millisecond, 50)
	f.expect(First, 1)
	seen := Look(f.state)
	if cause, reason, _ := Urgent(f.state, seen); cause != "" {
		t.Errorf("urgent without cause: %s %s", cause, reason)
	}
	l := f.state.Loads["resnet50"]
	l.Backlog = 1000
	f.state.Loads["resnet50"] = l
	if cause, _, changed := Urgent(f.state, seen); cause != Lag || changed {
		t.Errorf("cause %q, changed %v", cause, changed)
	}
	f.host("b", 1)
	if cause, _, changed := Urgent(f.state, seen); cause != Hosts || !changed {
		t.Errorf("cause %q, changed %v", cause, changed)
	}
}

func TestScheduleBacksOffWhenNothingBetterIsFound(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.model("resnet50", 108*time.Millisecond, 50)
	f.expect(First, 1)
	l := f.state.Loads["resnet50"]
	l.Backlog = 1000
	f.state.Loads["resnet50"] = l
	s := Schedule{Epoch: 10 * time.Second, MinGap: 2 * time.Second}
	now := midnight
	if cause, _, due := s.Due(now, f.state); !due || cause != First {
		t.Fatalf("first: %q %v", cause, due)
	}
	s.Decided(now, First, f.state, Decision{Publish: true})
	var times []int
	for range 30 {
		now = now.Add(time.Second)
		if cause, _, due := s.Due(now, f.state); due {
			times = append(times, int(now.Sub(midnight).Seconds()))
			s.Decided(now, cause, f.state, Decision{})
		}
	}
	if diff := cmp.Diff([]int{2, 6, 14, 24}, times); diff != "" {
		t.Errorf("decisions at seconds (-want +got): %s", diff)
	}
}

func TestQueueSizesFollowRateAndTimeout(t *testing.T) {
	m := model.Model{Config: model.Config{
		Name: "m", Timeout: 2 * time.Second,
		Inputs: []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{3, 224, 224}}},
	}}
	q := QueueFor(m, plan.Plan{}, Load{Estimate: demand.Estimate{RateRPS: 1000}}, 8<<20)
	if q.MaxMsgs != 4096 || q.MaxBytes != 512<<20 || q.AckWait != time.Second || q.MaxAge != m.Timeout+time.Minute {
		t.Errorf("queue %+v", q)
	}
	p := plan.Plan{Gpulets: []plan.Gpulet{{Models: []plan.Assignment{{Model: "m", Batch: 300, RateRPS: 1, ExecMs: 900, DutyMs: 900}}}}}
	if q := QueueFor(m, p, Load{}, 8<<20); q.AckWait != 4*time.Second || q.MaxAckPending != 1024 {
		t.Errorf("queue %+v: expected an ack wait of four batches and room for two", q)
	}
	p.Gpulets[0].Models[0].Burst = 600
	if q := QueueFor(m, p, Load{}, 8<<20); q.MaxAckPending != 2048 {
		t.Errorf("queue %+v: expected room for two bursts", q)
	}
	small := QueueFor(m, plan.Plan{}, Load{}, 1<<20)
	want := small.Grow(q)
	want.MaxMsgs = small.MaxMsgs
	if got := small.Grow(q).Grow(small); got != want {
		t.Errorf("%+v, expected %+v: only the number of requests may shrink", got, want)
	}
}

// TestQueueHoldsWhatIsAnsweredInTime: whoever is let into the queue of a model that is served gets an
// answer within the timeout, at the rate that the plan promises, however much is asked for.
func TestQueueHoldsWhatIsAnsweredInTime(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := model.Model{Config: model.Config{Name: "m", Timeout: time.Duration(rapid.IntRange(1, 60_000).Draw(rt, "timeout ms")) * time.Millisecond}}
		a := plan.Assignment{
			Model: "m", RateRPS: 1, Batch: rapid.IntRange(1, 64).Draw(rt, "batch"),
			DutyMs: float64(rapid.IntRange(1, 500).Draw(rt, "duty ms")),
		}
		p := plan.Plan{Gpulets: []plan.Gpulet{{Models: []plan.Assignment{a}}}}
		asked := rapid.Float64Range(0, 1e6).Draw(rt, "asked for")
		each := float64(rapid.IntRange(1, 16).Draw(rt, "samples a request"))
		q := QueueFor(m, p, Load{Estimate: demand.Estimate{RateRPS: asked}, SamplesPerRequest: each}, 1<<20)
		rate := float64(a.Batch) * 1000 / a.DutyMs / each
		if wait := float64(q.MaxMsgs) / rate; wait > m.Timeout.Seconds() && q.MaxMsgs > max(leastMsgs, 2*int64(a.Batch)/int64(each)) {
			rt.Errorf("%d requests at %.0f/s: %.3f s, longer than the timeout of %v", q.MaxMsgs, rate, wait, m.Timeout)
		}
		if q.MaxMsgs < max(leastMsgs, 2*int64(a.Batch)/int64(each)) {
			rt.Errorf("%d requests: no room for two batches of %d", q.MaxMsgs, a.Batch)
		}
		if other := QueueFor(m, p, Load{SamplesPerRequest: each}, 1<<20); other.MaxMsgs != q.MaxMsgs {
			rt.Errorf("%d requests when %.0f/s are asked for, %d when none is: an overload must not make room for itself", q.MaxMsgs, asked, other.MaxMsgs)
		}
	})
}

// TestDecisionsOfRandomFleets: whatever is observed, a decision is the same twice, changes nothing it
// was given, and publishes only plans that are valid, on devices that are there, and sound.
func TestDecisionsOfRandomFleets(t *testing.T) {
	names := []string{"bert", "googlenet", "lenet", "resnet50", "vgg16", "unknown"}
	rapid.Check(t, func(rt *rapid.T) {
		f := newFleet(t, rapid.SampledFrom([]string{"elastic", "greedy", "sbp"}).Draw(rt, "algorithm"))
		for i := range rapid.IntRange(0, 3).Draw(rt, "hosts") {
			f.host(fmt.Sprintf("h%d", i), rapid.IntRange(1, 2).Draw(rt, "gpus"))
		}
		for _, name := range names[:rapid.IntRange(0, len(names)).Draw(rt, "models")] {
			f.model(name, time.Duration(rapid.IntRange(2, 300).Draw(rt, "slo"))*time.Millisecond, rapid.Float64Range(0, 500).Draw(rt, "rate"))
		}
		for range rapid.IntRange(1, 4).Draw(rt, "epochs") {
			before := f.state
			d := f.epoch()
			if again := Decide(f.cfg, before); !reflect.DeepEqual(d, again) {
				rt.Fatalf("the same state was decided differently: %+v and %+v", d, again)
			}
			if d.Publish {
				f.mustBeSound(rt, d)
			}
			for _, m := range f.state.Models {
				f.rate(m.Name, rapid.Float64Range(0, 500).Draw(rt, "next"))
			}
		}
	})
}

// mustBeSound checks what a published plan promises, with SLOs as long as it was planned for.
func (f *fleet) mustBeSound(t *rapid.T, d Decision) {
	in := assemble(f.cfg, f.state).in
	p := withoutGuests(d.Plan)
	rates := map[string]float64{}
	for i := range in.Models {
		m := &in.Models[i]
		rates[m.Name] = served(p, m.Name)
		if hasProblem(d, "model "+m.Name+":", "planned for") {
			m.SLO *= 1 << relaxRounds
		}
	}
	p.Unserved = nil
	if v := check.Plan(in.withRates(rates).Input, p); len(v) > 0 {
		t.Fatalf("published %v", v)
	}
}
