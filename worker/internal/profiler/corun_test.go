package profiler

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

// sessionOf is a session on a rig on which a model slows others down by what pressure says, for each
// percent of share that it has.
func sessionOf(r *rig, said *notes) *Session {
	pressure := map[string]float64{"loud": 0.01, "quiet": 0.002}
	r.slowdown = func(_ string, _ int, others []busy) float64 {
		f := 1.0
		for _, o := range others {
			f += pressure[o.model] * float64(o.share)
		}
		return f
	}
	return &Session{
		Splits: [][]int{{50, 50}, {20, 80}, {30, 30, 40}}, Seed: 1, Budget: time.Minute,
		Batches: func(m model.Model) []int { return CorunBatches(m.MaxBatch) }, Layout: func(string) string { return "" },
		Captures: true, Start: r.start, Save: func([]profile.Measurement) error { return nil }, Note: said.add,
	}
}

func TestSessionMeasuresWhatNeighboursCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newRig(t, roof), &notes{}
		s := sessionOf(r, said)
		saved := 0
		s.Save = func(list []profile.Measurement) error { saved = len(list); return nil }
		models := []model.Model{rigModelOf("loud", 32), rigModelOf("quiet", 8)}
		start := time.Now()
		runs, err := s.Run(t.Context(), models, nil)
		if err != nil {
			t.Fatal(err, said)
		}
		if took := time.Since(start); took < 30*time.Second || took > 65*time.Second {
			t.Errorf("took %v of a minute", took)
		}
		if saved != len(runs) || len(runs) < 100 {
			t.Errorf("%d measurements, %d saved", len(runs), saved)
		}
		splits := map[string]int{}
		for _, m := range runs {
			want := 1.0
			shares := []int{m.Self.Share}
			for _, o := range m.Others {
				want += map[string]float64{"loud": 0.01, "quiet": 0.002}[o.Model] * float64(o.Share)
				shares = append(shares, o.Share)
			}
			if math.Abs(m.Slowdown-want) > 0.002 {
				t.Errorf("%+v: expected %v", m, want)
			}
			slices.Sort(shares)
			splits[fmt.Sprint(shares)]++
		}
		if len(splits) != 3 {
			t.Errorf("splits %v", splits)
		}
		// What was measured is enough to predict it.
		fits, best, problems := interference.FitBest(&profile.Set{}, &profile.Corun{GPUType: "g", Runs: runs})
		if best < 0 || fits[best].HeldOut.P90 > 0.01 {
			t.Errorf("fits %+v, problems %v", fits, problems)
		}
	})
}

func TestSessionRunsEveryModelHoweverLittleTimeThereIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newRig(t, roof), &notes{}
		s := sessionOf(r, said)
		s.Budget = time.Millisecond
		var models []model.Model
		for i := range 5 {
			models = append(models, rigModelOf(fmt.Sprint("m", i), 32))
		}
		runs, err := s.Run(t.Context(), models, nil)
		if err != nil {
			t.Fatal(err)
		}
		selves, neighbours := map[string]bool{}, map[string]bool{}
		for _, m := range runs {
			selves[m.Self.Model] = true
			neighbours[m.Others[0].Model] = true
		}
		if len(selves) != 5 || len(neighbours) != 5 {
			t.Errorf("%d models suffered, %d caused: expected all 5", len(selves), len(neighbours))
		}
		if !strings.Contains(said.String(), "no time for the splits") {
			t.Errorf("said %s", said)
		}
	})
}

func TestSessionGoesOnWithoutWhatCannotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newRig(t, roof), &notes{}
		s := sessionOf(r, said)
		s.Budget = 20 * time.Second
		r.load = func(spec engine.Spec, share int) error {
			if spec.Model.Name == "quiet" && share == 80 {
				return &engine.Error{Code: engine.EOOM, Msg: "no room"}
			}
			return nil
		}
		crashed := false
		r.crash = func(name string, share, _ int) bool {
			if share == 30 && !crashed {
				crashed = true
				return true
			}
			return false
		}
		runs, err := s.Run(t.Context(), []model.Model{rigModelOf("loud", 8), rigModelOf("quiet", 8)}, nil)
		if err == nil || !strings.Contains(err.Error(), "split [30 30 40]: ") || !errors.Is(err, errGone) {
			t.Errorf("error %v: expected the split that crashed", err)
		}
		on80 := map[string]int{}
		for _, m := range runs {
			if m.Self.Share == 80 {
				on80[m.Self.Model]++
			}
		}
		if on80["loud"] == 0 || on80["quiet"] > 0 {
			t.Errorf("on 80 %%: %v", on80)
		}
		if !strings.Contains(said.String(), "quiet on 80 %: not run beside others") {
			t.Errorf("said %s", said)
		}
	})
}

