package epoch

import (
	"fmt"
	"hash/fnv"
	"slices"
)

// Seen is a fingerprint of what an epoch planned for: when it differs, planning cannot wait.
type Seen struct{ hosts, models, profiles uint64 }

// Lag is the cause of an epoch that starts because requests wait too long.
const Lag = "lag"

// surely is the probability with which a rate must exceed the plan's for an epoch to start early.
const surely = 0.999

// Look takes the fingerprint of a state.
func Look(s State) Seen {
	hosts, models, profiles := fnv.New64a(), fnv.New64a(), fnv.New64a()
	gpus, _ := devices(s.Hosts)
	for _, g := range gpus {
		fmt.Fprintln(hosts, g)
	}
	for _, m := range s.Models {
		fmt.Fprintln(models, m.Name, m.Hash, m.SLO, m.Timeout, m.MaxBatch, m.Weight, m.Class)
	}
	var lines []string
	for _, p := range s.Measured {
		lines = append(lines, fmt.Sprintln(p.GPUType, p.Model, p.ModelHash, p.Updated.UnixNano(), len(p.Points)))
	}
	slices.Sort(lines)
	fmt.Fprint(profiles, lines)
	return Seen{hosts.Sum64(), models.Sum64(), profiles.Sum64()}
}

// Urgent says why the next epoch cannot wait, or nothing. last is what the last epoch saw. changed
// is true when planning has something new to go by; otherwise only traffic got worse, and a caller
// that has just found no better plan may wait.
func Urgent(s State, last Seen) (cause, reason string, changed bool) {
	switch now := Look(s); {
	case now.hosts != last.hosts:
		return Hosts, "the devices changed", true
	case now.models != last.models:
		return Models, "the models changed", true
	case now.profiles != last.profiles:
		return Models, "the profiles changed", true
	}
	capacity := s.Current.Capacities()
	loaded := map[string]bool{}
	for _, g := range s.Current.Gpulets {
		for _, a := range g.Models {
			loaded[a.Model] = true
		}
	}
	for _, m := range s.Models {
		l := s.Loads[m.Name]
		can := capacity[m.Name] * m.SLO.Seconds() // what is answered within one SLO
		size := max(1, l.SamplesPerRequest)
		switch {
		case l.Backlog == 0:
		case !loaded[m.Name]:
			return Demand, fmt.Sprintf("model %s has %d requests and is not loaded anywhere", m.Name, l.Backlog), false
		case m.Offline(): // it can wait
		case l.Full:
			return Demand, fmt.Sprintf("model %s refuses requests: its queue is full, and the plan carries %.4g samples/s", m.Name, capacity[m.Name]), false
		case float64(l.Backlog)*size > 1.25*can+2:
			return Lag, fmt.Sprintf("model %s has %d requests waiting, the plan answers %.0f within its SLO", m.Name, l.Backlog, can), false
		case l.Estimate.AtLeast(surely)*size > capacity[m.Name]:
			return Demand, fmt.Sprintf("model %s gets %.4g requests/s, the plan carries %.4g samples/s", m.Name, l.Estimate.RateRPS, capacity[m.Name]), false
		}
	}
	return "", "", false
}
