package hist

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func draw(t *rapid.T, bits uint) (*Histogram, []time.Duration) {
	h := New(bits)
	values := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) time.Duration {
		return time.Duration(rapid.Int64Range(0, 1<<rapid.IntRange(1, 42).Draw(t, "octave")).Draw(t, "value"))
	}), 1, 300).Draw(t, "values")
	for _, v := range values {
		h.Add(v)
	}
	slices.Sort(values)
	return h, values
}

func TestQuantilesAreWithinTheirBucketOfTheExactOnes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.SampledFrom([]uint{Fine, Coarse}).Draw(t, "bits")
		h, values := draw(t, bits)
		q := rapid.Float64Range(0, 1).Draw(t, "q")
		exact := values[max(int(math.Ceil(q*float64(len(values)))), 1)-1]
		got := h.Quantile(q)
		if limit := exact + exact>>bits; got < exact || got > limit {
			t.Fatalf("quantile %v is %d, exactly %d, at most %d", q, got, exact, limit)
		}
		if h.Quantile(1) != values[len(values)-1] || h.Max() != values[len(values)-1] {
			t.Fatalf("maximum %v, quantile 1 %v, expected %v", h.Max(), h.Quantile(1), values[len(values)-1])
		}
	})
}

func TestMergingEqualsCountingTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, va := draw(t, Fine)
		b, vb := draw(t, Fine)
		together := New(Fine)
		for _, v := range append(va, vb...) {
			together.Add(v)
		}
		a.Merge(b)
		if a.Count() != together.Count() || a.Max() != together.Max() {
			t.Fatalf("merged %d up to %v, together %d up to %v", a.Count(), a.Max(), together.Count(), together.Max())
		}
		for _, q := range []float64{0, 0.5, 0.9, 0.99, 1} {
			if a.Quantile(q) != together.Quantile(q) {
				t.Fatalf("quantile %v: merged %v, together %v", q, a.Quantile(q), together.Quantile(q))
			}
		}
	})
}

func TestCDFRises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h, values := draw(t, Fine)
		cdf := h.CDF(100)
		for i := 1; i < len(cdf); i++ {
			if cdf[i].Value <= cdf[i-1].Value || cdf[i].Fraction <= cdf[i-1].Fraction {
				t.Fatalf("point %d does not rise: %v after %v", i, cdf[i], cdf[i-1])
			}
		}
		if last := cdf[len(cdf)-1]; last.Fraction != 1 || last.Value != values[len(values)-1] || len(cdf) > 101 {
			t.Fatalf("%d points, the last is %v", len(cdf), last)
		}
	})
}

func TestEmpty(t *testing.T) {
	h := New(Fine)
	if h.Quantile(0.5) != 0 || h.Max() != 0 || h.Mean() != 0 || h.CDF(10) != nil {
		t.Errorf("an empty histogram has figures: %v %v %v %v", h.Quantile(0.5), h.Max(), h.Mean(), h.CDF(10))
	}
}

func TestMeanAndNegatives(t *testing.T) {
	h := New(Fine)
	h.Add(-time.Second)
	h.Add(time.Second)
	if h.Mean() != 500*time.Millisecond || h.Count() != 2 {
		t.Errorf("mean %v of %d", h.Mean(), h.Count())
	}
}

func BenchmarkAdd(b *testing.B) {
	h := New(Fine)
	b.ReportAllocs()
	var v time.Duration
	for b.Loop() {
		v = (v*31 + 977) % time.Second
		h.Add(v)
	}
	if h.Count() != uint64(b.N) {
		b.Fatalf("%d counted of %d", h.Count(), b.N)
	}
}

func TestAtMostCountsUpToTheBoundsBucket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.SampledFrom([]uint{Fine, Coarse}).Draw(t, "bits")
		h, values := draw(t, bits)
		bounds := rapid.SliceOfN(rapid.SampledFrom(append([]time.Duration{0, 1, 1 << 50}, values...)), 1, 10).Draw(t, "bounds")
		slices.Sort(bounds)
		for i, got := range h.AtMost(bounds) {
			upTo := func(bound time.Duration) (n uint64) {
				for _, v := range values {
					if v <= bound {
						n++
					}
				}
				return n
			}
			if least, most := upTo(bounds[i]), upTo(bounds[i]+bounds[i]>>bits); got < least || got > most {
				t.Fatalf("at most %d: %d, expected %d to %d", bounds[i], got, least, most)
			}
		}
	})
}
