package profiler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
)

// Counters are a device's own counters: of all that runs on it, so they say something of a model
// only while it runs alone.
type Counters interface {
	// Used is the device memory in use, in bytes.
	Used() (int64, error)
	// Begin starts an interval, and End returns what the device did in it: shares and batch unset.
	Begin() error
	End() (profile.Demand, error)
}

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

// share measures a group of models in one process, and those during which it ends once more, each in
// a process of its own.
func (s *Survey) share(ctx context.Context, share int, group []*subject, done func(*subject, []profile.Point)) {
	var p *Process
	defer func() {
		if p != nil {
			_ = p.Close()
		}
	}()
	for i, sub := range group {
		points, err := s.attempt(ctx, &p, sub, share)
		if errors.Is(err, errGone) && ctx.Err() == nil {
			s.note("%s on %d %%: %v: trying again in a process of its own", sub.Name, share, err)
			points, err = s.attempt(ctx, &p, sub, share)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errStart): // so it would for the others
			for _, rest := range group[i:] {
				rest.failed = err
			}
			return
		}
		s.settle(sub, share, points, err)
		done(sub, points)
	}
}

// errStart: no process could be started on a share.
var errStart = errors.New("start a measuring process")

// attempt measures a model on a share, in the process at p or a new one; p is empty after it ended.
func (s *Survey) attempt(ctx context.Context, p **Process, sub *subject, share int) ([]profile.Point, error) {
	if *p == nil {
		started, err := s.start(ctx, share)
		if err != nil {
			return nil, fmt.Errorf("%w on %d %%: %w", errStart, share, err)
		}
		*p = started
	}
	points, err := s.model(ctx, *p, sub, share)
	if errors.Is(err, errGone) {
		*p = nil
	}
	return points, err
}

// settle keeps what was measured of a model on a share, or why it was not.
func (s *Survey) settle(sub *subject, share int, points []profile.Point, err error) {
	sub.tried[share] = true
	switch {
	case err == nil:
	case errors.Is(err, errMemory), errors.Is(err, errGone):
		s.note("%s on %d %%: left out: %v", sub.Name, share, err)
		if len(sub.tried) == len(s.Shares) && len(sub.profile.Points)+len(points) == 0 {
			sub.failed = err
		}
	default:
		sub.failed = fmt.Errorf("share %d%%: %w", share, err)
	}
	if len(points) == 0 {
		return
	}
	Merge(sub.profile, points, nil)
	if err := s.Save(sub.profile); err != nil {
		sub.failed = err
	}
}

func (s *Survey) note(format string, args ...any) {
	if s.Note != nil {
		s.Note(fmt.Sprintf(format, args...))
	}
}

// start starts a process on a share, alone on the device. The first is joined by another for a moment,
// which shows what a process takes of the device's memory.
func (s *Survey) start(ctx context.Context, share int) (*Process, error) {
	p, err := s.held(ctx, share)
	if err != nil || s.context > 0 || s.Counters == nil {
		return p, err
	}
	before, err := s.Counters.Used()
	if err != nil {
		s.note("memory of a process: %v", err)
		return p, nil
	}
	other, err := s.held(ctx, share)
	if err != nil {
		_ = p.Close()
		return nil, err
	}
	if after, err := s.Counters.Used(); err == nil && after > before {
		s.context = after - before
	}
	_ = other.Close() // it has served its purpose, however it ends
	return p, nil
}

// held starts a process and sees to it that it is held to its share.
func (s *Survey) held(ctx context.Context, share int) (*Process, error) {
	p, err := s.Start(ctx, Place{Share: share})
	if err != nil || s.Check == nil {
		return p, err
	}
	if err := s.Check(p.Hello, share); err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

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

// measure times one batch size.
func (p *Process) measure(name string, batch int, rule Rule) (profile.Point, error) {
	return p.timed(Request{Op: opMeasure, Model: name, Batch: batch, Rule: rule})
}

func (p *Process) timed(r Request) (profile.Point, error) {
	a, err := p.Ask(r)
	if err != nil {
		return profile.Point{}, err
	}
	if a.Point == nil {
		return profile.Point{}, fmt.Errorf("%s %s: found no answer to it: expected a point", r.Op, r.Model)
	}
	return *a.Point, nil
}

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

// Counters are read over a window in which a model runs without a pause.
const (
	counterSettle = 20 * time.Millisecond
	counterWindow = 150 * time.Millisecond
	counterRuns   = 3 // at least so many runs of a slow batch
)

// demand reads the device's counters while a few batches run.
func (s *Survey) demand(p *Process, sub *subject, points []profile.Point) error {
	if len(points) == 0 {
		return nil
	}
	few := []profile.Point{points[0], points[len(points)/2], points[len(points)-1]}
	few = slices.CompactFunc(few, func(a, b profile.Point) bool { return a.Batch == b.Batch })
	for _, q := range few {
		window := max(counterWindow, time.Duration(counterRuns*q.P50Ms*float64(time.Millisecond)))
		end := make(chan error, 1)
		go func() {
			_, err := p.timed(Request{Op: opLoop, Model: sub.Name, Batch: q.Batch, Settle: counterSettle, Window: window})
			end <- err
		}()
		d, counted := s.count(window)
		if err := <-end; err != nil {
			return err
		}
		if counted != nil {
			s.note("no counters: %v", counted)
			s.Counters = nil
			return nil
		}
		d.Share, d.Batch = q.Share, q.Batch
		sub.profile.Demand = slices.DeleteFunc(sub.profile.Demand, func(o profile.Demand) bool { return o.Share == d.Share && o.Batch == d.Batch })
		sub.profile.Demand = append(sub.profile.Demand, d)
	}
	slices.SortFunc(sub.profile.Demand, func(a, b profile.Demand) int {
		return cmp.Or(cmp.Compare(a.Share, b.Share), cmp.Compare(a.Batch, b.Batch))
	})
	return nil
}

// count reads the counters over a window that begins when the model has settled.
func (s *Survey) count(window time.Duration) (profile.Demand, error) {
	time.Sleep(counterSettle)
	if err := s.Counters.Begin(); err != nil {
		return profile.Demand{}, err
	}
	time.Sleep(window)
	return s.Counters.End()
}

// Inputs are the element types that a model is measured with, by input.
func Inputs(m model.Model) map[string]string {
	types := map[string]string{}
	for _, in := range sent(m) {
		types[in.Name] = in.DType.String()
	}
	return types
}

// Resume returns a profile to go on with: earlier, if it is of the same archive, engine, precision and
// inputs as fresh, else fresh and why not earlier.
func Resume(earlier, fresh *profile.Profile) (*profile.Profile, error) {
	for _, c := range []struct{ what, found, want string }{
		{"archive", earlier.ModelHash, fresh.ModelHash},
		{"engine", earlier.Torch, fresh.Torch},
		{"precision", earlier.Precision, fresh.Precision},
		{"driver", earlier.Driver, fresh.Driver},
	} {
		if c.found != c.want {
			return fresh, fmt.Errorf("found a profile of the %s %.24q: expected %.24q", c.what, c.found, c.want)
		}
	}
	if !maps.Equal(earlier.Inputs, fresh.Inputs) {
		return fresh, fmt.Errorf("found a profile with inputs %v: expected %v", earlier.Inputs, fresh.Inputs)
	}
	return earlier, nil
}
