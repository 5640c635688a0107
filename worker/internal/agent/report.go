package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/plan"
)

// reporter writes reports to the bus, the newest of each kind, so that a slow or absent bus never
// holds up the agent.
type reporter struct {
	bus  Bus
	log  *slog.Logger
	wake chan struct{}
	quit chan struct{}
	done chan struct{}

	mu      sync.Mutex // guards the fields below
	newHost *plan.HostReport
	gpulets map[string]*plan.GpuletReport // nil: to be taken back
}

const putTimeout = 3 * time.Second

func startReporter(b Bus, log *slog.Logger) *reporter {
	r := &reporter{
		bus: b, log: log, gpulets: map[string]*plan.GpuletReport{},
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
	go r.loop()
	return r
}

func (r *reporter) host(h plan.HostReport) {
	r.mu.Lock()
	r.newHost = &h
	r.mu.Unlock()
	r.poke()
}

func (r *reporter) gpulet(g plan.GpuletReport) {
	r.mu.Lock()
	r.gpulets[g.ID] = &g
	r.mu.Unlock()
	r.poke()
}

// forget takes a gpu-let's report back.
func (r *reporter) forget(id string) {
	r.mu.Lock()
	r.gpulets[id] = nil
	r.mu.Unlock()
	r.poke()
}

func (r *reporter) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// stop writes what is left and takes the host's report back.
func (r *reporter) stop(host string) {
	close(r.quit)
	<-r.done
	r.mu.Lock()
	r.newHost = nil
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), putTimeout)
	defer cancel()
	if err := errors.Join(r.write(ctx), r.bus.DeleteHost(ctx, host)); err != nil {
		r.log.Warn("reports not taken back, they expire by themselves", "error", err)
	}
}

func (r *reporter) loop() {
	defer close(r.done)
	backoff := lifecycle.Backoff{Min: 200 * time.Millisecond, Max: 5 * time.Second}
	retry := (<-chan time.Time)(nil)
	failing := false
	for {
		select {
		case <-r.wake:
			if retry != nil {
				continue // not more often than the back-off allows
			}
		case <-retry:
			retry = nil
		case <-r.quit:
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), putTimeout)
		err := r.write(ctx)
		cancel()
		switch {
		case err != nil:
			if !failing {
				r.log.Warn("cannot report, trying again", "error", err)
			}
			failing = true
			retry = time.After(backoff.Next())
		case failing:
			r.log.Info("reporting again")
			fallthrough
		default:
			failing = false
			backoff.Reset()
		}
	}
}

// write writes everything that is new. What could not be written stays new, unless there is
// something newer by then.
func (r *reporter) write(ctx context.Context) error {
	r.mu.Lock()
	host, gpulets := r.newHost, r.gpulets
	r.newHost, r.gpulets = nil, map[string]*plan.GpuletReport{}
	r.mu.Unlock()
	var errs []error
	if host != nil {
		if err := r.bus.PutHost(ctx, *host); err != nil {
			errs = append(errs, err)
			r.mu.Lock()
			if r.newHost == nil {
				r.newHost = host
			}
			r.mu.Unlock()
		}
	}
	for id, g := range gpulets {
		err := error(nil)
		if g == nil {
			err = r.bus.DeleteGpulet(ctx, id)
		} else {
			err = r.bus.PutGpulet(ctx, *g)
		}
		if err == nil {
			continue
		}
		errs = append(errs, err)
		r.mu.Lock()
		if _, newer := r.gpulets[id]; !newer {
			r.gpulets[id] = g
		}
		r.mu.Unlock()
	}
	if len(errs) == 0 {
		return nil
	}
	return errs[0] // they all have the same cause
}
