package sim

import (
	"slices"

	"github.com/gpulet/gpulet/shared/batch"
	"github.com/gpulet/gpulet/shared/plan"
)

// follow makes p the plan, as agents do: new gpu-lets start, models that a gpu-let gets are loaded,
// and what the plan no longer wants goes when everything it wants on that host is ready. At once
// skips the waiting.
func (w *world) follow(p plan.Plan, atOnce bool) {
	w.countGPUs()
	w.target = p
	for _, want := range p.Gpulets {
		g := w.gpulets[want.ID]
		if g == nil {
			g = &gpulet{plan: want, device: w.device(want.Device()), batcher: batch.New(nil)}
			g.device.gpulets = append(g.device.gpulets, g)
			w.gpulets[want.ID] = g
		}
		w.assign(g, want, atOnce)
	}
	w.settle()
}

func (w *world) device(name string) *device {
	d := w.devices[name]
	if d == nil {
		d = &device{name: name}
		w.devices[name] = d
	}
	return d
}

// assign tells a gpu-let what to serve. What it does not hold yet takes its time; until then it
// serves what it did.
func (w *world) assign(g *gpulet, want plan.Gpulet, atOnce bool) {
	fresh := 0
	for _, a := range want.Models {
		if i, ok := w.byName[a.Model]; !ok || g.find(i) == nil {
			fresh++
		}
	}
	g.plan = want
	g.loads++
	wait := int64(fresh) * int64(w.cfg.Load)
	if !g.ready {
		wait += int64(w.cfg.Start)
	}
	if atOnce || fresh == 0 && g.ready {
		w.load(g)
		return
	}
	w.agenda.add(event{at: w.now + wait, kind: loaded, gpulet: g, version: g.loads})
}

// load makes the gpu-let serve what it was told beside what it must not drop yet: a model that goes
// is dropped when the host has settled.
func (w *world) load(g *gpulet) {
	if g.draining {
		return
	}
	g.ready = true
	g.loads++ // nothing is being loaded any more
	keep := g.plan
	keep.Models = slices.Clone(g.plan.Models)
	for i := range g.bindings {
		b := &g.bindings[i]
		if !slices.ContainsFunc(keep.Models, func(a plan.Assignment) bool { return a.Model == b.name }) {
			keep.Models = append(keep.Models, plan.Assignment{Model: b.name, Batch: b.batch, Rank: b.rank})
		}
	}
	w.bindTo(g, keep)
	w.settle()
}

// bindTo makes the gpu-let serve exactly to, and keeps the queues' servers in line.
func (w *world) bindTo(g *gpulet, to plan.Gpulet) {
	w.leave(g)
	dropped, err := w.serve(g, to)
	if err != nil {
		w.fail("%w", err)
		return
	}
	for i := range g.bindings {
		q := &w.queues[g.bindings[i].model]
		q.servers = append(q.servers, g)
	}
	w.giveBack(dropped)
	w.dispatch(g)
}

// leave takes the gpu-let out of all queues.
func (w *world) leave(g *gpulet) {
	for i := range g.bindings {
		q := &w.queues[g.bindings[i].model]
		q.servers = slices.DeleteFunc(q.servers, func(s *gpulet) bool { return s == g })
	}
}

// settle ends, on every host whose planned gpu-lets are all ready, what the plan does not want.
func (w *world) settle() {
	waiting := map[string]bool{}
	wanted := map[string]bool{}
	for _, want := range w.target.Gpulets {
		wanted[want.ID] = true
		if g := w.gpulets[want.ID]; !w.holds(g) {
			waiting[want.Host] = true
		}
	}
	for _, id := range sortedIDs(w.gpulets) {
		g := w.gpulets[id]
		switch {
		case waiting[g.plan.Host]:
		case !wanted[id]:
			w.drain(g)
		case len(g.bindings) > len(g.plan.Models):
			w.bindTo(g, g.plan)
		}
	}
}

// holds reports whether the gpu-let serves all that it was told.
func (w *world) holds(g *gpulet) bool {
	if g == nil || !g.ready {
		return false
	}
	for _, a := range g.plan.Models {
		if i, ok := w.byName[a.Model]; !ok || g.find(i) == nil {
			return false
		}
	}
	return true
}

func sortedIDs(m map[string]*gpulet) []string {
	ids := make([]string, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// drain lets the gpu-let finish what it holds; it takes nothing new.
func (w *world) drain(g *gpulet) {
	g.draining, g.idle = true, false
	delete(w.gpulets, g.plan.ID)
	w.leave(g)
	if !g.ready {
		w.remove(g)
		return
	}
	w.dispatch(g)
}

// remove ends the process.
func (w *world) remove(g *gpulet) {
	w.countGPUs()
	g.device.gpulets = slices.DeleteFunc(g.device.gpulets, func(o *gpulet) bool { return o == g })
	g.ready = false
}
