package gpulet

import (
	"context"
	"runtime"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/batch"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// loader loads models, one at a time, beside the executor.
type loader struct {
	specs   chan engine.Spec
	results chan loaded
	quit    chan struct{}
	done    chan struct{}
}

type loaded struct {
	spec  engine.Spec
	model engine.Model
	err   error
	took  time.Duration
}

func startLoader(ctx context.Context, eng engine.Engine) *loader {
	l := &loader{
		specs: make(chan engine.Spec, 1), results: make(chan loaded),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	go l.loop(ctx, eng)
	return l
}

func (l *loader) loop(ctx context.Context, eng engine.Engine) {
	defer close(l.done)
	// Loading runs the model to warm it up; LibTorch keeps threads for every thread that does.
	runtime.LockOSThread()
	for spec := range l.specs {
		start := time.Now()
		r := loaded{spec: spec}
		r.model, r.err = eng.Load(ctx, spec)
		r.took = time.Since(start)
		select {
		case l.results <- r:
		case <-l.quit:
			if r.err == nil {
				_ = r.model.Close()
			}
		}
	}
}

// stop waits for the load that is under way, whose model is closed.
func (l *loader) stop() {
	l.abandon()
	<-l.done
}

func (l *loader) abandon() {
	close(l.quit)
	close(l.specs)
}

// assign replaces what the gpu-let serves. Models that stay keep their requests; models that go
// finish theirs; models that come are loaded first.
func (l *loop) assign(c link.Command) {
	l.revision, l.assigned = c.Revision, true
	var order []*bound
	seen := map[string]bool{}
	for _, a := range c.Models {
		if seen[a.Model] {
			continue
		}
		seen[a.Model] = true
		m := l.models[a.Model]
		if m == nil {
			m = newBound(a)
			l.models[a.Model] = m
		}
		l.bind(m, a)
		order = append(order, m)
	}
	for _, m := range l.order {
		if !seen[m.name()] {
			m.retiring = true
			m.loadAt = time.Time{}
			l.stopPulling(m)
			order = append(order, m)
		}
	}
	l.order = order
	l.rebatch()
	l.log.Info("assigned", "plan_rev", c.Revision, "models", len(c.Models))
}

// bind gives a model its assignment and sees whether it has to be loaded.
func (l *loop) bind(m *bound, a link.Assignment) {
	batchChanged := m.Batch != a.Batch || m.Config.MaxBatch != a.Config.MaxBatch
	m.Assignment, m.retiring = a, false
	if batchChanged {
		m.reset()
	}
	m.problem, m.short, m.loadAt = a.Problem, false, time.Time{}
	m.again.Reset()
	m.needs = m.loaded == nil || !sameModel(m.spec, m.wanted(l.cfg.Device))
	switch {
	case a.Problem != "": // its agent will say when that changes
		l.log.Error("model not loaded", "model", m.name(), "error", a.Problem)
	case m.needs:
		m.loadAt = time.Now()
	default:
		l.startPulling(m)
	}
}

// rebatch tells the batcher which models there are. None goes that still holds something.
func (l *loop) rebatch() {
	var models []batch.Model
	for _, m := range l.order {
		if m.loaded != nil {
			models = append(models, batch.Model{Name: m.name(), Batch: m.batch(), Exec: m.estimate.exec})
		}
	}
	for _, it := range l.batcher.SetModels(models) {
		req := it.Payload.(*request) //nolint:forcetypeassert // the loop puts nothing else in
		l.forget(req)
		_ = req.msg.Nak(0)
	}
}

// load starts loading the next model that has to be.
func (l *loop) load(now time.Time) {
	if l.loading != nil || l.draining {
		return
	}
	for _, m := range l.order {
		if m.loadAt.IsZero() || m.loadAt.After(now) {
			continue
		}
		m.loadAt = time.Time{}
		l.loading = m
		l.loader.specs <- m.wanted(l.cfg.Device)
		return
	}
}

// hasLoaded puts a loaded model into service, in place of what served before.
func (l *loop) hasLoaded(r loaded) {
	m := l.loading
	l.loading = nil
	if l.models[m.name()] != m || m.retiring || !sameModel(r.spec, m.wanted(l.cfg.Device)) {
		// Not what is wanted any more.
		if r.err == nil {
			l.toClose = append(l.toClose, r.model)
		}
		return
	}
	if r.err != nil {
		m.short = engine.CodeOf(r.err) == engine.EOOM
		l.failed(m, r.err.Error())
		return
	}
	l.log.Info("model loaded", "model", m.name(), "version", m.Config.Version, "took", r.took, "mem_bytes", r.model.MemBytes())
	for _, note := range r.model.Notes() {
		l.log.Warn("model loaded with a note", "model", m.name(), "note", note)
	}
	if m.loaded != nil {
		l.toClose = append(l.toClose, m.loaded)
		m.reset()
	}
	m.loaded, m.spec, m.needs, m.problem, m.loadAt = r.model, r.spec, false, "", time.Time{}
	m.short = false
	m.again.Reset()
	l.rebatch()
	l.startPulling(m)
}

// failed notes why a model cannot be loaded. What served before goes on serving; loading is tried
// again later.
func (l *loop) failed(m *bound, problem string) {
	m.problem = problem
	wait := m.again.Next()
	m.loadAt = time.Now().Add(wait)
	l.log.Error("model not loaded", "model", m.name(), "error", problem, "retry_in", wait)
}

// retire closes models that were unbound, once they hold nothing.
func (l *loop) retire() {
	done := func(m *bound) bool { return m.retiring && !l.holds(m) }
	if !slices.ContainsFunc(l.order, done) {
		return
	}
	for _, m := range l.order {
		if done(m) {
			delete(l.models, m.name())
			l.log.Info("model unloaded", "model", m.name())
			if m.loaded != nil {
				l.toClose = append(l.toClose, m.loaded)
			}
		}
	}
	l.order = slices.DeleteFunc(l.order, done)
	l.rebatch()
	l.report()
}

// closeModels hands models that are out of service to the executor, which owns them.
func (l *loop) closeModels() {
	if len(l.toClose) == 0 {
		return
	}
	select {
	case l.exec.jobs <- job{close: l.toClose}:
		l.toClose = nil
	default: // it is behind; the next step tries again
	}
}

// holds reports whether requests of the model are being decoded, in the batcher or with the executor.
func (l *loop) holds(m *bound) bool {
	if m.decoding > 0 || l.batcher.Held(m.name()) > 0 {
		return true
	}
	if !l.busy {
		return false
	}
	for req := range l.open {
		if req.model == m {
			return true
		}
	}
	return false
}
