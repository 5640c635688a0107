package interference

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"

	"github.com/gpulet/gpulet/shared/profile"
)

// Fit fits an interference model of a kind to co-run measurements. Linear and Anchored use the
// profiles' Demand, Saturating their latencies, Pairwise nothing but the measurements. The error
// stated in the result is on held-out combinations: fifths, each predicted from a fit to the other
// four.
func Fit(set *profile.Set, runs *profile.Corun, kind string) (*profile.Interference, error) {
	if len(runs.Runs) < 2 {
		return nil, fmt.Errorf("co-runs of %s: found %d: expected at least 2", runs.GPUType, len(runs.Runs))
	}
	fitted, err := fit(set, runs, kind)
	if err != nil {
		return nil, err
	}
	var errs, ratios []float64
	for fold := range folds {
		train, test := split(runs, fold)
		if len(test.Runs) == 0 || len(train.Runs) == 0 {
			continue
		}
		f, err := fit(set, train, kind)
		if err != nil {
			return nil, err
		}
		e, r, err := errorOf(set, f, test)
		if err != nil {
			return nil, err
		}
		errs, ratios = append(errs, e...), append(ratios, r...)
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("co-runs of %s: found one combination: expected several, to hold some out", runs.GPUType)
	}
	sort.Float64s(errs)
	sort.Float64s(ratios)
	fitted.HeldOut = &profile.FitError{Pairs: len(errs), P50: quantile(errs, 0.5), P90: quantile(errs, 0.9), Max: errs[len(errs)-1]}
	fitted.Margin = max(1, quantile(ratios, 0.9))
	return fitted, nil
}

// FitBest fits every kind and returns the fits that were possible, in the order of Kinds, and which
// of them has the least error at p90 on held-out combinations, -1 where none was possible; problems
// say why kinds were not.
func FitBest(set *profile.Set, runs *profile.Corun) (fits []*profile.Interference, best int, problems []error) {
	best = -1
	for _, kind := range Kinds {
		f, err := Fit(set, runs, kind)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", kind, err))
			continue
		}
		fits = append(fits, f)
		if best < 0 || f.HeldOut.P90 < fits[best].HeldOut.P90 {
			best = len(fits) - 1
		}
	}
	return fits, best, problems
}

// Error is how far f is off on measurements, its margin left out.
func Error(set *profile.Set, f *profile.Interference, runs *profile.Corun) (profile.FitError, error) {
	g := *f
	g.Margin = 1
	errs, _, err := errorOf(set, &g, runs)
	if err != nil || len(errs) == 0 {
		return profile.FitError{}, err
	}
	sort.Float64s(errs)
	return profile.FitError{Pairs: len(errs), P50: quantile(errs, 0.5), P90: quantile(errs, 0.9), Max: errs[len(errs)-1]}, nil
}

// folds is into how many parts measurements are dealt out to be predicted from the others.
const folds = 5

// split holds out one part of the combinations. They are dealt out in the order of a fixed hash of
// where they first appear, so that neighbours in the file end up in different parts. What all members of a combination
// suffered, and repetitions of it, stay together: one would tell of the other.
func split(runs *profile.Corun, fold int) (train, test *profile.Corun) {
	train, test = &profile.Corun{GPUType: runs.GPUType}, &profile.Corun{GPUType: runs.GPUType}
	dealt := deal(runs)
	for _, m := range runs.Runs {
		if dealt[combination(m)]%folds == fold {
			test.Runs = append(test.Runs, m)
		} else {
			train.Runs = append(train.Runs, m)
		}
	}
	return train, test
}

// deal numbers the combinations in a fixed order that looks like none.
func deal(runs *profile.Corun) map[string]int {
	place := map[string]uint64{}
	for _, m := range runs.Runs {
		if key := combination(m); place[key] == 0 {
			x := uint64(len(place)+1) * 0x9e3779b97f4a7c15
			place[key] = (x ^ x>>29) * 0xbf58476d1ce4e5b9
		}
	}
	keys := slices.SortedFunc(maps.Keys(place), func(a, b string) int { return cmp.Compare(place[a], place[b]) })
	at := map[string]int{}
	for i, key := range keys {
		at[key] = i
	}
	return at
}

