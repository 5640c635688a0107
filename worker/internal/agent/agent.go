// Package agent keeps a host's gpu-let processes as the plan says, and tells the bus what runs.
//
// One goroutine owns the children and everything known of them; what to do is decided by package
// reconcile. Processes, the bus and measuring have goroutines of their own and hand over values.
// The agent serves no requests: while the planner or the bus is away, its children go on serving
// what they were last told.
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/link"
	"github.com/gpulet/gpulet/worker/internal/reconcile"
)

// Bus is what an agent needs of the bus.
type Bus interface {
	WatchPlan(ctx context.Context) (<-chan plan.Plan, error)
	WatchModels(ctx context.Context) (<-chan []model.Model, error)
	PutHost(ctx context.Context, r plan.HostReport) error
	DeleteHost(ctx context.Context, host string) error
	PutGpulet(ctx context.Context, r plan.GpuletReport) error
	Gpulet(ctx context.Context, id string) (plan.GpuletReport, error)
	DeleteGpulet(ctx context.Context, id string) error
	PutProfile(ctx context.Context, p profile.Profile) error
	Suspect(ctx context.Context, model string, seq uint64, stored time.Time) (plan.Suspect, error)
	PutSuspect(ctx context.Context, s plan.Suspect) error
	OnReconnect(f func())
}

// Config is what an agent needs.
type Config struct {
	Host      string
	Inventory device.Inventory
	Engine    string // in words, for the host's report
	// Repository is the folder of the models' archives; empty where the engine needs none.
	Repository string
	// Command is the process of a gpu-let, without its pipes.
	Command func(Start) *exec.Cmd
	// Standby is a process that loads what every gpu-let needs and then waits to become one (see
	// link.Become). Nil: gpu-lets start from scratch.
	Standby func() *exec.Cmd
	// Sharing is what cuts the host's GPUs into shares. Nil: nothing has to, as on a CPU.
	Sharing Sharing
	// Profile returns the profile of a model on the host's device, measuring it if need be. Nil:
	// the device needs no measuring.
	Profile func(ctx context.Context, m model.Model) (*profile.Profile, error)
	// Limits are those of package reconcile; zero means the defaults.
	Limits reconcile.Limits
	Log    *slog.Logger
}

// Start is a gpu-let that is about to start.
type Start struct {
	Gpulet plan.Gpulet
	Device plan.Device // it is on
	Cores  []int       // none: all
	// MemBytes is the device memory that it may take without taking any from what the plan gives to
	// other gpu-lets of its device; 0: not known.
	MemBytes int64
}

// Sharing is what lets processes share a device: MPS on GPUs.
type Sharing interface {
	// Release makes the device let go of a process that is about to be killed.
	Release(ctx context.Context, gpu, pid int) error
	// Problems receives what is wrong, in words, whenever that changes. It may be nil.
	Problems() <-chan []string
}

// Timings of the agent.
const (
	hostEvery    = 3 * time.Second // least often that the host is reported
	gpuletEvery  = 2 * time.Second // least often that a gpu-let's counts are reported
	resolveEvery = 5 * time.Second // models with problems are looked at again
	releaseLimit = 2 * time.Second // of letting go of a process before it is killed
)

// Agent is a running agent. All fields are owned by the goroutine of Run.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	bus      Bus
	report   *reporter
	metrics  *metrics
	children map[string]*child
	standby  *process // nil: none
	events   chan event

	plan     plan.Plan
	planned  bool                         // a plan has been seen
	since    time.Time                    // when the plan came
	peers    *peers                       // on other hosts
	heard    map[string]plan.GpuletReport // of peers, by id, since the plan came
	models   map[string]resolved
	problems map[string]string // of measuring, by model
	sharing  []string          // what is wrong with sharing devices
	faults   map[int]int       // by device: how often one failed under a gpu-let
	stopping bool
	notes    []string // last reported

	deaths     map[string][]time.Time // by model: of gpu-lets that it shared with others
	quarantine map[string]quarantined // by model
	hangs      int                    // gpu-lets killed because their engine hung, so far
	accused    int                    // requests that were running when a gpu-let died, so far
	rollbacks  int                    // gpu-lets kept because their successors did not come up, so far
	accusing   sync.WaitGroup
}

// child is a gpu-let that the agent runs, or ran and may run again.
type child struct {
	reconcile.Child
	gpulet   plan.Gpulet // as last assigned
	cores    []int
	proc     *process // nil once it exited
	sent     link.Command
	last     plan.GpuletReport
	put      time.Time // when last was handed to the reporter
	restarts int
	detail   string          // why it exited
	work     []blackbox.Work // what it died over
	hung     string          // why it was killed, if its engine hung
	note     string          // why it is there although the plan does not say so
}

