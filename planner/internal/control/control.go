// Package control is the planner's loop around its pure parts: it looks at the system once a
// second, lets package epoch decide once per epoch or when something cannot wait, and acts on the
// decision: it registers models, keeps their queues and publishes plans.
//
// Of several planners one leads (package lease) and does all this; the others watch, so that they
// can lead at once. One goroutine owns all state but the lease's. Without the bus the loop keeps what
// it knows and tries again at every look; a plan is published only over the revision it was made
// from, so that of two writers one loses and reads again.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/planner/internal/lease"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// Bus is what the loop needs of the bus. *bus.Bus is one.
type Bus interface {
	EnsureBase(ctx context.Context) error
	EnsureQueue(ctx context.Context, q bus.Queue) error
	DeleteQueue(ctx context.Context, model string) error
	Lag(ctx context.Context, model string) (bus.Lag, error)
	Backlog(ctx context.Context, model string, from uint64, n int) ([]bus.Waiting, error)
	Expire(ctx context.Context, model string, seqs []uint64) (expired int, early []bus.Waiting, err error)
	GetPlan(ctx context.Context) (plan.Plan, uint64, error)
	PutPlan(ctx context.Context, p plan.Plan, rev uint64) (uint64, error)
	FencePlan(ctx context.Context, rev uint64) (uint64, error)
	Gpulets(ctx context.Context) ([]plan.GpuletReport, error)
	Models(ctx context.Context) ([]model.Model, error)
	PutModel(ctx context.Context, m model.Model) error
	DeleteModel(ctx context.Context, name string) error
	PutPlanner(ctx context.Context, r plan.PlannerReport) error
	PutStandby(ctx context.Context, r plan.StandbyReport) error
	DeleteStandby(ctx context.Context, planner string) error
	EnsureLease(ctx context.Context) error
	Lease(ctx context.Context) (l plan.Lease, rev uint64, written time.Time, err error)
	PutLease(ctx context.Context, l plan.Lease, rev uint64) (uint64, error)
	WatchHosts(ctx context.Context) (<-chan []plan.HostReport, error)
	WatchProfiles(ctx context.Context) (<-chan []profile.Profile, error)
	OnReconnect(f func())
	MaxPayload() int64
}

// Config is how the loop runs.
type Config struct {
	Name string // of this planner, in its reports
	// Epoch is the time between decisions, Observe between looks, and MinGap the least time between
	// a decision and one that cannot wait.
	Epoch, Observe, MinGap time.Duration
	// Lease is for how long this planner leads after it last said so; see lease.Config.
	Lease time.Duration
	// Now is the clock that the lease goes by. Nil: time.Now.
	Now func() time.Time

	Decide       epoch.Config
	Models       string // folder of the model repository
	Profiles     string // folder of the shipped profiles
	Interference bool   // plan for the slowdown by neighbours
}

// Planner is the loop. Only Run's goroutine touches it, except for the channel
// reconnected and for leader and sweeper, which have goroutines of their own.
type Planner struct {
	cfg     Config
	bus     Bus // fenced by the term
	leader  *leader
	sweeper *sweeper
	metrics *Metrics
	log     *slog.Logger

	term     uint64    // that was begun last; other than the leader's: this planner does not act
	prepared bool      // what all models share was made
	claimed  bool      // the plan carries the term
	followed time.Time // when models were last read without leading
	stood    time.Time // when it last said that it stands by; zero: nothing of it is on the bus

	state    epoch.State
	reported []plan.HostReport
	trusting time.Time // until when hosts that do not report count as there
	rev      uint64    // of the plan document on the bus
	registry registry
	traffic  traffic
	queues   queues
	fixed    map[string]error // by model: why its queue is not as the model asks
	cramped  map[string]error // by model: why its queue is smaller than the plan asks
	flooded  map[string]bool  // models that were refusing requests when their queues were last sized
	notices  notices

	schedule    epoch.Schedule
	result      epoch.Decision // the last one
	reconnected chan struct{}  // capacity 1
}

