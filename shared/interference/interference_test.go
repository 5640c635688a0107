package interference

import (
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/shared/profile"
)

func shipped(t *testing.T) *profile.Set {
	t.Helper()
	set, problems := profile.LoadDir("../../profiles")
	for _, err := range problems {
		t.Fatal(err)
	}
	return set
}

func predictor(t *testing.T, set *profile.Set) *Set {
	t.Helper()
	s, err := New(set)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestLinearIsThePapersFormula computes one pair by hand from the published constants.
func TestLinearIsThePapersFormula(t *testing.T) {
	s := predictor(t, shipped(t))
	self := Load{Model: "resnet50", Share: 40, Batch: 32}
	other := Load{Model: "bert", Share: 60, Batch: 16}
	want := 0.11290838746224496*0.2819*0.4 + 0.7159598718755424*0.1801*0.6 + 0.35486591956022895*0.6227*0.4 + 0.0882038259888065*0.3441*0.6 + 0.8953693917277343
	if got := s.Slowdown("rtx2080ti", self, [][]Load{{other}}); math.Abs(got-want) > 1e-9 {
		t.Errorf("slowdown %v: expected %v", got, want)
	}
}

func randomLoads(t *rapid.T, models []string) [][]Load {
	var out [][]Load
	for range rapid.IntRange(1, 4).Draw(t, "neighbours") {
		var loads []Load
		for range rapid.IntRange(1, 3).Draw(t, "loads") {
			loads = append(loads, Load{Model: rapid.SampledFrom(models).Draw(t, "model"), Share: rapid.IntRange(1, 60).Draw(t, "share"), Batch: rapid.IntRange(1, 40).Draw(t, "batch")})
		}
		out = append(out, loads)
	}
	return out
}

func TestPropertyNeighboursNeverHelpAndCouplingsAgree(t *testing.T) {
	set := shipped(t)
	s := predictor(t, set)
	rapid.Check(t, func(t *rapid.T) {
		gpu := rapid.SampledFrom([]string{"rtx2080ti", "h100", "cpu-unknown"}).Draw(t, "gpu")
		models := append(set.Models("rtx2080ti"), "never-seen")
		self := Load{Model: rapid.SampledFrom(models).Draw(t, "self"), Share: rapid.IntRange(1, 99).Draw(t, "share"), Batch: rapid.IntRange(1, 32).Draw(t, "batch")}
		loads := randomLoads(t, models)
		all := s.Slowdown(gpu, self, loads)
		if all < 1 {
			t.Errorf("slowdown %v below 1", all)
		}
		if fewer := s.Slowdown(gpu, self, loads[1:]); len(loads) > 1 && fewer > all+1e-9 {
			t.Errorf("%v with fewer neighbours, %v with all", fewer, all)
		}
		pressure := 0.0
		for _, n := range loads {
			worst := 0.0
			for _, l := range n {
				worst = max(worst, s.Couplings(gpu, l.Model, l.Share, l.Batch)[l.Batch-1].Emit)
			}
			pressure += worst
		}
		c := s.Couplings(gpu, self.Model, self.Share, self.Batch)[self.Batch-1]
		if want := max(1, c.Base+c.Gain*pressure); math.Abs(all-want) > 1e-9 {
			t.Errorf("slowdown %v, by couplings %v", all, want)
		}
	})
}

func TestDefaultIsTheWorstMeasuredPair(t *testing.T) {
	s := predictor(t, &profile.Set{})
	half := Load{Model: "x", Share: 50, Batch: 1}
	if got := s.Slowdown("new", half, [][]Load{{half}}); math.Abs(got-1.45) > 1e-9 {
		t.Errorf("slowdown %v: expected 1.45", got)
	}
	worst := 0.0
	runs, _ := shipped(t).Corun("h100")
	for _, m := range runs.Runs {
		if m.Self.Share == 50 && len(m.Others) == 1 {
			worst = max(worst, m.Slowdown)
		}
	}
	if worst == 0 || worst > 1.45 {
		t.Errorf("a measured pair slows down by %v: the default promises at most 1.45", worst)
	}
}

// TestFitRecoversWhatItWasMadeFrom makes co-runs with known constants.
func TestFitRecoversWhatItWasMadeFrom(t *testing.T) {
	set := &profile.Set{}
	names := []string{"a", "b", "c", "d"}
	for i, name := range names {
		p := &profile.Profile{Model: name, GPUType: "g"}
		for _, share := range []int{20, 50, 80} {
			for _, batch := range []int{1, 8} {
				d := profile.Demand{Share: share, Batch: batch, L2: 0.1 + 0.05*float64(i) + 0.01*float64(batch)*float64(share)/100, DRAM: 0.1 + 0.1*float64(i) + 0.02*float64(batch)}
				p.Demand = append(p.Demand, d)
			}
		}
		set.Add(p)
	}
	var runs []profile.Measurement
	for _, a := range names {
		for _, b := range names {
			for _, share := range []int{20, 50, 80} {
				for _, batch := range []int{1, 8} {
					for _, co := range []int{1, 8} {
						m := profile.Measurement{Self: profile.Running{Model: a, Share: share, Batch: batch}, Others: []profile.Running{{Model: b, Share: 100 - share, Batch: co}}}
						self, _ := demandOf(set, "g", m.Self)
						other, _ := demandOf(set, "g", m.Others[0])
						m.Slowdown = 0.2*self.L2 + 0.5*other.L2 + 0.3*self.DRAM + 0.1*other.DRAM + 1
						runs = append(runs, m)
					}
				}
			}
		}
	}
	f, err := Fit(set, &profile.Corun{GPUType: "g", Runs: runs}, Linear)
	if err != nil {
		t.Fatal(err)
	}
	if f.HeldOut.Max > 1e-6 {
		t.Errorf("held-out error %+v: expected none", f.HeldOut)
	}
	for i, want := range []float64{0.2, 0.5, 0.3, 0.1, 1} {
		if math.Abs(f.Coefficients[i]-want) > 1e-6 {
			t.Errorf("%s = %v: expected %v", f.Features[i], f.Coefficients[i], want)
		}
	}
	if a, err := Fit(set, &profile.Corun{GPUType: "g", Runs: runs}, Anchored); err != nil || a.HeldOut.P90 > 0.05 {
		t.Errorf("anchored %+v, %v: expected a held-out error below 5 %%", a.HeldOut, err)
	}
}

// TestSaturatingTellsFullBatchesFromSmallOnes makes co-runs in which a batch that fills its share suffers
// half as much as one that does not.
func TestSaturatingTellsFullBatchesFromSmallOnes(t *testing.T) {
	set, runs := &profile.Set{}, &profile.Corun{GPUType: "g"}
	names := []string{"a", "b", "c", "d"}
	for _, name := range names {
		p := &profile.Profile{Model: name, GPUType: "g"}
		for _, share := range []int{20, 50, 80} {
			// Batches of 1 reach half of the samples/s of batches of 8.
			p.Points = append(p.Points, profile.Point{Share: share, Batch: 1, P50Ms: 2}, profile.Point{Share: share, Batch: 8, P50Ms: 8})
		}
		set.Add(p)
	}
	fitted := &profile.Interference{
		GPUType: "g", Kind: Saturating, Margin: 1,
		Features:     []string{"fall", "sensitivity:a", "sensitivity:b", "sensitivity:c", "sensitivity:d", "pressure:a", "pressure:b", "pressure:c", "pressure:d"},
		Coefficients: []float64{0.5, 0.2, 0.3, 0.4, 0.5, 1, 0.8, 1.2, 1},
	}
	truth := &profile.Set{}
	for _, name := range names {
		p, _ := set.Get("g", name)
		truth.Add(p)
	}
	truth.AddInterference(fitted)
	s := predictor(t, truth)
	if full, small := s.Slowdown("g", Load{Model: "a", Share: 50, Batch: 8}, [][]Load{{{Model: "d", Share: 50, Batch: 8}}}),
		s.Slowdown("g", Load{Model: "a", Share: 50, Batch: 1}, [][]Load{{{Model: "d", Share: 50, Batch: 8}}}); math.Abs(full-1.1) > 1e-9 || math.Abs(small-1.15) > 1e-9 {
		t.Errorf("slowdowns %v of a full batch and %v of half as many samples/s: expected 1.1 and 1.15", full, small)
	}
	for _, a := range names {
		for _, b := range names {
			for _, share := range []int{20, 50, 80} {
				for _, batch := range []int{1, 8} {
					m := profile.Measurement{Self: Load{Model: a, Share: share, Batch: batch}, Others: []Load{{Model: b, Share: 100 - share, Batch: 8}}}
					m.Slowdown = s.Slowdown("g", m.Self, [][]Load{{m.Others[0]}})
					runs.Runs = append(runs.Runs, m)
				}
			}
		}
	}
	fits, best, _ := FitBest(set, runs)
	if best < 0 || fits[best].Kind != Saturating || fits[best].HeldOut.P90 > 0.02 {
		t.Fatalf("best %d of %+v: expected the saturating fit, off by less than 2 %%", best, fits)
	}
	if i := slices.Index(fits[best].Features, "fall"); math.Abs(fits[best].Coefficients[i]-0.5) > 0.11 {
		t.Errorf("fall %v: expected 0.5", fits[best].Coefficients[i])
	}
}

// TestShippedH100FitIsAsGoodAsItSays: the error in the file is that of its co-runs, fitted again.
func TestShippedH100FitIsAsGoodAsItSays(t *testing.T) {
	set := shipped(t)
	runs, _ := set.Corun("h100")
	fitted, _ := set.Interference("h100")
	if e, err := Error(set, fitted, runs); err != nil || e.P90 > 0.1 {
		t.Errorf("error %+v, %v on what it was fitted to", e, err)
	}
	again, err := Fit(set, runs, fitted.Kind)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(again.HeldOut.P90-fitted.HeldOut.P90) > 1e-3 || again.HeldOut.P90 > 0.1 {
		t.Errorf("held-out error %+v: the file says %+v", again.HeldOut, fitted.HeldOut)
	}
}

// TestFitTakesTheCountersThatWereMeasured: a GPU without an L2 counter is fitted by what it has.
func TestFitTakesTheCountersThatWereMeasured(t *testing.T) {
	set := &profile.Set{}
	runs := &profile.Corun{GPUType: "g"}
	demand := map[string]profile.Demand{}
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		d := profile.Demand{Share: 50, Batch: 1, DRAM: 0.1 * float64(i+1), Tensor: 0.05 * float64(i*i)}
		demand[name] = d
		set.Add(&profile.Profile{Model: name, GPUType: "g", Demand: []profile.Demand{d}})
	}
	for a, x := range demand {
		for b, y := range demand {
			runs.Runs = append(runs.Runs, profile.Measurement{
				Self: Load{Model: a, Share: 50, Batch: 1}, Others: []Load{{Model: b, Share: 50, Batch: 1}},
				Slowdown: 1.1 + 0.2*x.DRAM + 0.4*y.DRAM + 0.1*x.Tensor + 0.3*y.Tensor,
			})
		}
	}
	fits, best, problems := FitBest(set, runs)
	if best < 0 || fits[best].Kind != Linear {
		t.Fatalf("best %d of %v, problems %v: expected the linear fit", best, fits, problems)
	}
	if got, want := strings.Join(fits[best].Features, " "), "dram_self dram_other tensor_self tensor_other const"; got != want {
		t.Errorf("features %s: expected %s", got, want)
	}
	if e := fits[best].HeldOut; e.Max > 1e-6 || e.Pairs != len(runs.Runs) {
		t.Errorf("held-out error %+v: expected none on any of %d", e, len(runs.Runs))
	}
	set.AddInterference(fits[best])
	a, e := Load{Model: "a", Share: 50, Batch: 1}, Load{Model: "e", Share: 50, Batch: 1}
	alone := predictor(t, set).Slowdown("g", a, [][]Load{{e}})
	both := predictor(t, set).Slowdown("g", a, [][]Load{{e}, {e}})
	if want := alone + 0.4*0.5 + 0.3*0.8; math.Abs(both-want) > 1e-6 {
		t.Errorf("slowdown beside two %v: expected %v", both, want)
	}
}

