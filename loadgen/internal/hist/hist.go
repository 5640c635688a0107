// Package hist counts latencies in buckets of a fixed relative width.
//
// It answers quantiles of any number of samples from bounded memory, in the manner of
// HdrHistogram: every power of two is cut into 2^bits equal buckets, so a quantile is at most one
// part in 2^bits above the exact one and never below it.
package hist

import (
	"math"
	"math/bits"
	"time"
)

// Fine suits a run's own figures: quantiles within 0.1 %, about 100 KiB when values reach minutes.
const Fine = 10

// Coarse suits the many small histograms of a timeline: within 6.3 %, under 2 KiB.
const Coarse = 4

// Histogram counts durations of at least 0. The zero value is not usable: see New. It is not safe
// for concurrent use.
type Histogram struct {
	bits   uint
	counts []uint64
	n      uint64
	sum    float64
	max    time.Duration
}

// New returns an empty histogram whose buckets are one part in 2^bits wide.
func New(bits uint) *Histogram { return &Histogram{bits: bits} }

// Add counts d; a negative d counts as 0.
func (h *Histogram) Add(d time.Duration) {
	d = max(d, 0)
	i := h.bucket(uint64(d))
	for i >= len(h.counts) {
		h.counts = append(h.counts, make([]uint64, 1<<h.bits)...)
	}
	h.counts[i]++
	h.n++
	h.sum += float64(d)
	h.max = max(h.max, d)
}

// bucket numbers values below 2^bits by themselves, and then 2^bits buckets for every octave.
func (h *Histogram) bucket(v uint64) int {
	shift := max(bits.Len64(v)-int(h.bits)-1, 0)
	return shift<<h.bits + int(v>>shift)
}

// highest is the largest value that bucket i counts.
func (h *Histogram) highest(i int) time.Duration {
	shift := max(i>>h.bits-1, 0)
	low := uint64(i-shift<<h.bits) << shift
	return time.Duration(low + 1<<shift - 1)
}

// Merge adds what o counted; o must have been made with the same bits.
func (h *Histogram) Merge(o *Histogram) {
	if o.bits != h.bits {
		panic("hist: merging histograms of different widths")
	}
	for len(h.counts) < len(o.counts) {
		h.counts = append(h.counts, 0)
	}
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
	h.sum += o.sum
	h.max = max(h.max, o.max)
}

// Count is the number of samples.
func (h *Histogram) Count() uint64 { return h.n }

// Max is the largest sample, exactly; 0 when empty.
func (h *Histogram) Max() time.Duration { return h.max }

// Mean is exact up to rounding; 0 when empty.
func (h *Histogram) Mean() time.Duration {
	if h.n == 0 {
		return 0
	}
	return time.Duration(h.sum / float64(h.n))
}

// Quantile is the smallest value that at least the fraction q of the samples do not exceed
// (nearest rank), rounded up to its bucket's end; 0 when empty.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(q * float64(h.n)))
	rank = min(max(rank, 1), h.n)
	var seen uint64
	for i, c := range h.counts {
		if seen += c; seen >= rank && c > 0 {
			return min(h.highest(i), h.max)
		}
	}
	return 0
}

// AtMost returns, for each of bounds, which ascend, how many samples do not exceed it; a sample less
// than a bucket's width above a bound may count too.
func (h *Histogram) AtMost(bounds []time.Duration) []uint64 {
	out := make([]uint64, len(bounds))
	var seen uint64
	i := 0
	for k, bound := range bounds {
		for last := h.bucket(uint64(max(bound, 0))); i <= last && i < len(h.counts); i++ {
			seen += h.counts[i]
		}
		out[k] = seen
	}
	return out
}

// Point is one step of a cumulative distribution: Fraction of the samples do not exceed Value.
type Point struct {
	Value    time.Duration
	Fraction float64
}

// CDF returns the cumulative distribution in at most about n points, dense in its upper tail: half
// of them evenly over the fractions, half over the decades above the 90th percentile.
func (h *Histogram) CDF(n int) []Point {
	if h.n == 0 {
		return nil
	}
	var out []Point
	add := func(q float64) {
		v := h.Quantile(q)
		if k := len(out); k > 0 && out[k-1].Value == v {
			out[k-1].Fraction = q
			return
		}
		out = append(out, Point{v, q})
	}
	half := max(n/2, 1)
	for i := range half {
		add(0.9 * float64(i) / float64(half))
	}
	const decades = 3 // 0.9 … 0.9999
	for i := range half {
		add(1 - 0.1*math.Pow(10, -decades*float64(i)/float64(half)))
	}
	add(1)
	return out
}