// New returns an agent; reg receives its metrics.
func New(cfg Config, b Bus, reg prometheus.Registerer) *Agent {
	if cfg.Limits == (reconcile.Limits{}) {
		cfg.Limits = reconcile.DefaultLimits
	}
	a := &Agent{
		cfg: cfg, log: cfg.Log, bus: b,
		children: map[string]*child{},
		events:   make(chan event, 256),
		problems: map[string]string{},
		faults:   map[int]int{},
		deaths:   map[string][]time.Time{}, quarantine: map[string]quarantined{},
		metrics: newMetrics(cfg.Host),
	}
	reg.MustRegister(a.metrics)
	return a
}

// Run works until ctx ends; it then drains the children and returns when they have gone. The end
// of the abort context (see lifecycle.Context) kills those that are left.
func (a *Agent) Run(ctx context.Context) error {
	drain, abort, stop := lifecycle.Context(ctx, a.cfg.Limits.Drain+5*time.Second)
	defer stop()
	plans, err := a.bus.WatchPlan(drain)
	if err != nil {
		return fmt.Errorf("watch the plan: %w", err)
	}
	registered, err := a.bus.WatchModels(drain)
	if err != nil {
		return fmt.Errorf("watch the models: %w", err)
	}
	local := newResolver(a.cfg.Repository)
	models := local.run(drain, registered)
	measured := startMeasuring(drain, a.cfg, a.bus)
	a.report = startReporter(a.bus, a.log)
	a.peers = startPeers(drain, a.bus, a.log)
	for _, n := range a.cfg.Inventory.Notes {
		a.log.Warn("device", "note", n)
	}
	a.loop(drain, abort, plans, models, measured)
	a.dismiss()
	a.accusing.Wait()
	a.report.stop(a.cfg.Host)
	a.peers.wait()
	local.wait()
	measured.wait()
	return nil
}

func (a *Agent) loop(drain, abort context.Context, plans <-chan plan.Plan, models <-chan map[string]resolved, m *measuring) {
	host := time.NewTicker(hostEvery)
	defer host.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	ended, aborted := drain.Done(), abort.Done()
	sharing := (<-chan []string)(nil)
	if a.cfg.Sharing != nil {
		sharing = a.cfg.Sharing.Problems()
	}
	a.reportHost()
	for !a.stopping || len(a.children) > 0 {
		select {
		case p, ok := <-plans:
			if !ok {
				plans = nil
				continue
			}
			a.takePlan(p)
		case found, ok := <-models:
			if !ok {
				models = nil
				continue
			}
			a.models = found
			m.measure(found)
			a.reassign()
			a.reportHost()
		case problems := <-m.problems:
			a.problems = problems
			a.reportHost()
		case a.sharing = <-sharing:
			a.reportHost()
		case e := <-a.events:
			a.handle(e)
		case found := <-a.peers.found:
			maps.Copy(a.heard, found)
		case <-host.C:
			a.reportHost()
		case <-timer.C:
		case <-ended:
			ended = nil
			a.log.Info("stopping", "gpulets", len(a.children))
			a.stopping = true
		case <-aborted:
			aborted = nil
			a.killAll()
		}
		if a.models != nil || a.stopping { // before that, nothing could be assigned
			timer.Reset(a.reconcile(time.Now()))
		}
		a.metrics.set(a.snapshot())
	}
}

func (a *Agent) takePlan(p plan.Plan) {
	if err := p.Validate(); err != nil {
		a.log.Error("plan refused, keeping the last one", "plan_rev", p.Revision, "error", err)
		return
	}
	a.plan, a.planned, a.since, a.heard = p, true, time.Now(), map[string]plan.GpuletReport{}
	a.log.Info("plan", "plan_rev", p.Revision, "gpulets", len(a.desired().Gpulets))
	a.reportHost()
}

// desired is this host's part of the plan, and what is known of the others'.
func (a *Agent) desired() reconcile.Desired {
	want := reconcile.Desired{Revision: a.plan.Revision, Since: a.since, Memory: map[int]int64{}, Reports: a.heard}
	for _, dev := range a.cfg.Inventory.Devices {
		want.Memory[dev.Index] = dev.MemBytes
	}
	if a.stopping {
		return want
	}
	for _, g := range a.plan.Gpulets {
		if g.Host != a.cfg.Host {
			want.Elsewhere = append(want.Elsewhere, g)
		} else if _, here := a.cfg.Inventory.Device(g.GPU); here {
			want.Gpulets = append(want.Gpulets, g)
		}
	}
	want.Gpulets = a.isolate(want.Gpulets)
	return want
}