// New returns a planner that is not running.
func New(cfg Config, b Bus, m *Metrics, log *slog.Logger) *Planner {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p := &Planner{
		cfg: cfg, leader: newLeader(cfg, b, m, log), metrics: m, log: log,
		registry:    registry{repo: &model.Repository{Root: cfg.Models}},
		traffic:     newTraffic(cfg.Decide.Demand),
		queues:      queues{},
		fixed:       map[string]error{},
		cramped:     map[string]error{},
		notices:     notices{log: log},
		schedule:    epoch.Schedule{Epoch: cfg.Epoch, MinGap: cfg.MinGap},
		reconnected: make(chan struct{}, 1),
	}
	p.bus = fenced{b, func() bool { return p.term > 0 && p.leader.term() == p.term }}
	p.sweeper = newSweeper(b, m, log)
	return p
}

// Run plans until ctx ends. It fails only if the bus refuses what a planner must be able to do.
func (p *Planner) Run(ctx context.Context) error {
	p.bus.OnReconnect(func() {
		select {
		case p.reconnected <- struct{}{}:
		default:
		}
	})
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	parts.Go(func() { p.leader.run(ctx) })
	parts.Go(func() { p.sweeper.run(ctx) })
	hosts, err := p.bus.WatchHosts(ctx)
	if err != nil {
		return fmt.Errorf("watch hosts: %w", err)
	}
	profiles, err := p.bus.WatchProfiles(ctx)
	if err != nil {
		return fmt.Errorf("watch profiles: %w", err)
	}
	// A planner that knows only half of the system would take the other half's models off the GPUs:
	// it decides nothing before both watches have told what there is.
	heardHosts, heardProfiles := false, false
	tick := time.NewTicker(p.cfg.Observe)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			p.stand(context.WithoutCancel(ctx), time.Time{})
			return nil
		case <-p.leader.changed:
			if heardHosts && heardProfiles {
				p.step(ctx, time.Now())
			}
		case h, ok := <-hosts:
			if !ok {
				return ended(ctx, "hosts")
			}
			p.recover()
			grown := devices(h) != devices(p.reported) || !heardHosts
			p.reported, heardHosts = h, true
			if grown && heardProfiles {
				p.step(ctx, time.Now())
			}
		case m, ok := <-profiles:
			if !ok {
				return ended(ctx, "profiles")
			}
			grown := len(m) != len(p.state.Measured) || !heardProfiles
			p.state.Measured, heardProfiles = m, true
			if grown && heardHosts {
				p.step(ctx, time.Now())
			}
		case now := <-tick.C:
			p.recover()
			if heardHosts && heardProfiles {
				p.step(ctx, now)
			}
		}
	}
}

// recover makes what all models share again after the connection was lost: a server that came back
// may have lost what was in memory, queues and reports among it.
func (p *Planner) recover() {
	select {
	case <-p.reconnected:
	default:
		return
	}
	p.queues, p.prepared = queues{}, false
	p.trusting = time.Now().Add(bus.StateTTL)
}

// hosts are those that report. For as long as reports live after a reconnect, hosts that were there
// before count as well: they come back one by one, and must not be planned around meanwhile.
func (p *Planner) hosts(now time.Time) []plan.HostReport {
	if now.After(p.trusting) {
		return p.reported
	}
	list := slices.Clone(p.reported)
	for _, old := range p.state.Hosts {
		if !slices.ContainsFunc(list, func(h plan.HostReport) bool { return h.Host == old.Host }) {
			list = append(list, old)
		}
	}
	return list
}

// devices counts devices: a cheap sign that hosts came or went between two looks.
func devices(hosts []plan.HostReport) (n int) {
	for _, h := range hosts {
		n += len(h.Devices)
	}
	return n
}

// ended is what a watch that has ended means: the end of ctx, or a bus that was closed.
func ended(ctx context.Context, what string) error {
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch %s: %w", what, bus.ErrClosed)
}

// step looks at the system, and where this planner leads it decides when it is time. An error keeps
// what is known.
func (p *Planner) step(ctx context.Context, now time.Time) {
	p.state.Now = now
	p.state.Hosts = p.hosts(now)
	var err error
	if term := p.leader.term(); term > 0 {
		err = p.lead(ctx, now, term)
	} else {
		err = p.follow(ctx, now)
	}
	if ctx.Err() != nil {
		return
	}
	if errors.Is(err, errDeposed) {
		err = nil // the leader's loop says so
	}
	p.notices.bus(err)
	p.stand(ctx, now)
}

