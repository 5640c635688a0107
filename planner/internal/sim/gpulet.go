package sim

import (
	"cmp"
	"fmt"
	"math"
	"time"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/batch"
	"github.com/gpulet/gpulet/shared/plan"
)

// origin is virtual time 0 for code that takes a time.Time.
var origin = time.Unix(0, 0).UTC()

func at(ns int64) time.Time    { return origin.Add(time.Duration(ns)) }
func since(t time.Time) int64  { return int64(t.Sub(origin)) }
func nanos(ms float64) float64 { return ms * float64(time.Millisecond) }

// device is one GPU with the gpu-lets on it, those that start or drain included.
type device struct {
	name    string
	gpulets []*gpulet
}

// gpulet is a gpu-let process.
type gpulet struct {
	plan     plan.Gpulet // what it was last told
	device   *device
	batcher  *batch.Batcher
	bindings []binding // what it serves; several for a model never
	ready    bool      // it has loaded its first models
	draining bool
	loads    int // counts what it was told to load; events of older loads do not count
	idle     bool

	running  *binding // nil: the executor is free
	items    []batch.Item
	load     problem.Load
	coupling problem.Coupling
	quickest float64 // slowdown of the running batch on all SMs that the gpu-let may use: at most 1
	left     float64 // ns of solo time on its share that the running batch still needs
	slow     float64 // present slowdown; under 1 on more than its share
	updated  int64   // when left was true
	version  int     // of the running batch's end
}

// binding is a model on a gpu-let.
type binding struct {
	model     int
	name      string
	rank      int
	served    int                // order of its last turn among gpu-lets of the same rank
	batch     int                // planned samples
	solo      []float64          // ns on the share by samples, from 1
	quickest  []float64          // slowdown on all SMs that the gpu-let may use, by samples: at most 1
	couplings []problem.Coupling // by samples, from 1; empty without a pressure model
}

// bind looks up how a model runs on a gpu-let.
func (w *world) bind(g plan.Gpulet, a plan.Assignment) (binding, error) {
	index, ok := w.byName[a.Model]
	if !ok {
		return binding{}, fmt.Errorf("gpu-let %s: model %s: there is no such model", g.ID, a.Model)
	}
	prof, ok := w.cfg.Profiles.Get(g.GPUType, a.Model)
	if !ok {
		return binding{}, fmt.Errorf("gpu-let %s: model %s: no profile for %s", g.ID, a.Model, g.GPUType)
	}
	b := binding{model: index, name: a.Model, rank: a.Rank, batch: a.Batch}
	for n := 1; n <= a.MaxBatch(); n++ {
		ms, err := prof.Latency(g.Share, n)
		most, errMost := prof.Latency(g.MaxShare(), n)
		if err := cmp.Or(err, errMost); err != nil {
			return binding{}, fmt.Errorf("gpu-let %s: %w", g.ID, err)
		}
		b.solo, b.quickest = append(b.solo, nanos(ms)), append(b.quickest, min(1, most/ms))
	}
	if p, ok := w.cfg.Interference.(problem.Pressure); ok {
		b.couplings = p.Couplings(g.GPUType, a.Model, g.Share, a.MaxBatch())
	}
	return b, nil
}

// estimate is what the gpu-let expects of a batch: the solo time on the SMs that it may use, scaled as the
// plan's own prediction for a planned batch.
func (b *binding) estimate(execMs float64) func(int) time.Duration {
	scale := 1.0
	if full := b.solo[b.batch-1]; execMs > 0 && full > 0 {
		scale = math.Max(1, nanos(execMs)/full)
	}
	return func(samples int) time.Duration {
		n := min(max(samples, 1), len(b.solo))
		return time.Duration(b.solo[n-1] * b.quickest[n-1] * scale)
	}
}

// serve makes the gpu-let serve exactly these assignments. What was fetched for a model that goes
// is returned: it goes back to its queue.
func (w *world) serve(g *gpulet, to plan.Gpulet) ([]batch.Item, error) {
	var bindings []binding
	for _, a := range to.Models {
		b, err := w.bind(to, a)
		if err != nil {
			return nil, err
		}
		bindings = append(bindings, b)
	}
	for i := range bindings {
		if old := g.find(bindings[i].model); old != nil {
			bindings[i].served = old.served
		}
	}
	g.bindings = bindings
	models := make([]batch.Model, len(bindings))
	for i := range bindings {
		b := &bindings[i]
		models[i] = batch.Model{Name: b.name, Batch: len(b.solo), Exec: b.estimate(to.Models[i].ExecMs)}
	}
	return g.batcher.SetModels(models), nil
}

