package profile

import (
	"errors"
	"fmt"
	"slices"
)

// ErrOutOfRange is returned where a profile has no measurement to interpolate between.
var ErrOutOfRange = errors.New("outside the profiled range")

// Latency is the time of one batch of batch samples on share percent of the GPU, alone, in
// milliseconds: the measured 95th percentile where the profile has one, else the median. Between
// measured points it is bilinear, which errs on the slow side as long as latency is convex in
// the share. It does not extrapolate: outside the range it fails with ErrOutOfRange and names
// the range.
func (p *Profile) Latency(share, batch int) (ms float64, err error) {
	lo, hi := 0, 0
	for i := range p.Points {
		s := p.Points[i].Share
		if s <= share && s > lo {
			lo = s
		}
		if s >= share && (hi == 0 || s < hi) {
			hi = s
		}
	}
	if lo == 0 || hi == 0 {
		return 0, p.outOfRange("share", share, p.Shares())
	}
	a, err := p.at(lo, batch)
	if err != nil || lo == hi {
		return a, err
	}
	b, err := p.at(hi, batch)
	if err != nil {
		return 0, err
	}
	t := float64(share-lo) / float64(hi-lo)
	return a + t*(b-a), nil
}

// at interpolates over batches within one measured share.
func (p *Profile) at(share, batch int) (float64, error) {
	var lo, hi *Point
	for i := range p.Points {
		q := &p.Points[i]
		if q.Share != share {
			continue
		}
		if q.Batch <= batch && (lo == nil || q.Batch > lo.Batch) {
			lo = q
		}
		if q.Batch >= batch && (hi == nil || q.Batch < hi.Batch) {
			hi = q
		}
	}
	if lo == nil || hi == nil {
		var batches []int
		for _, q := range p.Points {
			if q.Share == share {
				batches = append(batches, q.Batch)
			}
		}
		slices.Sort(batches)
		return 0, p.outOfRange(fmt.Sprintf("share %d: batch", share), batch, batches)
	}
	if lo.Batch == hi.Batch {
		return lo.ms(), nil
	}
	t := float64(batch-lo.Batch) / float64(hi.Batch-lo.Batch)
	return lo.ms() + t*(hi.ms()-lo.ms()), nil
}

func (q Point) ms() float64 {
	if q.P95Ms > 0 {
		return q.P95Ms
	}
	return q.P50Ms
}

func (p *Profile) outOfRange(what string, found int, have []int) error {
	if len(have) == 0 {
		return fmt.Errorf("profile of %s on %s: %s %d: %w: it has no points", p.Model, p.GPUType, what, found, ErrOutOfRange)
	}
	return fmt.Errorf("profile of %s on %s: %s %d: %w: expected %d..%d", p.Model, p.GPUType, what, found, ErrOutOfRange, have[0], have[len(have)-1])
}

// MemBytes is the device memory of the loaded model when its largest batch is batch: that of the
// smallest measured batch that covers it, else of the largest. 0 when memory was not measured.
func (p *Profile) MemBytes(batch int) int64 {
	var cover, largest *Memory
	for i := range p.Memory {
		m := &p.Memory[i]
		if m.Batch >= batch && (cover == nil || m.Batch < cover.Batch) {
			cover = m
		}
		if largest == nil || m.Batch > largest.Batch {
			largest = m
		}
	}
	switch {
	case cover != nil:
		return cover.Bytes
	case largest != nil:
		return largest.Bytes
	}
	return 0
}

// Shares lists the measured shares, ascending.
func (p *Profile) Shares() []int { return distinct(p.Points, func(q Point) int { return q.Share }) }

// Batches lists the measured batches, ascending.
func (p *Profile) Batches() []int { return distinct(p.Points, func(q Point) int { return q.Batch }) }

func distinct(points []Point, of func(Point) int) []int {
	out := make([]int, 0, len(points))
	for _, q := range points {
		out = append(out, of(q))
	}
	slices.Sort(out)
	return slices.Compact(out)
}
