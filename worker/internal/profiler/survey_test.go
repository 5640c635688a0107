package profiler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

// roof is a device on which time falls with the share up to a model's own limit, and on which images
// of "conv" are faster in the other layout.
func roof(name string, share, batch int) time.Duration {
	model, _, other := strings.Cut(name, "/")
	usable := map[string]int{"small": 20, "large": 100, "conv": 100}[model]
	if usable == 0 {
		usable = 50
	}
	ms := 0.5 + 0.1*float64(batch)*100/float64(min(share, usable))
	switch {
	case model == "conv" && other:
		ms *= 0.8
	case other:
		ms *= 0.99 // not worth it
	}
	return time.Duration(ms * float64(time.Millisecond))
}

type notes struct{ lines []string }

func (n *notes) add(text string) { n.lines = append(n.lines, text) }

func (n *notes) String() string { return strings.Join(n.lines, "\n") }

// surveyOf is a survey of a rig as of a GPU.
func surveyOf(r *rig, said *notes) *Survey {
	return &Survey{
		Shares: grid, Tolerance: 0.05, Batches: func(m model.Model) []int { return Batches(m.MaxBatch) }, Rule: OnGPU,
		Budget: 8 * 7 * 100 * time.Millisecond, Captures: true, Start: r.start, Save: func(*profile.Profile) error { return nil }, Note: said.add,
	}
}

func TestSurveyMeasuresWhatModelsTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newRig(t, roof), &notes{}
		models := []model.Model{rigModelOf("small", 64), rigModelOf("conv", 16)}
		profiles := fresh(models...)
		s := surveyOf(r, said)
		var steps []Step
		s.Step = func(st Step) { steps = append(steps, st) }
		if failed := s.Run(t.Context(), models, profiles); len(failed) > 0 {
			t.Fatal(failed, said)
		}
		for i, m := range models {
			p := profiles[i]
			if err := p.Validate(); err != nil {
				t.Fatal(err)
			}
			name := m.Name
			if name == "conv" {
				name = "conv/nhwc"
			}
			for _, share := range grid {
				for _, b := range Batches(m.MaxBatch) {
					got, err := p.Latency(share, b)
					if want := ms(roof(name, share, b)); err != nil || got < want*0.999 || got > want*1.05 {
						t.Errorf("%s, share %d, batch %d: %v ms, %v: expected %v to 5 %% more", m.Name, share, b, got, err, want)
					}
				}
			}
			if p.Torch != "rig 1" {
				t.Errorf("engine %q", p.Torch)
			}
		}
		small, conv := profiles[0], profiles[1]
		if small.Layout != "" || conv.Layout != profile.ChannelsLast {
			t.Errorf("layouts %q, %q: expected the faster of each", small.Layout, conv.Layout)
		}
		if n := len(small.Shares()); n >= len(grid) {
			t.Errorf("measured %d of %d shares of a model that cannot use them", n, len(grid))
		}
		want := []profile.Memory{{Batch: 1, Bytes: 11 << 20}, {Batch: 8, Bytes: 18 << 20}, {Batch: 64, Bytes: 74 << 20}}
		if diff := cmp.Diff(want, small.Memory); diff != "" {
			t.Error(diff)
		}
		if last := steps[len(steps)-1]; last.Left != 0 || last.Done != len(steps) || last.Done != len(small.Shares())+len(conv.Shares()) {
			t.Errorf("last step %+v of %d", last, len(steps))
		}
		seen := map[int]bool{}
		for _, at := range r.started {
			if seen[at.Share] {
				t.Errorf("started two processes on %d %%", at.Share)
			}
			seen[at.Share] = true
		}
	})
}

