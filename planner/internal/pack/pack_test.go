package pack

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// paperSLO are the objectives of the ATC 2022 paper, in ms.
var paperSLO = map[string]int{
	"googlenet": 66, "lenet": 5, "resnet50": 108, "ssd-mobilenetv1": 202, "vgg16": 142,
	"mnasnet1_0": 62, "mobilenet_v2": 64, "densenet161": 202, "bert": 22,
}

func shipped(t testing.TB) *profile.Set {
	t.Helper()
	set, problems := profile.LoadDir("../../../profiles")
	for _, err := range problems {
		t.Fatal(err)
	}
	return set
}

func turing(t testing.TB, set *profile.Set, gpus int, rates map[string]float64, interfere bool) problem.Input {
	t.Helper()
	dev, ok := set.Device("rtx2080ti")
	if !ok {
		t.Fatal("no device.json for rtx2080ti")
	}
	in := problem.Input{Profiles: set, ContextBytes: dev.ContextBytes}
	for i := range gpus {
		in.GPUs = append(in.GPUs, problem.GPU{Host: "h", Index: i, Type: "rtx2080ti", MemBytes: dev.MemBytes})
	}
	for _, name := range set.Models("rtx2080ti") {
		if rate := rates[name]; rate > 0 {
			in.Models = append(in.Models, problem.Model{Name: name, SLO: time.Duration(paperSLO[name]) * time.Millisecond, Rate: rate})
		}
	}
	if interfere {
		s, err := interference.New(set)
		if err != nil {
			t.Fatal(err)
		}
		in.Interference = s
	}
	return in
}

func mustBeSound(t testing.TB, in problem.Input, p plan.Plan) {
	t.Helper()
	for _, v := range check.Plan(in, p) {
		t.Errorf("%s: %v", p.Algorithm, v)
	}
}

func TestEveryAlgorithmServesAllNineModels(t *testing.T) {
	set := shipped(t)
	rates := map[string]float64{}
	for m := range paperSLO {
		rates[m] = 100
	}
	in := turing(t, set, 4, rates, true)
	for _, name := range Names() {
		algorithm, err := ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		res := algorithm(in, Options{})
		mustBeSound(t, in, res.Plan)
		if name == "gpulet" && !check.Complete(res.Plan) {
			t.Errorf("%s: unserved %v: %v", name, res.Plan.Unserved, res.Reasons)
		}
	}
}

// TestPlansTheLayoutThatWasMeasuredFaster: every algorithm tells gpu-lets what the profiler decided.
func TestPlansTheLayoutThatWasMeasuredFaster(t *testing.T) {
	set := shipped(t)
	fast, _ := set.Get("rtx2080ti", "resnet50")
	fast.Layout = profile.ChannelsLast
	in := turing(t, set, 2, map[string]float64{"resnet50": 50, "vgg16": 50}, true)
	for i := range in.GPUs {
		in.GPUs[i].Shares = []int{20, 40, 50, 60, 80, 100} // the published prototype's
	}
	run := func(name string, o Options) {
		algorithm, _ := ByName(name)
		seen := map[string]string{}
		for _, g := range algorithm(in, o).Plan.Gpulets {
			for _, a := range g.Models {
				seen[a.Model] = a.Layout
			}
		}
		if diff := cmp.Diff(map[string]string{"resnet50": profile.ChannelsLast, "vgg16": ""}, seen); diff != "" {
			t.Errorf("%s %+v: layouts (-want +got):\n%s", name, o, diff)
		}
	}
	for _, name := range Names() {
		run(name, Options{})
	}
	run("elastic", Options{Original: true})
}

func TestUnknownAlgorithmNamesTheKnown(t *testing.T) {
	_, err := ByName("best")
	if want := `algorithm "best": expected one of elastic, even, gpulet, greedy, ideal, sbp`; err == nil || err.Error() != want {
		t.Errorf("found %v: expected %s", err, want)
	}
}

