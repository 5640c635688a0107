package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/planner/internal/lease"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
)

// errDeposed ends what a planner does once its lease is over.
var errDeposed = errors.New("this planner does not lead any more")

// releaseLimit bounds giving the lease back at the end.
const releaseLimit = time.Second

// leader takes part in choosing the planner that leads. Its goroutine reads and writes the lease, on
// a beat of its own: an epoch that takes long to decide must not cost the lease.
type leader struct {
	bus     Bus
	now     func() time.Time
	log     *slog.Logger
	metrics *Metrics

	mu    sync.Mutex // guards state
	state lease.State

	led     uint64        // the term that was last told of; of the goroutine
	changed chan struct{} // capacity 1: a term began or ended
}

func newLeader(cfg Config, b Bus, m *Metrics, log *slog.Logger) *leader {
	return &leader{
		bus: b, now: cfg.Now, log: log, metrics: m, changed: make(chan struct{}, 1),
		state: lease.State{Config: lease.Config{Holder: cfg.Name, ID: rand.Text(), TTL: cfg.Lease}},
	}
}

// term is the term that this planner leads now; 0: it does not.
func (l *leader) term() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Leads(l.now())
}

// saw notes the term of the plan on the bus.
func (l *leader) saw(term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Saw(term)
}

// run looks at the lease until ctx ends, and then gives it back.
func (l *leader) run(ctx context.Context) {
	beat := time.NewTicker(l.state.Poll())
	defer beat.Stop()
	for made := false; ctx.Err() == nil; {
		if made = made || l.make(ctx); made {
			l.look(ctx)
		}
		l.tell()
		select {
		case <-ctx.Done():
		case <-beat.C:
		}
	}
	l.release(context.WithoutCancel(ctx))
	l.tell()
}

func (l *leader) make(ctx context.Context) bool {
	err := l.bus.EnsureLease(ctx)
	if err != nil && ctx.Err() == nil {
		l.log.Warn("cannot make the bucket of the lease, trying again", "error", err)
	}
	return err == nil
}

// look reads the lease and writes it where it is this planner's turn. Each exchange is bounded by the
// beat of the lease rather than by the bus: a late answer is worth nothing.
func (l *leader) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, l.state.TTL/2)
	defer cancel()
	asked := l.now()
	held, rev, _, err := l.bus.Lease(ctx)
	read := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.state.Blind()
		l.log.Debug("cannot read the lease", "error", err)
		return
	}
	next, ok := l.state.Next(asked, read, lease.View{Lease: held, Rev: rev})
	if !ok {
		return
	}
	asked = l.now()
	l.mu.Unlock() // what others ask of the state does not wait for the bus
	written, err := l.bus.PutLease(ctx, next, rev)
	l.mu.Lock()
	switch {
	case err == nil:
		l.state.Wrote(asked, next, written)
	case errors.Is(err, bus.ErrConflict):
		l.state.Lost()
	default:
		l.state.Blind()
		l.log.Debug("cannot write the lease", "error", err)
	}
}

// tell says when a term began or ended.
func (l *leader) tell() {
	term := l.term()
	if term == l.led {
		return
	}
	switch {
	case term > 0:
		l.log.Info("this planner leads", "term", term)
	default:
		l.log.Warn("this planner does not lead any more", "term", l.led)
	}
	l.led = term
	l.metrics.leads(term)
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// release gives the lease back, so that a standby need not wait for its end.
func (l *leader) release(ctx context.Context) {
	l.mu.Lock()
	last, rev, ok := l.state.Release(l.now())
	l.mu.Unlock()
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, releaseLimit)
	defer cancel()
	if _, err := l.bus.PutLease(ctx, last, rev); err != nil {
		l.log.Debug("cannot give the lease back: it ends by itself", "error", err)
	}
}

// takeOffice does what a planner does first in its term: it makes what all models share, and marks
// the plan with its term, after which nothing that an earlier leader prepared is accepted.
func (p *Planner) takeOffice(ctx context.Context, term uint64) error {
	if p.term != term {
		p.beginTerm(term)
	}
	if !p.prepared {
		if err := p.bus.EnsureBase(ctx); err != nil {
			return fmt.Errorf("prepare the bus: %w", err)
		}
		p.prepared = true
	}
	if p.claimed {
		return nil
	}
	var err error
	if p.state.Current, p.rev, err = p.readPlan(ctx); err != nil {
		return err
	}
	if err := p.claim(ctx); err != nil {
		return fmt.Errorf("mark plan %d with term %d: %w", p.state.Current.Revision, term, err)
	}
	p.claimed = true
	return nil
}

// beginTerm forgets what only a leader knows: others may have led since. What arrives is observed
// without leading, and is kept.
func (p *Planner) beginTerm(term uint64) {
	p.term, p.prepared, p.claimed = term, false, false
	p.queues, p.fixed, p.cramped = queues{}, map[string]error{}, map[string]error{}
	p.registry.retired = nil
	p.schedule.Again()
	p.state.History, p.result = epoch.History{}, epoch.Decision{}
}

// claim writes the term into the plan; the plan stays what it is.
func (p *Planner) claim(ctx context.Context) (err error) {
	current := p.state.Current
	switch {
	case !lease.Fence(p.term, current.Term):
		return errDeposed
	case current.Revision == 0:
		p.rev, err = p.bus.FencePlan(ctx, p.rev)
	case current.Term < p.term:
		current.Term = p.term
		p.rev, err = p.bus.PutPlan(ctx, current, p.rev)
	}
	if err == nil {
		p.state.Current = current
	}
	return err
}

// follow watches the system without touching it, so that this planner can lead at once.
func (p *Planner) follow(ctx context.Context, now time.Time) error {
	var err error
	if p.state.Current, p.rev, err = p.readPlan(ctx); err != nil {
		return err
	}
	if now.Sub(p.followed) >= p.cfg.Epoch {
		if p.state.Models, err = p.bus.Models(ctx); err != nil {
			return fmt.Errorf("read registered models: %w", err)
		}
		p.followed = now
	}
	if _, err := p.observe(ctx, now); err != nil {
		return err
	}
	p.sweeper.tell(nil)
	p.metrics.follow(p.state.Current)
	return nil
}

// stand says on the bus that this planner stands by, at most once a second, and takes that back when
// it leads or, with a zero time, ends. It is for people: an error is left to the next look.
func (p *Planner) stand(ctx context.Context, now time.Time) {
	leads := p.leader.term() > 0
	switch {
	case !leads && now.Sub(p.stood) >= time.Second:
		if err := p.bus.PutStandby(ctx, plan.StandbyReport{Planner: p.cfg.Name, Time: now.UTC()}); err == nil {
			p.stood = now
		}
	case (leads || now.IsZero()) && !p.stood.IsZero():
		ctx, cancel := context.WithTimeout(ctx, releaseLimit)
		defer cancel()
		if err := p.bus.DeleteStandby(ctx, p.cfg.Name); err == nil {
			p.stood = time.Time{}
		}
	}
}