// reconcile does what has to be done now and returns when to look again.
func (a *Agent) reconcile(now time.Time) time.Duration {
	released := a.release(now)
	for {
		actions := reconcile.Next(now, a.desired(), a.states(), a.cfg.Limits)
		for _, act := range actions {
			a.do(act, now)
		}
		if slices.ContainsFunc(actions, func(act reconcile.Action) bool { return act.Verb == reconcile.Forget }) {
			continue // what is gone may have kept something from starting
		}
		a.note(actions, now)
		a.standBy()
		a.peers.ask(reconcile.Unseen(a.desired(), a.states()))
		wake := reconcile.Wake(actions)
		if wake.IsZero() || !released.IsZero() && released.Before(wake) {
			wake = released
		}
		if wake.IsZero() {
			return time.Hour
		}
		return max(0, wake.Sub(now))
	}
}

func (a *Agent) states() []reconcile.Child {
	list := make([]reconcile.Child, 0, len(a.children))
	for _, c := range a.children {
		list = append(list, c.Child)
	}
	return list
}

func (a *Agent) do(act reconcile.Action, now time.Time) {
	c := a.children[act.ID]
	if act.Verb != reconcile.Wait {
		a.log.Info("gpu-let: "+string(act.Verb), "gpulet", act.ID, "plan_rev", a.plan.Revision, "reason", act.Reason)
	}
	switch act.Verb {
	case reconcile.Start:
		a.start(act.Gpulet, now)
	case reconcile.Assign:
		c.gpulet, c.MemBytes = act.Gpulet, act.Gpulet.MemBytes
		a.assign(c)
	case reconcile.Drain:
		c.DrainedAt = now
		c.proc.send(link.Command{Op: link.Drain})
	case reconcile.Kill:
		c.KilledAt = now
		if act.Hung {
			// Before the device lets go of the process: what then fails is not written down any more.
			c.hung, c.work = act.Reason, c.proc.working()
			a.hangs++
		}
		a.kill(c)
	case reconcile.Forget:
		delete(a.children, act.ID)
		a.report.forget(act.ID)
	}
}

// start starts a process, in place of one that exited.
func (a *Agent) start(g plan.Gpulet, now time.Time) {
	c := &child{gpulet: g}
	if old := a.children[g.ID]; old != nil {
		c.Crashes, c.restarts, c.detail = old.Crashes, old.restarts+1, old.detail
	}
	c.Child.ID, c.GPU, c.Share, c.Limit, c.MemBytes = g.ID, g.GPU, g.Share, g.Limit, g.MemBytes
	c.State, c.StartedAt, c.Heard = plan.Starting, now, now
	a.children[g.ID] = c
	c.cores = a.allot(g)
	dev, _ := a.cfg.Inventory.Device(g.GPU)
	cmd := a.cfg.Command(Start{Gpulet: g, Device: dev, Cores: c.cores, MemBytes: a.spare(g, dev)})
	proc, err := a.launch(g.ID, cmd)
	if err != nil {
		a.log.Error("gpu-let does not start", "gpulet", g.ID, "error", err)
		c.detail = err.Error()
		c.Exit(now, a.cfg.Limits)
		a.putGpulet(c, now)
		return
	}
	c.proc = proc
	a.assign(c)
	a.putGpulet(c, now)
}

// spare is the memory of a device that the plan gives to no other gpu-let than g; 0: not known.
func (a *Agent) spare(g plan.Gpulet, dev plan.Device) int64 {
	left := dev.MemBytes
	for _, o := range a.desired().Gpulets {
		if o.GPU != g.GPU {
			continue
		}
		if o.MemBytes <= 0 {
			return 0
		}
		if o.ID != g.ID {
			left -= o.MemBytes
		}
	}
	return max(0, left)
}

// kill ends a child's process. Letting go of it may take a moment, and holds nothing up.
func (a *Agent) kill(c *child) {
	if a.cfg.Sharing == nil {
		c.proc.kill()
		return
	}
	id, gpu, proc := c.Child.ID, c.GPU, c.proc
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), releaseLimit)
		defer cancel()
		if err := a.cfg.Sharing.Release(ctx, gpu, proc.pid()); err != nil {
			a.log.Warn("device does not let go of a gpu-let, killing it all the same", "gpulet", id, "error", err)
		}
		proc.kill()
	}()
}

// allot gives a gpu-let on the CPU its cores: none that another gpu-let of the plan has, if that
// can be. Those that the plan no longer wants do not count, since they will be gone.
func (a *Agent) allot(g plan.Gpulet) []int {
	all := a.cfg.Inventory.Cores
	if len(all) == 0 {
		return nil
	}
	var slots []device.Slot
	for _, w := range a.desired().Gpulets {
		s := device.Slot{ID: w.ID, N: device.CoresOf(w.Share, len(all))}
		if c := a.children[w.ID]; c != nil && c.proc != nil {
			s.At = c.cores
		}
		slots = append(slots, s)
	}
	return device.Allot(all, slots)[g.ID]
}