// randomInput draws a problem over the shipped profiles, heterogeneous and cramped now and then.
func randomInput(t *rapid.T, set *profile.Set, predict problem.Interference) problem.Input {
	in := problem.Input{Profiles: set, Buffer: rapid.SampledFrom([]float64{0, 1, 1.1, 1.5}).Draw(t, "buffer")}
	types := rapid.SampledFrom([][]string{{"rtx2080ti"}, {"h100"}, {"rtx2080ti", "h100"}}).Draw(t, "types")
	for i := range rapid.IntRange(0, 5).Draw(t, "gpus") {
		g := problem.GPU{Host: fmt.Sprintf("h%d", i/3), Index: i % 3, Type: rapid.SampledFrom(types).Draw(t, "type")}
		g.MemBytes = rapid.SampledFrom([]int64{0, 4 << 30, 11 << 30}).Draw(t, "mem")
		g.Shares = rapid.SampledFrom([][]int{nil, {50, 100}, {20, 40, 60, 80, 100}, {100}}).Draw(t, "shares")
		in.GPUs = append(in.GPUs, g)
	}
	names := rapid.Permutation(set.Models("rtx2080ti")).Draw(t, "models")
	for _, name := range names[:rapid.IntRange(0, 9).Draw(t, "n")] {
		in.Models = append(in.Models, problem.Model{
			Name: name, SLO: time.Duration(rapid.IntRange(1, 300).Draw(t, "slo")) * time.Millisecond,
			Rate:   rapid.SampledFrom([]float64{0, 0.01, 3, 50, 400, 2000, 1e5}).Draw(t, "rate"),
			Weight: rapid.SampledFrom([]float64{0, 1, 10}).Draw(t, "weight"), MaxBatch: rapid.SampledFrom([]int{0, 1, 8}).Draw(t, "max_batch"),
		})
	}
	if rapid.Bool().Draw(t, "interference") {
		in.Interference = predict
	}
	in.MaxModels = rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "max_models")
	in.ContextBytes = rapid.SampledFrom([]int64{0, 1 << 30}).Draw(t, "context")
	return in
}

func TestPropertyNoPlanIsUnsoundAndPlansRepeat(t *testing.T) {
	set := shipped(t)
	predict, err := interference.New(set)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		in := randomInput(t, set, predict)
		for _, name := range Names() {
			algorithm, _ := ByName(name)
			opt := Options{Steps: rapid.SampledFrom([]int{-1, 20, 100}).Draw(t, "steps"), Headroom: rapid.Bool().Draw(t, "headroom")}
			res := algorithm(in, opt)
			for _, v := range check.Plan(in, res.Plan) {
				t.Errorf("%s: %v", name, v)
			}
			for m := range res.Plan.Unserved {
				if res.Reasons[m] == "" {
					t.Errorf("%s: no reason why %s is not served", name, m)
				}
			}
			if diff := cmp.Diff(res.Plan, algorithm(in, opt).Plan); diff != "" {
				t.Errorf("%s: another plan for the same input:\n%s", name, diff)
			}
			if name == "gpulet" && check.Complete(res.Plan) {
				if b := Bound(in); b > float64(res.Plan.GPUsUsed)*(1+1e-6) {
					t.Errorf("bound %v exceeds the %d GPUs of a sound plan", b, res.Plan.GPUsUsed)
				}
			}
		}
	})
}

func TestPropertyKeepsNearTheCurrentPlan(t *testing.T) {
	set := shipped(t)
	predict, err := interference.New(set)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		in := randomInput(t, set, predict)
		first := Gpulet(in, Options{Steps: 20}).Plan
		first.Revision = 7
		in.Current = &first
		again := Gpulet(in, Options{Steps: 20})
		for _, v := range check.Plan(in, again.Plan) {
			t.Errorf("%v", v)
		}
		if moves := plan.Diff(first, again.Plan).Moves(); check.Complete(first) && moves > 0 && again.Plan.GPUsUsed >= first.GPUsUsed {
			t.Errorf("%d moves though nothing changed", moves)
		}
	})
}