func (g *gpulet) find(model int) *binding {
	for i := range g.bindings {
		if g.bindings[i].model == model {
			return &g.bindings[i]
		}
	}
	return nil
}

// slowdown is that of the running batch beside what runs now on the same GPU.
func (w *world) slowdown(g *gpulet) float64 {
	if w.cfg.Interference == nil {
		return 1
	}
	pressure, neighbours := 0.0, w.scratch[:0]
	for _, n := range g.device.gpulets {
		if n != g && n.running != nil {
			pressure += n.coupling.Emit
			neighbours = append(neighbours, []problem.Load{n.load})
		}
	}
	w.scratch = neighbours
	switch {
	case len(neighbours) == 0:
		return 1
	case len(g.running.couplings) > 0:
		return math.Max(1, g.coupling.Base+g.coupling.Gain*pressure)
	}
	return math.Max(1, w.cfg.Interference.Slowdown(g.plan.GPUType, g.load, neighbours))
}

// begin puts a batch on the executor.
func (w *world) begin(g *gpulet, l batch.Launch) {
	b := g.find(w.byName[l.Model])
	n := min(len(l.Items), len(b.solo))
	w.turns++
	b.served = w.turns
	g.running, g.items, g.idle = b, l.Items, false
	g.load = problem.Load{Model: l.Model, Share: g.plan.Share, Batch: n}
	if len(b.couplings) > 0 {
		g.coupling = b.couplings[n-1]
	}
	g.left, g.slow, g.updated, g.quickest = b.solo[n-1]+float64(w.cfg.Overhead), 0, w.now, b.quickest[n-1]
	w.pace(g.device)
}

// spare is how much of what the running gpu-lets may use beyond their shares is there, from 0 to 1: what the
// others leave, in equal parts of what each may.
func (d *device) spare() float64 {
	left, wanted := 100, 0
	for _, g := range d.gpulets {
		if g.running != nil {
			left -= g.plan.Share
			wanted += g.plan.MaxShare() - g.plan.Share
		}
	}
	if left = max(0, left); wanted <= left { // those that drain may be too many
		return 1
	}
	return float64(left) / float64(wanted)
}

// pace brings the running batches of a GPU up to now, and predicts the ends of those whose speed
// changes anew.
func (w *world) pace(d *device) {
	spare := d.spare()
	for _, g := range d.gpulets {
		if g.running == nil {
			continue
		}
		slow := w.slowdown(g) * (1 + spare*(g.quickest-1))
		if slow == g.slow {
			continue
		}
		if g.slow > 0 { // else it begins now
			g.left = math.Max(0, g.left-float64(w.now-g.updated)/g.slow)
		}
		g.updated, g.slow = w.now, slow
		g.version++
		w.agenda.add(event{at: w.now + int64(math.Ceil(g.left*slow)), kind: finished, gpulet: g, version: g.version})
	}
}

// finish takes the batch off the executor and answers its requests.
func (w *world) finish(g *gpulet) {
	b, items := g.running, g.items
	g.running, g.items = nil, nil
	g.version++
	for _, it := range items {
		w.answer(b.model, since(it.Arrived))
	}
	w.dispatch(g)
	if g.running == nil {
		w.pace(g.device)
	}
}

// dispatch fetches and launches for a free executor, as a gpu-let does: it asks each model's queue
// for what its next batch lacks, and runs what the batcher says.
func (w *world) dispatch(g *gpulet) {
	if !g.ready || g.running != nil {
		return
	}
	for {
		fetched := false
		if !g.draining {
			for _, want := range g.batcher.Want() {
				fetched = w.fetch(g, w.byName[want.Model], want.N) || fetched
			}
		}
		d := g.batcher.Next(at(w.now))
		for _, it := range d.Expired {
			w.expire(w.byName[it.Model])
		}
		if len(d.Launch.Items) > 0 {
			w.begin(g, d.Launch)
			return
		}
		if !fetched {
			break
		}
	}
	g.idle = !g.draining
	if g.draining {
		w.remove(g)
	}
}

// fetch moves up to n requests from the model's queue into the batcher.
func (w *world) fetch(g *gpulet, model, n int) bool {
	q := &w.queues[model]
	n = min(n, q.len())
	for range n {
		arrived := q.pop()
		g.batcher.Add(w.cfg.Models[model].Name, batch.Item{
			Samples: 1, Arrived: at(arrived), Deadline: at(arrived + int64(w.timeout(model))),
		}, at(w.now))
	}
	return n > 0
}