// lead is a step of the planner that leads.
func (p *Planner) lead(ctx context.Context, now time.Time, term uint64) error {
	if err := p.takeOffice(ctx, term); err != nil {
		return err
	}
	before := p.state.Current.Revision
	var err error
	if p.state.Current, p.rev, err = p.readPlan(ctx); err != nil {
		return err
	}
	if p.state.Current.Revision != before {
		p.traffic.replanned()
	}
	missing, err := p.observe(ctx, now)
	if err != nil {
		return err
	}
	if p.state.Current.Revision != before || !maps.Equal(p.flooded, p.traffic.full()) {
		if err := p.makeRoom(ctx, p.state.Current); err != nil {
			return err
		}
	}
	if err := p.mend(ctx, missing); err != nil {
		return err
	}
	lags := p.traffic.lags()
	if err := p.retire(ctx, lags); err != nil {
		return err
	}
	p.sweeper.tell(lags)
	if cause, reason, due := p.schedule.Due(now, p.state); due {
		if err := p.epoch(ctx, now, cause, reason); err != nil {
			return err
		}
	}
	return p.report(ctx, now)
}

func (p *Planner) readPlan(ctx context.Context) (plan.Plan, uint64, error) {
	current, rev, err := p.bus.GetPlan(ctx)
	if err != nil {
		return p.state.Current, p.rev, fmt.Errorf("read the plan: %w", err)
	}
	p.leader.saw(current.Term)
	return current, rev, nil
}

// observe reads the lag of every registered model, and returns those that have no queue.
func (p *Planner) observe(ctx context.Context, now time.Time) (missing []model.Model, err error) {
	for _, m := range p.state.Models {
		lag, err := p.bus.Lag(ctx, m.Name)
		if errors.Is(err, bus.ErrUnknownModel) {
			missing = append(missing, m)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("lag of %s: %w", m.Name, err)
		}
		p.traffic.observe(m.Name, lag, p.queues[m.Name].MaxMsgs, now)
	}
	p.state.Loads = p.traffic.loads(now)
	return missing, nil
}

// mend makes queues again that are gone.
func (p *Planner) mend(ctx context.Context, missing []model.Model) error {
	for _, m := range missing {
		delete(p.queues, m.Name)
		if err := p.ensureQueue(ctx, m, p.state.Current); err != nil {
			return err
		}
		p.log.Warn("queue was gone and is made again", "model", m.Name)
	}
	return nil
}

// epoch makes one decision and acts on it.
func (p *Planner) epoch(ctx context.Context, now time.Time, cause, why string) error {
	if err := p.register(ctx); err != nil {
		return err
	}
	reports, err := p.bus.Gpulets(ctx)
	if err != nil {
		return fmt.Errorf("read gpu-lets: %w", err)
	}
	p.state.Gpulets = reports
	p.traffic.sizes(reports)
	p.state.Loads = p.traffic.loads(now)
	fileProblems := p.loadProfiles()

	begin := time.Now()
	d := epoch.Decide(p.cfg.Decide, p.state)
	took := time.Since(begin)
	p.metrics.epoch(cause, d, took)
	for _, err := range slices.Concat(p.registry.problems, fileProblems, slices.Collect(maps.Values(p.fixed)), slices.Collect(maps.Values(p.cramped))) {
		d.Problems = append(d.Problems, err.Error())
	}
	slices.Sort(d.Problems)
	d.Problems = slices.Compact(d.Problems)
	p.schedule.Decided(now, cause, p.state, d)
	p.state.History, p.result = d.History, d
	p.notices.problems(d.Problems)
	p.log.Debug("epoch", "started_by", cause, "why", why, "decision", d.Cause, "reason", d.Reason, "took", took)
	if !d.Publish {
		return nil
	}
	return p.publish(ctx, now, d, took)
}

// loadProfiles reads the shipped profiles anew, and what they say of interference.
func (p *Planner) loadProfiles() []error {
	files, problems := profile.LoadDir(p.cfg.Profiles)
	p.state.Files, p.state.Contexts, p.state.Interference = files, files.Contexts(), nil
	if !p.cfg.Interference {
		return problems
	}
	predict, err := interference.New(files)
	if err != nil {
		return append(problems, fmt.Errorf("%s: %w: planned without interference", p.cfg.Profiles, err))
	}
	p.state.Interference = predict
	return problems
}