// plain has no neighbours' effect and one share, so that what fits can be counted by hand.
func plain(t rapid.TB, ms map[int]float64) *profile.Set {
	t.Helper()
	set := &profile.Set{}
	p := &profile.Profile{Model: "m", GPUType: "g"}
	for _, batch := range []int{1, 2, 4, 8} {
		if v, ok := ms[batch]; ok {
			p.Points = append(p.Points, profile.Point{Share: 50, Batch: batch, P50Ms: v}, profile.Point{Share: 100, Batch: batch, P50Ms: v / 2})
		}
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	set.Add(p)
	return set
}

// TestFindsWhatBruteForceFinds compares with every choice of shares and batches on tiny problems:
// two gpu-lets of 50 % or one of 100 %, batches 1, 2, 4, 8, no interference.
func TestFindsWhatBruteForceFinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one := rapid.Float64Range(1, 20).Draw(t, "one")
		ms := map[int]float64{1: one, 2: one * 1.5, 4: one * 2.2, 8: one * 4}
		set := plain(t, ms)
		slo := rapid.Float64Range(5, 100).Draw(t, "slo")
		gpus := rapid.IntRange(1, 3).Draw(t, "gpus")
		most := 0.0
		for share, speed := range map[float64]float64{2: 1, 1: 2} { // gpu-lets per GPU, relative speed
			best := 0.0
			for batch := 1; batch <= 8; batch++ {
				lo, hi := 1, 2
				for _, b := range []int{1, 2, 4, 8} {
					if b <= batch {
						lo = b
					}
				}
				hi = min(8, lo*2)
				v := ms[lo]
				if hi > lo {
					v += (ms[hi] - ms[lo]) * float64(batch-lo) / float64(hi-lo)
				}
				if v /= speed; 2*v <= slo {
					best = max(best, float64(batch)*1000/v)
				}
			}
			most = max(most, share*best*float64(gpus))
		}
		for _, factor := range []float64{0.99, 1.01} {
			in := problem.Input{Profiles: set, Models: []problem.Model{{Name: "m", SLO: time.Duration(slo * 1e6), Rate: most * factor}}}
			for i := range gpus {
				in.GPUs = append(in.GPUs, problem.GPU{Host: "h", Index: i, Type: "g", Shares: []int{50, 100}})
			}
			if most == 0 {
				in.Models[0].Rate = 1
			}
			served := check.Complete(Gpulet(in, Options{}).Plan)
			if want := most > 0 && factor < 1; served != want {
				t.Fatalf("rate %v of at most %v on %d GPUs, SLO %v ms: served %v", in.Models[0].Rate, most, gpus, slo, served)
			}
		}
	})
}

func TestRateBelowAnAcceptedOneIsAccepted(t *testing.T) {
	set := shipped(t)
	mix := map[string]float64{"resnet50": 1, "vgg16": 0.4, "lenet": 3, "densenet161": 0.3}
	accepts := func(scale float64) bool {
		rates := map[string]float64{}
		for m, part := range mix {
			rates[m] = part * scale
		}
		return check.Complete(Gpulet(turing(t, set, 2, rates, true), Options{}).Plan)
	}
	refused := 0.0
	for scale := 1000.0; scale > 0; scale -= 37 {
		switch ok := accepts(scale); {
		case !ok:
			refused = scale
		case refused > 0 && refused < scale:
			t.Errorf("refuses %v but accepts %v", refused, scale)
		}
		if !accepts(scale) && scale < refused {
			t.Errorf("refuses %v", scale)
		}
	}
}

func TestShedsByWeight(t *testing.T) {
	set := shipped(t)
	in := turing(t, set, 1, map[string]float64{"resnet50": 1500, "vgg16": 900}, true)
	for i := range in.Models {
		if in.Models[i].Name == "vgg16" {
			in.Models[i].Weight = 100
		}
	}
	res := Gpulet(in, Options{})
	mustBeSound(t, in, res.Plan)
	if res.Plan.Unserved["resnet50"] < 1400 {
		t.Errorf("unserved %v: expected the GPU to go to vgg16, whose requests are worth a hundred times as much", res.Plan.Unserved)
	}
	if res.Plan.DesiredGPUs < 2 {
		t.Errorf("desired_gpus %d: expected more than the one GPU there is", res.Plan.DesiredGPUs)
	}
}

func TestReasonNamesTheLeastPossibleSLO(t *testing.T) {
	set := shipped(t)
	in := turing(t, set, 1, map[string]float64{"resnet50": 1}, false)
	in.Models[0].SLO = 10 * time.Millisecond
	res := Gpulet(in, Options{})
	want := "SLO 10 ms: the fastest batch of one takes 8.062 ms, and a request may wait for one before its own: 16.12 ms is the least SLO possible"
	if got := res.Reasons["resnet50"]; got != want {
		t.Errorf("reason %q\nexpected %q", got, want)
	}
}

