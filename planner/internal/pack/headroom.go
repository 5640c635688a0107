package pack

import (
	"cmp"
	"math"
	"slices"
)

// Search for the most that the GPUs of a plan carry.
const (
	headroomStep  = 1.25 // ratio of the first factors on the rates
	headroomHalve = 4    // times that the last step is halved
	headroomMost  = 64   // largest factor: more is of no use
)

// headroomParts of the most are planned for, and the best is taken: so a current plan goes on when the rates
// have changed a little.
var headroomParts = [...]float64{0.95, 0.9, 0.85, 0.8}

// headroomLate is the share of late requests from which another cut is looked for: one with more gpu-lets,
// as a rule, which cost processes and memory. headroomStays is how many times as many may be late by a cut
// that is there already, in place of one that moves more.
const (
	headroomLate  = 0.001
	headroomStays = 2
)

// headroom gives what s leaves of the GPUs that it uses to its gpu-lets, or, where bursts would still be
// late, cuts as many GPUs anew, for as high a multiple of the rates as they carry. A plan made for its rates
// alone leaves bursts no room: batches are as small, and gpu-lets as narrow and few, as the mean asks for.
func (g *search) headroom(s *state) *state {
	gpus, enough := s.used(), headroomLate
	s.handOut()
	if gpus == 0 || !s.complete() {
		return s
	}
	if same := g.stays(gpus); same != nil && same.late() <= headroomStays*max(s.late(), headroomLate) {
		s, enough = same, headroomStays*headroomLate
	}
	if s.late() <= enough {
		return s
	}
	if more := g.most(gpus); more != nil && g.better(more, s) {
		return more
	}
	return s
}

// better reports whether fewer are late by a than by b, by far fewer where a moves more.
func (g *search) better(a, b *state) bool {
	late := a.late()
	if g.moves(a) > g.moves(b) {
		late *= headroomStays
	}
	return late < b.late()
}

// stays is the current plan with all that it leaves handed out, if that carries the rates on at most so
// many GPUs and moves nothing; else nil.
func (g *search) stays(gpus int) *state {
	if g.env.in.Current == nil {
		return nil
	}
	s := g.asItIs()
	if s == nil || s.used() > gpus {
		return nil
	}
	if s.handOut(); g.moves(s) > 0 {
		return nil
	}
	return s
}

// late estimates the share of requests of the worst model, offline ones aside, that miss its SLO when they
// are Poisson streams. A model's gpu-lets, which share its queue, are one server of their capacity μ at the
// rate λ. Of its SLO, half a duty cycle goes by on average until a request's turn and a batch time until it is
// answered; what is left, w, a backlog may take, and the backlog exceeds w·μ with probability
// exp(-2(μ-λ)wμ/λ) in the heavy-traffic limit (Kingman 1961), as in demand.Margin.
func (s *state) late() float64 {
	n := len(s.env.models)
	capacity, wait := make([]float64, n), make([]float64, n) // samples/s; ms x samples/s
	for _, parts := range s.gpus {
		for i := range parts {
			duty := 0.0
			for _, sl := range parts[i].slots {
				duty += sl.ms
			}
			for _, sl := range parts[i].slots {
				carries := float64(sl.batch) / duty * 1000
				capacity[sl.m] += carries
				wait[sl.m] += carries * (s.env.models[sl.m].slo - sl.ms - duty/2)
			}
		}
	}
	worst := 0.0
	for m := range s.env.models {
		if rate := s.env.models[m].rate; rate > 0 && capacity[m] > 0 && !s.env.models[m].offline {
			worst = max(worst, min(1, math.Exp(-2*(capacity[m]-rate)*wait[m]/1000/rate)))
		}
	}
	return worst
}

// most is a plan for a multiple of the rates, near the highest that is found on so many GPUs, with the
// rates themselves and all that it leaves handed out: every model may burst by the same factor. Nil where
// there is none.
func (g *search) most(gpus int) *state {
	best := 1.0
	for factor, failed := headroomStep, 0; failed < 2 && factor <= headroomMost; factor *= headroomStep {
		failed++ // the search is not monotone: one failure is not the end
		if g.planFor(factor, gpus) != nil {
			best, failed = factor, 0
		}
	}
	low, high := best, best*headroomStep
	for range headroomHalve {
		if mid := (low + high) / 2; g.planFor(mid, gpus) != nil {
			low = mid
		} else {
			high = mid
		}
	}
	var least *state
	for _, part := range headroomParts {
		factor := low * part
		if factor <= 1 {
			break
		}
		more := g.planFor(factor, gpus)
		if more == nil {
			continue
		}
		more.scaleDown(g.env)
		more.spread()
		more.handOut()
		if least == nil || g.better(more, least) {
			least = more
		}
	}
	return least
}

// planFor is a plan for rates times factor on at most so many GPUs; nil if none is found, or is far.
func (g *search) planFor(factor float64, gpus int) *state {
	h := g.scaled(factor)
	s := newState(h.env)
	h.bulk(s)
	h.construct(s, h.price)
	if h.lack(s) > 1 { // GPUs: no search makes up for as much
		return nil
	}
	if h.budget > 0 {
		h.repair(s, h.budget/4, h.lack)
	}
	if h.env.in.Current != nil {
		s = h.nearCurrent(s)
	}
	if !s.complete() || s.used() > gpus {
		return nil
	}
	return s
}

// scaleDown gives a state that was planned for higher rates those of env; its batches stay.
func (s *state) scaleDown(env *env) {
	high := s.env.models
	s.env = env
	for gpu, parts := range s.gpus {
		for i := range parts {
			for k := range parts[i].slots {
				sl := &parts[i].slots[k]
				sl.rate, sl.least = sl.rate*env.models[sl.m].rate/high[sl.m].rate, sl.batch
			}
		}
		if len(parts) > 0 {
			env.settle(env.gpus[gpu].class, parts)
		}
	}
	s.recount()
}

// handOut gives what is left of every GPU in use to its gpu-lets: wider shares first, the tightest
// gpu-let at a time, and then larger batches, as far as every SLO allows.
func (s *state) handOut() {
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
