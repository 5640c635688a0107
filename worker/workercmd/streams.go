package workercmd

import (
	"cmp"
	"context"
	"sync"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/gpulet"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// streams serve every model of a gpu-let by a loop of its own: own batcher, executor thread and, on a
// GPU, CUDA stream, in one process with one engine and one connection. Batches of different models then
// run side by side and share the gpu-let's SMs as the hardware likes, instead of in duty order. It is
// what a server does that knows streams and no shares; the experiments compare with it.
type streams struct {
	cfg   gpulet.Config // of the whole gpu-let
	ended chan streamEnd
	loops map[string]*stream // by model; idle is there too
	left  int                // loops that have not ended

	mu      sync.Mutex // guards the fields below
	order   []string   // loops that count, in duty order after idle
	reports map[string]plan.GpuletReport
}

// stream is the loop of one model.
type stream struct {
	commands chan link.Command
	done     chan struct{} // closed when it has ended
}

type streamEnd struct {
	loop *stream
	err  error
}

// idle is the loop without a model: it says that the gpu-let lives when there is nothing to serve.
const idle = ""

// runStreams serves like gpulet.Run, with a loop per model. When one of them fails the others are left
// to the end of the process, which has to come next.
func runStreams(ctx context.Context, cfg gpulet.Config) error {
	s := &streams{cfg: cfg, ended: make(chan streamEnd), loops: map[string]*stream{}, order: []string{idle}, reports: map[string]plan.GpuletReport{}}
	s.start(ctx, idle)
	commands := cfg.Commands
	for s.left > 0 {
		select {
		case c, ok := <-commands:
			if !ok || c.Op != link.Assign {
				commands = nil
				s.drain()
				continue
			}
			s.assign(ctx, c)
		case end := <-s.ended:
			if s.left--; end.err != nil {
				return end.err
			}
		}
	}
	return nil
}

// start starts a loop, which ends with its commands or with ctx.
func (s *streams) start(ctx context.Context, name string) {
	loop := &stream{commands: make(chan link.Command, 16), done: make(chan struct{})}
	s.loops[name] = loop
	s.left++
	cfg := s.cfg
	cfg.Commands = loop.commands
	cfg.Report = func(r plan.GpuletReport) { s.report(name, r) }
	go func() {
		err := gpulet.Run(ctx, cfg)
		close(loop.done)
		s.ended <- streamEnd{loop, err}
	}()
}

// assign gives every loop its model, starts loops for models that come and drains those of models that
// go.
func (s *streams) assign(ctx context.Context, c link.Command) {
	order := []string{idle}
	parts := map[string]link.Command{idle: {Op: link.Assign, Revision: c.Revision}}
	for _, a := range c.Models {
		if _, twice := parts[a.Model]; !twice {
			parts[a.Model] = link.Command{Op: link.Assign, Revision: c.Revision, Models: []link.Assignment{a}}
			order = append(order, a.Model)
		}
	}
	for name, loop := range s.loops {
		if _, stays := parts[name]; !stays {
			close(loop.commands)
			delete(s.loops, name)
		}
	}
	s.follow(order)
	for _, name := range order {
		if s.loops[name] == nil {
			s.start(ctx, name)
		}
		s.loops[name].send(parts[name])
	}
}

// send hands a command to a loop that may have ended.
func (l *stream) send(c link.Command) {
	select {
	case l.commands <- c:
	case <-l.done:
	}
}

func (s *streams) drain() {
	for _, loop := range s.loops {
		close(loop.commands)
	}
}

// follow makes the reports of these loops count, and forgets those of others.
func (s *streams) follow(order []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := map[string]plan.GpuletReport{}
	for _, name := range order {
		if r, ok := s.reports[name]; ok {
			kept[name] = r
		}
	}
	s.order, s.reports = order, kept
}

// report notes what a loop says and passes on what that makes of the whole.
func (s *streams) report(name string, r plan.GpuletReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, counts := range s.order {
		if counts == name {
			s.reports[name] = r
			r.Models = nil
			s.cfg.Report(s.merge(r))
			return
		}
	}
}

// merge makes one report: ready when all loops have settled, at the revision that all have reached; failed
// when no model could be loaded.
func (s *streams) merge(r plan.GpuletReport) plan.GpuletReport {
	r.State, r.Revision, r.Detail, r.Hung, r.Models = plan.Ready, s.reports[idle].Revision, "", "", []plan.ModelReport{}
	failed := 0
	for _, name := range s.order {
		part := s.reports[name] // not heard of yet: at revision 0
		switch part.State {
		case plan.Ready:
		case plan.Failed:
			failed++
		case plan.Draining:
			r.State = plan.Draining
		default:
			if r.State == plan.Ready {
				r.State = plan.Starting
			}
		}
		r.Revision = min(r.Revision, part.Revision)
		r.Detail, r.Hung = cmp.Or(part.Detail, r.Detail), cmp.Or(part.Hung, r.Hung)
		r.Models = append(r.Models, part.Models...)
	}
	if r.State == plan.Ready && failed > 0 && failed == len(s.order)-1 {
		r.State = plan.Failed
	}
	return r
}
