package agent

import (
	"maps"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/reconcile"
)

// A model is quarantined when gpu-lets that it shares with others have died over it quarantineDeaths
// times within quarantineTime, and until it has not happened for so long: its gpu-let is then its own.
const (
	quarantineDeaths = 3
	quarantineTime   = 10 * time.Minute
)

// blame counts a death against a model. It reports whether the model is quarantined from now on.
func (a *Agent) blame(model string, now time.Time) (isNew bool) {
	recent := slices.DeleteFunc(a.deaths[model], func(t time.Time) bool { return now.Sub(t) >= quarantineTime })
	a.deaths[model] = append(recent, now)
	if len(a.deaths[model]) >= quarantineDeaths {
		if isNew = !a.quarantined(model); isNew {
			a.log.Error("model quarantined: its gpu-lets keep dying, it gets one of its own", "model", model, "deaths", len(a.deaths[model]))
		}
		a.quarantine[model] = quarantined{until: now.Add(quarantineTime), hash: a.models[model].model.Hash}
	}
	return isNew
}

// quarantined is how long a model stays apart, and which archive it is about.
type quarantined struct {
	until time.Time
	hash  string
}

func (a *Agent) quarantined(model string) bool {
	_, is := a.quarantine[model]
	return is
}

// release ends quarantines that are over, or about an archive that has been replaced. It returns
// when to look again; zero: there are none.
func (a *Agent) release(now time.Time) (next time.Time) {
	for model, q := range a.quarantine {
		if now.Before(q.until) && a.models[model].model.Hash == q.hash {
			if next.IsZero() || q.until.Before(next) {
				next = q.until
			}
			continue
		}
		delete(a.quarantine, model)
		delete(a.deaths, model)
		a.log.Info("model back from quarantine", "model", model)
	}
	return next
}

// isolate takes quarantined models out of the gpu-lets of the plan.
func (a *Agent) isolate(gpulets []plan.Gpulet) []plan.Gpulet {
	if len(a.quarantine) == 0 {
		return gpulets
	}
	return reconcile.Isolate(gpulets, a.quarantined)
}

// notes says of gpu-lets that are there although the plan does not say so why they are.
func (a *Agent) note(actions []reconcile.Action, now time.Time) {
	notes := map[string]string{}
	for _, g := range a.desired().Gpulets {
		if len(g.Models) == 1 && !a.inPlan(g.ID) {
			notes[g.ID] = "quarantine: gpu-lets that " + g.Models[0].Model + " shared with others died over it"
		}
	}
	for _, act := range actions {
		if act.Kept {
			notes[act.ID] = act.Reason
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.children)) {
		c := a.children[id]
		if c.note == notes[id] {
			continue
		}
		if kept := isKept(notes[id]); kept && !isKept(c.note) {
			a.rollbacks++
			a.log.Warn("gpu-let kept: what should replace it does not come up", "gpulet", id, "reason", notes[id])
		}
		c.note = notes[id]
		a.putGpulet(c, now)
		a.reportHost()
	}
}

func isKept(note string) bool { return len(note) > 4 && note[:4] == "kept" }

func (a *Agent) inPlan(id string) bool {
	return slices.ContainsFunc(a.plan.Gpulets, func(g plan.Gpulet) bool { return g.ID == id })
}
