package control

import (
	"time"

	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// traffic follows what arrives for each model.
type traffic struct {
	cfg     demand.Config
	models  map[string]*flow
	reports map[string]plan.ModelReport // by gpu-let and model, as last seen
}

// flow is the traffic of one model.
type flow struct {
	estimator         demand.Estimator
	lag               bus.Lag
	at                time.Time // of lag
	arrived           time.Time // the last look at which something had arrived
	full              int       // looks in a row at which the queue had no room
	requests, samples float64   // answered, older ones fading
}

// fade is what remains of older counts when request sizes are averaged, per epoch.
const fade = 0.8

// A queue is full when it is at nearly every moment: a burst fills one, too, but not at so many looks in a
// row. What was fetched and answered since the last request came leaves a little room.
const (
	fullLooks = 3
	nearlyAll = 0.9
)

func newTraffic(cfg demand.Config) traffic {
	return traffic{cfg: cfg, models: map[string]*flow{}, reports: map[string]plan.ModelReport{}}
}

// observe takes one reading of a model's queue, which holds at most so many requests (0: not known).
// Differences of the stream's last sequence count arrivals; a sequence that falls is another stream, whose
// first reading counts nothing.
func (t *traffic) observe(name string, lag bus.Lag, most int64, now time.Time) {
	f := t.models[name]
	if f == nil {
		f = &flow{arrived: now}
		t.models[name] = f
	} else if lag.LastSeq >= f.lag.LastSeq {
		n := lag.LastSeq - f.lag.LastSeq
		f.estimator.Observe(t.cfg, n, now.Sub(f.at))
		if n > 0 {
			f.arrived = now
		}
	}
	f.lag, f.at = lag, now
	if f.full++; most == 0 || float64(lag.Pending+lag.AckPending) < nearlyAll*float64(most) {
		f.full = 0
	}
}

// replanned forgets how full queues were under another plan.
func (t *traffic) replanned() {
	for _, f := range t.models {
		f.full = 0
	}
}

// full are the models whose queues refuse requests.
func (t *traffic) full() map[string]bool {
	full := map[string]bool{}
	for name, f := range t.models {
		if f.full >= fullLooks {
			full[name] = true
		}
	}
	return full
}

// sizes learns how many samples a request carries from what gpu-lets report.
func (t *traffic) sizes(reports []plan.GpuletReport) {
	for _, f := range t.models {
		f.requests, f.samples = fade*f.requests, fade*f.samples
	}
	seen := make(map[string]plan.ModelReport, len(t.reports))
	for _, g := range reports {
		for _, now := range g.Models {
			key := g.ID + " " + now.Model
			seen[key] = now
			last, f := t.reports[key], t.models[now.Model]
			if f == nil || now.Requests < last.Requests || now.Samples < last.Samples {
				continue
			}
			f.requests += float64(now.Requests - last.Requests)
			f.samples += float64(now.Samples - last.Samples)
		}
	}
	t.reports = seen
}

// loads is what epoch has to know of every model.
func (t *traffic) loads(now time.Time) map[string]epoch.Load {
	out := make(map[string]epoch.Load, len(t.models))
	for name, f := range t.models {
		l := epoch.Load{
			Estimate: f.estimator.Estimate(t.cfg),
			Backlog:  f.lag.Pending + f.lag.AckPending,
			Idle:     now.Sub(f.arrived),
			Full:     f.full >= fullLooks,
		}
		if f.requests >= 1 {
			l.SamplesPerRequest = f.samples / f.requests
		}
		out[name] = l
	}
	return out
}

// lags are the last readings of all queues.
func (t *traffic) lags() map[string]bus.Lag {
	out := make(map[string]bus.Lag, len(t.models))
	for name, f := range t.models {
		out[name] = f.lag
	}
	return out
}

// demand is the traffic of a model for people.
func (t *traffic) demand(m model.Model, now time.Time) plan.ModelDemand {
	d := plan.ModelDemand{Model: m.Name, SLOMs: float64(m.SLO) / float64(time.Millisecond)}
	if f := t.models[m.Name]; f != nil {
		d.RateRPS = f.estimator.Estimate(t.cfg).RateRPS
		d.Pending, d.InFlight = f.lag.Pending, f.lag.AckPending
		if !f.lag.Oldest.IsZero() {
			d.OldestMs = max(0, float64(now.Sub(f.lag.Oldest))/float64(time.Millisecond))
		}
	}
	return d
}

// keep forgets models that are not registered any more.
func (t *traffic) keep(models []model.Model) {
	registered := make(map[string]bool, len(models))
	for _, m := range models {
		registered[m.Name] = true
	}
	for name := range t.models {
		if !registered[name] {
			delete(t.models, name)
		}
	}
}
