package interference

import (
	"fmt"
	"math"
	"strings"

	"github.com/gpulet/gpulet/shared/profile"
)

// pairwise is
//
//	slowdown = 1 + sensitivity(self) x (1 - fall x saturation(self)) x (floor + (1 - floor) x sum of pressure(other) x share / 50)
//
// which is what can be fitted when nothing but co-runs was measured. Models that were not get the worst
// of both. See form for what differs between kinds, and saturation.
type pairwise struct {
	form
	sensitivity, pressure           map[string]float64
	worstSensitivity, worstPressure float64
	margin                          float64
}

// form is what all models of a GPU type have in common.
type form struct {
	// fall is by how much a batch that saturates its share suffers less than one that does not: its
	// kernels wait for arithmetic more than for memory and launches, which neighbours delay.
	fall float64
	// floor is the part of a slowdown that any neighbour brings about, however small; more of them add
	// to the rest.
	floor float64
	// ridge draws what little was measured of towards all others; in measurements.
	ridge float64
}

// The forms of kinds. Floor and ridge of saturating had about the least error among 0 to 0.9 and 0 to 2
// on 117 measurements of nine models on an H100: p90 9 to 10 % for floors of 0.2 to 0.6, ridges from 0.5
// and falls of 0.5 to 0.7 alike.
var (
	plain      = form{ridge: 1e-12}
	saturating = form{floor: 0.4, ridge: 1}
)

// weight is what a neighbour's share makes of its pressure.
func weight(share int) float64 { return float64(share) / 50 }

// openness is the part of its sensitivity that a load shows.
func (f form) openness(set *profile.Set, gpuType string, l Load) float64 {
	if f.fall == 0 {
		return 1
	}
	return 1 - f.fall*saturation(set, gpuType, l)
}

// saturation is a batch's samples per second as a part of the most that its share reaches with any
// profiled batch, 0 to 1; 0 where there is no profile.
func saturation(set *profile.Set, gpuType string, l Load) float64 {
	p, ok := set.Get(gpuType, l.Model)
	if !ok {
		return 0
	}
	rate := func(batch int) float64 {
		ms, err := p.Latency(l.Share, batch)
		if err != nil || ms <= 0 {
			return 0
		}
		return float64(batch) / ms
	}
	most := 0.0
	for _, b := range p.Batches() {
		most = max(most, rate(b))
	}
	if most == 0 {
		return 0
	}
	return min(1, rate(l.Batch)/most)
}

// newPairwise reads features "sensitivity:<model>" and "pressure:<model>" and, of Saturating, "fall".
func newPairwise(f *profile.Interference, like form, margin float64) (coupler, error) {
	p := pairwise{form: like, sensitivity: map[string]float64{}, pressure: map[string]float64{}, margin: margin}
	for i, feature := range f.Features {
		kind, model, ok := strings.Cut(feature, ":")
		v := f.Coefficients[i]
		switch {
		case feature == "fall" && f.Kind == Saturating && v >= 0 && v <= 1:
			p.fall = v
		case ok && kind == "sensitivity" && v >= 0:
			p.sensitivity[model] = v
			p.worstSensitivity = max(p.worstSensitivity, v)
		case ok && kind == "pressure" && v >= 0:
			p.pressure[model] = v
			p.worstPressure = max(p.worstPressure, v)
		default:
			return nil, fmt.Errorf("key %q: found %q with %v: expected sensitivity:<model> or pressure:<model>, not negative, or fall, 0 to 1, of kind %s", "features", feature, v, Saturating)
		}
	}
	if len(p.sensitivity) == 0 || len(p.pressure) == 0 {
		return nil, fmt.Errorf("key %q: found none of sensitivity:<model> and pressure:<model>: expected both", "features")
	}
	return p, nil
}

func (p pairwise) couple(set *profile.Set, gpuType, model string, share, batch int) Coupling {
	gain, ok := p.sensitivity[model]
	if !ok {
		gain = p.worstSensitivity
	}
	emit, ok := p.pressure[model]
	if !ok {
		emit = p.worstPressure
	}
	gain *= p.openness(set, gpuType, Load{Model: model, Share: share, Batch: batch})
	return Coupling{Emit: emit * weight(share), Base: p.margin * (1 + gain*p.floor), Gain: p.margin * gain * (1 - p.floor)}
}

// falls are the values of form.fall that are tried.
var falls = []float64{0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}

