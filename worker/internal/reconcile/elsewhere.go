package reconcile

import (
	"fmt"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/plan"
)

// Unseen returns the ids under which gpu-lets on other hosts may report that are to serve what the plan
// takes off this host, and that have not been seen to serve it yet: as long as there are any, their
// reports have to be read.
func Unseen(want Desired, children []Child) []string {
	var ids []string
	for _, c := range children {
		if !c.ExitedAt.IsZero() || !c.DrainedAt.IsZero() {
			continue
		}
		for _, a := range want.leaving(c) {
			for _, g := range want.Elsewhere {
				if place := assigned(g, a.Model); place >= 0 && !want.seen(g, a.Model) {
					ids = append(ids, reportedAs(g, place)...)
				}
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// leaving are the models of c that the plan takes off it.
func (w Desired) leaving(c Child) []plan.Assignment {
	for _, g := range w.Gpulets {
		if g.ID == c.ID && samePlace(c, g) {
			return dropped(c.Models, g.Models)
		}
	}
	return c.Models
}

// seen reports whether g, of another host, was seen to serve model under this plan: under the one before
// it may be about to go.
func (w Desired) seen(g plan.Gpulet, model string) bool {
	return slices.ContainsFunc(reportedAs(g, assigned(g, model)), func(id string) bool {
		r := w.Reports[id]
		return r.Revision >= w.Revision && r.Serves(model)
	})
}

// neededElsewhere returns why c has to go on serving a model for gpu-lets of other hosts.
func (d *decision) neededElsewhere(c Child, model string) need {
	if d.crowded(c.GPU) || d.succeeded(c, model) {
		return need{}
	}
	var n need
	patience := d.want.Since.Add(d.lim.Silence)
	for _, g := range d.want.Elsewhere {
		place := assigned(g, model)
		switch {
		case place < 0 || d.want.seen(g, model):
		case d.fails(g, place, patience):
			return need{reason: fmt.Sprintf("kept: %s on host %s, which is to serve %s, does not come up", g.ID, g.Host, model), failed: true}
		case n.reason == "":
			n.reason = fmt.Sprintf("waits until %s on host %s serves %s", g.ID, g.Host, model)
			if d.now.Before(patience) {
				n.until = patience
			}
		}
	}
	return n
}

// succeeded reports whether a gpu-let of this host that a later plan wanted than the last one to want c, and
// that has to leave as c has, serves the model. Then that one waits for other hosts: of plans that follow each
// other faster than hosts hear of each other, only the last one's gpu-lets are kept, and of those every one.
func (d *decision) succeeded(c Child, model string) bool {
	for id, n := range d.byID {
		if _, wanted := d.wanted[id]; wanted || n.Assigned <= c.Assigned {
			continue
		}
		if ok, _ := d.replaces(n, model); ok {
			return true
		}
	}
	return false
}

// fails reports whether g, of another host, says that it does not come up, or nothing in all patience.
func (d *decision) fails(g plan.Gpulet, place int, patience time.Time) bool {
	heard := false
	for _, id := range reportedAs(g, place) {
		r, ok := d.want.Reports[id]
		if heard = heard || ok; ok && (r.State == plan.Failed || r.State == plan.Starting && r.Restarts > 0) {
			return true
		}
	}
	return !heard && !d.now.Before(patience)
}

// crowded reports whether a gpu-let that the plan wants on a GPU lacks memory there. What waits for other
// hosts then makes room: two hosts that exchange models would else wait for each other for ever.
func (d *decision) crowded(gpu int) bool {
	return slices.ContainsFunc(d.want.Gpulets, func(g plan.Gpulet) bool { return g.GPU == gpu && d.byID[g.ID].Short })
}

// assigned is the place of a model among those of g; -1: it is not there.
func assigned(g plan.Gpulet, model string) int {
	return slices.IndexFunc(g.Models, func(a plan.Assignment) bool { return a.Model == model })
}

// reportedAs are the ids under which the model in a place of g may be reported: that of g, and that of the
// gpu-let which it has to itself while its host isolates it.
func reportedAs(g plan.Gpulet, place int) []string {
	if len(g.Models) == 1 {
		return []string{g.ID}
	}
	return []string{g.ID, IsolatedID(g.ID, place)}
}