// TestSurveyOfNineModelsIsQuick counts the time that running batches takes, and that starting eight
// processes does.
func TestSurveyOfNineModelsIsQuick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newRig(t, func(name string, share, batch int) time.Duration { return 2 * roof(name, share, batch) }), &notes{}
		var models []model.Model
		for i := range 9 {
			models = append(models, rigModelOf(fmt.Sprint("m", i), 64))
		}
		s := surveyOf(r, said)
		s.Tolerance = 0 // everything
		start := time.Now()
		if failed := s.Run(t.Context(), models, fresh(models...)); len(failed) > 0 {
			t.Fatal(failed)
		}
		if took := time.Since(start); took > 100*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestSurveyKeepsToItsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ string, _, batch int) time.Duration { return time.Duration(batch) * 30 * time.Millisecond })
		m := rigModelOf("m", 64)
		p := fresh(m)
		s := surveyOf(r, &notes{})
		s.Shares, s.Captures, s.Rule, s.Budget = []int{100}, false, Quick, 2*time.Second
		start := time.Now()
		if failed := s.Run(t.Context(), []model.Model{m}, p); len(failed) > 0 {
			t.Fatal(failed)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("%v took %v: expected at most the budget, and a second to start", p[0].Batches(), took)
		}
		if got := p[0].Batches(); len(got) < 2 || slices.Contains(got, 64) {
			t.Errorf("measured %v: expected what fits", got)
		}
		for _, q := range p[0].Points {
			if q.N < Quick.MinRuns {
				t.Errorf("batch %d: %d runs: expected at least %d", q.Batch, q.N, Quick.MinRuns)
			}
		}
	})
}

func TestSurveyMeasuresTheSmallestBatchWhateverItTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(string, int, int) time.Duration { return time.Minute })
		m := rigModelOf("m", 64)
		p := fresh(m)
		s := surveyOf(r, &notes{})
		s.Shares, s.Captures, s.Rule, s.Budget = []int{100}, false, Quick, time.Second
		if failed := s.Run(t.Context(), []model.Model{m}, p); len(failed) > 0 {
			t.Fatal(failed)
		}
		if len(p[0].Points) != 1 || p[0].Points[0].P50Ms != 60_000 || p[0].Points[0].N != Quick.MinRuns {
			t.Errorf("measured %+v", p[0].Points)
		}
	})
}

func TestACrashCostsOnlyWhatWasBeingMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newRig(t, roof), &notes{}
		crashes := 0
		r.crash = func(name string, share, batch int) bool {
			switch {
			case name == "flaky" && share == 40 && crashes == 0: // once
				crashes++
				return true
			case name == "broken" && share == 10: // always
				return true
			}
			return false
		}
		models := []model.Model{rigModelOf("first", 8), rigModelOf("flaky", 8), rigModelOf("broken", 8), rigModelOf("last", 8)}
		profiles := fresh(models...)
		s := surveyOf(r, said)
		s.Tolerance = 0
		if failed := s.Run(t.Context(), models, profiles); len(failed) > 0 {
			t.Fatalf("failed %v", failed)
		}
		for i, m := range models {
			want := grid
			if m.Name == "broken" {
				want = grid[1:]
			}
			if diff := cmp.Diff(want, profiles[i].Shares()); diff != "" {
				t.Errorf("%s: %s", m.Name, diff)
			}
		}
		for _, want := range []string{"flaky on 40 %: the measuring process ended: killed: trying again in a process of its own", "broken on 10 %: left out: the measuring process ended"} {
			if !strings.Contains(said.String(), want) {
				t.Errorf("said\n%s\nexpected %q", said, want)
			}
		}
	})
}

func TestAModelThatDoesNotLoadFailsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, roof)
		r.load = func(spec engine.Spec, _ int) error {
			if spec.Model.Name == "bad" {
				return &engine.Error{Code: engine.ELOAD, Msg: "not an archive"}
			}
			return nil
		}
		models := []model.Model{rigModelOf("bad", 4), rigModelOf("good", 4)}
		profiles := fresh(models...)
		failed := surveyOf(r, &notes{}).Run(t.Context(), models, profiles)
		if len(failed) != 1 || failed["bad"] == nil || !strings.Contains(failed["bad"].Error(), "not an archive") {
			t.Errorf("failed %v", failed)
		}
		if len(profiles[0].Points) > 0 || len(profiles[1].Points) == 0 {
			t.Errorf("%d and %d points", len(profiles[0].Points), len(profiles[1].Points))
		}
	})
}

func TestBatchesThatDoNotFitIntoMemoryAreLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newRig(t, roof), &notes{}
		r.load = func(spec engine.Spec, _ int) error {
			if slices.Max(spec.Batches) > 16 {
				return &engine.Error{Code: engine.EOOM, Msg: "no room"}
			}
			return nil
		}
		m := rigModelOf("m", 64)
		p := fresh(m)
		if failed := surveyOf(r, said).Run(t.Context(), []model.Model{m}, p); len(failed) > 0 {
			t.Fatal(failed)
		}
		if diff := cmp.Diff([]int{1, 2, 4, 8, 16}, p[0].Batches()); diff != "" {
			t.Error(diff)
		}
		if !strings.Contains(said.String(), "batches up to 64 do not fit into memory") {
			t.Errorf("said %s", said)
		}
	})
}

func TestGoesOnWhereItWasInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, roof)
		m := rigModelOf("large", 8)
		p := fresh(m)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := surveyOf(r, &notes{})
		s.Step = func(st Step) {
			if st.Done == 2 {
				cancel()
			}
		}
		if failed := s.Run(ctx, []model.Model{m}, p); !errors.Is(failed["large"], context.Canceled) {
			t.Errorf("failed %v", failed)
		}
		kept := slices.Clone(p[0].Points)
		if diff := cmp.Diff([]int{40, 100}, p[0].Shares()); diff != "" {
			t.Error(diff)
		}
		r.started = nil
		next := surveyOf(r, &notes{})
		if !next.Missing(m, p[0]) {
			t.Error("nothing is missing")
		}
		if failed := next.Run(t.Context(), []model.Model{m}, p); len(failed) > 0 {
			t.Fatal(failed)
		}
		for _, at := range r.started {
			if at.Share == 40 || at.Share == 100 {
				t.Errorf("measured %d %% again", at.Share)
			}
		}
		for _, q := range kept {
			if !slices.Contains(p[0].Points, q) {
				t.Errorf("lost %+v", q)
			}
		}
		if next.Missing(m, p[0]) {
			t.Error("something is missing in the end")
		}
	})
}

func TestNothingIsMeasuredOnAShareThatDoesNotHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, roof)
		models := []model.Model{rigModelOf("a", 4), rigModelOf("b", 4)}
		s := surveyOf(r, &notes{})
		s.Check = func(h Hello, share int) error {
			if h.SMs != share {
				t.Errorf("sees %d SMs on %d %%", h.SMs, share)
			}
			return errors.New("not limited")
		}
		failed := s.Run(t.Context(), models, fresh(models...))
		if len(failed) != 2 || !strings.Contains(failed["b"].Error(), "not limited") || len(r.started) != 1 {
			t.Errorf("failed %v after %d processes: expected both, after one", failed, len(r.started))
		}
	})
}

// fakeCounters count what the rig does, and say how much memory a process takes.
type fakeCounters struct {
	rig   *rig
	err   error
	began time.Time
}

func (f *fakeCounters) Used() (int64, error) {
	f.rig.mu.Lock()
	defer f.rig.mu.Unlock()
	if f.rig.next == 0 {
		return 1 << 30, nil
	}
	return 1<<30 + 700<<20 + int64(f.rig.next)*300<<20, nil // the first process starts a server, of 700 MB
}

func (f *fakeCounters) Begin() error {
	f.began = time.Now()
	return f.err
}

func (f *fakeCounters) End() (profile.Demand, error) {
	d := profile.Demand{DRAM: 0.01}
	for _, b := range f.rig.others(-1) {
		d.SM = float64(b.share) / 100
	}
	if time.Since(f.began) < counterWindow {
		return d, errors.New("too short")
	}
	return d, nil
}

func TestReadsCountersWhileAModelRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newRig(t, roof), &notes{}
		m := rigModelOf("large", 16)
		p := fresh(m)
		s := surveyOf(r, said)
		s.Counters = &fakeCounters{rig: r}
		if failed := s.Run(t.Context(), []model.Model{m}, p); len(failed) > 0 {
			t.Fatal(failed, said)
		}
		var want []profile.Demand
		for _, share := range []int{10, 40, 100} {
			for _, b := range []int{1, 4, 16} {
				want = append(want, profile.Demand{Share: share, Batch: b, SM: float64(share) / 100, DRAM: 0.01})
			}
		}
		if diff := cmp.Diff(want, p[0].Demand); diff != "" {
			t.Error(diff)
		}
		if got := s.ContextBytes(); got != 300<<20 {
			t.Errorf("a process takes %d MiB: expected 300", got>>20)
		}
	})
}

func TestCountersThatAreAbsentAreNoError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newRig(t, roof), &notes{}
		m := rigModelOf("large", 4)
		p := fresh(m)
		s := surveyOf(r, said)
		s.Counters = &fakeCounters{rig: r, err: errors.New("not on this GPU")}
		if failed := s.Run(t.Context(), []model.Model{m}, p); len(failed) > 0 {
			t.Fatal(failed)
		}
		if len(p[0].Demand) > 0 || strings.Count(said.String(), "no counters: not on this GPU") != 1 {
			t.Errorf("demand %v, said %s", p[0].Demand, said)
		}
	})
}
