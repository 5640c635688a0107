// Package interference predicts how much batches slow down beside other gpu-lets of their GPU,
// from what profiles say of each model alone and constants fitted to co-run measurements.
//
// All its models have one shape, problem.Pressure: neighbours emit pressure, pressures add up,
// and a load suffers in proportion. So any number of neighbours is covered, order does not
// matter, and one more neighbour never helps.
package interference

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/profile"
)

// Kinds of fitted models, the Kind of a profile.Interference.
const (
	// Linear is the model of Choi et al., USENIX ATC 2022: a linear function of the L2 and DRAM
	// utilisation of both sides.
	Linear = "linear"
	// Anchored has a base per model, share and batch, and one slope over the neighbours' DRAM
	// utilisation.
	Anchored = "anchored"
	// Pairwise gives every model a sensitivity and a pressure of its own, see Fit.
	Pairwise = "pairwise"
)

// LinearFeatures are the features of Linear, in the order of its coefficients.
var LinearFeatures = []string{"l2_self", "l2_other", "dram_self", "dram_other", "const"}

// DefaultGain is the slowdown per whole GPU of neighbours that is assumed without measurements:
// beside neighbours on the other half of the GPU a batch takes 1.45 times as long, which is the
// worst of 30 pairs measured at 50/50 on an H100 (profiles/h100/corun.json).
const DefaultGain = 0.9

// Set predicts interference for every GPU type of a profile set. It implements problem.Pressure.
type Set struct {
	profiles *profile.Set
	models   map[string]coupler
}

// coupler is a fitted model of one GPU type.
type coupler interface {
	couple(set *profile.Set, gpuType, model string, share, batch int) problem.Coupling
}

// New prepares prediction from the fitted models in set; a GPU type without one gets the
// conservative default. It fails on a fitted model that it does not understand.
func New(set *profile.Set) (*Set, error) {
	s := &Set{profiles: set, models: map[string]coupler{}}
	for _, gpuType := range set.Types() {
		fitted, ok := set.Interference(gpuType)
		if !ok {
			continue
		}
		c, err := build(fitted)
		if err != nil {
			return nil, fmt.Errorf("interference of %s: %w", gpuType, err)
		}
		s.models[gpuType] = c
	}
	return s, nil
}

func build(f *profile.Interference) (coupler, error) {
	margin := f.Margin
	if margin == 0 {
		margin = 1
	}
	switch f.Kind {
	case Linear:
		if !slices.Equal(f.Features, LinearFeatures) {
			return nil, fmt.Errorf("key %q: found %v: expected %v", "features", f.Features, LinearFeatures)
		}
		l := linear{margin: margin}
		copy(l.c[:], f.Coefficients)
		return l, nil
	case Anchored:
		return newAnchored(f, margin)
	case Pairwise:
		return newPairwise(f, margin)
	}
	return nil, fmt.Errorf("key %q: found %q: expected %s", "kind", f.Kind, strings.Join([]string{Linear, Anchored, Pairwise}, ", "))
}

// Fitted reports whether predictions for a GPU type rest on measurements, not on the default.
func (s *Set) Fitted(gpuType string) bool { _, ok := s.models[gpuType]; return ok }

// Couplings implements problem.Pressure.
func (s *Set) Couplings(gpuType, model string, share, maxBatch int) []problem.Coupling {
	out := make([]problem.Coupling, maxBatch)
	for b := range out {
		out[b] = s.coupling(gpuType, problem.Load{Model: model, Share: share, Batch: b + 1})
	}
	return out
}

func (s *Set) coupling(gpuType string, l problem.Load) problem.Coupling {
	if m, ok := s.models[gpuType]; ok {
		return m.couple(s.profiles, gpuType, l.Model, l.Share, l.Batch)
	}
	return fallback(l.Share)
}

// fallback is the conservative default: pressure in proportion to the neighbours' share.
func fallback(share int) problem.Coupling {
	return problem.Coupling{Emit: float64(share) / 100, Base: 1, Gain: DefaultGain}
}

// Slowdown implements problem.Interference.
func (s *Set) Slowdown(gpuType string, self problem.Load, neighbours [][]problem.Load) float64 {
	pressure := 0.0
	for _, loads := range neighbours {
		worst := 0.0
		for _, l := range loads {
			worst = math.Max(worst, s.coupling(gpuType, l).Emit)
		}
		pressure += worst
	}
	c := s.coupling(gpuType, self)
	return math.Max(1, c.Base+c.Gain*pressure)
}

// linear is slowdown = c0 l2 + c1 l2' + c2 dram + c3 dram' + c4, ' marking the neighbours.
type linear struct {
	c      [5]float64
	margin float64
}

func (l linear) couple(set *profile.Set, gpuType, model string, share, batch int) problem.Coupling {
	p, ok := set.Get(gpuType, model)
	if !ok || len(p.Demand) == 0 {
		return fallback(share)
	}
	d := DemandOf(p, share, batch)
	return problem.Coupling{
		Emit: math.Max(0, l.c[1]*d.L2+l.c[3]*d.DRAM),
		Base: l.margin * (l.c[0]*d.L2 + l.c[2]*d.DRAM + l.c[4]),
		Gain: l.margin,
	}
}

// DemandOf is what a model asks of the GPU's shared parts at a share and batch, as fractions of the
// whole GPU: linear between the measured batches of a share, and between measured shares, no share
// making no demand. A batch beyond the measured ones counts as the nearest.
func DemandOf(p *profile.Profile, share, batch int) profile.Demand {
	lo, hi := 0, 0
	for _, d := range p.Demand {
		if d.Share <= share && d.Share > lo {
			lo = d.Share
		}
		if d.Share >= share && (hi == 0 || d.Share < hi) {
			hi = d.Share
		}
	}
	switch {
	case lo == hi:
		return demandAt(p, lo, batch)
	case hi == 0:
		return demandAt(p, lo, batch)
	}
	var a profile.Demand
	if lo > 0 {
		a = demandAt(p, lo, batch)
	}
	return mix(a, demandAt(p, hi, batch), float64(share-lo)/float64(hi-lo))
}

// demandAt interpolates over the batches of one measured share.
func demandAt(p *profile.Profile, share, batch int) profile.Demand {
	var lo, hi *profile.Demand
	for i := range p.Demand {
		d := &p.Demand[i]
		if d.Share != share {
			continue
		}
		if d.Batch <= batch && (lo == nil || d.Batch > lo.Batch) {
			lo = d
		}
		if d.Batch >= batch && (hi == nil || d.Batch < hi.Batch) {
			hi = d
		}
	}
	switch {
	case lo == nil:
		return *hi
	case hi == nil || lo.Batch == hi.Batch:
		return *lo
	}
	return mix(*lo, *hi, float64(batch-lo.Batch)/float64(hi.Batch-lo.Batch))
}

func mix(a, b profile.Demand, t float64) profile.Demand {
	return profile.Demand{SM: a.SM + t*(b.SM-a.SM), L2: a.L2 + t*(b.L2-a.L2), DRAM: a.DRAM + t*(b.DRAM-a.DRAM)}
}
