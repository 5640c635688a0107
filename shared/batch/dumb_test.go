package batch_test

import (
	"maps"
	"slices"
	"sort"
	"time"

	"github.com/gpulet/gpulet/shared/batch"
)

// dumb is the batcher as one would explain it, without care for speed: one list of what is held,
// one list of models with the next turn first.
type dumb struct {
	models []batch.Model // rotated: the next turn is first
	used   map[string]bool
	held   []batch.Item
}

func (d *dumb) takeOut(model string, payload any) bool {
	n := len(d.held)
	d.held = slices.DeleteFunc(d.held, func(it batch.Item) bool { return it.Model == model && it.Payload == payload })
	return len(d.held) < n
}

func (d *dumb) add(model string, it batch.Item) {
	it.Model = model
	d.held = append(d.held, it)
}

func (d *dumb) of(m batch.Model) []batch.Item {
	var items []batch.Item
	for _, it := range d.held {
		if it.Model == m.Name {
			items = append(items, it)
		}
	}
	sort.SliceStable(items, func(i, j int) bool { return items[i].Deadline.Before(items[j].Deadline) })
	return items
}

func (d *dumb) remove(items []batch.Item) {
	d.held = slices.DeleteFunc(d.held, func(it batch.Item) bool {
		return slices.ContainsFunc(items, func(gone batch.Item) bool { return gone.Payload == it.Payload })
	})
}

// expire lists models in duty order, which the names m0, m1, … give.
func (d *dumb) expire(now time.Time) (expired []batch.Item) {
	models := slices.Clone(d.models)
	sort.Slice(models, func(i, j int) bool { return models[i].Name < models[j].Name })
	for _, m := range models {
		for _, it := range d.of(m) {
			if now.Add(m.Exec(it.Samples)).After(it.Deadline) {
				expired = append(expired, it)
			}
		}
	}
	d.remove(expired)
	return expired
}

func (d *dumb) next(now time.Time) (dec batch.Decision) {
	dec.Expired = d.expire(now)
	if len(d.held) == 0 {
		return dec
	}
	for len(d.of(d.models[0])) == 0 || d.used[d.models[0].Name] {
		d.used[d.models[0].Name] = false
		d.models = append(d.models[1:], d.models[0])
	}
	m := d.models[0]
	free := now.Add(m.Exec(sum(full(m, d.of(m)))))
	for _, other := range d.models[1:] {
		items := d.of(other)
		if len(items) == 0 || d.used[other.Name] {
			continue
		}
		late := free.Add(other.Exec(items[0].Samples)).After(items[0].Deadline)
		if late && items[0].Deadline.Before(d.of(m)[0].Deadline) {
			m = other
		}
	}
	if m.Name == d.models[0].Name {
		d.models = append(slices.Clone(d.models[1:]), d.models[0])
	} else {
		d.used[m.Name] = true
	}
	lost, run := choose(m, d.of(m), now)
	d.remove(lost)
	d.remove(run)
	dec.Expired = append(dec.Expired, lost...)
	dec.Launch = batch.Launch{Model: m.Name, Items: run, Samples: sum(run), Exec: m.Exec(sum(run))}
	return dec
}

// nextFull tries it out on a copy.
func (d *dumb) nextFull(free time.Time) batch.Launch {
	trial := &dumb{slices.Clone(d.models), maps.Clone(d.used), slices.Clone(d.held)}
	dec := trial.next(free)
	i := slices.IndexFunc(d.models, func(m batch.Model) bool { return m.Name == dec.Launch.Model })
	if i < 0 || len(dec.Expired) > 0 {
		return batch.Launch{}
	}
	m, items := d.models[i], d.of(d.models[i])
	most := full(m, items)
	if len(most) > len(dec.Launch.Items) || sum(most) < m.Batch && len(most) == len(items) {
		return batch.Launch{}
	}
	*d = *trial
	return dec.Launch
}

// choose looks at every batch of neighbours.
func choose(m batch.Model, items []batch.Item, now time.Time) (lost, run []batch.Item) {
	onTime := func(run []batch.Item, start time.Time) bool {
		done := start.Add(m.Exec(sum(run)))
		return !slices.ContainsFunc(run, func(it batch.Item) bool { return done.After(it.Deadline) })
	}
	longest := func(items []batch.Item) (run []batch.Item) {
		for n := range len(full(m, items)) {
			if onTime(items[:n+1], now) {
				run = items[:n+1]
			}
		}
		return run
	}
	run = longest(items)
	rest := full(m, items[len(run):])
	if len(run) == len(full(m, items)) || onTime(rest, now.Add(m.Exec(sum(run)))) {
		return nil, run
	}
	for from := range items {
		if more := longest(items[from:]); len(more) > len(run) {
			lost, run = items[:from], more
		}
	}
	return lost, run
}

func full(m batch.Model, items []batch.Item) []batch.Item {
	for n := 2; n <= len(items); n++ {
		if sum(items[:n]) > m.Batch {
			return items[:n-1]
		}
	}
	return items
}

func sum(items []batch.Item) (samples int) {
	for _, it := range items {
		samples += it.Samples
	}
	return samples
}
