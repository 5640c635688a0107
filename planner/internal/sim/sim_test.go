package sim

import (
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/planner/internal/pack"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

var rewrite = flag.Bool("rewrite", false, "write the output of the scenarios under testdata anew")

// bench is what scenarios run on: the shipped profiles.
type bench struct {
	profiles     *profile.Set
	interference *interference.Set
}

func loadBench(t testing.TB) bench {
	t.Helper()
	set, errs := profile.LoadDir("../../../profiles")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	predict, err := interference.New(set)
	if err != nil {
		t.Fatal(err)
	}
	return bench{set, predict}
}

// TestScenarios runs every scenario under testdata and compares its result with what is written
// below the line of dashes. go test ./planner/internal/sim -run Scenarios -rewrite writes it anew.
func TestScenarios(t *testing.T) {
	b := loadBench(t)
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios:", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text, want, ok := strings.Cut(string(data), "----\n")
			if !ok {
				t.Fatal("no line ----")
			}
			c, err := ParseScenario(file, text, b.profiles, b.interference)
			if err != nil {
				t.Fatal(err)
			}
			r, err := Run(c)
			if err != nil {
				t.Fatal(err)
			}
			got := r.String()
			if *rewrite {
				if err := os.WriteFile(file, []byte(text+"----\n"+got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got, -rewrite accepts): %s", diff)
			}
		})
	}
}

// fig14 is the paper's trace on GPUs of its kind, planned with one algorithm.
func fig14(t testing.TB, b bench, algorithm string, length time.Duration) Config {
	t.Helper()
	const file = "../../traces/atc22-fig14a.csv"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	traffic, whole, err := ParseTrace(file, data)
	if err != nil {
		t.Fatal(err)
	}
	c := Config{
		Profiles: b.profiles, Interference: b.interference, Traffic: traffic, Duration: min(whole, length),
		Start: 500 * time.Millisecond, Load: 200 * time.Millisecond, Row: 100 * time.Second, Seed: 1,
	}
	if c.Hosts, err = ParseGPUs("rtx2080ti:8"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mobilenet_v2", "resnet50", "vgg16"} {
		c.Models = append(c.Models, paperModel(name))
	}
	c.Steering = steering(t, b, algorithm)
	return c
}

func steering(t testing.TB, b bench, algorithm string) *Steering {
	t.Helper()
	s := DefaultSteering(10 * time.Second)
	s.Interference, s.Decide.AlgorithmName = b.interference, algorithm
	var err error
	if s.Decide.Algorithm, err = pack.ByName(algorithm); err != nil {
		t.Fatal(err)
	}
	return &s
}

// TestFig14Trace: over the trace of the paper's figure 14, less than 1 % of the requests miss their
// SLO, and gpulet takes at most 0.9 times the GPU seconds of elastic partitioning.
func TestFig14Trace(t *testing.T) {
	length := 3200 * time.Second
	if shortened || testing.Short() {
		length = 600 * time.Second
	}
	b := loadBench(t)
	gpuSeconds := map[string]float64{}
	for _, algorithm := range []string{"elastic", "gpulet"} {
		r, err := Run(fig14(t, b, algorithm, length))
		if err != nil {
			t.Fatal(err)
		}
		gpuSeconds[algorithm] = r.GPUSeconds
		t.Logf("%s: %d requests, %.3f %% violations, %.0f GPU seconds, %d plans, %d moves",
			algorithm, r.Total.Arrived, 100*r.Total.Violations(), r.GPUSeconds, r.Plans, r.Moves)
		if v := r.Total.Violations(); v >= 0.01 {
			t.Errorf("%s: %.2f %% violations, expected less than 1 %%", algorithm, 100*v)
		}
	}
	if ratio := gpuSeconds["gpulet"] / gpuSeconds["elastic"]; ratio > 0.9 {
		t.Errorf("gpulet takes %.2f of the GPU seconds of elastic, expected at most 0.9", ratio)
	}
}

func TestSameSeedSameResult(t *testing.T) {
	b := loadBench(t)
	c := fig14(t, b, "gpulet", 100*time.Second)
	first, err := Run(c)
	if err != nil {
		t.Fatal(err)
	}
	second, _ := Run(c)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Error(diff)
	}
	c.Seed++
	if third, _ := Run(c); reflect.DeepEqual(first, third) {
		t.Error("another seed gave the same result")
	}
}

