package pack

import (
	"math"
	"slices"
)

// What every gpu-let of a plan with headroom may take while others leave it: more SMs than its share, and
// larger batches than planned while more requests wait. Rates and SLOs are promised for share and batch
// alone. Both figures are measured (adr/0030, 0031).
const (
	burstLimit = 40 // percent of the GPU's SMs
	burstBatch = 4  // samples
)

// burst lets batches under burstBatch grow to it, or as far as memory and every SLO of the gpu-let allow
// when all of its batches run once on the SMs that it may use.
func (s *state) burst() {
	for gpu, parts := range s.gpus {
		if d := s.env.gpus[gpu]; d.bursts() {
			for i := range parts {
				for k := range parts[i].slots {
					s.env.burst(d.class, parts, i, k)
				}
			}
		}
	}
}

// bursts reports whether processes on the device may use more than their share: under MPS they may; cores,
// and what else allows only some shares, are cut for good.
func (d device) bursts() bool { return len(d.gpu.Shares) == 0 }

// burst sets that of slot k of part i on a GPU of class c.
func (e *env) burst(c int, parts []part, i, k int) {
	p := &parts[i]
	sl := &p.slots[k]
	t, si := e.tables[c][sl.m], e.limit(c, p)
	for sl.burst = min(burstBatch, t.maxBatch, len(t.rows[si].ms)); sl.burst > sl.batch; sl.burst-- {
		if e.fits(c, parts) && e.inTime(c, p, si) {
			return
		}
	}
	sl.burst = 0
}

// limit is the index of the widest share that a part of class c may use.
func (e *env) limit(c int, p *part) int {
	shares := e.classes[c].shares
	i, found := slices.BinarySearch(shares, burstLimit)
	if !found {
		i--
	}
	return max(i, p.si)
}

// inTime reports whether the largest batches of a part keep all of its SLOs, on a share of index si without
// neighbours: a request waits for one round, its own batch included, and is in the next.
func (e *env) inTime(c int, p *part, si int) bool {
	ms := func(sl *slot) float64 {
		known := e.tables[c][sl.m].rows[si].ms
		if sl.most() > len(known) {
			return math.Inf(1)
		}
		return known[sl.most()-1]
	}
	round := 0.0
	for k := range p.slots {
		round += ms(&p.slots[k])
	}
	return !slices.ContainsFunc(p.slots, func(sl slot) bool { return round+ms(&sl) > e.models[sl.m].slo })
}
