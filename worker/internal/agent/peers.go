package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
)

// peersEvery is how often the reports of gpu-lets on other hosts are read while something waits for them.
const peersEvery = 200 * time.Millisecond

// peers reads what gpu-lets on other hosts report, and only of those that are asked about: a fleet's
// agents would else all read of every gpu-let.
type peers struct {
	bus   Bus
	log   *slog.Logger
	asked []string // last; the agent's
	ids   chan []string
	found chan map[string]plan.GpuletReport
	done  chan struct{}
}

// startPeers reads until the end of ctx.
func startPeers(ctx context.Context, b Bus, log *slog.Logger) *peers {
	p := &peers{bus: b, log: log, ids: make(chan []string, 1), found: make(chan map[string]plan.GpuletReport), done: make(chan struct{})}
	go p.loop(ctx)
	return p
}

func (p *peers) wait() { <-p.done }

// ask says which reports are of interest from now on. Only one goroutine may ask.
func (p *peers) ask(ids []string) {
	if slices.Equal(ids, p.asked) {
		return
	}
	p.asked = ids
	select {
	case <-p.ids: // in place of what was not taken yet
	default:
	}
	p.ids <- ids
}

func (p *peers) loop(ctx context.Context) {
	defer close(p.done)
	var ids []string
	for {
		again := (<-chan time.Time)(nil)
		if len(ids) > 0 {
			p.read(ctx, ids)
			again = time.After(peersEvery)
		}
		select {
		case ids = <-p.ids:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

// read hands over what there is. While the bus is away there is nothing, and everything waits.
func (p *peers) read(ctx context.Context, ids []string) {
	found := map[string]plan.GpuletReport{}
	for _, id := range ids {
		r, err := p.bus.Gpulet(ctx, id)
		switch {
		case err == nil:
			found[id] = r
		case !errors.Is(err, bus.ErrNotFound):
			p.log.Debug("cannot read what gpu-lets of other hosts report, trying again", "gpulet", id, "error", err)
			return
		}
	}
	select {
	case p.found <- found:
	case <-ctx.Done():
	}
}
