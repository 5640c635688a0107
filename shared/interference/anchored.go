package interference

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gpulet/gpulet/shared/profile"
)

// anchored is slowdown = base(self) + gain x sum of DRAM utilisation of the neighbours. What most of
// a slowdown depends on is the load that suffers it: having any neighbour costs it so much (the
// base, measured per model, share and batch), how hard the neighbour drives memory adds the rest.
type anchored struct {
	base   map[string][]anchor // by model
	worst  float64             // the largest base: what a model that was not measured gets
	gain   float64
	margin float64
}

// anchor is a base measured at a share and batch.
type anchor struct {
	share, batch int
	base         float64
}

// newAnchored reads features "gain" and "base:<model>:<share>:<batch>".
func newAnchored(f *profile.Interference, margin float64) (coupler, error) {
	a := anchored{base: map[string][]anchor{}, margin: margin}
	for i, feature := range f.Features {
		v := f.Coefficients[i]
		if feature == "gain" {
			if v < 0 {
				return nil, fmt.Errorf("feature gain: found %v: expected 0 or more", v)
			}
			a.gain = v
			continue
		}
		word := strings.Split(feature, ":")
		if len(word) != 4 || word[0] != "base" {
			return nil, fmt.Errorf("key %q: found %q: expected gain or base:<model>:<share>:<batch>", "features", feature)
		}
		share, err1 := strconv.Atoi(word[2])
		batch, err2 := strconv.Atoi(word[3])
		if err1 != nil || err2 != nil || share < 1 || share > 100 || batch < 1 {
			return nil, fmt.Errorf("key %q: found %q: expected a share of 1..100 and a batch from 1", "features", feature)
		}
		a.base[word[1]] = append(a.base[word[1]], anchor{share, batch, v})
		a.worst = max(a.worst, v)
	}
	if len(a.base) == 0 {
		return nil, fmt.Errorf("key %q: found no base:<model>:<share>:<batch>: expected at least one", "features")
	}
	return a, nil
}

func (a anchored) couple(set *profile.Set, gpuType, model string, share, batch int) Coupling {
	c := Coupling{Emit: 1, Base: a.margin * a.baseOf(model, share, batch), Gain: a.margin * a.gain}
	if p, ok := set.Get(gpuType, model); ok && len(p.Demand) > 0 {
		c.Emit = DemandOf(p, share, batch).DRAM
	}
	return c
}

// baseOf is the larger of the bases measured at the nearest shares and batches around a load.
func (a anchored) baseOf(model string, share, batch int) float64 {
	anchors, ok := a.base[model]
	if !ok {
		return a.worst
	}
	base, found := 0.0, false
	for _, above := range []bool{false, true} {
		if n := nearest(anchors, share, batch, above); n != nil {
			base, found = max(base, n.base), true
		}
	}
	if !found {
		return a.worst
	}
	return base
}

// nearest is the anchor closest in share, then in batch, on one side of the batch (itself included).
func nearest(anchors []anchor, share, batch int, above bool) *anchor {
	var best *anchor
	for i := range anchors {
		n := &anchors[i]
		if above && n.batch < batch || !above && n.batch > batch {
			continue
		}
		if best == nil || closer(n, best, share, batch) {
			best = n
		}
	}
	return best
}

func closer(a, b *anchor, share, batch int) bool {
	if x, y := distance(a.share, share), distance(b.share, share); x != y {
		return x < y
	}
	return distance(a.batch, batch) < distance(b.batch, batch)
}

func distance(a, b int) int {
	if a < b {
		return b - a
	}
	return a - b
}