// alone is one model that takes 10 ms a sample, on one gpu-let.
func alone(batch int, slo time.Duration, traffic Traffic) Config {
	p := &profile.Profile{Model: "m", GPUType: "box"}
	for n := 1; n <= batch; n++ {
		p.Points = append(p.Points, profile.Point{Share: 100, Batch: n, P50Ms: 10 * float64(n)})
	}
	set := &profile.Set{}
	set.Add(p)
	return Config{
		Profiles: set, Models: []model.Model{{Config: model.Config{Name: "m", SLO: slo, Timeout: time.Hour}}},
		Traffic: map[string]Traffic{"m": traffic}, Duration: 2000 * time.Second, Seed: 3,
		Plan: plan.Plan{Revision: 1, Gpulets: []plan.Gpulet{{ID: "g", Host: "h", GPUType: "box", Share: 100, Models: []plan.Assignment{
			{Model: "m", Batch: batch, RateRPS: 1, DutyMs: 10 * float64(batch), ExecMs: 10 * float64(batch), Rank: 1},
		}}}},
	}
}

// TestQueueAgreesWithTheory: one server, batches of one, constant service: an M/D/1 queue, whose
// share of requests that wait longer than t is known (Erlang 1909): P(W <= t) = (1-ρ) Σ_k (λ(kD-t))^k /
// k! exp(-λ(kD-t)), k = 0..t/D.
func TestQueueAgreesWithTheory(t *testing.T) {
	const service = 0.010
	for _, load := range []float64{0.3, 0.6, 0.8} {
		rate := load / service
		wait := 3.5 * service
		r, err := Run(alone(1, time.Duration((wait+service)*1e9), Constant(rate)))
		if err != nil {
			t.Fatal(err)
		}
		within, term := 0.0, 1.0
		for k := 0; float64(k)*service <= wait; k++ {
			if k > 0 {
				term /= float64(k)
			}
			x := rate * (float64(k)*service - wait)
			within += math.Pow(x, float64(k)) * term * math.Exp(-x)
		}
		want := 1 - (1-load)*within
		if got := r.Total.Violations(); math.Abs(got-want) > 0.1*want+0.001 {
			t.Errorf("load %v: %.4f of the requests wait longer than %v s, theory says %.4f", load, got, wait, want)
		}
	}
}

func TestUniformArrivalsBelowCapacityNeverWait(t *testing.T) {
	r, err := Run(alone(1, 11*time.Millisecond, Traffic{Pattern: Uniform, Trace: []Point{{0, 99}}}))
	if err != nil {
		t.Fatal(err)
	}
	if r.Total.Violations() != 0 || r.Total.Arrived < 99*1999 || r.Total.Arrived > 99*2001 {
		t.Errorf("%+v", r.Total)
	}
}

