package gpulet

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/batch"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// loader loads models, and prepares loaded ones for more batches, one at a time, beside the executor.
type loader struct {
	tasks   chan task
	results chan loaded
	quit    chan struct{}
	done    chan struct{}
}

// task is a model to load or, if it is loaded, to prepare for the batches of spec.
type task struct {
	spec  engine.Spec
	model engine.Model // nil: to load
}

type loaded struct {
	task
	fresh bool // the model was loaded, not prepared
	err   error
	took  time.Duration
}

func startLoader(ctx context.Context, eng engine.Engine, box *blackbox.Recorder) *loader {
	l := &loader{
		tasks: make(chan task, 1), results: make(chan loaded),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	go l.loop(ctx, eng, newWitness(box))
	return l
}

func (l *loader) loop(ctx context.Context, eng engine.Engine, w *witness) {
	defer close(l.done)
	// Loading runs the model to warm it up; LibTorch keeps threads for every thread that does.
	runtime.LockOSThread()
	for t := range l.tasks {
		start := time.Now()
		r := loaded{task: t, fresh: t.model == nil}
		w.begin(t.spec.Model.Name)
		if r.fresh {
			r.model, r.err = eng.Load(ctx, t.spec)
		} else {
			r.err = t.model.Prepare(ctx, t.spec.Batches)
		}
		w.end(r.err)
		r.took = time.Since(start)
		select {
		case l.results <- r:
		case <-l.quit:
			r.discard()
		}
	}
}

// discard closes a model that was loaded for nothing.
func (r loaded) discard() {
	if r.fresh && r.err == nil {
		_ = r.model.Close()
	}
}

// stop waits for the load that is under way, whose model is closed.
func (l *loader) stop() {
	l.abandon()
	<-l.done
}

func (l *loader) abandon() {
	close(l.quit)
	close(l.tasks)
}

// assign replaces what the gpu-let serves. Models that stay keep their requests; models that go
// finish theirs; models that come are loaded first. A model whose batches grow goes on with those
// that it has until it is prepared for the larger ones.
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
	most, takes := m.most(), m.Config.MaxBatch
	m.Assignment, m.retiring = a, false
	if m.most() != most || m.Config.MaxBatch != takes {
		m.reset()
	}
	m.problem, m.short, m.loadAt = a.Problem, false, time.Time{}
	m.again.Reset()
	want := m.wanted(l.cfg.Device)
	m.needs = !m.serves(want) || !prepared(m.spec, want)
	switch {
	case a.Problem != "": // its agent will say when that changes
		l.log.Error("model not loaded", "model", m.name(), "error", a.Problem)
	case m.needs:
		m.loadAt = time.Now()
	}
	if a.Problem == "" && m.serves(want) {
		l.startPulling(m)
	}
}

// rebatch tells the batcher which models there are. None goes that still holds something.
func (l *loop) rebatch() {
	l.yield()
	var models []batch.Model
	for _, m := range l.order {
		if m.loaded != nil {
			models = append(models, m.batched())
		}
	}
	for _, it := range l.batcher.SetModels(models) {
		req := it.Payload.(*request) //nolint:forcetypeassert // the loop puts nothing else in
		l.forget(req)
		_ = req.msg.Nak(0)
	}
}

// load starts loading or preparing the next model that has to be. A model is loaded for its largest
// batch only, to which smaller ones are padded, and serves while it is prepared for those: choosing
// kernels has taken 0.1 to 2 s for every size.
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
		t := task{spec: m.wanted(l.cfg.Device)}
		if m.serves(t.spec) {
			t.model = m.loaded
		} else {
			t.spec.Batches = t.spec.Batches[len(t.spec.Batches)-1:]
		}
		l.loader.tasks <- t
		return
	}
}

// hasLoaded takes what the loader has done. When the device failed, so has the gpu-let.
func (l *loop) hasLoaded(r loaded) error {
	m := l.loading
	l.loading = nil
	if engine.CodeOf(r.err) == engine.EDEVICE {
		return fmt.Errorf("%w: %w", ErrDevice, r.err)
	}
	wanted := l.models[m.name()] == m && !m.retiring && sameModel(r.spec, m.wanted(l.cfg.Device))
	switch {
	case !wanted && r.fresh:
		if r.err == nil {
			l.toClose = append(l.toClose, r.model)
		}
	case !wanted: // it is about to go
	case r.err != nil:
		m.short = engine.CodeOf(r.err) == engine.EOOM
		l.failed(m, r.err.Error())
	case r.fresh:
		l.install(m, r)
	default:
		l.grow(m, r)
	}
	return nil
}

// install puts a model that was loaded into service, in place of what served before.
func (l *loop) install(m *bound, r loaded) {
	l.log.Info("model loaded", "model", m.name(), "version", m.Config.Version, "took", r.took, "mem_bytes", r.model.MemBytes())
	l.logNotes(m, r.model)
	if m.loaded != nil {
		l.toClose = append(l.toClose, m.loaded)
		m.reset()
	}
	m.loaded, m.spec = r.model, r.spec
	l.ready(m)
	l.startPulling(m)
}

// grow lets a loaded model run the batches that it was prepared for.
func (l *loop) grow(m *bound, r loaded) {
	l.log.Info("model prepared", "model", m.name(), "batches", r.spec.Batches, "took", r.took, "mem_bytes", r.model.MemBytes())
	l.logNotes(m, r.model)
	m.spec.Batches = append(slices.Clip(m.spec.Batches), r.spec.Batches...)
	l.ready(m)
}

// ready notes that loading or preparing has gone well. The assignment may have changed meanwhile.
func (l *loop) ready(m *bound) {
	m.problem, m.short, m.loadAt = "", false, time.Time{}
	m.again.Reset()
	if m.needs = !prepared(m.spec, m.wanted(l.cfg.Device)); m.needs {
		m.loadAt = time.Now()
	}
	l.rebatch()
}

func (l *loop) logNotes(m *bound, served engine.Model) {
	for _, note := range served.Notes() {
		l.log.Warn("model loaded with a note", "model", m.name(), "note", note)
	}
}

// failed notes why a model cannot be loaded. What served before goes on serving; loading is tried
// again later.
func (l *loop) failed(m *bound, problem string) {
	m.problem = problem
	wait := m.again.Next()
	m.loadAt = time.Now().Add(wait)
	l.log.Error("model not loaded", "model", m.name(), "error", problem, "retry_in", wait)
}

// retire closes models that were unbound, once they hold nothing and the loader is done with them:
// closing waits for it, and the executor would wait too.
func (l *loop) retire() {
	done := func(m *bound) bool { return m.retiring && !l.holds(m) && l.loading != m }
	if !slices.ContainsFunc(l.order, done) {
		return
	}
	for _, m := range l.order {
		if done(m) {
			delete(l.models, m.name())
			l.deaf(m)
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
	if len(l.toClose) > 0 && l.exec.close(l.toClose) {
		l.toClose = nil // else it is behind, and the next step tries again
	}
}

// holds reports whether requests of the model are being judged or decoded, in the batcher or with the executor.
func (l *loop) holds(m *bound) bool {
	if m.judging > 0 || m.decoding > 0 || l.batcher.Held(m.name()) > 0 {
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
