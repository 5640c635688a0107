package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// member is one of several planners: with a bus whose calls can be held up, as those of a process
// that was stopped, and a clock that can be set.
type member struct {
	Bus
	t    *testing.T
	reg  *prometheus.Registry
	stop func()

	ahead  atomic.Int64 // of the true time, in ns: its clock
	held   atomic.Pointer[chan struct{}]
	holds  chan string  // receives the name of a call that is held up
	only   atomic.Value // string: hold up this call alone; empty: all
	writes atomic.Int64 // calls that make or change something other than the lease
}

// join starts another planner of the world.
func (w *world) join(name string) *member {
	w.t.Helper()
	reg := prometheus.NewRegistry()
	m := &member{Bus: embeddedtest.Connect(w.t, w.srv, bus.RolePlanner), t: w.t, reg: reg, holds: make(chan string, 100)}
	m.only.Store("")
	cfg := w.cfg
	cfg.Name, cfg.Now = name, func() time.Time { return time.Now().Add(time.Duration(m.ahead.Load())) }
	p := New(cfg, m, NewMetrics(reg), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	m.stop = func() {
		if stopped {
			return
		}
		stopped = true
		m.release()
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("planner %s: %v", name, err)
		}
	}
	w.t.Cleanup(m.stop)
	return m
}

// hold holds up calls from now on, all or those of one name.
func (m *member) hold(only string) {
	gate := make(chan struct{})
	m.only.Store(only)
	m.held.Store(&gate)
}

func (m *member) release() {
	if gate := m.held.Swap(nil); gate != nil {
		close(*gate)
	}
}

// pass is a call on its way to the bus. A call that was held up goes on as if its process had slept:
// its context is not asked.
func (m *member) pass(call string) {
	gate := m.held.Load()
	if only := m.only.Load().(string); gate == nil || only != "" && only != call {
		return
	}
	select {
	case m.holds <- call:
	default:
	}
	<-*gate
}

func (m *member) Lease(ctx context.Context) (plan.Lease, uint64, time.Time, error) {
	m.pass("Lease")
	return m.Bus.Lease(ctx)
}

func (m *member) PutLease(ctx context.Context, l plan.Lease, rev uint64) (uint64, error) {
	m.pass("PutLease")
	return m.Bus.PutLease(ctx, l, rev)
}

func (m *member) PutPlan(_ context.Context, p plan.Plan, rev uint64) (uint64, error) {
	m.writes.Add(1)
	m.pass("PutPlan")
	return m.Bus.PutPlan(context.Background(), p, rev)
}

func (m *member) FencePlan(ctx context.Context, rev uint64) (uint64, error) {
	m.writes.Add(1)
	m.pass("FencePlan")
	return m.Bus.FencePlan(ctx, rev)
}

func (m *member) Lag(ctx context.Context, model string) (bus.Lag, error) {
	m.pass("Lag")
	return m.Bus.Lag(ctx, model)
}

func (m *member) EnsureBase(ctx context.Context) error {
	m.writes.Add(1)
	return m.Bus.EnsureBase(ctx)
}

func (m *member) EnsureQueue(ctx context.Context, q bus.Queue) error {
	m.writes.Add(1)
	return m.Bus.EnsureQueue(ctx, q)
}

func (m *member) DeleteQueue(ctx context.Context, model string) error {
	m.writes.Add(1)
	return m.Bus.DeleteQueue(ctx, model)
}

func (m *member) PutModel(ctx context.Context, x model.Model) error {
	m.writes.Add(1)
	return m.Bus.PutModel(ctx, x)
}

func (m *member) DeleteModel(ctx context.Context, name string) error {
	m.writes.Add(1)
	return m.Bus.DeleteModel(ctx, name)
}

func (m *member) PutPlanner(ctx context.Context, r plan.PlannerReport) error {
	m.writes.Add(1)
	return m.Bus.PutPlanner(ctx, r)
}

// metric reads a figure without labels.
func (m *member) metric(name string) float64 {
	m.t.Helper()
	families, err := m.reg.Gather()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	m.t.Fatalf("no metric %s", name)
	return 0
}