// fitSaturating takes the fall with the least squared relative error.
func fitSaturating(f *profile.Interference, set *profile.Set, runs *profile.Corun) {
	least := math.Inf(1)
	for _, fall := range falls {
		like, trial := saturating, profile.Interference{GPUType: f.GPUType, Kind: f.Kind, Source: f.Source}
		like.fall = fall
		if off := like.fit(&trial, set, runs); off < least {
			least = off
			trial.Features, trial.Coefficients = append(trial.Features, "fall"), append(trial.Coefficients, fall)
			*f = trial
		}
	}
}

// rounds is how often sensitivities and pressures are fitted to each other.
const rounds = 200

// fit fits sensitivities and pressures by alternating least squares, starting from pressures of one, and
// returns the sum of the squared relative errors.
func (like form) fit(f *profile.Interference, set *profile.Set, runs *profile.Corun) (off float64) {
	terms := like.terms(set, runs)
	sensitivity, pressure := map[string]float64{}, map[string]float64{}
	for _, t := range terms {
		sensitivity[t.self] = 0
		for _, o := range t.others {
			pressure[o.model] = 1
		}
	}
	for range rounds {
		all := like.fitSensitivity(terms, sensitivity, pressure)
		like.fitPressure(terms, sensitivity, pressure, all)
	}
	for _, t := range terms {
		predicted := 1 + sensitivity[t.self]*t.pressed(pressure)
		off += (predicted/(1+t.extra) - 1) * (predicted/(1+t.extra) - 1)
	}
	for _, name := range sortedKeys(sensitivity) {
		f.Features = append(f.Features, "sensitivity:"+name)
		f.Coefficients = append(f.Coefficients, sensitivity[name])
	}
	for _, name := range sortedKeys(pressure) {
		f.Features = append(f.Features, "pressure:"+name)
		f.Coefficients = append(f.Coefficients, pressure[name])
	}
	return off
}

// term is a measurement as the fit sees it: extra = sensitivity(self) x open x (floor + sum of pressure x weight).
type term struct {
	self   string
	open   float64
	floor  float64
	others []weighted
	extra  float64 // slowdown - 1
}

type weighted struct {
	model  string
	weight float64
}

func (like form) terms(set *profile.Set, runs *profile.Corun) []term {
	terms := make([]term, len(runs.Runs))
	for i, m := range runs.Runs {
		t := term{self: m.Self.Model, open: like.openness(set, runs.GPUType, m.Self), floor: like.floor, extra: m.Slowdown - 1}
		for _, o := range m.Others {
			t.others = append(t.others, weighted{o.Model, (1 - like.floor) * weight(o.Share)})
		}
		terms[i] = t
	}
	return terms
}

// pressed is what the sensitivity is multiplied by.
func (t term) pressed(pressure map[string]float64) float64 {
	sum := t.floor
	for _, o := range t.others {
		sum += pressure[o.model] * o.weight
	}
	return t.open * sum
}

// fitSensitivity fits sensitivities to pressures, and returns the one that fits all models best, towards
// which they are drawn.
func (like form) fitSensitivity(terms []term, sensitivity, pressure map[string]float64) (all float64) {
	up, down, sumUp, sumDown := map[string]float64{}, map[string]float64{}, 0.0, 1e-12
	for _, t := range terms {
		p := t.pressed(pressure)
		up[t.self] += p * t.extra
		down[t.self] += p * p
		sumUp, sumDown = sumUp+p*t.extra, sumDown+p*p
	}
	all = sumUp / sumDown
	for name := range sensitivity {
		sensitivity[name] = max(0, (up[name]+like.ridge*all)/(down[name]+like.ridge))
	}
	return all
}

// fitPressure fits pressures to sensitivities, one after the other, drawn towards one.
func (like form) fitPressure(terms []term, sensitivity, pressure map[string]float64, all float64) {
	up, down := map[string]float64{}, map[string]float64{}
	for _, t := range terms {
		rest := t.extra - sensitivity[t.self]*t.pressed(pressure)
		for _, o := range t.others {
			w := sensitivity[t.self] * t.open * o.weight
			up[o.model] += w * (rest + w*pressure[o.model])
			down[o.model] += w * w
		}
	}
	ridge := like.ridge * all * all
	for name := range pressure {
		if d := down[name] + ridge; d > 0 {
			pressure[name] = max(0, (up[name]+ridge)/d)
		}
	}
}
