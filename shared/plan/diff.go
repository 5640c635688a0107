package plan

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Change is what it takes to get from one plan to another.
type Change struct {
	Start []Gpulet // gpu-lets of the new plan that do not run yet
	Stop  []Gpulet // gpu-lets of the old plan that go
	// Reassign are gpu-lets that stay and serve another set of models, or other batches.
	Reassign []Reassignment
	// Retune are gpu-lets of which only rates and predictions differ: nothing moves.
	Retune []string
}

// Reassignment is a gpu-let that keeps its place and changes its models.
type Reassignment struct {
	Old, New Gpulet
	Load     []string // models it has to load
	Unload   []string // models it may drop
	Rebatch  []string // models whose batch changes
}

// Diff compares two plans by gpu-let id. Results are sorted by id.
func Diff(old, new Plan) Change {
	var c Change
	before := byID(old)
	after := byID(new)
	for _, id := range sortedKeys(after) {
		g, ok := before[id]
		if !ok || !samePlace(g, after[id]) {
			c.Start = append(c.Start, after[id])
			continue
		}
		r := reassign(g, after[id])
		switch {
		case len(r.Load)+len(r.Unload)+len(r.Rebatch) > 0:
			c.Reassign = append(c.Reassign, r)
		case !slices.Equal(g.Models, after[id].Models):
			c.Retune = append(c.Retune, id)
		}
	}
	for _, id := range sortedKeys(before) {
		if g, ok := after[id]; !ok || !samePlace(g, before[id]) {
			c.Stop = append(c.Stop, before[id])
		}
	}
	return c
}

func byID(p Plan) map[string]Gpulet {
	m := make(map[string]Gpulet, len(p.Gpulets))
	for _, g := range p.Gpulets {
		m[g.ID] = g
	}
	return m
}

// samePlace is true of a plan that kept the rule that an id never changes its place.
func samePlace(a, b Gpulet) bool {
	return a.Host == b.Host && a.GPU == b.GPU && a.SameShares(b)
}

func reassign(old, new Gpulet) Reassignment {
	r := Reassignment{Old: old, New: new}
	batch := map[string][2]int{}
	for _, a := range old.Models {
		batch[a.Model] = [2]int{a.Batch, a.MaxBatch()}
	}
	for _, a := range new.Models {
		b, ok := batch[a.Model]
		switch {
		case !ok:
			r.Load = append(r.Load, a.Model)
		case b != [2]int{a.Batch, a.MaxBatch()}:
			r.Rebatch = append(r.Rebatch, a.Model)
		}
		delete(batch, a.Model)
	}
	r.Unload = sortedKeys(batch)
	sort.Strings(r.Load)
	sort.Strings(r.Rebatch)
	return r
}

// Empty reports whether the plans run the same gpu-lets, models and batches.
func (c Change) Empty() bool { return len(c.Start)+len(c.Stop)+len(c.Reassign) == 0 }

// Moves counts model loads: each costs a warm-up, and memory for two copies until the old is gone.
func (c Change) Moves() int {
	n := 0
	for _, g := range c.Start {
		n += len(g.Models)
	}
	for _, r := range c.Reassign {
		n += len(r.Load)
	}
	return n
}

// String lists the change, one line per gpu-let: + starts, - stops, ~ is reassigned.
func (c Change) String() string {
	var b strings.Builder
	for _, g := range c.Stop {
		fmt.Fprintf(&b, "- %s %s %s\n", g.ID, g.Shares(), modelList(g))
	}
	for _, g := range c.Start {
		fmt.Fprintf(&b, "+ %s %s %s\n", g.ID, g.Shares(), modelList(g))
	}
	for _, r := range c.Reassign {
		fmt.Fprintf(&b, "~ %s %s %s -> %s\n", r.New.ID, r.New.Shares(), modelList(r.Old), modelList(r.New))
	}
	if b.Len() == 0 {
		return "no change\n"
	}
	return b.String()
}

func modelList(g Gpulet) string {
	if len(g.Models) == 0 {
		return "idle"
	}
	parts := make([]string, len(g.Models))
	for i, a := range g.Models {
		parts[i] = fmt.Sprintf("%s batch=%s", a.Model, a.Batches())
	}
	return strings.Join(parts, ", ")
}
