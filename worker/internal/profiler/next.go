package profiler

import (
	"slices"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
)

// Missing reports whether there is anything to measure of a model whose profile so far is p.
func (s *Survey) Missing(m model.Model, p *profile.Profile) bool {
	return len(s.wanted(&subject{Model: m, profile: p, batches: s.Batches(m)})) > 0
}

// wanted lists the shares that a model is to be measured on next.
func (s *Survey) wanted(sub *subject) []int {
	if sub.failed != nil {
		return nil
	}
	known := map[int]Curve{}
	for _, q := range sub.profile.Points {
		if known[q.Share] == nil {
			known[q.Share] = Curve{}
		}
		known[q.Share][q.Batch] = q.P50Ms
	}
	axis := slices.Clone(s.Shares)
	axis = slices.DeleteFunc(axis, func(share int) bool { return sub.tried[share] && known[share] == nil })
	for share := range known {
		if !sub.tried[share] && len(missing(sub, share)) > 0 {
			delete(known, share)
		}
	}
	return Wanted(axis, s.Tolerance, known)
}

// missing lists the batches that have not been measured on a share.
func missing(sub *subject, share int) []int {
	return slices.DeleteFunc(slices.Clone(sub.batches), func(b int) bool {
		return slices.ContainsFunc(sub.profile.Points, func(q profile.Point) bool { return q.Share == share && q.Batch == b })
	})
}

// next picks the share that most models want, of equals the one that the first model wants first.
func (s *Survey) next(subjects []*subject) (share int, group []*subject) {
	by := map[int][]*subject{}
	var order []int
	for _, sub := range subjects {
		for _, share := range s.wanted(sub) {
			if by[share] == nil {
				order = append(order, share)
			}
			by[share] = append(by[share], sub)
		}
	}
	for _, share := range order {
		if len(by[share]) > len(group) {
			group = by[share]
		}
	}
	for _, candidate := range order {
		if len(by[candidate]) == len(group) {
			return candidate, by[candidate]
		}
	}
	return 0, nil
}

// left bounds the models on shares that may still be wanted.
func (s *Survey) left(subjects []*subject) int {
	n := 0
	for _, sub := range subjects {
		if len(s.wanted(sub)) == 0 {
			continue
		}
		for _, share := range s.Shares {
			if !sub.tried[share] && len(missing(sub, share)) > 0 {
				n++
			}
		}
	}
	return n
}
