package pack

import (
	"cmp"
	"slices"
)

// headroom gives what is left of every GPU in use to its gpu-lets: wider shares first, the tightest
// gpu-let at a time, and then larger batches, as far as every SLO allows. A plan made for its rates alone
// leaves bursts no room: batches are as small, and gpu-lets as narrow, as the mean asks for.
func (s *state) headroom() {
	for i, parts := range s.gpus {
		if len(parts) > 0 {
			c := s.env.gpus[i].class
			s.gpus[i] = s.env.deepen(c, s.env.widen(c, parts))
		}
	}
}

// widen raises shares, a step at a time, while the GPU has some left.
func (e *env) widen(c int, parts []part) []part {
	for {
		wider, ok := e.wider(c, parts)
		if !ok {
			return parts
		}
		parts = wider
	}
}

// wider gives one part, the tightest that can take it, the next larger share.
func (e *env) wider(c int, parts []part) ([]part, bool) {
	order := make([]int, len(parts))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(e.tightness(&parts[b]), e.tightness(&parts[a])) })
	for _, i := range order {
		if parts[i].si+1 == len(e.classes[c].shares) {
			continue
		}
		trial := clone(parts)
		trial[i].si++
		if e.settle(c, trial) {
			return trial, true
		}
	}
	return nil, false
}

// tightness is the part of its SLO that the worst case of a part's tightest model takes.
func (e *env) tightness(p *part) float64 {
	duty, worst := 0.0, 0.0
	for _, sl := range p.slots {
		duty += sl.ms
	}
	for _, sl := range p.slots {
		worst = max(worst, (duty+sl.ms)/e.models[sl.m].slo)
	}
	return worst
}

// deepen raises batches, all in turn by one sample, as far as everything still settles.
func (e *env) deepen(c int, parts []part) []part {
	for grown := true; grown; {
		grown = false
		for i := range parts {
			for k := range parts[i].slots {
				trial := clone(parts)
				trial[i].slots[k].least = parts[i].slots[k].batch + 1
				if e.settle(c, trial) {
					parts, grown = trial, true
				}
			}
		}
	}
	return parts
}
