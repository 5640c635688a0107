package epoch

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// assembly is one problem as observed, with what had to be left out of it.
type assembly struct {
	in       input
	needs    map[string]float64 // samples per second by planned model; 0: not to be loaded
	memory   memory
	problems []string
}

// input is a problem whose rates and SLOs can be replaced without touching the original.
type input struct{ problem.Input }

// withRates returns the problem with other rates.
func (in input) withRates(rates map[string]float64) input {
	in.Models = slices.Clone(in.Models)
	for i := range in.Models {
		in.Models[i].Rate = rates[in.Models[i].Name]
	}
	return in
}

func assemble(c Config, s State) assembly {
	a := assembly{needs: map[string]float64{}}
	gpus, problems := devices(s.Hosts)
	profiles, bad := choose(s, gpus)
	a.problems = append(problems, bad...)
	a.memory = s.History.memory.learn(s, profiles)
	profiles = a.memory.correct(profiles)
	a.in = input{problem.Input{
		GPUs: gpus, Profiles: profiles, Interference: s.Interference,
		Buffer: c.Buffer, ContextBytes: c.contextBytes(s, gpus), Current: &s.Current,
	}}
	capacity := s.Current.Capacities()
	for _, m := range s.Models {
		if !profiles.knows(m.Name) {
			continue
		}
		a.needs[m.Name] = c.need(m, s.Loads[m.Name], capacity[m.Name])
		a.in.Models = append(a.in.Models, problem.Model{
			Name: m.Name, SLO: problem.Net(m.SLO, c.Reserve), Weight: m.Weight, MaxBatch: m.MaxBatch,
			Offline: m.Offline(),
		})
	}
	sort.Slice(a.in.Models, func(i, j int) bool { return a.in.Models[i].Name < a.in.Models[j].Name })
	return a
}

// contextBytes is the device memory of a gpu-let beside its models: the most of any type of GPU.
func (c Config) contextBytes(s State, gpus []problem.GPU) int64 {
	most := c.ContextBytes
	for _, g := range gpus {
		most = max(most, s.Contexts[g.Type])
	}
	return most
}

// refusing is how many times what the plan carries is asked of the next one for a model whose queue is
// full. How much the queue refused nobody knows; the next plan either carries it, and the queue is not
// full any more, or asks again.
const refusing = 1.5

// need is what the model asks of a plan now, in samples per second; capacity is what the plan there is
// carries of it.
func (c Config) need(m model.Model, l Load, capacity float64) float64 {
	if c.IdleAfter > 0 && l.Idle >= c.IdleAfter && l.Backlog == 0 {
		return 0
	}
	perRequest := l.SamplesPerRequest
	if perRequest <= 0 {
		perRequest = 1
	}
	d := c.Demand
	if m.Offline() { // a backlog has the time that its requests have
		d.DrainWithin = max(d.DrainWithin, m.SLO)
	}
	need := max(c.WarmRPS, perRequest*d.Of(l.Estimate, problem.Net(m.SLO, c.Reserve), l.Backlog).PlannedRPS())
	if l.Full && !m.Offline() {
		need = max(need, refusing*capacity, perRequest*leastMsgs/m.Timeout.Seconds())
	}
	return need
}

// devices lists the GPUs of all hosts in order.
func devices(hosts []plan.HostReport) (gpus []problem.GPU, problems []string) {
	seen := map[string]bool{}
	for _, h := range hosts {
		for _, d := range h.Devices {
			g := problem.GPU{Host: h.Host, Index: d.Index, Type: d.GPUType, MemBytes: d.MemBytes, Shares: d.Shares}
			switch {
			case d.GPUType == "":
				problems = append(problems, fmt.Sprintf("host %s: device %d has no type: left out", h.Host, d.Index))
			case seen[g.Name()]:
				problems = append(problems, fmt.Sprintf("host %s: reports device %d twice: the first counts", h.Host, d.Index))
			default:
				seen[g.Name()] = true
				gpus = append(gpus, g)
			}
		}
	}
	sort.Slice(gpus, func(i, j int) bool {
		if gpus[i].Host != gpus[j].Host {
			return gpus[i].Host < gpus[j].Host
		}
		return gpus[i].Index < gpus[j].Index
	})
	return gpus, problems
}

// profiles are the usable ones: of a registered model's own archive, on a type that is there.
type profiles map[profileKey]*profile.Profile

