package profiler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
)

// Splits are how a device is cut for co-runs; what runs on which share is chosen each time anew.
var Splits = [][]int{{50, 50}, {20, 80}, {40, 60}, {33, 33, 33}, {20, 30, 50}}

// Session measures how much gpu-lets slow each other down that run on one device at the same time.
type Session struct {
	Splits [][]int
	Seed   uint64
	// Budget is the time for all splits together; each gets an equal part of what is left. On the first
	// every model is run once on every share, however long that takes.
	Budget time.Duration
	// Batches lists the sizes that a model is run with, ascending.
	Batches func(model.Model) []int
	// Layout is how a model's images are kept.
	Layout func(name string) string
	// Captures: as of a Survey.
	Captures bool
	Start    Starter
	Check    func(h Hello, share int) error
	// Save keeps the measurements so far; it is called after every split.
	Save func([]profile.Measurement) error
	// Step is called after every combination, with the time that is left.
	Step func(combo []profile.Measurement, left time.Duration)
	Note func(text string)
}

// Timing of a combination: members run for settle, window and settle. The window holds some runs of
// the slowest, and settle covers the time by which they may begin apart.
const (
	corunWindow = 120 * time.Millisecond
	corunRuns   = 6 // of the slowest member
	corunSettle = 20 * time.Millisecond
	aloneBudget = 60 * time.Millisecond
)

// drift is how far a load alone may have changed over a split until it is worth a word.
const drift = 0.05

// Run adds measurements to those that there are, and returns all. It returns what there is also when
// ctx ends or a split fails; the error joins why splits failed.
func (s *Session) Run(ctx context.Context, models []model.Model, have []profile.Measurement) ([]profile.Measurement, error) {
	end := time.Now().Add(s.Budget)
	var failed []error
	for i, split := range s.Splits {
		left := time.Until(end)
		if ctx.Err() != nil {
			break
		}
		if left <= 0 && i > 0 {
			s.note("no time for the splits %v", s.Splits[i:])
			break
		}
		c := &corun{Session: s, split: split, end: time.Now().Add(left / time.Duration(len(s.Splits)-i)), last: end, least: 1, models: models}
		if i == 0 {
			c.least = len(models)
		}
		runs, err := c.run(ctx, have)
		have = append(have, runs...)
		if err != nil && ctx.Err() == nil {
			failed = append(failed, fmt.Errorf("split %v: %w", split, err))
		}
		if len(runs) > 0 {
			if err := s.Save(have); err != nil {
				return have, err
			}
		}
	}
	return have, errors.Join(append(failed, ctx.Err())...)
}

// corun is the measuring of one split.
type corun struct {
	*Session
	split  []int
	end    time.Time // of this split
	last   time.Time // of the session
	least  int       // combinations, however long they take
	models []model.Model

	chooser *chooser
	slots   []*slot
}

// slot is a process on one of the shares.
type slot struct {
	*Process
	share  int
	loaded map[string]bool
	alone  map[load]*alone
}

// alone is the median time of a load without neighbours, in ms, before and after those ran.
type alone struct{ before, after float64 }

// ms is the shorter of the two: whatever disturbs a load alone makes it slower.
func (a alone) ms() float64 {
	if a.after == 0 {
		return a.before
	}
	return min(a.before, a.after)
}

// together is one combination that ran, by slot.
type together struct {
	loads []profile.Running
	ms    []float64
}

func (c *corun) run(ctx context.Context, have []profile.Measurement) ([]profile.Measurement, error) {
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	defer c.stop()
	var loads []load
	for _, m := range c.models {
		for _, b := range c.Batches(m) {
			loads = append(loads, load{m.Name, b})
		}
	}
	c.chooser = newChooser(c.Seed, c.split, loads)
	c.recall(have)
	var done []together
	var err error
	for ctx.Err() == nil && (len(done) < c.least || time.Now().Add(c.closing()).Before(c.end)) {
		combo := c.chooser.next()
		if combo == nil {
			break
		}
		var t together
		if t, err = c.together(combo); errors.Is(err, errDropped) {
			continue
		} else if err != nil {
			break
		}
		done = append(done, t)
		if c.Step != nil {
			c.Step(c.measurements([]together{t}), time.Until(c.last))
		}
	}
	if err == nil && ctx.Err() == nil {
		err = c.again()
	}
	return c.measurements(done), err
}

