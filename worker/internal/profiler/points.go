package profiler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/profile"
)

// model measures a model on the share of a process.
func (s *Survey) model(ctx context.Context, p *Process, sub *subject, share int) ([]profile.Point, error) {
	sub.profile.Torch = p.Hello.Engine
	if s.Captures && len(sub.profile.Points) == 0 {
		if err := s.shape(p, sub); err != nil {
			return nil, err
		}
	}
	batches, err := s.load(p, sub)
	if err != nil {
		return nil, err
	}
	points, err := s.points(ctx, p, sub, share, batches)
	if err == nil && s.Counters != nil && slices.Contains(Wanted(s.Shares, 1, nil), share) {
		err = s.demand(p, sub, points)
	}
	if err != nil {
		return nil, err
	}
	return points, p.unload(sub.Name)
}

// load loads a model with all batches that memory suffices for, and returns those.
func (s *Survey) load(p *Process, sub *subject) ([]int, error) {
	batches := sub.batches
	for {
		prepare := batches[:1]
		if s.Captures {
			prepare = batches
		}
		l, err := p.load(*sub, prepare, sub.profile.Layout)
		if errors.Is(err, errMemory) && s.Captures && len(batches) > 1 {
			s.note("%s: batches up to %d do not fit into memory: leaving out the largest", sub.Name, batches[len(batches)-1])
			batches = batches[:len(batches)-1]
			continue
		}
		if err != nil {
			return nil, err
		}
		Merge(sub.profile, nil, []profile.Memory{{Batch: batches[len(batches)-1], Bytes: l.MemBytes}})
		sub.profile.Notes = l.Notes
		return batches, nil
	}
}

// points times the batches that are missing on a share.
func (s *Survey) points(ctx context.Context, p *Process, sub *subject, share int, batches []int) ([]profile.Point, error) {
	start, budget := time.Now(), s.Budget/time.Duration(len(s.Shares))
	todo := slices.DeleteFunc(missing(sub, share), func(b int) bool { return !slices.Contains(batches, b) })
	var points []profile.Point
	for i, batch := range todo {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		left := max(0, budget-time.Since(start))
		if i > 0 && !s.fits(points[i-1], batch, left) {
			break
		}
		rule := s.Rule
		rule.Budget = left / time.Duration(len(todo)-i)
		q, err := p.measure(sub.Name, batch, rule)
		if err != nil {
			return nil, err
		}
		points = append(points, q)
	}
	return points, nil
}

// fits reports whether the least number of runs of a batch is likely to fit into the time that is
// left, if time grows with the samples. On a device that captures, what is prepared is measured.
func (s *Survey) fits(last profile.Point, batch int, left time.Duration) bool {
	if s.Captures {
		return true
	}
	each := last.P50Ms * float64(batch) / float64(last.Batch)
	return each*float64(warmUps+s.Rule.MinRuns) <= float64(left)/float64(time.Millisecond)
}