// combination names the loads that ran together, whichever of them is looked at.
func combination(m profile.Measurement) string {
	labels := []string{label(m.Self)}
	for _, o := range m.Others {
		labels = append(labels, label(o))
	}
	slices.Sort(labels)
	return strings.Join(labels, " ")
}

func errorOf(set *profile.Set, f *profile.Interference, runs *profile.Corun) (errs, ratios []float64, err error) {
	c, err := build(f)
	if err != nil {
		return nil, nil, err
	}
	for _, m := range runs.Runs {
		pressure := 0.0
		for _, o := range m.Others {
			pressure += c.couple(set, runs.GPUType, o.Model, o.Share, o.Batch).Emit
		}
		self := c.couple(set, runs.GPUType, m.Self.Model, m.Self.Share, m.Self.Batch)
		predicted := math.Max(1, self.Base+self.Gain*pressure)
		errs = append(errs, math.Abs(predicted-m.Slowdown)/m.Slowdown)
		ratios = append(ratios, m.Slowdown/predicted)
	}
	return errs, ratios, nil
}

// quantile of an ascending list.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(q*float64(len(sorted)-1))]
}

func fit(set *profile.Set, runs *profile.Corun, kind string) (*profile.Interference, error) {
	f := &profile.Interference{GPUType: runs.GPUType, Kind: kind, Source: runs.Source}
	switch kind {
	case Linear:
		return f, fitLinear(f, set, runs)
	case Anchored:
		return f, fitAnchored(f, set, runs)
	case Pairwise:
		plain.fit(f, set, runs)
		return f, nil
	case Saturating:
		fitSaturating(f, set, runs)
		return f, nil
	}
	return nil, fmt.Errorf("kind %q: expected %s, %s or %s", kind, Linear, Anchored, Pairwise)
}

// demandOf is what a running load asks of the GPU; an error where the profile does not say.
func demandOf(set *profile.Set, gpuType string, r profile.Running) (profile.Demand, error) {
	p, ok := set.Get(gpuType, r.Model)
	if !ok || len(p.Demand) == 0 {
		return profile.Demand{}, fmt.Errorf("profile of %s on %s: found no demand: expected measured utilisation (key \"demand\")", r.Model, gpuType)
	}
	return DemandOf(p, r.Share, r.Batch), nil
}

// fitAnchored takes each load's median slowdown as its anchor and one slope over the neighbours'
// DRAM utilisation for all, by least squares on the deviations from the medians.
func fitAnchored(f *profile.Interference, set *profile.Set, runs *profile.Corun) error {
	type seen struct{ slowdown, pressure []float64 }
	by := map[profile.Running]*seen{}
	for _, m := range runs.Runs {
		pressure := 0.0
		for _, o := range m.Others {
			d, err := demandOf(set, runs.GPUType, o)
			if err != nil {
				return err
			}
			pressure += d.DRAM
		}
		if by[m.Self] == nil {
			by[m.Self] = &seen{}
		}
		by[m.Self].slowdown = append(by[m.Self].slowdown, m.Slowdown)
		by[m.Self].pressure = append(by[m.Self].pressure, pressure)
	}
	loads := make([]profile.Running, 0, len(by))
	for r := range by {
		loads = append(loads, r)
	}
	sort.Slice(loads, func(i, j int) bool { return label(loads[i]) < label(loads[j]) })
	up, down := 0.0, 0.0
	for _, r := range loads {
		s, p := median(by[r].slowdown), median(by[r].pressure)
		for i := range by[r].slowdown {
			up += (by[r].pressure[i] - p) * (by[r].slowdown[i] - s)
			down += (by[r].pressure[i] - p) * (by[r].pressure[i] - p)
		}
	}
	gain := 0.0
	if down > 0 {
		gain = max(0, up/down)
	}
	f.Features, f.Coefficients = []string{"gain"}, []float64{gain}
	for _, r := range loads {
		f.Features = append(f.Features, label(r))
		f.Coefficients = append(f.Coefficients, median(by[r].slowdown)-gain*median(by[r].pressure))
	}
	return nil
}

func label(r profile.Running) string { return fmt.Sprintf("base:%s:%d:%d", r.Model, r.Share, r.Batch) }

func median(list []float64) float64 {
	s := slices.Clone(list)
	sort.Float64s(s)
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

func sortedKeys(m map[string]float64) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
