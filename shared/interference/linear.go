package interference

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/gonum/mat"

	"github.com/gpulet/gpulet/shared/profile"
)

// constant is the feature that is 1 for every pair.
const constant = "const"

// counter is one of a profile's figures of demand, by its name in features.
type counter struct {
	name string
	of   func(profile.Demand) float64
}

var counters = []counter{
	{"l2", func(d profile.Demand) float64 { return d.L2 }},
	{"dram", func(d profile.Demand) float64 { return d.DRAM }},
	{"sm", func(d profile.Demand) float64 { return d.SM }},
	{"occupancy", func(d profile.Demand) float64 { return d.Occupancy }},
	{"tensor", func(d profile.Demand) float64 { return d.Tensor }},
}

// linear is slowdown = constant + sum over counters of c x own demand + c' x the neighbours'.
type linear struct {
	constant float64
	terms    []linearTerm
	margin   float64
}

type linearTerm struct {
	of          func(profile.Demand) float64
	self, other float64
}

// newLinear reads features "<counter>_self", "<counter>_other" and "const".
func newLinear(f *profile.Interference, margin float64) (coupler, error) {
	l := linear{margin: margin}
	at := map[string]int{}
	for i, feature := range f.Features {
		if feature == constant {
			l.constant = f.Coefficients[i]
			continue
		}
		name, side, ok := strings.Cut(feature, "_")
		c := slices.IndexFunc(counters, func(c counter) bool { return c.name == name })
		if !ok || c < 0 || side != "self" && side != "other" {
			return nil, fmt.Errorf("key %q: found %v: expected %s, and _self or _other of %s", "features", f.Features, constant, counterNames())
		}
		if _, known := at[name]; !known {
			at[name] = len(l.terms)
			l.terms = append(l.terms, linearTerm{of: counters[c].of})
		}
		if side == "self" {
			l.terms[at[name]].self = f.Coefficients[i]
		} else {
			l.terms[at[name]].other = f.Coefficients[i]
		}
	}
	return l, nil
}

func counterNames() string {
	names := make([]string, len(counters))
	for i, c := range counters {
		names[i] = c.name
	}
	return strings.Join(names, ", ")
}

func (l linear) couple(set *profile.Set, gpuType, model string, share, batch int) Coupling {
	p, ok := set.Get(gpuType, model)
	if !ok || len(p.Demand) == 0 {
		return fallback(share)
	}
	d := DemandOf(p, share, batch)
	emit, base := 0.0, l.constant
	for _, t := range l.terms {
		emit += t.other * t.of(d)
		base += t.self * t.of(d)
	}
	return Coupling{Emit: math.Max(0, emit), Base: l.margin * base, Gain: l.margin}
}

// fitLinear solves least squares over what both sides demand, of the counters that were measured.
func fitLinear(f *profile.Interference, set *profile.Set, runs *profile.Corun) error {
	selves, others, err := demands(set, runs)
	if err != nil {
		return err
	}
	var columns [][]float64
	for _, c := range counters {
		self, other := column(selves, c), column(others, c)
		if !varies(self) || !varies(other) {
			continue // not measured, or the same for all: it explains nothing
		}
		f.Features = append(f.Features, c.name+"_self", c.name+"_other")
		columns = append(columns, self, other)
	}
	if len(columns) == 0 {
		return errors.New("linear interference: found no counter that differs between the loads: expected measured demand")
	}
	f.Features = append(f.Features, constant)
	columns = append(columns, slices.Repeat([]float64{1}, len(runs.Runs)))
	x := mat.NewDense(len(runs.Runs), len(columns), nil)
	y := mat.NewVecDense(len(runs.Runs), nil)
	for i, m := range runs.Runs {
		for j := range columns {
			x.Set(i, j, columns[j][i])
		}
		y.SetVec(i, m.Slowdown)
	}
	var c mat.VecDense
	if err := c.SolveVec(x, y); err != nil {
		return fmt.Errorf("linear interference: the measurements do not determine its constants: %w", err)
	}
	f.Coefficients = slices.Clone(c.RawVector().Data)
	return nil
}

// demands are what each measurement's own load and its neighbours together ask of the GPU.
func demands(set *profile.Set, runs *profile.Corun) (selves, others []profile.Demand, err error) {
	for _, m := range runs.Runs {
		self, err := demandOf(set, runs.GPUType, m.Self)
		if err != nil {
			return nil, nil, err
		}
		var sum profile.Demand
		for _, o := range m.Others {
			d, err := demandOf(set, runs.GPUType, o)
			if err != nil {
				return nil, nil, err
			}
			sum.L2, sum.DRAM = sum.L2+d.L2, sum.DRAM+d.DRAM
			sum.SM, sum.Occupancy, sum.Tensor = sum.SM+d.SM, sum.Occupancy+d.Occupancy, sum.Tensor+d.Tensor
		}
		selves, others = append(selves, self), append(others, sum)
	}
	return selves, others, nil
}

func column(list []profile.Demand, c counter) []float64 {
	out := make([]float64, len(list))
	for i, d := range list {
		out[i] = c.of(d)
	}
	return out
}

func varies(list []float64) bool { return slices.Max(list)-slices.Min(list) > 1e-9 }
