package pack

import (
	"fmt"

	"github.com/gpulet/gpulet/shared/plan"
)

// explain notes, per assignment, why its share and batch are what they are, which others were
// possible and why they lost, and what more or less load would change.
func (s *state) explain(p *plan.Plan) []Note {
	var notes []Note
	devices := map[string]int{}
	for gpu, d := range s.env.gpus {
		devices[d.gpu.Name()] = gpu
	}
	for _, g := range p.Gpulets {
		gpu := devices[g.Device()]
		for _, a := range g.Models {
			notes = append(notes, s.note(gpu, g, a))
		}
	}
	return notes
}

func (s *state) note(gpu int, g plan.Gpulet, a plan.Assignment) Note {
	e := s.env
	c := e.gpus[gpu].class
	m := e.modelIndex(a.Model)
	i, k := s.find(gpu, g, m)
	parts := clone(s.gpus[gpu])
	n := Note{Gpulet: g.ID, Model: a.Model}
	if i < 0 {
		return n
	}
	alone := e.tables[c][m].rows[parts[i].si].ms[a.Batch-1]
	n.Chosen = fmt.Sprintf("%d %% at batch %d carries %.4g/s: duty cycle %.4g ms and batch %.4g ms make %.4g ms of the SLO's %.4g; alone the batch takes %.4g ms, neighbours make it x%.3f",
		g.Share, a.Batch, a.RateRPS, a.DutyMs, a.ExecMs, a.DutyMs+a.ExecMs, e.models[m].slo, alone, a.ExecMs/alone)
	n.Rejected = s.shareAlternatives(c, m, i, parts, a.RateRPS)
	n.Load = []string{s.lessNote(c, i, k, clone(parts), a.RateRPS), s.headroomNote(c, i, k, parts, a.RateRPS)}
	return n
}

func (e *env) modelIndex(name string) int {
	for m := range e.models {
		if e.models[m].name == name {
			return m
		}
	}
	return -1
}

// find locates the part and slot of an assignment.
func (s *state) find(gpu int, g plan.Gpulet, m int) (i, k int) {
	shares := s.env.classes[s.env.gpus[gpu].class].shares
	for i, p := range s.gpus[gpu] {
		if shares[p.si] != g.Share || len(p.slots) != len(g.Models) {
			continue
		}
		for k, sl := range p.slots {
			if sl.m == m {
				return i, k
			}
		}
	}
	return -1, -1
}

// shareAlternatives says what the next smaller and larger shares would do for a model.
func (s *state) shareAlternatives(c, m, i int, parts []part, rate float64) []string {
	e := s.env
	var out []string
	si := parts[i].si
	pressure, busy := e.pressureOn(c, parts, i), crowded(parts, i)
	if si > 0 {
		smaller := e.classes[c].shares[si-1]
		switch most, _ := e.best(c, m, si-1, pressure, busy); {
		case most == 0:
			out = append(out, fmt.Sprintf("%d %%: not profiled, or no batch meets the SLO", smaller))
		case most < rate:
			out = append(out, fmt.Sprintf("%d %%: carries %.4g/s at most", smaller, most))
		default:
			out = append(out, fmt.Sprintf("%d %%: would carry %.4g/s too, alone in the gpu-let; no other model was given what it frees", smaller, most))
		}
	}
	if si+1 < len(e.classes[c].shares) {
		larger := e.classes[c].shares[si+1]
		free := 100 - e.shareSum(c, parts)
		here, _ := e.best(c, m, si, pressure, busy)
		most, _ := e.best(c, m, si+1, pressure, busy)
		why := ""
		if need := larger - e.classes[c].shares[si]; need > free {
			why = fmt.Sprintf(", the GPU has %d %% left", free)
		}
		out = append(out, fmt.Sprintf("%d %%: %.4g/s per percent instead of %.4g%s", larger, most/float64(larger), here/float64(e.classes[c].shares[si]), why))
	}
	return out
}

// lessNote says what one request per second less would change.
func (s *state) lessNote(c, i, k int, parts []part, rate float64) string {
	sl := &parts[i].slots[k]
	m, si, batch := sl.m, parts[i].si, sl.batch
	if rate <= 1 {
		return "one less per second leaves nothing to do here"
	}
	if si > 0 {
		most, _ := s.env.best(c, m, si-1, s.env.pressureOn(c, parts, i), crowded(parts, i))
		if len(parts[i].slots) == 1 && most < rate && most >= rate-1 {
			return fmt.Sprintf("one less per second would fit %d %%", s.env.classes[c].shares[si-1])
		}
	}
	sl.rate = rate - 1
	if s.env.settle(c, parts) && sl.batch < batch {
		return fmt.Sprintf("one less per second makes the batch %d", sl.batch)
	}
	return "one less per second changes nothing"
}

// headroomNote says by how much the rate of a slot may rise before something gives.
func (s *state) headroomNote(c, i, k int, parts []part, rate float64) string {
	e := s.env
	batch := parts[i].slots[k].batch
	lo, hi := rate, rate*2
	for range 12 {
		mid := (lo + hi) / 2
		parts[i].slots[k].rate = mid
		if e.settle(c, parts) {
			lo = mid
		} else {
			hi = mid
		}
	}
	if lo >= rate*1.99 {
		return fmt.Sprintf("twice the rate would still fit here, batch %d now", batch)
	}
	return fmt.Sprintf("up to %.4g/s fits here (+%.3g/s) without moving anything; one more per second %s", lo, lo-rate, gives(lo-rate))
}

func gives(room float64) string {
	if room >= 1 {
		return "changes nothing but the batch"
	}
	return "needs another place"
}