type profileKey struct{ gpuType, model string }

// Get implements problem.Profiles.
func (p profiles) Get(gpuType, model string) (*profile.Profile, bool) {
	found, ok := p[profileKey{gpuType, model}]
	return found, ok
}

func (p profiles) knows(model string) bool {
	for k := range p {
		if k.model == model {
			return true
		}
	}
	return false
}

// choose picks a profile for every registered model on every GPU type that is there: one measured
// by an agent before one from a file, and none of another archive.
func choose(s State, gpus []problem.GPU) (profiles, []string) {
	measured := profiles{}
	for i := range s.Measured {
		p := &s.Measured[i]
		measured[profileKey{p.GPUType, p.Model}] = p
	}
	types := map[string]bool{}
	for _, g := range gpus {
		types[g.Type] = true
	}
	chosen, problems := profiles{}, []string(nil)
	for _, m := range s.Models {
		for _, t := range slices.Sorted(maps.Keys(types)) {
			p, bad := pick(m, t, measured, s.Files)
			problems = append(problems, bad...)
			if p != nil {
				chosen[profileKey{t, m.Name}] = p
			}
		}
		if len(types) > 0 && !chosen.knows(m.Name) {
			problems = append(problems, fmt.Sprintf("model %s: no profile for %s: not planned until there is one",
				m.Name, strings.Join(slices.Sorted(maps.Keys(types)), ", ")))
		}
	}
	return chosen, problems
}

func pick(m model.Model, gpuType string, measured profiles, files problem.Profiles) (*profile.Profile, []string) {
	var problems []string
	for _, source := range []struct {
		name string
		from problem.Profiles
	}{{"measured", measured}, {"shipped", files}} {
		if source.from == nil {
			continue
		}
		p, ok := source.from.Get(gpuType, m.Name)
		switch {
		case !ok:
		case p.ModelHash != "" && m.Hash != "" && p.ModelHash != m.Hash:
			problems = append(problems, fmt.Sprintf(
				"model %s: the %s profile for %s is of archive %s, but version %d is archive %s: refused",
				m.Name, source.name, gpuType, digest(p.ModelHash), m.Version, digest(m.Hash)))
		default:
			if !samePrecision(m.Precision, p.Precision) {
				problems = append(problems, fmt.Sprintf(
					"model %s: the %s profile for %s was measured in %s, but the model is served in %s: its times may differ",
					m.Name, source.name, gpuType, p.Precision, m.Precision))
			}
			return p, problems
		}
	}
	return nil, problems
}

// samePrecision reports whether figures of one precision hold for another. What is stored is nearly
// always fp32.
func samePrecision(a, b string) bool {
	name := func(s string) string {
		if s == "" || s == "stored" {
			return "fp32"
		}
		return s
	}
	return name(a) == name(b) || b == ""
}

// digest abbreviates a hash for people; 12 digits tell any two archives apart.
func digest(hash string) string { return hash[:min(12, len(hash))] }

// History is what one decision has to know of those before it.
type History struct {
	since  time.Time // of the first decision
	needs  map[string][]peak
	memory memory
}

// peak is a need that was not exceeded later.
type peak struct {
	at   time.Time
	rate float64
}

// next returns the history after the needs of now. It shares nothing with h.
func (h History) next(c Config, s State, needs map[string]float64, learned memory) History {
	n := History{since: h.since, needs: make(map[string][]peak, len(needs)), memory: learned}
	if n.since.IsZero() {
		n.since = s.Now
	}
	for name, rate := range needs {
		var kept []peak
		if rate > 0 { // an idle model has no past
			for _, p := range h.needs[name] {
				if p.rate > rate && s.Now.Sub(p.at) < c.Hold {
					kept = append(kept, p)
				}
			}
		}
		n.needs[name] = append(kept, peak{s.Now, rate})
	}
	return n
}

// peaks returns the highest need of each model within the hold time.
func (h History) peaks(needs map[string]float64) map[string]float64 {
	out := maps.Clone(needs)
	for name := range out {
		for _, p := range h.needs[name] {
			out[name] = max(out[name], p.rate)
		}
	}
	return out
}

// seasoned reports whether the hold time has been observed in full.
func (h History) seasoned(c Config, now time.Time) bool { return now.Sub(h.since) >= c.Hold }