// start starts a process for every share of the split.
func (c *corun) start(ctx context.Context) error {
	c.slots = make([]*slot, len(c.split))
	errs := make([]error, len(c.split))
	var wg sync.WaitGroup
	beside := 0
	for i, share := range c.split {
		at := Place{Share: share, Beside: beside}
		beside += share
		wg.Go(func() {
			p, err := c.Start(ctx, at)
			if err != nil {
				errs[i] = err
				return
			}
			c.slots[i] = &slot{Process: p, share: share, loaded: map[string]bool{}, alone: map[load]*alone{}}
			if c.Check != nil {
				errs[i] = c.Check(p.Hello, share)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		c.stop()
		return err
	}
	return nil
}

func (c *corun) stop() {
	for _, s := range c.slots {
		if s != nil {
			_ = s.Close()
		}
	}
}

// recall counts the combinations of this split that were measured before.
func (c *corun) recall(have []profile.Measurement) {
	for _, m := range have {
		combo := append([]profile.Running{m.Self}, m.Others...)
		shares := make([]int, len(combo))
		for i, r := range combo {
			shares[i] = r.Share
		}
		// Every member tells of the combination; the one on the first share counts.
		if m.Self.Share == c.split[0] && slices.Equal(slices.Sorted(slices.Values(shares)), slices.Sorted(slices.Values(c.split))) {
			c.chooser.saw(combo)
		}
	}
}

// errDropped: a member cannot run, and was dropped from the choice.
var errDropped = errors.New("dropped")

// together runs a combination.
func (c *corun) together(combo []profile.Running) (together, error) {
	if err := c.each(combo, c.ready); err != nil {
		return together{}, err
	}
	slowest := 0.0
	for i, r := range combo { // one after the other: alone
		ms, err := c.slots[i].aloneMs(r)
		if err != nil {
			return together{}, err
		}
		slowest = max(slowest, ms)
	}
	each := time.Duration(slowest * float64(time.Millisecond))
	settle, window := max(corunSettle, each*3/2), max(corunWindow, corunRuns*each)
	t := together{loads: combo, ms: make([]float64, len(combo))}
	err := c.each(combo, func(i int, r profile.Running) error {
		q, err := c.slots[i].timed(Request{Op: opLoop, Model: r.Model, Batch: r.Batch, Settle: settle, Window: window})
		t.ms[i] = q.P50Ms
		return err
	})
	return t, err
}

// each does something on all slots at once.
func (c *corun) each(combo []profile.Running, do func(i int, r profile.Running) error) error {
	errs := make([]error, len(combo))
	var wg sync.WaitGroup
	for i, r := range combo {
		wg.Go(func() { errs[i] = do(i, r) })
	}
	wg.Wait()
	for i, err := range errs { // one at a time: it changes the chooser
		if errors.Is(err, errDropped) {
			c.chooser.drop(combo[i].Share, combo[i].Model)
		}
	}
	return errors.Join(errs...)
}

// ready sees to it that a slot has a model loaded.
func (c *corun) ready(i int, r profile.Running) error {
	s := c.slots[i]
	if s.loaded[r.Model] {
		return nil
	}
	m := c.models[slices.IndexFunc(c.models, func(m model.Model) bool { return m.Name == r.Model })]
	prepare := c.Batches(m)
	if !c.Captures {
		prepare = prepare[:1]
	}
	_, err := s.load(subject{Model: m}, prepare, c.Layout(m.Name))
	switch {
	case errors.Is(err, errGone):
		return err
	case err != nil:
		c.note("%s on %d %%: not run beside others: %v", m.Name, s.share, err)
		return errDropped
	}
	s.loaded[r.Model] = true
	return nil
}

// aloneRule is how a load is measured without neighbours.
var aloneRule = Rule{MinRuns: 5, Enough: 20, MaxRuns: 200, Precision: 0.01, Budget: aloneBudget}

// aloneMs is a load's median time without neighbours, measured when it is first asked for.
func (s *slot) aloneMs(r profile.Running) (float64, error) {
	key := load{r.Model, r.Batch}
	if a := s.alone[key]; a != nil {
		return a.before, nil
	}
	q, err := s.measure(r.Model, r.Batch, aloneRule)
	if err != nil {
		return 0, err
	}
	s.alone[key] = &alone{before: q.P50Ms}
	return q.P50Ms, nil
}

// closing estimates the time that again will take.
func (c *corun) closing() time.Duration {
	var sum time.Duration
	for _, s := range c.slots {
		for _, a := range s.alone {
			slow := time.Duration(float64(warmUps+aloneRule.MinRuns) * a.before * float64(time.Millisecond))
			sum += max(aloneBudget, slow)
		}
	}
	return sum
}

// again measures every load alone once more: the device's clocks may have changed meanwhile.
func (c *corun) again() error {
	changed, loads, worst, which := 0, 0, drift, ""
	for _, s := range c.slots {
		for _, key := range slices.SortedFunc(maps.Keys(s.alone), compareLoads) {
			a := s.alone[key]
			q, err := s.measure(key.model, key.batch, aloneRule)
			if err != nil {
				return err
			}
			a.after = q.P50Ms
			off := math.Abs(a.after-a.before) / a.before
			loads++
			if off > drift {
				changed++
			}
			if off > worst {
				worst, which = off, fmt.Sprintf("%s, batch %d on %d %%: %.3f ms alone before, %.3f ms after the others ran", key.model, key.batch, s.share, a.before, a.after)
			}
		}
	}
	if changed > 0 {
		c.note("split %v: %d of %d loads alone changed by more than %.0f %% meanwhile, most %s", c.split, changed, loads, 100*drift, which)
	}
	return nil
}

func compareLoads(a, b load) int {
	return cmp.Or(cmp.Compare(a.model, b.model), cmp.Compare(a.batch, b.batch))
}

func (s *Session) note(format string, args ...any) {
	if s.Note != nil {
		s.Note(fmt.Sprintf(format, args...))
	}
}

// measurements are the slowdowns of all members of combinations.
func (c *corun) measurements(done []together) []profile.Measurement {
	var out []profile.Measurement
	for _, t := range done {
		for i, self := range t.loads {
			others := slices.Delete(slices.Clone(t.loads), i, i+1)
			base := c.slots[i].alone[load{self.Model, self.Batch}].ms()
			out = append(out, profile.Measurement{Self: self, Others: others, Slowdown: math.Round(t.ms[i]/base*1e4) / 1e4})
		}
	}
	return out
}

// CorunBatches are the sizes that a model is run with beside others: the smallest, one of those that
// gpu-lets run, and a large one.
func CorunBatches(maxBatch int) []int {
	sizes := []int{1, min(8, maxBatch), min(32, maxBatch)}
	return slices.Compact(sizes)
}
