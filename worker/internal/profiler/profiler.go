// Package profiler measures how long batches of a model take on shares of this host's device, how
// much memory they need, what they demand of the device's shared parts, and how much they slow each
// other down.
//
// The work is split in two. A Bench lives in a process that is held to one share, loads models and
// times batches as it is asked to. A Survey and a Session start such processes, one per share, decide
// what to ask, and keep what comes back, so that a crash costs no more than what was being measured.
// How a process is held to a share is the caller's business (Starter).
package profiler

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/exec"
)

// VaryingDim is how large a varying dimension is measured: a sentence for most language models.
const VaryingDim = 128

// Batches are the sizes measured by default: powers of two up to the largest, and that.
func Batches(maxBatch int) []int {
	var sizes []int
	for b := 1; b < maxBatch; b *= 2 {
		sizes = append(sizes, b)
	}
	return append(sizes, maxBatch)
}

// Rule says when a batch size has been run often enough: after MaxRuns; after Enough runs if the
// median is known to within Precision; after Budget if MinRuns were made.
type Rule struct {
	MinRuns   int           `json:"min_runs"`
	Enough    int           `json:"enough"`
	MaxRuns   int           `json:"max_runs"`
	Precision float64       `json:"precision"` // half of the confidence interval over the median
	Budget    time.Duration `json:"budget"`
}

// Rules of the profiler.
var (
	// Quick is good enough to plan with on the very host.
	Quick = Rule{MinRuns: 5, Enough: 20, MaxRuns: 50, Precision: 0.02}
	// OnCPU allows for the jitter of a host that does other things too.
	OnCPU = Rule{MinRuns: 20, Enough: 50, MaxRuns: 500, Precision: 0.01}
	// OnGPU knows that captured graphs take the same time again and again.
	OnGPU = Rule{MinRuns: 5, Enough: 30, MaxRuns: 500, Precision: 0.01}
)

// done reports whether a sample suffices that took elapsed to collect.
func (r Rule) done(took []time.Duration, elapsed time.Duration) bool {
	n := len(took)
	switch {
	case n >= r.MaxRuns:
		return true
	case n < r.MinRuns:
		return false
	case elapsed >= r.Budget:
		return true
	case n < r.Enough || n%10 != 0: // sorting after every run would cost more than it saves
		return false
	}
	sorted := slices.Sorted(slices.Values(took))
	return float64(halfInterval(sorted)) <= r.Precision*float64(sorted[exec.Rank(0.5, n)])
}

// halfInterval is half the width of the confidence interval of the median of an ascending sample.
func halfInterval(sorted []time.Duration) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	low, high := interval(len(sorted))
	return (sorted[high] - sorted[low]) / 2
}

// interval are the places, among n ascending values, between which the median of their distribution
// lies with 95 % confidence, whatever the distribution is: n/2 -+ 1.96 sqrt(n)/2 (Conover, Practical
// Nonparametric Statistics, 1999, section 3.2). Of fewer than six values no two enclose it with that
// confidence; then it is the first and the last.
func interval(n int) (low, high int) {
	half := 1.96 * math.Sqrt(float64(n)) / 2
	low = max(int(math.Floor(float64(n)/2-half))-1, 0)
	high = min(int(math.Ceil(float64(n)/2+half)), n-1)
	return low, high
}

// summarize describes a sample of one (share, batch).
func summarize(share, batch int, took []time.Duration) profile.Point {
	slices.Sort(took)
	at := func(q float64) float64 {
		// A clock tick is the least that anything takes: 0 would mean "not measured".
		return ms(max(took[exec.Rank(q, len(took))], time.Microsecond))
	}
	return profile.Point{
		Share: share, Batch: batch, P50Ms: at(0.5), P95Ms: at(0.95), P99Ms: at(0.99),
		N: len(took), CIMs: ms(halfInterval(took)),
	}
}

// ms is a duration in milliseconds, to the microsecond.
func ms(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

// sent are the inputs of m as clients send them: bytes, where preprocessing accepts those.
func sent(m model.Model) []tensor.Spec {
	specs := slices.Clone(m.Inputs)
	for i, s := range specs {
		if slices.Contains(m.Preprocess[s.Name].Accept, tensor.UINT8) {
			specs[i].DType = tensor.UINT8
		}
	}
	return specs
}

// isImage reports whether m takes images, which have a layout: 4 dimensions with the batch.
func isImage(m model.Model) bool {
	return slices.ContainsFunc(m.Inputs, func(s tensor.Spec) bool { return len(s.Shape) == 3 })
}

// Merge adds points and memory to a profile, in place of earlier ones of the same share and batch, and
// sorts it.
func Merge(p *profile.Profile, points []profile.Point, memory []profile.Memory) {
	for _, q := range points {
		p.Points = slices.DeleteFunc(p.Points, func(o profile.Point) bool { return o.Share == q.Share && o.Batch == q.Batch })
		p.Points = append(p.Points, q)
	}
	slices.SortFunc(p.Points, func(a, b profile.Point) int {
		return cmp.Or(cmp.Compare(a.Share, b.Share), cmp.Compare(a.Batch, b.Batch))
	})
	for _, m := range memory {
		i := slices.IndexFunc(p.Memory, func(k profile.Memory) bool { return k.Batch == m.Batch })
		if i < 0 {
			p.Memory = append(p.Memory, m)
			continue
		}
		p.Memory[i].Bytes = max(p.Memory[i].Bytes, m.Bytes)
	}
	slices.SortFunc(p.Memory, func(a, b profile.Memory) int { return cmp.Compare(a.Batch, b.Batch) })
}