// TestServesAModelThatOnlyFitsAloneOnAPart: a profile need not fall with the share, and neighbours cost
// time; half of a GPU of which the rest stays free may be the one place within an SLO.
func TestServesAModelThatOnlyFitsAloneOnAPart(t *testing.T) {
	set := shipped(t)
	predict, err := interference.New(set)
	if err != nil {
		t.Fatal(err)
	}
	for _, gpus := range []int{1, 2 * baselinesUpTo} {
		in := problem.Input{
			Profiles: set, Interference: predict, Buffer: 1.1,
			Models: []problem.Model{{Name: "googlenet", SLO: 2 * time.Millisecond, Rate: 500}},
		}
		for i := range gpus {
			in.GPUs = append(in.GPUs, problem.GPU{Host: "h", Index: i, Type: "h100"})
		}
		res := Gpulet(in, Options{})
		mustBeSound(t, in, res.Plan)
		if b := Bound(in); !check.Complete(res.Plan) || res.Plan.GPUsUsed != 1 || b > 1 {
			t.Errorf("of %d GPUs: %+v, bound %v: expected the model on a part of one, and a bound of no more", gpus, res.Plan, b)
		}
	}
}

func TestSpreadsAModelOverGPUs(t *testing.T) {
	set := shipped(t)
	in := turing(t, set, 2, map[string]float64{"resnet50": 400, "googlenet": 1100, "ssd-mobilenetv1": 480, "mobilenet_v2": 1100}, true)
	res := Gpulet(in, Options{})
	mustBeSound(t, in, res.Plan)
	gpus := map[string][]int{}
	for _, g := range res.Plan.Gpulets {
		for _, a := range g.Models {
			gpus[a.Model] = append(gpus[a.Model], g.GPU)
		}
	}
	several := 0
	for m, list := range gpus {
		if len(list) < 2 {
			continue
		}
		several++
		slices.Sort(list)
		if len(slices.Compact(list)) == 1 {
			t.Errorf("%s has %d gpu-lets, all on GPU %d: expected them on two", m, len(list), list[0])
		}
	}
	if res.Plan.GPUsUsed != 2 || several == 0 {
		t.Errorf("%d GPUs, %d models with several gpu-lets: expected 2 GPUs and models to spread", res.Plan.GPUsUsed, several)
	}
}

// TestSpreadSwapsModelsApart: two models with two gpu-lets each, one GPU per model, end up on both.
func TestSpreadSwapsModelsApart(t *testing.T) {
	in := turing(t, shipped(t), 2, map[string]float64{"resnet50": 20, "vgg16": 20}, true)
	e := newEnv(&in)
	s := newState(e)
	si := slices.Index(e.classes[0].shares, 50)
	for gpu := range s.gpus {
		parts := []part{{si, []slot{{m: gpu, rate: 10}}}, {si, []slot{{m: gpu, rate: 10}}}}
		if !e.settle(0, parts) {
			t.Fatal("10 req/s do not fit a half: expected them to")
		}
		s.set(gpu, parts)
	}
	s.spread()
	for m := range e.models {
		if at := s.placesOf(m); len(at) != 2 || at[0][0] == at[1][0] {
			t.Errorf("model %d is at (GPU, gpu-let) %v: expected both GPUs", m, at)
		}
	}
}

func TestExplainSpeaksOfEveryAssignment(t *testing.T) {
	set := shipped(t)
	in := turing(t, set, 2, map[string]float64{"resnet50": 300, "lenet": 50, "bert": 5}, true)
	for _, name := range Names() {
		res := algorithms[name](in, Options{Explain: true})
		n := 0
		for _, g := range res.Plan.Gpulets {
			n += len(g.Models)
		}
		if len(res.Explain) != n || n == 0 {
			t.Errorf("%s: %d notes: expected %d", name, len(res.Explain), n)
		}
		if res.Bound <= 0 || res.Bound > float64(res.Plan.GPUsUsed) {
			t.Errorf("%s: bound %v: expected more than 0 and at most the %d GPUs used", name, res.Bound, res.Plan.GPUsUsed)
		}
		for _, note := range res.Explain {
			text := strings.Join(note.Load, "\n")
			if note.Chosen == "" || len(note.Rejected) == 0 || !strings.Contains(text, "one less") || !strings.Contains(text, "one more") && !strings.Contains(text, "twice the rate") {
				t.Errorf("%s: %+v: expected the choice, and what one request per second less and more would change", name, note)
			}
		}
	}
}