// assign tells a child what to serve.
func (a *Agent) assign(c *child) {
	cmd := a.command(c.gpulet)
	c.Assigned, c.Models, c.sent = a.plan.Revision, c.gpulet.Models, cmd
	c.proc.send(cmd)
}

// reassign tells those children whose models have changed in the repository.
func (a *Agent) reassign() {
	for _, c := range a.children {
		if c.proc == nil || !c.DrainedAt.IsZero() || c.Assigned == 0 {
			continue
		}
		cmd := a.command(c.gpulet)
		cmd.Revision = c.Assigned
		if !sameCommand(cmd, c.sent) {
			c.sent = cmd
			c.proc.send(cmd)
		}
	}
}

func (a *Agent) handle(e event) {
	now := time.Now()
	c := a.children[e.id]
	if c == nil || c.proc != e.proc {
		return // of a process that was replaced
	}
	switch {
	case e.report != nil:
		a.hear(c, *e.report, now)
	case e.exited:
		a.exited(c, e, now)
	}
}

func (a *Agent) hear(c *child, r plan.GpuletReport, now time.Time) {
	changed := r.State != c.State || r.Revision != c.Revision || r.Detail != c.last.Detail
	if r.State == plan.Ready && c.State != plan.Ready {
		c.detail = ""
	}
	c.Hear(now, r)
	c.last = r
	if changed || now.Sub(c.put) >= gpuletEvery {
		a.putGpulet(c, now)
	}
	if changed {
		a.reportHost()
	}
}

func (a *Agent) killAll() {
	a.stopping = true
	for _, c := range a.children {
		if c.proc != nil {
			a.log.Warn("killing gpu-let", "gpulet", c.Child.ID)
			c.DrainedAt, c.KilledAt = time.Now(), time.Now()
			a.kill(c)
		}
	}
}

// putGpulet reports a child: what it says of itself, and what only the agent knows.
func (a *Agent) putGpulet(c *child, now time.Time) {
	c.put = now
	a.report.gpulet(a.describe(c, now))
}

func (a *Agent) describe(c *child, now time.Time) plan.GpuletReport {
	r := c.last
	r.ID, r.Host, r.GPU, r.Share = c.Child.ID, a.cfg.Host, c.GPU, c.Share
	r.State, r.Revision, r.Restarts, r.Note, r.Time = c.State, c.Revision, c.restarts, c.note, now
	r.Models = append([]plan.ModelReport{}, r.Models...)
	if c.proc == nil {
		r.PID, r.State = 0, plan.Failed
	} else {
		r.PID = c.proc.pid()
	}
	if r.Detail == "" {
		r.Detail = c.detail
	}
	return r
}

func (a *Agent) reportHost() {
	r := plan.HostReport{
		Host: a.cfg.Host, Devices: a.cfg.Inventory.Devices, Engine: a.cfg.Engine, Driver: a.cfg.Inventory.Driver,
		Revision: a.plan.Revision, Time: time.Now(), Problems: a.trouble(),
	}
	if !slices.Equal(r.Problems, a.notes) {
		for _, p := range r.Problems {
			if !slices.Contains(a.notes, p) {
				a.log.Warn("problem", "problem", p)
			}
		}
		a.notes = r.Problems
	}
	a.report.host(r)
}

// trouble lists what an operator should see, sorted.
func (a *Agent) trouble() []string {
	list := slices.Concat(a.cfg.Inventory.Notes, a.sharing)
	for name, why := range a.problems {
		list = append(list, fmt.Sprintf("model %s: not measured: %s", name, why))
	}
	for name, m := range a.models {
		if m.problem != "" {
			list = append(list, fmt.Sprintf("model %s: %s", name, m.problem))
		}
	}
	for _, g := range a.plan.Gpulets {
		if _, here := a.cfg.Inventory.Device(g.GPU); !here && g.Host == a.cfg.Host {
			list = append(list, fmt.Sprintf("gpu-let %s: the plan puts it on GPU %d: expected one of %v", g.ID, g.GPU, a.cfg.Inventory.Indices()))
		}
	}
	for id, c := range a.children {
		if c.note != "" {
			list = append(list, fmt.Sprintf("gpu-let %s: %s", id, c.note))
		}
		for _, m := range c.last.Models {
			if m.Error != "" {
				list = append(list, fmt.Sprintf("gpu-let %s: model %s: %s", id, m.Model, m.Error))
			}
		}
		if c.proc == nil && c.detail != "" {
			list = append(list, fmt.Sprintf("gpu-let %s: %s", id, c.detail))
		}
	}
	slices.Sort(list)
	return list
}