// leads waits until a planner leads a term, by the lease and by its report.
func (w *world) leads(name string, term uint64) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%s leads term %d", name, term), func() error {
		l, _, _, err := w.admin.Lease(w.t.Context())
		if err == nil && (l.Holder != name || l.Term != term) {
			err = fmt.Errorf("lease %+v", l)
		}
		if err != nil {
			return err
		}
		r, err := w.admin.Planner(w.t.Context())
		if err == nil && (r.Planner != name || r.Term != term) {
			err = fmt.Errorf("%s reports in term %d", r.Planner, r.Term)
		}
		return err
	})
}

// standsBy waits until a planner says that it stands by.
func (w *world) standsBy(name string) {
	w.t.Helper()
	w.eventually(name+" stands by", func() error {
		list, err := w.admin.Standbys(w.t.Context())
		for _, r := range list {
			if r.Planner == name {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("standbys %+v", list))
	})
}

func inTerm(term uint64, models ...string) func(plan.Plan) bool {
	return func(p plan.Plan) bool { return p.Term == term && serves(models...)(p) }
}

func TestStandbyTakesOverAndThePlanStays(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	a := w.join("a")
	w.leads("a", 1)
	before := w.plan("of a", inTerm(1, "resnet50"))
	b := w.join("b")
	w.standsBy("b")
	a.hold("") // a is gone, as far as anybody can see
	w.leads("b", 2)
	after := w.plan("of b", inTerm(2, "resnet50"))
	if change := plan.Diff(before, after); after.Revision != before.Revision || !change.Empty() {
		t.Errorf("revision %d after %d: a change of the leader changed the plan: %s", after.Revision, before.Revision, change)
	}
	history, err := w.admin.PlanHistory(t.Context())
	w.must(err)
	if len(history) != 1 || history[0].Term != 2 {
		t.Errorf("history %+v, expected the plan once, as the second leader wrote it", history)
	}
	w.model("vgg16", 142*time.Millisecond)
	w.plan("of b, with another model", inTerm(2, "resnet50", "vgg16"))
	if got := b.metric("gpulet_planner_leading") + b.metric("gpulet_planner_term"); got != 1+2 {
		t.Errorf("gauges of b sum to %v, expected it to lead term 2", got)
	}
	a.release()
	w.standsBy("a")
	if leading, changes := a.metric("gpulet_planner_leading"), a.metric("gpulet_planner_leader_changes_total"); leading != 0 || changes != 2 {
		t.Errorf("a: leading %v, changes %v; expected 0 and 2", leading, changes)
	}
}

// A leader that sleeps at the worst moment, with a plan on its way to the bus and a clock that tells
// it nothing, wakes as a standby.
func TestPlanOfADeposedLeaderIsRefused(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	a := w.join("a")
	w.plan("of a", inTerm(1, "resnet50"))
	b := w.join("b")
	w.standsBy("b")

	a.hold("PutPlan")
	w.model("vgg16", 142*time.Millisecond)
	<-a.holds // a's plan with vgg16 has left it
	a.only.Store("")
	w.leads("b", 2)
	w.plan("of b", inTerm(2, "resnet50", "vgg16"))
	w.model("googlenet", 66*time.Millisecond)
	last := w.plan("of b, with another model", inTerm(2, "resnet50", "vgg16", "googlenet"))

	a.release()
	w.standsBy("a")
	now, _, err := w.admin.GetPlan(t.Context())
	w.must(err)
	if now.Term != 2 || now.Revision < last.Revision || !hasModel(now, "googlenet") {
		t.Errorf("term %d, revision %d after %d: %+v", now.Term, now.Revision, last.Revision, now)
	}
	b.stop()
	w.leads("a", 3)
}

// The same before there is any plan: nothing is there whose revision the late one could meet.
func TestFirstPlanOfADeposedLeaderIsRefused(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.must(w.admin.EnsureBase(t.Context()))
	a := w.join("a")
	w.leads("a", 1)
	a.hold("PutPlan")
	w.host("a", 1)
	<-a.holds
	a.only.Store("")
	b := w.join("b")
	b.hold("PutPlan") // it marks the plan that is not there, and gets no further
	<-b.holds
	_, marked, err := w.admin.GetPlan(t.Context())
	w.must(err)
	a.release()
	w.standsBy("a")
	if p, rev, err := w.admin.GetPlan(t.Context()); err != nil || p.Revision != 0 || rev != marked {
		t.Errorf("plan %+v, revision %d after %d, %v: expected none", p, rev, marked, err)
	}
	b.release()
	w.plan("of b", inTerm(2, "resnet50"))
}

// A clock that jumps costs the lease for a moment, and nothing else.
func TestLeaderWhoseClockJumpsGoesOnWithItsTerm(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	a := w.join("a")
	w.plan("of a", inTerm(1, "resnet50"))
	a.ahead.Store(int64(time.Hour))
	w.model("vgg16", 142*time.Millisecond)
	w.plan("of a, with another model", inTerm(1, "resnet50", "vgg16"))
}

func TestStandbyTouchesNothing(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	a := w.join("a")
	w.leads("a", 1)
	b := w.join("b")
	w.standsBy("b")
	w.host("a", 1)
	w.plan("of a", inTerm(1, "resnet50"))
	w.must(w.admin.DeleteQueue(t.Context(), "resnet50"))
	w.eventually("the queue is there again", func() error { _, err := w.admin.Lag(t.Context(), "resnet50"); return err })
	w.eventually("b sees the plan", func() error {
		if rev := b.metric("gpulet_planner_plan_revision"); rev < 1 {
			return fmt.Errorf("revision %v", rev)
		}
		return nil
	})
	if n := b.writes.Load(); n != 0 {
		t.Errorf("the standby made or changed %d things", n)
	}
	if a.writes.Load() == 0 {
		t.Error("the leader made nothing: nothing was counted")
	}
}

func TestLeaderThatStopsHandsOverAtOnce(t *testing.T) {
	w := newWorld(t)
	w.cfg.Lease = time.Minute // longer than these tests wait
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	a := w.join("a")
	w.plan("of a", inTerm(1, "resnet50"))
	w.cfg.Lease = time.Second // how often b looks; a's lease says how long it holds
	w.join("b")
	w.standsBy("b")
	a.stop()
	w.leads("b", 2)
}

// A model that asks for another storage must not stop planning, nor cost what its queue holds.
func TestQueueThatHoldsRequestsKeepsItsStorage(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	w.join("a")
	w.plan("of a", serves("resnet50"))
	w.must(w.client.Publish(t.Context(), &bus.Message{Model: "resnet50", RequestID: "1", Timeout: time.Minute, Body: []byte("x")}))
	yaml := filepath.Join(w.models, "resnet50", "model.yaml")
	text, err := os.ReadFile(yaml)
	w.must(err)
	w.must(os.WriteFile(yaml, append(text, "storage: file\n"...), 0o600))
	w.problem("model resnet50: the queue stays where it is", "storage Memory, wanted File")
	w.model("vgg16", 142*time.Millisecond)
	w.plan("of a, with another model", serves("resnet50", "vgg16"))
	if lag, err := w.admin.Lag(t.Context(), "resnet50"); err != nil || lag.Pending != 1 {
		t.Errorf("lag %+v, %v: expected the request to wait", lag, err)
	}
	w.must(os.WriteFile(yaml, text, 0o600))
	w.eventually("the problem is gone", func() error {
		r, err := w.admin.Planner(t.Context())
		if err == nil && len(r.Problems) > 0 {
			err = fmt.Errorf("problems %q", r.Problems)
		}
		return err
	})
}

// An operator who applies or rolls back a plan takes no leader's place.
func TestLeaderAcceptsPlansOfItsTermFromOperators(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	w.join("a")
	p := w.plan("of a", inTerm(1, "resnet50"))
	p.Revision, p.Pinned = p.Revision+1, true
	w.put(p)
	w.problem("pinned")
	w.leads("a", 1)
}

// The bucket of leases is gone and with it the count of terms. The plan remembers.
func TestLostLeaseDoesNotTakeTermsBack(t *testing.T) {
	w := newWorld(t)
	w.model("resnet50", 108*time.Millisecond)
	w.host0()
	w.put(plan.Plan{Revision: 4, Term: 7, Gpulets: []plan.Gpulet{}})
	w.join("a")
	w.leads("a", 8)
	w.plan("of a", inTerm(8, "resnet50"))
}
