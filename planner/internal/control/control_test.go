package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; none of them is about time.
const patience = 20 * time.Second

// world is a bus with a running planner and the folders it reads.
type world struct {
	t      *testing.T
	srv    *embedded.Server
	bus    *bus.Bus // as a worker, for reports and profiles
	client *bus.Bus
	admin  *bus.Bus // as a planner, for reading everything
	models string
	cfg    Config
}

func newWorld(t *testing.T) *world {
	t.Helper()
	srv := embeddedtest.StartTest(t)
	algorithm, err := pack.ByName("elastic")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, srv: srv, bus: embeddedtest.Connect(t, srv, bus.RoleWorker), admin: embeddedtest.Connect(t, srv, bus.RolePlanner),
		client: embeddedtest.Connect(t, srv, bus.RoleClient), models: t.TempDir(),
	}
	w.cfg = Config{
		Name: "test", Epoch: 100 * time.Millisecond, Observe: 20 * time.Millisecond, MinGap: 20 * time.Millisecond,
		Lease: time.Second,
		Decide: epoch.Config{
			Algorithm: algorithm, AlgorithmName: "elastic", Demand: demand.DefaultConfig(10 * time.Second), WarmRPS: 1,
			Hold: time.Hour,
		},
		Models: w.models, Profiles: "../../../profiles", Interference: true,
	}
	return w
}

// start runs a planner until the test ends.
func (w *world) start() {
	w.t.Helper()
	w.run(w.admin)
}

func (w *world) run(b Bus) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	p := New(w.cfg, b, NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler))
	go func() { done <- p.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("planner: %v", err)
		}
	})
}

func (w *world) model(name string, slo time.Duration) {
	w.t.Helper()
	dir := filepath.Join(w.models, name)
	yaml := fmt.Sprintf("name: %s\nslo: %s\nmax_batch: 32\ninputs: [{name: x, dtype: FP32, shape: [4]}]\noutputs: [{name: y, dtype: FP32, shape: [2]}]\n", name, slo)
	w.must(os.MkdirAll(filepath.Join(dir, "1"), 0o755))
	w.must(os.WriteFile(filepath.Join(dir, "1", "model.pt"), []byte("archive of "+name), 0o600))
	w.must(os.WriteFile(filepath.Join(dir, "model.yaml"), []byte(yaml), 0o600))
}

func (w *world) host(name string, gpus int) {
	w.t.Helper()
	w.must(w.bus.PutHost(w.t.Context(), w.report(name, gpus)))
}

