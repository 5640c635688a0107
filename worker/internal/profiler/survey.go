package profiler

import (
	"context"
	"fmt"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
)

// Survey measures models on shares of a device.
type Survey struct {
	// Shares may be measured, ascending, in percent: as few of them as Tolerance allows (see Wanted).
	Shares    []int
	Tolerance float64
	// Batches lists the sizes to measure of a model, ascending.
	Batches func(model.Model) []int
	Rule    Rule // its Budget is set by the survey
	// Budget is for the runs of one model on all shares. A batch that would not fit into what is left
	// of its share is left out, and so are larger ones; the smallest is always measured.
	Budget time.Duration
	// Captures: the device captures every batch that is prepared. All are then prepared, memory is
	// measured by batch, and the layout of images is tried out.
	Captures bool
	Start    Starter
	// Counters of the device; nil where there are none.
	Counters Counters
	// Check refuses a process that is not held to its share; nil accepts all.
	Check func(h Hello, share int) error
	// Save keeps a profile; it is called for what a share has added.
	Save func(*profile.Profile) error
	// Step is called after every model and share.
	Step func(Step)
	// Note is called with things that an operator should know.
	Note func(text string)

	context int64 // memory that an idle process takes; 0: not measured
}

// Step is what was measured, and how much there may be left.
type Step struct {
	Model  string
	Share  int
	Points []profile.Point
	// Done counts models on shares, Left bounds those that are still to be measured.
	Done, Left int
}

// ContextBytes is the device memory that a process takes without a model; 0: not measured.
func (s *Survey) ContextBytes() int64 { return s.context }

// subject is a model in a survey.
type subject struct {
	model.Model
	profile *profile.Profile
	batches []int
	tried   map[int]bool // shares that were measured, or cannot be
	failed  error        // why it is measured no further
}

// Run measures what is missing in the profiles, which come in the order of the models. The error of a
// model says why it has no profile, or an incomplete one; ctx ends all of them, and keeps what is done.
func (s *Survey) Run(ctx context.Context, models []model.Model, profiles []*profile.Profile) map[string]error {
	var subjects []*subject
	for i, m := range models {
		subjects = append(subjects, &subject{Model: m, profile: profiles[i], batches: s.Batches(m), tried: map[int]bool{}})
	}
	done := 0
	for ctx.Err() == nil {
		share, group := s.next(subjects)
		if len(group) == 0 {
			break
		}
		s.share(ctx, share, group, func(sub *subject, points []profile.Point) {
			done++
			if s.Step != nil {
				s.Step(Step{Model: sub.Name, Share: share, Points: points, Done: done, Left: s.left(subjects)})
			}
		})
	}
	failed := map[string]error{}
	for _, sub := range subjects {
		if sub.failed != nil {
			failed[sub.Name] = sub.failed
		} else if ctx.Err() != nil && len(s.wanted(sub)) > 0 {
			failed[sub.Name] = ctx.Err()
		}
	}
	return failed
}

func (s *Survey) note(format string, args ...any) {
	if s.Note != nil {
		s.Note(fmt.Sprintf(format, args...))
	}
}
