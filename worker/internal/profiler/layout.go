package profiler

import (
	"errors"
	"math"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/profile"
)

// layoutGain is the least relative gain for which images are kept in another layout than the model's.
const layoutGain = 1.03

// trialBudget is the time for one point of the trial of layouts.
const trialBudget = 60 * time.Millisecond

// shape finds the memory of a model with few batches prepared, and the layout in which it is faster:
// by the geometric mean over the smallest and a middle batch.
func (s *Survey) shape(p *Process, sub *subject) error {
	middle := (len(sub.batches) - 1) / 2
	few := sub.batches[:middle+1]
	layouts := []string{""}
	if isImage(sub.Model) {
		layouts = append(layouts, profile.ChannelsLast)
	}
	var plain float64
	for _, layout := range layouts {
		l, err := p.load(*sub, few, layout)
		if err != nil {
			if layout != "" && !errors.Is(err, errGone) {
				s.note("%s: does not load in layout %s: %v", sub.Name, layout, err)
				continue
			}
			return err
		}
		took, err := s.trial(p, sub, few, len(layouts))
		if err != nil {
			return err
		}
		if layout == "" {
			plain = took
		}
		if layout == "" || took*layoutGain < plain {
			sub.profile.Layout = layout
			sub.profile.Memory = []profile.Memory{{Batch: few[middle], Bytes: l.MemBytes}}
		}
	}
	if middle == 0 {
		return nil
	}
	l, err := p.load(*sub, few[:1], sub.profile.Layout)
	if err != nil {
		return err
	}
	Merge(sub.profile, nil, []profile.Memory{{Batch: few[0], Bytes: l.MemBytes}})
	return nil
}

// trial is the geometric mean of the times of the first and the last of few batches, in ms; nothing is
// measured where there is no choice.
func (s *Survey) trial(p *Process, sub *subject, few []int, choices int) (float64, error) {
	if choices < 2 {
		return 0, nil
	}
	rule := s.Rule
	rule.Budget = trialBudget
	product := 1.0
	ends := slices.Compact([]int{few[0], few[len(few)-1]})
	for _, batch := range ends {
		q, err := p.measure(sub.Name, batch, rule)
		if err != nil {
			return 0, err
		}
		product *= q.P50Ms
	}
	return math.Pow(product, 1/float64(len(ends))), nil
}