func TestPlansNoMoreThanIsAsked(t *testing.T) {
	set := shipped(t)
	in := turing(t, set, 12, map[string]float64{
		"densenet161": 2698.55, "bert": 1276.926, "vgg16": 73.338, "ssd-mobilenetv1": 3786.866, "lenet": 3909.577,
		"resnet50": 2287.685, "mnasnet1_0": 1777.686, "mobilenet_v2": 2539.924, "googlenet": 1045.738,
	}, true)
	res := Gpulet(in, Options{})
	planned := map[string]float64{}
	for _, g := range res.Plan.Gpulets {
		for _, a := range g.Models {
			planned[a.Model] += a.RateRPS
		}
	}
	for _, m := range in.Models {
		if got := planned[m.Name] + res.Plan.Unserved[m.Name]; math.Abs(got-m.Rate) > 1e-6*m.Rate {
			t.Errorf("%s: %v/s planned and %v/s unserved, %v/s asked", m.Name, planned[m.Name], res.Plan.Unserved[m.Name], m.Rate)
		}
	}
	if bad := check.Plan(in, res.Plan); len(bad) > 0 {
		t.Error(bad)
	}
}

// The GPUs that a wild rate would take are estimated: planning them takes all memory.
func TestDesiredGPUsOfAWildRateAreEstimated(t *testing.T) {
	in := turing(t, shipped(t), 1, map[string]float64{"resnet50": 1e9}, true)
	if got := Gpulet(in, Options{}).Plan.DesiredGPUs; got < 100_000 {
		t.Errorf("desired_gpus %d: expected hundreds of thousands", got)
	}
}

// tiny is a problem on GPUs of 1,000 MiB, 300 of them for a context, on which a batch takes 1 ms.
func tiny(t *testing.T, gpus int, slo time.Duration, memMiB map[string]int64) problem.Input {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "tiny"), 0o755); err != nil {
		t.Fatal(err)
	}
	in := problem.Input{ContextBytes: 300 << 20}
	for name, mib := range memMiB {
		p := profile.Profile{
			Model: name, GPUType: "tiny", Memory: []profile.Memory{{Batch: 1, Bytes: mib << 20}},
			Points: []profile.Point{{Share: 20, Batch: 1, P50Ms: 5}, {Share: 20, Batch: 8, P50Ms: 40}, {Share: 100, Batch: 1, P50Ms: 1}, {Share: 100, Batch: 8, P50Ms: 8}},
		}
		if err := profile.WriteJSON(filepath.Join(dir, "tiny", name+".json"), p); err != nil {
			t.Fatal(err)
		}
		in.Models = append(in.Models, problem.Model{Name: name, SLO: slo, Rate: 10})
	}
	slices.SortFunc(in.Models, func(a, b problem.Model) int { return strings.Compare(a.Name, b.Name) })
	set, problems := profile.LoadDir(dir)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	in.Profiles = set
	for i := range gpus {
		in.GPUs = append(in.GPUs, problem.GPU{Host: "h", Index: i, Type: "tiny", MemBytes: 1000 << 20})
	}
	return in
}

func TestServesOneOfTwoModelsThatDoNotFitTheMemoryTogether(t *testing.T) {
	mem := map[string]int64{"a": 300, "b": 500}
	for gpus, served := range map[int]int{1: 1, 2: 2} {
		in := tiny(t, gpus, 100*time.Millisecond, mem)
		res := Gpulet(in, Options{})
		if bad := check.Plan(in, res.Plan); len(bad) > 0 || len(res.Plan.Gpulets) != served || res.Plan.DesiredGPUs != 2 {
			t.Errorf("%d GPUs: %+v, %v: expected %d gpu-lets and 2 GPUs desired", gpus, res.Plan, bad, served)
		}
	}
}

func TestMeetsAnSLOThatIsJustPossible(t *testing.T) {
	in := tiny(t, 1, 2*time.Millisecond, map[string]int64{"a": 300})
	for _, name := range []string{"gpulet", "elastic", "greedy"} {
		res := algorithms[name](in, Options{})
		if bad := check.Plan(in, res.Plan); len(bad) > 0 || !check.Complete(res.Plan) {
			t.Errorf("%s: %+v, %v", name, res.Plan, bad)
		}
	}
}
