package plannercmd

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// planner runs the command line and returns its exit code and output.
func planner(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = cli.Run(ctx, newRootCommand(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// system is a bus with one simulated host, and a planner run on it.
type system struct {
	t   *testing.T
	srv *embedded.Server
	bus *bus.Bus
}

func startSystem(t *testing.T) *system {
	t.Helper()
	s := &system{t: t, srv: embeddedtest.StartTest(t)}
	admin := embeddedtest.Connect(t, s.srv, bus.RolePlanner)
	must(t, admin.EnsureBase(t.Context()))
	s.bus = admin
	worker := embeddedtest.Connect(t, s.srv, bus.RoleWorker)
	must(t, worker.PutHost(t.Context(), plan.HostReport{
		Host: "box", Engine: "sim", Time: time.Now(),
		Devices: []plan.Device{{Index: 0, GPUType: "rtx2080ti", Name: "RTX 2080 Ti", MemBytes: 11 << 30, Sim: true}},
	}))
	s.run()
	return s
}

// run starts planner run until the test ends, and waits for its first plan.
func (s *system) run() {
	t := s.t
	models := t.TempDir()
	dir := filepath.Join(models, "resnet50")
	must(t, os.MkdirAll(filepath.Join(dir, "1"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "1", "model.pt"), []byte("archive"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "model.yaml"), []byte("name: resnet50\nslo: 108ms\nmax_batch: 32\n"+
		"inputs: [{name: x, dtype: FP32, shape: [3, 224, 224]}]\noutputs: [{name: y, dtype: FP32, shape: [1000]}]\n"), 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan string, 1)
	go func() {
		code, _, stderr := planner(ctx, s.args("run", "--models", models, "--profiles", "../../profiles",
			"--metrics-addr", "127.0.0.1:0", "--epoch", "1s", "--observe", "20ms", "--min-gap", "20ms")...)
		if code != 0 {
			done <- stderr
		}
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		if stderr := <-done; stderr != "" {
			t.Errorf("planner run: %s", stderr)
		}
	})
	s.wait("a first plan", func(p plan.Plan) bool { return p.Revision >= 1 && len(p.Gpulets) > 0 })
}

func (s *system) args(args ...string) []string {
	return append(args, "--nats-url", s.srv.URL(), "--state-dir", s.srv.StateDir())
}

func (s *system) wait(what string, ok func(plan.Plan) bool) plan.Plan {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	plans, err := s.bus.WatchPlan(ctx)
	must(s.t, err)
	for p := range plans {
		if ok(p) {
			return p
		}
	}
	s.t.Fatalf("no %s", what)
	return plan.Plan{}
}

// ask runs a command against the system and expects it to succeed.
func (s *system) ask(args ...string) string {
	s.t.Helper()
	code, stdout, stderr := planner(s.t.Context(), s.args(args...)...)
	if code != 0 {
		s.t.Fatalf("planner %s: exit %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

func (s *system) expect(text string, parts ...string) {
	s.t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			s.t.Errorf("found no %q in:\n%s", part, text)
		}
	}
}

func TestStatusShowsTheSystem(t *testing.T) {
	s := startSystem(t)
	worker := embeddedtest.Connect(t, s.srv, bus.RoleWorker)
	p, _, err := s.bus.GetPlan(t.Context())
	must(t, err)
	g := p.Gpulets[0]
	must(t, worker.PutGpulet(t.Context(), plan.GpuletReport{
		ID: g.ID, Host: g.Host, GPU: g.GPU, Share: g.Share, State: plan.Ready, Revision: p.Revision, Restarts: 2,
		Models: []plan.ModelReport{{Model: "resnet50", Loaded: true, Requests: 7, Expired: 3}}, Time: time.Now(),
	}))
	must(t, worker.PutGpulet(t.Context(), plan.GpuletReport{
		ID: "stray", Host: "box", Share: 10, State: plan.Failed, Detail: "out of memory", Time: time.Now(),
	}))
	client := embeddedtest.Connect(t, s.srv, bus.RoleClient)
	must(t, client.Publish(t.Context(), &bus.Message{Model: "resnet50", RequestID: "1", Timeout: time.Minute, Body: []byte("x")}))
	s.expect(s.ask("status"), "plan 1, ", " leads term 1, for ", "gpulet, 1 GPU used", "there is no plan yet", "rtx2080ti (sim)", g.ID, "ready",
		"stray", "failed (not planned)", "gpu-let stray: failed", "out of memory")
	var st status
	must(t, json.Unmarshal([]byte(s.ask("status", "--json")), &st))
	if len(st.Models) != 1 || st.Models[0].Pending != 1 || st.Models[0].OldestMs <= 0 || st.Models[0].SLOMs != 108 {
		t.Errorf("models %+v: expected one request of resnet50 that waits", st.Models)
	}
	if len(st.Gpulets) != 2 || st.Gpulets[0].State != plan.Ready || st.Gpulets[0].Requests != 7 || st.Gpulets[0].Expired != 3 {
		t.Errorf("gpu-lets %+v", st.Gpulets)
	}
}

func TestStatusShowsWhoLeads(t *testing.T) {
	s := startSystem(t)
	must(t, s.bus.PutStandby(t.Context(), plan.StandbyReport{Planner: "other/7", Time: time.Now()}))
	s.expect(s.ask("status"), " leads term 1, for ", "; standing by: other/7")
	var st status
	must(t, json.Unmarshal([]byte(s.ask("status", "--json")), &st))
	if l := st.Lease; st.Planner == nil || st.Planner.Name != l.Holder || l.Term != 1 || st.Plan.Term != 1 || l.TTLS != 5 || l.over() {
		t.Errorf("planner %+v, lease %+v, plan of term %d", st.Planner, l, st.Plan.Term)
	}
	for want, l := range map[string]leaseStatus{
		"nobody leads\n": {},
		"nobody leads: a/1 led term 3 until it fell silent 1m0s ago\n": {Holder: "a/1", Term: 3, AgeS: 60, TTLS: 5},
	} {
		if got := (status{Lease: l}).table(); !strings.Contains(got, want) {
			t.Errorf("found no %q in:\n%s", want, got)
		}
	}
}

func TestTablesShowLimitsAndBursts(t *testing.T) {
	g := plan.Gpulet{ID: "a", Host: "h", GPUType: "h100", Share: 15, Limit: 40, Models: []plan.Assignment{{Model: "bert", Batch: 2, Burst: 4, RateRPS: 7}}}
	for what, text := range map[string]string{
		"plan":   planTable(plan.Plan{Gpulets: []plan.Gpulet{g}}),
		"status": status{Gpulets: join(plan.Plan{Gpulets: []plan.Gpulet{g}}, nil)}.table(),
	} {
		if !strings.Contains(text, "15..40%") || !strings.Contains(text, "2..4") {
			t.Errorf("%s: found no 15..40%% and 2..4 in:\n%s", what, text)
		}
	}
}

func TestHistoryRollbackAndResume(t *testing.T) {
	s := startSystem(t)
	s.expect(s.ask("history", "--diff"), "REVISION", "there is no plan yet")
	code, _, stderr := planner(t.Context(), s.args("rollback", "99")...)
	if code != 1 || !strings.Contains(stderr, "revision 99: not kept: expected one of 1 to") {
		t.Errorf("rollback 99: exit %d: %s", code, stderr)
	}
	s.expect(s.ask("rollback", "1"), "rolled back to revision 1")
	p := s.wait("pinned plan", func(p plan.Plan) bool { return p.Pinned })
	if len(p.Gpulets) == 0 || p.Revision < 2 {
		t.Errorf("rolled back to %+v", p)
	}
	s.expect(s.ask("history"), "rolled back to revision 1 (pinned)")
	s.expect(s.ask("rollback", "--resume"), "the pin was taken away")
	if code, _, stderr := planner(t.Context(), s.args("rollback", "--resume")...); code != 1 || !strings.Contains(stderr, "is not pinned") {
		t.Errorf("second resume: exit %d: %s", code, stderr)
	}
}

// document writes the running plan, changed, to a file.
func (s *system) document(change func(*plan.Plan)) string {
	s.t.Helper()
	p, _, err := s.bus.GetPlan(s.t.Context())
	must(s.t, err)
	change(&p)
	data, err := json.Marshal(p)
	must(s.t, err)
	file := filepath.Join(s.t.TempDir(), "plan.json")
	must(s.t, os.WriteFile(file, data, 0o600))
	return file
}

func TestApplyPublishesASoundPlanPinned(t *testing.T) {
	s := startSystem(t)
	file := s.document(func(p *plan.Plan) { p.Gpulets[0].ID, p.Revision = "by-hand", 0 })
	s.expect(s.ask("apply", file, "--profiles", "../../profiles"), "published and pinned: 1 gpu-let")
	p := s.wait("pinned plan", func(p plan.Plan) bool { return p.Pinned })
	if p.Gpulets[0].ID != "by-hand" || p.Revision < 2 || p.Reason != "applied from "+file || p.Created.IsZero() {
		t.Errorf("published %+v", p)
	}
	s.ask("rollback", "--resume")
	s.wait("plan without a pin", func(next plan.Plan) bool { return !next.Pinned && next.Revision > p.Revision })
}

func TestApplyRefusesAnUnsoundPlanUnlessForced(t *testing.T) {
	s := startSystem(t)
	file := s.document(func(p *plan.Plan) {
		p.Gpulets[0].Models[0].RateRPS = 1e6
		p.Gpulets = append(p.Gpulets, plan.Gpulet{ID: "far", Host: "moon", GPUType: "rtx2080ti", Share: 10, Models: []plan.Assignment{{Model: "resnet50", Batch: 1, RateRPS: 1}}})
	})
	code, _, stderr := planner(t.Context(), s.args("apply", file, "--profiles", "../../profiles")...)
	if code != cli.ExitFailed {
		t.Fatalf("exit %d: expected a refusal", code)
	}
	s.expect(stderr, "is unsound here, nothing is published", "rate: ", "device: far moon/0: no such GPU")
	if p, _, err := s.bus.GetPlan(t.Context()); err != nil || p.Pinned {
		t.Fatalf("plan %+v, %v: expected the planner's own", p, err)
	}
	s.expect(s.ask("apply", file, "--profiles", "../../profiles", "--force"), "unsound: device: far", "2 gpu-lets")
	s.wait("forced plan", func(p plan.Plan) bool { return p.Pinned && len(p.Gpulets) == 2 })
}

func TestApplyNeverPublishesWhatIsMalformed(t *testing.T) {
	s := startSystem(t)
	file := s.document(func(p *plan.Plan) { p.Gpulets[0].Share = 0 })
	for _, args := range [][]string{{"apply", file, "--force"}, {"apply", file + ".missing"}} {
		if code, _, stderr := planner(t.Context(), s.args(args...)...); code != cli.ExitFailed || !strings.Contains(stderr, "plan.json") {
			t.Errorf("%v: exit %d: %s", args, code, stderr)
		}
	}
}

func TestExplainShowsNeedAndLimits(t *testing.T) {
	s := startSystem(t)
	s.expect(s.ask("explain", "--profiles", "../../profiles"), "plan 1: there is no plan yet", "resnet50: SLO 108 ms", "of at most", "planned again now, gpulet would use 1 GPU (")
	if code, _, stderr := planner(t.Context(), s.args("explain", "vgg")...); code != 1 || !strings.Contains(stderr, `model "vgg": not registered`) {
		t.Errorf("explain vgg: exit %d: %s", code, stderr)
	}
}

func TestWrongUsage(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"rollback", "expected either a revision or --resume"},
		{"rollback 1 --resume", "expected either a revision or --resume"},
		{"apply", "expected one file"},
		{"apply a.json b.json", "expected one file"},
		{"apply a.json --buffer 0.5", "must be at least 1"},
		{"run --epoch fast", "duration"},
		{"run --epoch 1ms", "must be at least 1s"},
		{"run --algorithm best", "expected one of"},
		{"run --violations 2", "must be between 0 and 0.5"},
		{"run --warm-rps 0", "must be positive"},
		{"run --lease 1ms", "must be between 500ms and 10m"},
		{"run --nats-url http://x", "expected nats://"},
		{"status --every 1ms", "must be at least 100ms"},
		{"simulate", "nothing to simulate"},
		{"simulate --rates resnet50=1", "no GPUs"},
		{"simulate --rates resnet50=NaN --gpus rtx2080ti:1", "expected requests per second"},
		{"simulate --rates resnet50=1 --gpus rtx2080ti:0", "expected type:count"},
		{"simulate --trace a --plan b", "expected one of"},
	} {
		code, _, stderr := planner(t.Context(), strings.Fields(c.args)...)
		if code != cli.ExitUsage || !strings.Contains(stderr, c.want) {
			t.Errorf("planner %s: exit %d: %s: expected 2 and %q", c.args, code, stderr, c.want)
		}
	}
}

func TestUnreachableSystemIsSaid(t *testing.T) {
	code, _, stderr := planner(t.Context(), "status", "--nats-url", "nats://127.0.0.1:1", "--wait", "300ms", "--state-dir", t.TempDir())
	if code != cli.ExitFailed || !strings.Contains(stderr, "no system to ask") || !strings.Contains(stderr, "nats://127.0.0.1:1") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