// publish makes room in the queues and replaces the plan, if it is still the one decided upon.
func (p *Planner) publish(ctx context.Context, now time.Time, d epoch.Decision, took time.Duration) error {
	if err := p.makeRoom(ctx, d.Plan); err != nil {
		return err
	}
	if !lease.Fence(p.term, p.state.Current.Term) {
		return errDeposed
	}
	d.Plan.Created, d.Plan.Term = now.UTC(), p.term
	rev, err := p.bus.PutPlan(ctx, d.Plan, p.rev)
	if errors.Is(err, bus.ErrConflict) {
		p.log.Warn("somebody else published meanwhile: reading again", "plan_rev", d.Plan.Revision)
		p.schedule.Again()
		return nil
	}
	if err != nil {
		p.schedule.Again()
		return fmt.Errorf("publish plan %d: %w", d.Plan.Revision, err)
	}
	p.state.Current, p.rev = d.Plan, rev
	p.traffic.replanned()
	p.log.Info("plan published", "plan_rev", d.Plan.Revision, "term", p.term, "cause", d.Cause, "reason", d.Reason,
		"gpus_used", d.Plan.GPUsUsed, "desired_gpus", d.DesiredGPUs, "gpulets", len(d.Plan.Gpulets), "moves", d.Moves, "took", took)
	return nil
}

// register brings the registered models in line with the repository.
func (p *Planner) register(ctx context.Context) error {
	change, err := p.registry.scan(ctx, p.bus)
	if err != nil {
		return err
	}
	for _, m := range change.put {
		if err := p.ensureQueue(ctx, m, p.state.Current); err != nil {
			return err
		}
		if err := p.bus.PutModel(ctx, m); err != nil {
			return fmt.Errorf("register %s: %w", m.Name, err)
		}
		p.log.Info("model registered", "model", m.Name, "version", m.Version, "archive", m.Hash[:min(12, len(m.Hash))], "slo", m.SLO)
	}
	for _, name := range change.remove {
		delete(p.fixed, name)
		delete(p.cramped, name)
		if err := p.bus.DeleteModel(ctx, name); err != nil {
			return fmt.Errorf("take back %s: %w", name, err)
		}
		p.log.Info("model removed", "model", name)
	}
	p.state.Models = change.models
	for _, m := range change.models {
		if _, ok := p.queues[m.Name]; !ok {
			if err := p.ensureQueue(ctx, m, p.state.Current); err != nil {
				return err
			}
		}
	}
	p.traffic.keep(change.models)
	return nil
}

// retire deletes the queues of removed models once they are empty, and notes in lags those that are not.
func (p *Planner) retire(ctx context.Context, lags map[string]bus.Lag) error {
	for _, name := range slices.Sorted(maps.Keys(p.registry.retired)) {
		lag, err := p.bus.Lag(ctx, name)
		if err != nil && !errors.Is(err, bus.ErrUnknownModel) {
			return fmt.Errorf("lag of removed model %s: %w", name, err)
		}
		if err == nil && lag.Pending+lag.AckPending > 0 {
			lags[name] = lag
			continue
		}
		if err := p.bus.DeleteQueue(ctx, name); err != nil {
			return fmt.Errorf("delete queue of %s: %w", name, err)
		}
		delete(p.registry.retired, name)
		delete(p.queues, name)
	}
	return nil
}

// report tells operators what this planner sees.
func (p *Planner) report(ctx context.Context, now time.Time) error {
	r := plan.PlannerReport{
		Planner: p.cfg.Name, Term: p.term, Revision: p.state.Current.Revision, Time: now.UTC(),
		Problems: p.result.Problems,
	}
	planned := p.state.Current.Capacities()
	for _, m := range p.state.Models {
		d := p.traffic.demand(m, now)
		d.NeedRPS = p.result.Needs[m.Name]
		d.PlannedRPS = planned[m.Name]
		r.Models = append(r.Models, d)
	}
	p.metrics.look(p.state.Current, p.result, r)
	if err := p.bus.PutPlanner(ctx, r); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// DefaultName names this process: host and process id.
func DefaultName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}