func (w *world) report(name string, gpus int) plan.HostReport {
	r := plan.HostReport{Host: name, Engine: "sim", Time: time.Now()}
	for i := range gpus {
		r.Devices = append(r.Devices, plan.Device{Index: i, GPUType: "rtx2080ti", MemBytes: 11 << 30, Sim: true})
	}
	return r
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// plan waits for a plan that is as wanted.
func (w *world) plan(what string, ok func(plan.Plan) bool) plan.Plan {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	plans, err := w.admin.WatchPlan(ctx)
	w.must(err)
	var last plan.Plan
	for p := range plans {
		if last = p; ok(p) {
			return p
		}
	}
	w.t.Fatalf("no plan %s; the last one: %+v", what, last)
	return plan.Plan{}
}

// problem waits for the planner to report a problem that contains all parts.
func (w *world) problem(parts ...string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var r plan.PlannerReport
	for {
		r, _ = w.admin.Planner(ctx)
		for _, p := range r.Problems {
			if containsAll(p, parts) {
				return
			}
		}
		select {
		case <-ctx.Done():
			w.t.Fatalf("no problem with %q in %q", parts, r.Problems)
		case <-tick.C:
		}
	}
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

func serves(models ...string) func(plan.Plan) bool {
	return func(p plan.Plan) bool {
		found := map[string]bool{}
		for _, g := range p.Gpulets {
			for _, a := range g.Models {
				found[a.Model] = true
			}
		}
		ok := len(found) == len(models)
		for _, m := range models {
			ok = ok && found[m]
		}
		return ok
	}
}

func TestPlansWhenModelsAndHostsAppear(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.start()
	w.problem("no host reports a device")
	w.host("a", 1)
	first := w.plan("with resnet50", serves("resnet50"))
	if first.Revision != 1 || first.Created.IsZero() || first.Reason == "" {
		t.Errorf("first plan: revision %d, created %v, reason %q", first.Revision, first.Created, first.Reason)
	}
	w.model("vgg16", 142*time.Millisecond)
	second := w.plan("with both", serves("resnet50", "vgg16"))
	if id := first.Gpulets[0].ID; !strings.HasPrefix(id, "a-gpu0-r1-") {
		t.Errorf("id %q: expected a-gpu0-r1-<k>", id)
	}
	if second.Revision <= first.Revision {
		t.Errorf("revision %d after %d", second.Revision, first.Revision)
	}
}

func TestRegistersModelsAndMakesTheirQueues(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	w.start()
	w.plan("with resnet50", serves("resnet50"))
	ms, err := w.admin.Models(t.Context())
	w.must(err)
	if len(ms) != 1 || ms[0].Name != "resnet50" || ms[0].Hash == "" || ms[0].Timeout != 216*time.Millisecond {
		t.Errorf("registered %+v", ms)
	}
	if _, err := w.admin.Lag(t.Context(), "resnet50"); err != nil {
		t.Errorf("queue: %v", err)
	}
}

// host0 makes the buckets first, as a planner would, so that a host can report before one runs.
func (w *world) host0() {
	w.t.Helper()
	w.must(w.admin.EnsureBase(w.t.Context()))
	w.host("a", 1)
}

func TestBrokenModelIsSaidAndOthersServe(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.must(os.MkdirAll(filepath.Join(w.models, "broken"), 0o755))
	w.must(os.WriteFile(filepath.Join(w.models, "broken", "model.yaml"), []byte("name: broken\nslo: fast\n"), 0o600))
	w.host0()
	w.start()
	w.plan("with resnet50", serves("resnet50"))
	w.problem("broken", "model.yaml", "slo")
}

func TestModelThatBreaksStaysAndModelThatGoesIsTakenBack(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.model("vgg16", 142*time.Millisecond)
	w.host0()
	w.start()
	w.plan("with both", serves("resnet50", "vgg16"))
	w.must(os.WriteFile(filepath.Join(w.models, "resnet50", "model.yaml"), []byte("slo: [\n"), 0o600))
	w.must(os.RemoveAll(filepath.Join(w.models, "vgg16")))
	w.plan("with resnet50 only", serves("resnet50"))
	w.problem("resnet50", "model.yaml")
	ms, err := w.admin.Models(t.Context())
	w.must(err)
	if len(ms) != 1 || ms[0].Name != "resnet50" {
		t.Errorf("registered %+v, want resnet50 alone", ms)
	}
}

func TestProfileOfAnotherArchiveIsRefusedUntilAFittingOneIsMeasured(t *testing.T) {
	w := newWorld(t)
	w.model("mine", 100*time.Millisecond)
	w.host0()
	measured := profile.Profile{
		Model: "mine", GPUType: "rtx2080ti", ModelHash: strings.Repeat("ab", 32),
		Points: []profile.Point{{Share: 50, Batch: 1, P50Ms: 5}, {Share: 50, Batch: 8, P50Ms: 10}, {Share: 100, Batch: 1, P50Ms: 3}, {Share: 100, Batch: 8, P50Ms: 6}},
	}
	w.must(w.bus.PutProfile(t.Context(), measured))
	w.start()
	w.problem("mine", "abababababab", "refused")
	w.problem("mine", "no profile for rtx2080ti")
	ms, err := w.admin.Models(t.Context())
	w.must(err)
	measured.ModelHash = ms[0].Hash
	w.must(w.bus.PutProfile(t.Context(), measured))
	w.plan("with mine", serves("mine"))
}

func TestPinnedPlanStaysUntilResumed(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	w.start()
	first := w.plan("with resnet50", serves("resnet50"))
	pinned := first
	pinned.Revision, pinned.Pinned, pinned.Gpulets = first.Revision+1, true, nil
	w.put(pinned)
	w.problem("revision 2 is pinned")
	w.model("vgg16", 142*time.Millisecond)
	w.registered(2)
	now, _, err := w.admin.GetPlan(t.Context())
	w.must(err)
	if now.Revision != pinned.Revision {
		t.Fatalf("revision %d replaced the pinned %d", now.Revision, pinned.Revision)
	}
	free := pinned
	free.Revision, free.Pinned = pinned.Revision+1, false
	w.put(free)
	w.plan("with both", serves("resnet50", "vgg16"))
}

// queueWatcher tells of every queue that the planner makes or enlarges.
type queueWatcher struct {
	Bus
	queues chan bus.Queue
}

func (q queueWatcher) EnsureQueue(ctx context.Context, want bus.Queue) error {
	q.queues <- want
	return q.Bus.EnsureQueue(ctx, want)
}

// TestPlanOfSomebodyElseGetsItsRoom: whoever publishes, the queue takes what the plan carries.
func TestPlanOfSomebodyElseGetsItsRoom(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	watcher := queueWatcher{w.admin, make(chan bus.Queue, 100)}
	w.run(watcher)
	next := w.plan("with resnet50", serves("resnet50"))
	next.Revision, next.Pinned = next.Revision+1, true
	next.Gpulets[0].Models[0].RateRPS = 1e5
	w.put(next)
	limit := time.After(patience)
	for {
		select {
		case q := <-watcher.queues:
			if q.MaxMsgs >= 1e4 {
				return
			}
		case <-limit:
			t.Fatal("the queue was not enlarged")
		}
	}
}

// crampedServer has no room for large queues.
type crampedServer struct{ Bus }

func (c crampedServer) EnsureQueue(ctx context.Context, want bus.Queue) error {
	if want.MaxMsgs >= 1e4 {
		return fmt.Errorf("%w: insufficient memory resources available", bus.ErrOverloaded)
	}
	return c.Bus.EnsureQueue(ctx, want)
}

// TestAQueueThatCannotGrowIsAProblemAndNoMore: planning goes on with the queue as it is.
func TestAQueueThatCannotGrowIsAProblemAndNoMore(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	w.run(crampedServer{w.admin})
	next := w.plan("with resnet50", serves("resnet50"))
	next.Revision, next.Pinned = next.Revision+1, true
	next.Gpulets[0].Models[0].RateRPS = 1e5
	w.put(next)
	w.problem("model resnet50", "the queue stays at", "insufficient memory")
	w.model("vgg16", 142*time.Millisecond)
	w.registered(2)
	next.Revision, next.Pinned = next.Revision+1, false
	w.put(next)
	w.plan("with both", serves("resnet50", "vgg16"))
	w.eventually("the problem goes with the plan that asked for so much", func() error {
		r, err := w.admin.Planner(t.Context())
		for _, p := range r.Problems {
			if strings.Contains(p, "the queue stays at") {
				return errors.New(p)
			}
		}
		return err
	})
}

// put publishes over whatever plan there is.
func (w *world) put(p plan.Plan) {
	w.t.Helper()
	_, rev, err := w.admin.GetPlan(w.t.Context())
	w.must(err)
	_, err = w.admin.PutPlan(w.t.Context(), p, rev)
	w.must(err)
}

// registered waits until n models are registered.
func (w *world) registered(n int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	models, err := w.admin.WatchModels(ctx)
	w.must(err)
	for ms := range models {
		if len(ms) == n {
			return
		}
	}
	w.t.Fatalf("%d models were not registered", n)
}

func TestFirstRequestToAnIdleModelLoadsIt(t *testing.T) {
	w := newWorld(t)
	w.cfg.Decide.IdleAfter = time.Nanosecond
	w.model("resnet50", 108*time.Millisecond)
	w.model("vgg16", 142*time.Millisecond)
	w.host0()
	w.start()
	w.registered(2)
	w.must(w.client.Publish(t.Context(), &bus.Message{Model: "vgg16", RequestID: "1", Body: []byte("x")}))
	w.plan("with vgg16 alone", serves("vgg16"))
}

func TestTwoPlannersNeverPublishOverEachOther(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	w.start()
	w.start()
	for i, name := range []string{"vgg16", "googlenet", "ssd-mobilenetv1"} {
		w.model(name, 200*time.Millisecond)
		w.plan("with "+name, func(p plan.Plan) bool { return p.Revision >= uint64(i+1) && hasModel(p, name) })
	}
	history, err := w.admin.PlanHistory(t.Context())
	w.must(err)
	for i := 1; i < len(history); i++ {
		if history[i].Revision != history[i-1].Revision+1 {
			t.Errorf("revision %d after %d", history[i].Revision, history[i-1].Revision)
		}
	}
}

func hasModel(p plan.Plan, name string) bool {
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			if a.Model == name {
				return true
			}
		}
	}
	return false
}

func TestLostServerCostsNothingButTime(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	w.start()
	before := w.plan("with resnet50", serves("resnet50"))
	at, err := url.Parse(w.srv.URL())
	w.must(err)
	port, err := strconv.Atoi(at.Port())
	w.must(err)
	embeddedtest.Stop(t, w.srv)
	w.model("vgg16", 142*time.Millisecond) // while nobody can be told
	embeddedtest.Start(t, embedded.Config{Port: port, StateDir: w.srv.StateDir()})
	// Reports are held in memory. The host is trusted to be there until it had time to say so again.
	after := w.plan("with both", serves("resnet50", "vgg16"))
	if after.Revision <= before.Revision {
		t.Errorf("revision %d after %d", after.Revision, before.Revision)
	}
	w.eventually("the queue is there again", func() error { _, err := w.admin.Lag(w.t.Context(), "resnet50"); return err })
}

// eventually retries until f succeeds.
func (w *world) eventually(what string, f func() error) {
	w.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			w.t.Fatalf("%s: not within %v: %v", what, patience, err)
		case <-tick.C:
		}
	}
}
