package pack

import (
	"math"

	"github.com/gpulet/gpulet/planner/internal/problem"
)

// part is a gpu-let under construction: a share of a GPU and what it serves.
type part struct {
	si    int // index into the class's shares
	slots []slot
}

// slot is one model on a gpu-let.
type slot struct {
	m     int
	rate  float64 // samples/s it has to carry
	least int     // samples that batch has at least, whatever the rate asks for
	batch int     // settled
	burst int     // samples that a batch may have while more wait; 0: batch
	ms    float64 // inflated time of a full batch, valid once settled
}

// most is how many samples a batch may have.
func (s *slot) most() int { return max(s.batch, s.burst) }

// slack is the relative distance kept from the rate that a batch per cycle carries. An SLO may be met
// exactly: the checker, which sums in another order, grants far more than rounding.
const slack = 1e-9

// settle finds the smallest batches with which parts, together on one GPU of class c, carry their
// rates within every SLO and the memory, interference included; false when there are none.
//
// With D the sum of a part's inflated batch times, every slot needs b >= rate x D and
// D + its own time <= SLO. Growing a batch never shortens D, so raising each batch from its least to what
// the current D asks for ends at the least solution if there is one: any solution bounds the
// iteration from above (Knaster-Tarski). Smallest batches have the smallest D, so if they break an
// SLO, so does every other choice.
func (e *env) settle(c int, parts []part) bool {
	return e.settleUnder(c, parts, 0, false) && e.fits(c, parts)
}

// settleUnder is settle, without capacity and memory, for parts that have more neighbours than
// each other: those press with outside if busy.
func (e *env) settleUnder(c int, parts []part, outside float64, busy bool) bool {
	for i := range parts {
		if limit := e.in.MaxModels; limit > 0 && len(parts[i].slots) > limit {
			return false
		}
		for k := range parts[i].slots {
			parts[i].slots[k].batch = max(1, parts[i].slots[k].least)
		}
	}
	var buf [16]float64
	emits := buf[:0]
	for {
		emits = emits[:0]
		total := outside
		for i := range parts {
			v := e.emit(c, &parts[i])
			emits = append(emits, v)
			total += v
		}
		changed := false
		for i := range parts {
			grown, ok := e.settlePart(c, parts, i, total-emits[i], busy || crowded(parts, i))
			if !ok {
				return false
			}
			changed = changed || grown
		}
		if !changed {
			return true
		}
	}
}

// settlePart raises the batches of part i to what its present duty cycle asks for.
func (e *env) settlePart(c int, parts []part, i int, pressure float64, busy bool) (grown, ok bool) {
	p := &parts[i]
	duty := 0.0
	for k := range p.slots {
		s := &p.slots[k]
		ms, ok := e.inflated(c, parts, i, s.m, s.batch, pressure, busy)
		if !ok {
			return false, false
		}
		s.ms = ms
		duty += ms
	}
	for k := range p.slots {
		s := &p.slots[k]
		if duty+s.ms > e.models[s.m].slo {
			return false, false
		}
		need := s.rate * duty / 1000 * (1 + slack)
		if need <= float64(s.batch) {
			continue
		}
		if need > maxPlannedBatch {
			return false, false
		}
		s.batch = int(math.Ceil(need))
		grown = true
	}
	return grown, true
}

// inflated is the time of a batch with its neighbours' worst; false where the profile ends.
func (e *env) inflated(c int, parts []part, i, m, batch int, pressure float64, busy bool) (ms float64, ok bool) {
	t := e.tables[c][m]
	if t == nil || batch > t.maxBatch {
		return 0, false
	}
	r := &t.rows[parts[i].si]
	if batch > len(r.ms) {
		return 0, false
	}
	ms = r.ms[batch-1]
	if e.alone || !busy {
		return ms, true
	}
	if e.pressure {
		q := &r.coupling[batch-1]
		return ms * max(1, q.Base+q.Gain*pressure), true
	}
	self := problem.Load{Model: e.models[m].name, Share: e.classes[c].shares[parts[i].si], Batch: batch}
	return ms * e.in.Slowdown(e.classes[c].gpuType, self, e.neighbours(c, parts, i)), true
}

// crowded reports whether part i has a busy neighbour.
func crowded(parts []part, i int) bool {
	for k := range parts {
		if k != i && len(parts[k].slots) > 0 {
			return true
		}
	}
	return false
}

// emit is the pressure of a part: the worst of its models, since one runs at a time.
func (e *env) emit(c int, p *part) float64 {
	if !e.pressure {
		return 0
	}
	worst := 0.0
	for k := range p.slots {
		s := &p.slots[k]
		t := e.tables[c][s.m]
		if t == nil {
			continue
		}
		r := t.rows[p.si].coupling
		if b := min(s.batch, len(r)); b > 0 && r[b-1].Emit > worst {
			worst = r[b-1].Emit
		}
	}
	return worst
}

func (e *env) neighbours(c int, parts []part, i int) [][]problem.Load {
	var out [][]problem.Load
	for k := range parts {
		if k == i || len(parts[k].slots) == 0 {
			continue
		}
		var loads []problem.Load
		for _, s := range parts[k].slots {
			loads = append(loads, problem.Load{Model: e.models[s.m].name, Share: e.classes[c].shares[parts[k].si], Batch: s.batch})
		}
		out = append(out, loads)
	}
	return out
}

// fits checks capacity and memory.
func (e *env) fits(c int, parts []part) bool {
	cl := &e.classes[c]
	share := 0
	var mem int64
	for i := range parts {
		share += cl.shares[parts[i].si]
		mem += e.in.ContextBytes
		for _, s := range parts[i].slots {
			mem += e.tables[c][s.m].mem[s.most()-1]
		}
	}
	return share <= 100 && (cl.mem <= 0 || mem <= cl.mem)
}

// best returns the batch with the highest rate that a part of share index si can give model m
// alone in it while its neighbours press with pressure; busy says whether there are neighbours.
// 0 when no batch meets the SLO.
func (e *env) best(c, m, si int, pressure float64, busy bool) (rate float64, batch int) {
	t := e.tables[c][m]
	if t == nil {
		return 0, 0
	}
	r := &t.rows[si]
	limit := e.models[m].slo / 2
	for b := range r.ms {
		ms := r.ms[b]
		if busy && e.pressure {
			ms *= max(1, r.coupling[b].Base+r.coupling[b].Gain*pressure)
		}
		if ms > limit {
			continue
		}
		if v := float64(b+1) / ms * 1000; v > rate {
			rate, batch = v, b+1
		}
	}
	return rate * (1 - 2*slack), batch
}
