// Package profiler measures how long batches of a model take on a share of this host's device, and
// keeps what it measured, so that a host measures itself once.
//
// It measures one loaded model on the share that its process has; who restricts the process, and
// who asks for which shares, is not its business.
package profiler

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/exec"
)

// Plan says what to measure.
type Plan struct {
	Share   int   // percent: what the process has
	Batches []int // ascending
	// Budget is how long all batches may take together. A batch that would not fit is left out,
	// and so are larger ones; the smallest is always measured.
	Budget time.Duration
	// MinRuns and MaxRuns bound the measured runs of a batch.
	MinRuns, MaxRuns int
	// VaryingDim stands where an input's dimension varies.
	VaryingDim int64
}

// Quick is a plan for a few seconds: good enough to plan with on the very host.
func Quick(share int, batches []int, budget time.Duration) Plan {
	return Plan{Share: share, Batches: batches, Budget: budget, MinRuns: 5, MaxRuns: 50, VaryingDim: VaryingDim}
}

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

// warmUps are runs of a batch size that are not measured.
const warmUps = 2

// Measure runs m by the plan and returns a point for every batch that fitted the budget. The
// calling goroutine should be locked to its thread.
func Measure(ctx context.Context, m engine.Model, inputs []tensor.Spec, p Plan) ([]profile.Point, error) {
	start := time.Now()
	var points []profile.Point
	for i, batch := range p.Batches {
		left := p.Budget - time.Since(start)
		if i > 0 && !p.fits(points[i-1], batch, left) {
			break
		}
		slice := max(0, left) / time.Duration(len(p.Batches)-i)
		took, err := p.measure(ctx, m, inputs, batch, slice)
		if err != nil {
			return points, fmt.Errorf("batch of %d: %w", batch, err)
		}
		points = append(points, summarize(p.Share, batch, took))
	}
	return points, nil
}

// fits reports whether the least number of runs of a batch is likely to fit into the time that is
// left, if time grows with the samples.
func (p Plan) fits(last profile.Point, batch int, left time.Duration) bool {
	each := last.P50Ms * float64(batch) / float64(last.Batch)
	return each*float64(warmUps+p.MinRuns) <= float64(left)/float64(time.Millisecond)
}

// measure times one batch size for about a slice of time.
func (p Plan) measure(ctx context.Context, m engine.Model, inputs []tensor.Spec, batch int, slice time.Duration) ([]time.Duration, error) {
	in, err := exec.Inputs(inputs, batch, p.VaryingDim)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	var took []time.Duration
	for n := -warmUps; n < p.MaxRuns; n++ {
		if n >= p.MinRuns && time.Since(start) >= slice {
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		began := time.Now()
		r, err := m.Run(in)
		if err != nil {
			return nil, err
		}
		d := time.Since(began)
		r.Free()
		if n >= 0 {
			took = append(took, d)
		}
	}
	return took, nil
}

func summarize(share, batch int, took []time.Duration) profile.Point {
	slices.Sort(took)
	at := func(q float64) float64 {
		// A clock tick is the least that anything takes: 0 would mean "not measured".
		d := max(took[exec.Rank(q, len(took))], time.Microsecond)
		return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
	}
	return profile.Point{Share: share, Batch: batch, P50Ms: at(0.5), P95Ms: at(0.95), P99Ms: at(0.99), N: len(took)}
}

// Merge puts what was measured at several shares into one profile, sorted.
func Merge(p *profile.Profile, points []profile.Point, memory []profile.Memory) {
	p.Points = append(p.Points, points...)
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
