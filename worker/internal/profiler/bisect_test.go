package profiler

import (
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/shared/profile"
)

var grid = []int{10, 20, 30, 40, 50, 60, 80, 100}

// sample measures what is wanted of an oracle until nothing is.
func sample(axis []int, tolerance float64, batches []int, oracle func(share, batch int) float64) map[int]Curve {
	known := map[int]Curve{}
	for want := Wanted(axis, tolerance, known); len(want) > 0; want = Wanted(axis, tolerance, known) {
		for _, share := range want {
			known[share] = Curve{}
			for _, b := range batches {
				known[share][b] = oracle(share, b)
			}
		}
	}
	return known
}

// worstError is how far profile.Latency is off on the shares of the axis, as a fraction.
func worstError(t interface{ Fatal(...any) }, axis []int, known map[int]Curve, batches []int, oracle func(share, batch int) float64) float64 {
	p := &profile.Profile{Model: "m", GPUType: "g"}
	for share, c := range known {
		for batch, ms := range c {
			p.Points = append(p.Points, profile.Point{Share: share, Batch: batch, P50Ms: ms})
		}
	}
	worst := 0.0
	for _, share := range axis {
		for _, b := range batches {
			got, err := p.Latency(share, b)
			if err != nil {
				t.Fatal(err)
			}
			want := oracle(share, b)
			worst = max(worst, math.Abs(got-want)/want)
		}
	}
	return worst
}

// roofline is a batch that takes so much on the whole GPU, part of it in proportion to 1 / share, as
// far as it can use the share.
func roofline(fixed, work float64, usable int) func(share, batch int) float64 {
	return func(share, batch int) float64 {
		return fixed + work*float64(batch)*100/float64(min(share, usable*batch))
	}
}

func TestPropertyInterpolationStaysWithinTheTolerance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		axis := slices.Compact(slices.Sorted(slices.Values(rapid.SliceOfN(rapid.IntRange(1, 100), 1, 20).Draw(t, "shares"))))
		batches := []int{1, 2, 8, 32}
		oracle := roofline(
			rapid.Float64Range(0, 5).Draw(t, "fixed"), rapid.Float64Range(0.001, 5).Draw(t, "work"), rapid.IntRange(1, 100).Draw(t, "usable"),
		)
		tolerance := rapid.Float64Range(0.01, 0.3).Draw(t, "tolerance")
		known := sample(axis, tolerance, batches, oracle)
		if e := worstError(t, axis, known, batches, oracle); e > tolerance+1e-9 {
			t.Fatalf("off by %v with %d of %d shares: expected at most %v", e, len(known), len(axis), tolerance)
		}
	})
}

// TestMeasuresDenselyOnlyWhereTimeBends: a small model that cannot use more than a quarter of the GPU
// needs few shares, one that uses all of it needs more.
func TestMeasuresDenselyOnlyWhereTimeBends(t *testing.T) {
	axis := make([]int, 0, 20)
	for s := 5; s <= 100; s += 5 {
		axis = append(axis, s)
	}
	batches := []int{1, 4}
	for name, c := range map[string]struct {
		oracle func(share, batch int) float64
		most   int
	}{
		"flat":  {roofline(2, 0, 1), 3},
		"small": {roofline(1, 0.01, 25), 10},
		"large": {roofline(0.1, 1, 100), 18},
	} {
		known := sample(axis, 0.05, batches, c.oracle)
		if e := worstError(t, axis, known, batches, c.oracle); e > 0.05 {
			t.Errorf("%s: off by %v", name, e)
		}
		if len(known) > c.most {
			t.Errorf("%s: measured %d of %d shares: expected at most %d", name, len(known), len(axis), c.most)
		}
	}
}

func TestWantsTheMiddleAndTheEndsFirst(t *testing.T) {
	flat := func(int, int) float64 { return 3 }
	for _, c := range []struct {
		axis []int
		want []int
	}{{grid, []int{40, 100, 10}}, {[]int{50, 100}, []int{50, 100}}, {[]int{70}, []int{70}}, {nil, nil}} {
		if diff := cmp.Diff(c.want, Wanted(c.axis, 0.05, nil)); diff != "" {
			t.Errorf("%v:\n%s", c.axis, diff)
		}
	}
	if known := sample(grid, 0.05, []int{1}, flat); len(known) != 3 {
		t.Errorf("a flat curve took %d shares: expected 3", len(known))
	}
	if known := sample(grid, 0, []int{1}, flat); len(known) != len(grid) {
		t.Errorf("tolerance 0 took %d shares: expected all", len(known))
	}
}

// TestSharesTooSmallForABatchAreNoReason: what a share lacks is not a miss.
func TestSharesTooSmallForABatchAreNoReason(t *testing.T) {
	known := map[int]Curve{10: {1: 5}, 40: {1: 5, 64: 20}, 100: {1: 5, 64: 20}}
	if want := Wanted(grid, 0.05, known); len(want) > 0 {
		t.Errorf("wants %v", want)
	}
}