// TestNeighboursSlowEachOtherDown: two gpu-lets of a GPU that always run take as much longer as the
// interference model says. Each gets 1500 requests of 10 ms within 10 s, so the last one waits until
// 15 s, or until 1.25 times that.
func TestNeighboursSlowEachOtherDown(t *testing.T) {
	for _, slowdown := range []float64{1, 1.25} {
		set := &profile.Set{}
		c := Config{
			Profiles: set, Interference: interferenceOf(slowdown), Traffic: map[string]Traffic{}, Duration: 10 * time.Second,
			Plan: plan.Plan{Revision: 1},
		}
		for _, name := range []string{"a", "b"} {
			set.Add(&profile.Profile{Model: name, GPUType: "box", Points: []profile.Point{{Share: 50, Batch: 1, P50Ms: 10}}})
			c.Models = append(c.Models, model.Model{Config: model.Config{Name: name, SLO: time.Second, Timeout: time.Hour}})
			c.Traffic[name] = Traffic{Pattern: Uniform, Trace: []Point{{0, 150}}}
			c.Plan.Gpulets = append(c.Plan.Gpulets, plan.Gpulet{
				ID: name, Host: "h", GPUType: "box", Share: 50, Models: []plan.Assignment{{Model: name, Batch: 1, Rank: 1}},
			})
		}
		r, err := Run(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range r.Models {
			want := 0.99 * (15*slowdown - 10)
			if got := m.P99.Seconds(); math.Abs(got-want) > 0.05*want {
				t.Errorf("slowdown %v: 99 %% of %s answered within %.2f s, expected %.2f", slowdown, m.Model, got, want)
			}
		}
	}
}

// TestGpuletsGoBeyondTheirSharesAndBatches: a takes 10 ms on its share of 20 % and 5 on the 60 % that it may use, for
// one request or two; b is busy at all times, or never.
func TestGpuletsGoBeyondTheirSharesAndBatches(t *testing.T) {
	for _, c := range []struct {
		why          string
		limit, burst int
		share        int     // of b
		busy         bool    // b
		ms           float64 // that a request of a takes from its gpu-let
	}{
		{"alone, without a limit", 0, 0, 80, false, 10},
		{"alone", 60, 0, 80, false, 5},
		{"beside one that leaves nothing", 60, 0, 80, true, 10},
		{"beside one that leaves half of it", 60, 0, 60, true, 7.5},
		{"alone, two at a time", 0, 2, 80, false, 5},
		{"beside one that leaves nothing, two at a time", 60, 2, 80, true, 5},
	} {
		set := &profile.Set{}
		set.Add(&profile.Profile{Model: "a", GPUType: "box", Points: []profile.Point{
			{Share: 20, Batch: 1, P50Ms: 10}, {Share: 20, Batch: 2, P50Ms: 10}, {Share: 60, Batch: 1, P50Ms: 5}, {Share: 60, Batch: 2, P50Ms: 5},
		}})
		set.Add(&profile.Profile{Model: "b", GPUType: "box", Points: []profile.Point{{Share: 60, Batch: 1, P50Ms: 10}, {Share: 80, Batch: 1, P50Ms: 10}}})
		const rate, seconds = 220, 10
		conf := Config{
			Profiles: set, Duration: seconds * time.Second, Traffic: map[string]Traffic{"a": {Pattern: Uniform, Trace: []Point{{0, rate}}}},
			Plan: plan.Plan{Revision: 1, Gpulets: []plan.Gpulet{
				{ID: "a", Host: "h", GPUType: "box", Share: 20, Limit: c.limit, Models: []plan.Assignment{{Model: "a", Batch: 1, Burst: c.burst, Rank: 1}}},
				{ID: "b", Host: "h", GPUType: "box", Share: c.share, Models: []plan.Assignment{{Model: "b", Batch: 1, Rank: 1}}},
			}},
		}
		for _, name := range []string{"a", "b"} {
			conf.Models = append(conf.Models, model.Model{Config: model.Config{Name: name, SLO: time.Hour, Timeout: time.Hour}})
		}
		if c.busy { // beyond the end of a's backlog
			conf.Traffic["b"] = Traffic{Pattern: Uniform, Trace: []Point{{0, 300}}}
		}
		r, err := Run(conf)
		if err != nil {
			t.Fatal(err)
		}
		want := 0.99 * seconds * (rate*c.ms/1000 - 1) // the backlog that has grown until then
		if got := r.Models[0].P99.Seconds(); math.Abs(got-want) > 0.05*want {
			t.Errorf("%s: 99 %% of a answered within %.2f s, expected %.2f", c.why, got, want)
		}
	}
}

// TestMovesLoseNothing: under load, everything moves to another GPU every 5 s, and every request is
// answered in time, since what goes stays until what comes is ready.
func TestMovesLoseNothing(t *testing.T) {
	b := loadBench(t)
	c := Config{
		Profiles: b.profiles, Interference: b.interference, Duration: 120 * time.Second, Start: time.Second, Load: time.Second,
		Models: []model.Model{paperModel("resnet50")}, Traffic: map[string]Traffic{"resnet50": Constant(100)},
		Steering: steering(t, b, "elastic"), Seed: 1,
	}
	c.Hosts, _ = ParseGPUs("rtx2080ti:2")
	here := FirstPlan(c)
	c.Plan, c.Steering = here, nil
	w, err := newWorld(c)
	if err != nil {
		t.Fatal(err)
	}
	moves := 0
	for next := int64(5 * time.Second); ; {
		e, ok := w.agenda.next()
		if !ok || w.err != nil {
			break
		}
		if e.at >= next && next < int64(c.Duration) {
			w.now, next = next, next+int64(5*time.Second)
			moves++
			here = elsewhere(here, moves)
			w.follow(here, false)
		}
		w.handle(e)
	}
	if w.err != nil || moves < 20 {
		t.Fatalf("%d moves: %v", moves, w.err)
	}
	if r := w.result(); r.Total.Violations() > 0.005 || r.Total.Arrived < 11_000 {
		t.Errorf("%d moves: %v", moves, r)
	}
}

// elsewhere is the plan with every gpu-let on the other one of two GPUs, under a new id.
func elsewhere(p plan.Plan, n int) plan.Plan {
	p.Gpulets = slices.Clone(p.Gpulets)
	for i := range p.Gpulets {
		g := &p.Gpulets[i]
		g.GPU, g.ID = 1-g.GPU, fmt.Sprintf("g%d-%d", n, i)
	}
	return p
}

// TestEveryRequestHasOneEnd: whatever the fleet, the plan and the traffic, each arrival is answered
// or given up, once.
func TestEveryRequestHasOneEnd(t *testing.T) {
	b := loadBench(t)
	algorithms := []string{"elastic", "sbp", "gpulet"}
	if shortened {
		algorithms = algorithms[:2] // gpulet searches for long where GPUs are short
	}
	rapid.Check(t, func(t *rapid.T) {
		rng := randFrom(rapid.Uint64().Draw(t, "seed"))
		c := randomConfig(rng, b, rapid.SampledFrom(algorithms).Draw(t, "algorithm"))
		c.Duration, c.Start, c.Load = 6*time.Second, 300*time.Millisecond, 100*time.Millisecond
		c.Steering.Epoch, c.Steering.MinGap = 2*time.Second, time.Second
		for name, tr := range c.Traffic {
			tr.Trace = append(tr.Trace, Point{3 * time.Second, 3 * tr.Trace[0].RateRPS})
			tr.Pattern, tr.Burst, tr.Sojourn = rapid.SampledFrom([]Pattern{Poisson, Uniform, MMPP}).Draw(t, "pattern"), 1.9, time.Second
			c.Traffic[name] = tr
		}
		r, err := Run(c)
		if err != nil {
			t.Fatal(err)
		}
		var rows Counts
		for _, row := range r.Rows {
			rows.Add(row.Counts)
		}
		if rows != r.Total {
			t.Fatalf("rows sum to %+v, models to %+v", rows, r.Total)
		}
		if sum := rows.OK + rows.Late + rows.Expired; sum != rows.Arrived {
			t.Fatalf("%d arrived, %d ended: %+v", rows.Arrived, sum, rows)
		}
		if most := float64(len(c.Hosts[0].Devices)) * c.Duration.Seconds(); r.GPUSeconds > most+1e-6 {
			t.Fatalf("%v GPU seconds, at most %v can be", r.GPUSeconds, most)
		}
	})
}

func TestSourcesKeepTheirMeanRate(t *testing.T) {
	ramp := []Point{{0, 100}, {100 * time.Second, 300}}
	for _, tr := range []Traffic{
		{Pattern: Poisson, Trace: ramp},
		{Pattern: Uniform, Trace: ramp},
		{Pattern: MMPP, Trace: ramp, Burst: 1.5, Sojourn: 200 * time.Millisecond},
	} {
		s, n := newSource(tr, 1, 0), 0
		for _, ok := s.next(100 * time.Second); ok; _, ok = s.next(100 * time.Second) {
			n++
		}
		if math.Abs(float64(n)-20_000) > 1500 {
			t.Errorf("%s: %d arrivals, expected about 20,000", tr.Pattern, n)
		}
	}
}

func TestBadTracesAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "found no line",
		"t\n1\n":                    "found 1 columns",
		"t,a\n":                     "no point",
		"t,a\nx,1\n":                `line 2: column "t": found "x"`,
		"t,a\n1,-1\n":               `line 2: column "a": found "-1"`,
		"t,a\n1,NaN\n":              `found "NaN"`,
		"t,a\n1,1\n1,1\n":           "1s after 1s",
		"t,a,a\n1,1,1\n":            `model "a" twice`,
		"t,a\n1\n":                  "wrong number of fields",
		"# only a comment\nt,a\n1,": `line 3: column "a"`,
	} {
		if _, _, err := ParseTrace("f.csv", []byte(text)); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "f.csv: ") {
			t.Errorf("%q: %v, expected f.csv: and %q", text, err, want)
		}
	}
}

func TestBadScenariosAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "expected a line gpus and a line model",
		"gpus x:0":                              "line 1: gpus: found \"x:0\"",
		"speed 3":                               "line 1: speed: expected gpus, model",
		"\nmodel a slo=1":                       "line 2: model: slo=1",
		"duration":                              "found 0 values",
		"steer algorithm=best":                  "expected one of",
		"interference maybe":                    "expected on or off",
		"duration 1s\ngpus x:1\nmodel a slo=1s": "trace: no point",
		"duration 1s\ngpus x:1\nmodel a rate=1": "slo 0s: must be positive",
		"duration 20s\ngpus x:1\nmodel a slo=1s trace=10s:0,15s:1e8": "found about 7.5e+08 requests, the rates over 20s: expected at most 1e+08",
		"model a slo=1s trace=1s:2,x:3":                              `found "x:3"`,
	} {
		if _, err := ParseScenario("f.txt", text, &profile.Set{}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, expected %q", text, err, want)
		}
	}
}

func BenchmarkFig14(b *testing.B) {
	bench := loadBench(b)
	c := fig14(b, bench, "gpulet", 400*time.Second)
	b.ReportAllocs()
	requests := 0.0
	for b.Loop() {
		r, err := Run(c)
		if err != nil || r.Total.Violations() > 0.01 {
			b.Fatal(err, r.Total)
		}
		requests += float64(r.Total.Arrived)
	}
	b.ReportMetric(requests/b.Elapsed().Seconds(), "requests/s")
}
