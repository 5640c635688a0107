// Package fleet is what the frontend knows of the rest of the system: models, plan, gpu-lets and
// queues, as last read from the bus.
//
// Readers get immutable snapshots without waiting. Models and plan are pushed by the bus; states
// and lag are read once per interval.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// Bus is what the fleet is read from.
type Bus interface {
	Connected() bool
	WatchModels(ctx context.Context) (<-chan []model.Model, error)
	WatchPlan(ctx context.Context) (<-chan plan.Plan, error)
	Hosts(ctx context.Context) ([]plan.HostReport, error)
	Gpulets(ctx context.Context) ([]plan.GpuletReport, error)
	Lag(ctx context.Context, model string) (bus.Lag, error)
	CountDeadLetters(ctx context.Context) (map[string]uint64, error)
}

// Fleet is safe for concurrent use.
type Fleet struct {
	bus      Bus
	interval time.Duration
	log      *slog.Logger

	models atomic.Pointer[catalog]
	plan   atomic.Pointer[planned]
	state  atomic.Pointer[State]

	lost   func(model string)   // told of every queue that was made anew
	queues map[string]time.Time // by model: when its queue was made; of the goroutine that polls
}

// planned is the plan and what its gpu-lets can answer of each model at most, in samples/s.
type planned struct {
	plan.Plan
	peaks map[string]float64
}

// catalog is the registered models, sorted and by name.
type catalog struct {
	list   []model.Model
	byName map[string]*model.Model
}

// State is what was read in one round.
type State struct {
	Read    time.Time // when the round began; zero: never
	Hosts   []plan.HostReport
	Gpulets []plan.GpuletReport
	Lag     map[string]bus.Lag // by model; models without a queue are left out
	Dead    map[string]uint64  // dead letters, by model; those without any are left out
}

// New returns an empty fleet; states are read once per interval while Run runs.
func New(b Bus, interval time.Duration, log *slog.Logger) *Fleet {
	f := &Fleet{bus: b, interval: interval, log: log, lost: func(string) {}, queues: map[string]time.Time{}}
	f.models.Store(&catalog{})
	f.setPlan(plan.Plan{})
	f.state.Store(&State{})
	return f
}

// OnLostQueue makes Run call lost for every model whose queue is another one than before: what the old one
// held is lost. It is called before Run, and lost must not block.
func (f *Fleet) OnLostQueue(lost func(model string)) { f.lost = lost }

// Run keeps the fleet up to date until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return follow(ctx, f, "models", f.bus.WatchModels, f.setModels) })
	g.Go(func() error { return follow(ctx, f, "plan", f.bus.WatchPlan, f.setPlan) })
	g.Go(func() error { return f.poll(ctx) })
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// follow hands on what watch sends, and watches again whenever that ends before ctx does. Before
// the planner has made the buckets there is nothing to watch.
func follow[T any](ctx context.Context, f *Fleet, what string, watch func(context.Context) (<-chan T, error), set func(T)) error {
	retry := lifecycle.Backoff{Min: 100 * time.Millisecond, Max: 2 * time.Second}
	waiting := false
	for {
		values, err := watch(ctx)
		if err != nil && !waiting && ctx.Err() == nil {
			f.log.Warn("cannot watch yet, trying again", "what", what, "error", err)
			waiting = true
		}
		if err == nil {
			for v := range values {
				if waiting {
					f.log.Info("watching", "what", what)
					waiting = false
				}
				retry.Reset()
				set(v)
			}
		}
		if err := lifecycle.Sleep(ctx, retry.Next()); err != nil {
			return err
		}
	}
}

func (f *Fleet) setModels(list []model.Model) {
	c := &catalog{list: slices.Clone(list), byName: make(map[string]*model.Model, len(list))}
	for i := range c.list {
		c.byName[c.list[i].Name] = &c.list[i]
	}
	f.models.Store(c)
}

func (f *Fleet) setPlan(p plan.Plan) { f.plan.Store(&planned{p, p.Peaks()}) }

func (f *Fleet) poll(ctx context.Context) error {
	failing := false
	for {
		s, err := f.read(ctx)
		switch {
		case err == nil:
			f.state.Store(s)
		case !failing && ctx.Err() == nil:
			f.log.Warn("cannot read the state of the gpu-lets, trying again", "error", err)
		}
		failing = err != nil
		if err := lifecycle.Sleep(ctx, f.interval); err != nil {
			return err
		}
	}
}

func (f *Fleet) read(ctx context.Context) (*State, error) {
	s := &State{Read: time.Now(), Lag: map[string]bus.Lag{}}
	var err error
	if s.Hosts, err = f.bus.Hosts(ctx); err != nil {
		return nil, err
	}
	if s.Gpulets, err = f.bus.Gpulets(ctx); err != nil {
		return nil, err
	}
	for _, m := range f.Models() {
		lag, err := f.bus.Lag(ctx, m.Name)
		if errors.Is(err, bus.ErrUnknownModel) {
			continue // registered, its queue not made yet
		}
		if err != nil {
			return nil, err
		}
		s.Lag[m.Name] = lag
		if made, known := f.queues[m.Name]; known && !made.Equal(lag.Created) {
			f.lost(m.Name)
		}
		f.queues[m.Name] = lag.Created
	}
	if s.Dead, err = f.bus.CountDeadLetters(ctx); err != nil && !errors.Is(err, bus.ErrNotFound) {
		return nil, err
	}
	return s, nil
}

// Models returns the registered models, sorted by name; read only.
func (f *Fleet) Models() []model.Model { return f.models.Load().list }

// Listed reports whether the registered models have been read at all: until then nobody knows
// which there are.
func (f *Fleet) Listed() bool { return f.models.Load().byName != nil }

// Model returns a registered model; read only.
func (f *Fleet) Model(name string) (*model.Model, bool) {
	m, ok := f.models.Load().byName[name]
	return m, ok
}

// Plan returns the current plan, with revision 0 before the first; read only.
func (f *Fleet) Plan() *plan.Plan { return &f.plan.Load().Plan }

// Backlog is what waits for the model's gpu-lets, as last read.
func (f *Fleet) Backlog(name string) admit.Backlog {
	s := f.State()
	return admit.Backlog{Waiting: s.Lag[name].Pending, Seen: s.Read, PeakRPS: f.plan.Load().peaks[name]}
}

// State returns what was read last; read only.
func (f *Fleet) State() *State { return f.state.Load() }

// Ready returns why the system cannot take requests: the bus is not reached, or no planner has
// published a plan yet. Whether one model can be served is what ModelReady says.
func (f *Fleet) Ready() error {
	switch {
	case !f.bus.Connected():
		return errors.New("not connected to NATS")
	case f.Plan().Revision == 0:
		return errors.New("no plan has been published yet: is the planner running?")
	}
	return nil
}

// ModelReady returns why no gpu-let serves the model right now.
func (f *Fleet) ModelReady(name string) error {
	if _, ok := f.Model(name); !ok {
		return fmt.Errorf("unknown model %q", name)
	}
	why := errors.New("no gpu-let serves it")
	for _, g := range f.State().Gpulets {
		for _, m := range g.Models {
			switch {
			case m.Model != name:
			case g.State == plan.Ready && m.Loaded:
				return nil
			case m.Error != "":
				why = fmt.Errorf("gpu-let %s: %s", g.ID, m.Error)
			default:
				why = fmt.Errorf("gpu-let %s is %s", g.ID, g.State)
			}
		}
	}
	return why
}
