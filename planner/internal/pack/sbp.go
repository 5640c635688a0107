package pack

import (
	"cmp"
	"math"
	"slices"

	"github.com/gpulet/gpulet/planner/internal/problem"
)

func init() {
	algorithms["sbp"] = SBP
	algorithms["even"] = Even
	algorithms["greedy"] = Greedy
}

// SBP is the squishy bin packing of Shen et al., "Nexus: A GPU Cluster Engine for Accelerating
// DNN-Based Video Analysis", SOSP 2019, Algorithm 1, on whole GPUs: each model first fills GPUs at
// its best batch; what is left over gathers a batch for as long as its SLO allows and shares GPUs
// in time, the fullest first.
func SBP(in problem.Input, opt Options) Result {
	e := newEnv(&in)
	return e.squishy(100, 1).result("sbp", opt)
}

// Even is SBP on GPUs that are cut into halves.
func Even(in problem.Input, opt Options) Result {
	e := newEnv(&in)
	return e.squishy(50, 2).result("even", opt)
}

// Greedy gives each model the smallest share that carries its rate, where it fits best, and never
// shares a gpu-let in time.
func Greedy(in problem.Input, opt Options) Result {
	e := newEnv(&in)
	return e.elastic(elasticRules{noTemporal: true, wholeFit: true}).result("greedy", opt)
}

// bin is a gpu-let of squishy bin packing, before it has a place.
type bin struct {
	class int
	si    int
	duty  float64 // ms within which every slot gathers its batch
	slots []slot
}

// squishy packs into gpu-lets of one share, perGPU of them on a GPU, class after class.
func (e *env) squishy(share, perGPU int) *state {
	s := newState(e)
	for c := range e.classes {
		si := slices.Index(e.classes[c].shares, share)
		if si < 0 {
			continue
		}
		var bins, rest []bin
		for m := range e.models {
			full, residue := e.saturate(s, c, si, m, perGPU > 1)
			bins = append(bins, full...)
			rest = append(rest, residue...)
		}
		bins = append(bins, e.squish(rest, perGPU > 1)...)
		s.placeBins(c, bins, perGPU)
	}
	return s
}

// saturate gives m whole bins while its rate fills them, and at most one bin for the residue.
func (e *env) saturate(s *state, c, si, m int, crowded bool) (full, residue []bin) {
	rate, batch := e.best(c, m, si, e.halfPressure(c), crowded)
	if rate <= 0 {
		return nil, nil
	}
	left := s.missing(m)
	for range int(left / rate) {
		full = append(full, bin{class: c, si: si, duty: 1000 * float64(batch) / rate, slots: []slot{{m: m, rate: rate}}})
		left -= rate
	}
	if left <= e.models[m].rate*1e-9 {
		return full, nil
	}
	b := bin{class: c, si: si, slots: []slot{{m: m, rate: left, batch: 1}}}
	b.duty = 1000 / left
	for batch := 1; ; batch++ {
		ms, ok := e.crowdedMs(c, si, m, batch, crowded)
		gather := 1000 * float64(batch) / left
		if !ok || ms+gather > e.models[m].slo*(1-slack) {
			break
		}
		b.slots[0].batch, b.duty = batch, gather
	}
	if ms, _ := e.crowdedMs(c, si, m, b.slots[0].batch, crowded); b.duty+ms > e.models[m].slo {
		// Too slow a trickle to gather even one: run each request as it comes.
		b.duty = max(ms, e.models[m].slo*(1-slack)-ms)
	}
	return full, []bin{b}
}

// halfPressure is the worst pressure of the other half of a GPU.
func (e *env) halfPressure(c int) float64 { return e.emission[c] / 2 }

// crowdedMs is the time of a batch, beside the worst neighbour if crowded.
func (e *env) crowdedMs(c, si, m, batch int, crowded bool) (float64, bool) {
	t := e.tables[c][m]
	if t == nil || batch > len(t.rows[si].ms) {
		return 0, false
	}
	ms := t.rows[si].ms[batch-1]
	if crowded && e.pressure {
		q := t.rows[si].coupling[batch-1]
		ms *= max(1, q.Base+q.Gain*e.halfPressure(c))
	}
	return ms, true
}

// squish merges residues, those that occupy most first, each into the bin that it fills best.
func (e *env) squish(rest []bin, crowded bool) []bin {
	occupied := func(b bin) float64 { return e.occupancy(b, crowded) }
	slices.SortStableFunc(rest, func(a, b bin) int { return cmp.Compare(occupied(b), occupied(a)) })
	var out []bin
	for _, r := range rest {
		best, at := bin{}, -1
		for i := range out {
			if merged, ok := e.merge(out[i], r, crowded); ok && (at < 0 || occupied(merged) > occupied(best)) {
				best, at = merged, i
			}
		}
		if at >= 0 {
			out[at] = best
		} else {
			out = append(out, r)
		}
	}
	return out
}

func (e *env) occupancy(b bin, crowded bool) float64 {
	sum := 0.0
	for _, sl := range b.slots {
		ms, _ := e.crowdedMs(b.class, b.si, sl.m, sl.batch, crowded)
		sum += ms
	}
	return sum / b.duty
}

// merge puts two bins into one with the shorter duty cycle: batches squeeze to what gathers in it.
func (e *env) merge(a, b bin, crowded bool) (bin, bool) {
	m := bin{class: a.class, si: a.si, duty: min(a.duty, b.duty)}
	sum := 0.0
	for _, sl := range append(slices.Clone(a.slots), b.slots...) {
		sl.batch = max(1, int(math.Ceil(sl.rate*m.duty/1000*(1-slack))))
		ms, ok := e.crowdedMs(m.class, m.si, sl.m, sl.batch, crowded)
		if !ok || m.duty+ms > e.models[sl.m].slo*(1-slack) {
			return m, false
		}
		sum += ms
		m.slots = append(m.slots, sl)
	}
	return m, sum <= m.duty*(1-slack)
}

// placeBins puts bins on the devices of a class, each where it settles first.
func (s *state) placeBins(c int, bins []bin, perGPU int) {
	e := s.env
	from := 0
	for from < len(e.gpus) && e.gpus[from].class != c {
		from++
	}
	for _, b := range bins {
		for gpu := from; gpu < len(e.gpus) && e.gpus[gpu].class == c; gpu++ {
			if len(s.gpus[gpu]) >= perGPU {
				if gpu == from {
					from++
				}
				continue
			}
			parts := append(clone(s.gpus[gpu]), part{b.si, slices.Clone(b.slots)})
			if e.settle(c, parts) {
				s.set(gpu, parts)
				break
			}
		}
	}
}
