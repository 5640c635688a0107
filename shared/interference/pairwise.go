package interference

import (
	"fmt"
	"strings"

	"github.com/gpulet/gpulet/shared/profile"
)

// pairwise is slowdown = 1 + sensitivity(self) x sum of pressure(neighbour) x share / 50: what is
// left to fit when nothing but co-runs was measured. Models that were not get the worst of both.
type pairwise struct {
	sensitivity, pressure           map[string]float64
	worstSensitivity, worstPressure float64
	margin                          float64
}

// newPairwise reads features "sensitivity:<model>" and "pressure:<model>".
func newPairwise(f *profile.Interference, margin float64) (coupler, error) {
	p := pairwise{sensitivity: map[string]float64{}, pressure: map[string]float64{}, margin: margin}
	for i, feature := range f.Features {
		kind, model, ok := strings.Cut(feature, ":")
		v := f.Coefficients[i]
		switch {
		case ok && kind == "sensitivity" && v >= 0:
			p.sensitivity[model] = v
			p.worstSensitivity = max(p.worstSensitivity, v)
		case ok && kind == "pressure" && v >= 0:
			p.pressure[model] = v
			p.worstPressure = max(p.worstPressure, v)
		default:
			return nil, fmt.Errorf("key %q: found %q with %v: expected sensitivity:<model> or pressure:<model>, not negative", "features", feature, v)
		}
	}
	if len(p.sensitivity) == 0 || len(p.pressure) == 0 {
		return nil, fmt.Errorf("key %q: found none of sensitivity:<model> and pressure:<model>: expected both", "features")
	}
	return p, nil
}

func (p pairwise) couple(_ *profile.Set, _, model string, share, _ int) Coupling {
	gain, ok := p.sensitivity[model]
	if !ok {
		gain = p.worstSensitivity
	}
	emit, ok := p.pressure[model]
	if !ok {
		emit = p.worstPressure
	}
	return Coupling{Emit: emit * float64(share) / 50, Base: p.margin, Gain: gain * p.margin}
}