func TestSessionKeepsWhatWasMeasuredWhenItIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, said := newRig(t, roof), &notes{}
		s := sessionOf(r, said)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		combos := 0
		s.Step = func([]profile.Measurement, time.Duration) {
			if combos++; combos == 5 {
				cancel()
			}
		}
		earlier := []profile.Measurement{{Self: profile.Running{Model: "x", Share: 50, Batch: 1}, Others: []profile.Running{{Model: "y", Share: 50, Batch: 1}}, Slowdown: 1.5}}
		saved := 0
		s.Save = func(list []profile.Measurement) error { saved = len(list); return nil }
		runs, err := s.Run(ctx, []model.Model{rigModelOf("loud", 8), rigModelOf("quiet", 8)}, earlier)
		if !errors.Is(err, context.Canceled) || len(runs) != 11 || saved != 11 {
			t.Errorf("%d measurements, %d saved, error %v: expected the earlier one and two each of five combinations", len(runs), saved, err)
		}
	})
}

func TestSessionSaysWhenLoadsChangedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r, said := newRig(t, func(name string, share, batch int) time.Duration {
			if time.Since(start) > 10*time.Second { // the clocks went down
				return 2 * roof(name, share, batch)
			}
			return roof(name, share, batch)
		}), &notes{}
		s := sessionOf(r, said)
		s.Splits, s.Budget = s.Splits[:1], 20*time.Second
		if _, err := s.Run(t.Context(), []model.Model{rigModelOf("loud", 1)}, nil); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(said.String(), "2 of 2 loads alone changed by more than 5 % meanwhile") {
			t.Errorf("said %q", said)
		}
	})
}

func TestPropertyEveryModelIsChosenAsOftenAsTheOthers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		split := rapid.SampledFrom(Splits).Draw(t, "split")
		var loads []load
		n := rapid.IntRange(1, 9).Draw(t, "models")
		for i := range n {
			for _, b := range []int{1, 8, 32}[:rapid.IntRange(1, 3).Draw(t, "batches")] {
				loads = append(loads, load{fmt.Sprint("m", i), b})
			}
		}
		seed := rapid.Uint64().Draw(t, "seed")
		c, again := newChooser(seed, split, loads), newChooser(seed, split, loads)
		combos := rapid.IntRange(1, 60).Draw(t, "combinations")
		for range combos {
			a, b := c.next(), again.next()
			if diff := cmp.Diff(a, b); diff != "" || len(a) != len(split) {
				t.Fatalf("%v on %v, another time %v", a, split, b)
			}
			for i, r := range a {
				if r.Share != split[i] {
					t.Fatalf("%v on %v", a, split)
				}
			}
		}
		for _, share := range split {
			least, most := math.MaxInt, 0
			for i := range n {
				k := c.models[seenModel{share, fmt.Sprint("m", i)}]
				least, most = min(least, k), max(most, k)
			}
			if most-least > 1 {
				t.Fatalf("after %d combinations on %v a model ran %d times on %d %%, another %d times", combos, split, most, share, least)
			}
		}
	})
}

func TestChoosesNeighboursThatWereNotSeenTogether(t *testing.T) {
	var loads []load
	for i := range 6 {
		loads = append(loads, load{fmt.Sprint("m", i), 1})
	}
	c := newChooser(1, []int{20, 80}, loads)
	seen := map[string]bool{}
	for range 30 {
		combo := c.next()
		seen[combo[0].Model+combo[1].Model] = true
	}
	if len(seen) < 28 {
		t.Errorf("30 combinations of 36 have %d pairs: expected hardly any twice", len(seen))
	}
	c.drop(80, "m0")
	for range 20 {
		if combo := c.next(); combo[1].Model == "m0" {
			t.Fatal("chose what was dropped")
		}
	}
	for i := range 6 {
		c.drop(80, fmt.Sprint("m", i))
	}
	if combo := c.next(); combo != nil {
		t.Errorf("chose %v of nothing", combo)
	}
}

func TestCorunBatchesAreSmallMiddleAndLarge(t *testing.T) {
	for most, want := range map[int][]int{1: {1}, 4: {1, 4}, 8: {1, 8}, 16: {1, 8, 16}, 64: {1, 8, 32}} {
		if diff := cmp.Diff(want, CorunBatches(most)); diff != "" {
			t.Errorf("%d: %s", most, diff)
		}
	}
}
