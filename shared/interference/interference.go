// Package interference predicts how much batches slow down beside other gpu-lets of their GPU,
// from what profiles say of each model alone and constants fitted to co-run measurements.
//
// All its models have one shape, Pressure: neighbours emit pressure, pressures add up,
// and a load suffers in proportion. So any number of neighbours is covered, order does not
// matter, and one more neighbour never helps.
package interference

import (
	"fmt"
	"math"
	"strings"

	"github.com/gpulet/gpulet/shared/profile"
)

// Kinds of fitted models, the Kind of a profile.Interference.
const (
	// Linear is the form of the model of Choi et al., USENIX ATC 2022: a linear function of how hard
	// both sides drive the shared parts of the GPU; there the L2 cache and DRAM.
	Linear = "linear"
	// Anchored has a base per model, share and batch, and one slope over the neighbours' DRAM
	// utilisation.
	Anchored = "anchored"
	// Pairwise gives every model a sensitivity and a pressure of its own, see Fit.
	Pairwise = "pairwise"
	// Saturating is Pairwise with a sensitivity that falls as a batch fills its share.
	Saturating = "saturating"
)

// Kinds lists the kinds in the order in which they are tried.
var Kinds = []string{Linear, Anchored, Pairwise, Saturating}

// Load is a model running batches of one size on a share of a GPU.
type Load = profile.Running

// Coupling is how one load acts on its neighbours and how it suffers from them:
//
//	slowdown(self) = max(1, Base(self) + Gain(self) x sum over neighbours of Emit(neighbour))
//
// Emit and Gain are never negative.
type Coupling struct {
	Emit float64 // pressure on every neighbour
	Base float64 // slowdown beside a neighbour without pressure
	Gain float64 // slowdown per unit of the neighbours' pressure
}

// DefaultGain is the slowdown per whole GPU of neighbours that is assumed without measurements:
// beside neighbours on the other half of the GPU a batch takes 1.45 times as long, which is the
// worst of 30 pairs measured at 50/50 on an H100 (profiles/h100/corun.json).
const DefaultGain = 0.9

// Set predicts interference for every GPU type of a profile set. It implements Pressure.
type Set struct {
	profiles *profile.Set
	models   map[string]coupler
}

// coupler is a fitted model of one GPU type.
type coupler interface {
	couple(set *profile.Set, gpuType, model string, share, batch int) Coupling
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
		return newLinear(f, margin)
	case Anchored:
		return newAnchored(f, margin)
	case Pairwise:
		return newPairwise(f, plain, margin)
	case Saturating:
		return newPairwise(f, saturating, margin)
	}
	return nil, fmt.Errorf("key %q: found %q: expected %s", "kind", f.Kind, strings.Join(Kinds, ", "))
}

// Fitted reports whether predictions for a GPU type rest on measurements, not on the default.
func (s *Set) Fitted(gpuType string) bool { _, ok := s.models[gpuType]; return ok }

// Couplings implements Pressure.
func (s *Set) Couplings(gpuType, model string, share, maxBatch int) []Coupling {
	out := make([]Coupling, maxBatch)
	for b := range out {
		out[b] = s.coupling(gpuType, Load{Model: model, Share: share, Batch: b + 1})
	}
	return out
}

func (s *Set) coupling(gpuType string, l Load) Coupling {
	if m, ok := s.models[gpuType]; ok {
		return m.couple(s.profiles, gpuType, l.Model, l.Share, l.Batch)
	}
	return fallback(l.Share)
}

// fallback is the conservative default: pressure in proportion to the neighbours' share.
func fallback(share int) Coupling {
	return Coupling{Emit: float64(share) / 100, Base: 1, Gain: DefaultGain}
}

// Slowdown is the factor, at least 1, on the latency of self while every neighbour is busy with the
// worst of its loads: neighbours[i] lists what gpu-let i may be running, one at a time.
func (s *Set) Slowdown(gpuType string, self Load, neighbours [][]Load) float64 {
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