// TestHoldsOutWholeCombinations: what the members of a combination suffered is never split up.
func TestHoldsOutWholeCombinations(t *testing.T) {
	runs, _ := shipped(t).Corun("h100")
	held := map[string]int{}
	for fold := range folds {
		train, test := split(runs, fold)
		if len(train.Runs)+len(test.Runs) != len(runs.Runs) || len(test.Runs) == 0 {
			t.Errorf("fold %d: %d and %d of %d", fold, len(train.Runs), len(test.Runs), len(runs.Runs))
		}
		in := map[string]bool{}
		for _, m := range train.Runs {
			in[combination(m)] = true
		}
		for _, m := range test.Runs {
			held[combination(m)]++
			if in[combination(m)] {
				t.Errorf("fold %d: %s is on both sides", fold, combination(m))
			}
		}
	}
	all := map[string]int{}
	for _, m := range runs.Runs {
		all[combination(m)]++
	}
	if !maps.Equal(held, all) {
		t.Errorf("held out %v: expected every measurement once, %v", held, all)
	}
	one := &profile.Corun{GPUType: "g", Runs: slices.Repeat(runs.Runs[:1], 3)}
	if _, err := Fit(&profile.Set{}, one, Pairwise); err == nil || !strings.Contains(err.Error(), "found one combination") {
		t.Errorf("error %v: expected that there is nothing to hold out", err)
	}
}

func TestBrokenFitsSayWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		f    profile.Interference
		want string
	}{
		{profile.Interference{Kind: "magic"}, `key "kind": found "magic": expected linear, anchored, pairwise, saturating`},
		{profile.Interference{Kind: Linear, Features: []string{"x"}, Coefficients: []float64{1}}, `key "features": found [x]`},
		{profile.Interference{Kind: Anchored, Features: []string{"base:m:0:1"}, Coefficients: []float64{1}}, "expected a share of 1..100"},
		{profile.Interference{Kind: Anchored, Features: []string{"gain"}, Coefficients: []float64{1}}, "found no base"},
		{profile.Interference{Kind: Pairwise, Features: []string{"pressure:m"}, Coefficients: []float64{-1}}, "not negative"},
		{profile.Interference{Kind: Pairwise, Features: []string{"pressure:m"}, Coefficients: []float64{1}}, "expected both"},
	} {
		set := &profile.Set{}
		set.Add(&profile.Profile{Model: "m", GPUType: "g"})
		c.f.GPUType = "g"
		set.AddInterference(&c.f)
		if _, err := New(set); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v\nexpected %q", err, c.want)
		}
	}
}
