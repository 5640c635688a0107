package plannercmd

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// offline runs a planner command against the shipped profiles.
func offline(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = cli.Run(t.Context(), newRootCommand(), append(args, "--profiles", "../../profiles"), &out, &errs)
	return code, out.String(), errs.String()
}

func TestPlanPrintsTableAndDrawing(t *testing.T) {
	code, out, errs := offline(t, "plan", "--models", "", "--gpus", "rtx2080ti:2", "--rates", "resnet50=400,bert=50")
	if code != 0 {
		t.Fatal(code, errs)
	}
	want := `            gpu  share     model  batch  req/s  batch ms  cycle ms  worst ms
  rtx2080ti-0/0    20%  resnet50     13  241.6     53.75     53.75    107.50
  rtx2080ti-0/0    20%  resnet50      2  158.4     11.55     11.55     23.10
  rtx2080ti-0/0    20%      bert      1   50.0      6.00      6.00     12.00
1 GPU, 3 gpu-lets

rtx2080ti-0/0 │20% resnet50 b13 │20% resnet50 b2  │20% bert b1      │···································│
1 idle
`
	if diff := cmp.Diff(want, out); diff != "" {
		t.Error(diff)
	}
}

func TestPlanJSONIsThePlanDocument(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plan.json")
	code, _, errs := offline(t, "plan", "--models", "", "--gpus", "rtx2080ti:2", "--rates", "vgg16=100", "--json", "--output", file)
	if code != 0 {
		t.Fatal(code, errs)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p, err := plan.Parse(file, data)
	if err != nil || p.GPUsUsed != 1 || len(p.Gpulets) == 0 {
		t.Errorf("%+v, %v", p, err)
	}
	code, out, errs := offline(t, "plan", "--models", "", "--gpus", "rtx2080ti:2", "--rates", "vgg16=101", "--current", file)
	if code != 0 || !strings.Contains(out, "against the current plan: 0 moves") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
}

func TestOfflineToolsRefuseWithExitCode(t *testing.T) {
	dir := t.TempDir()
	rates := filepath.Join(dir, "rates.csv")
	if err := os.WriteFile(rates, []byte("model,rate\nresnet50,1\nvgg16,nan\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	scenario := filepath.Join(dir, "scenario.txt")
	if err := os.WriteFile(scenario, []byte("gpus tpu:1\nmodel resnet50 slo=108ms rate=1\nduration 1s\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{1, "the rates cannot be served; 4 GPUs would do:\n  resnet50:", []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "resnet50=4000"}},
		{1, "model resnet50: SLO 5ms: the fastest possible is 16.1 ms", []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1", "--slos", "resnet50=5ms"}},
		{1, "model alexnet: no SLO", []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "alexnet=1"}},
		{1, "model alexnet: no profile on rtx2080ti: expected profiles/<gpu-type>/alexnet.json", []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "alexnet=1", "--slos", "alexnet=50ms"}},
		{1, `rates.csv: line 3: found "nan": expected requests per second`, []string{"plan", "--gpus", "rtx2080ti:1", "--rates-file", rates}},
		{2, `found "NaN": expected requests per second, 0..1e+09`, []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "resnet50=NaN"}},
		{2, `found "-1": expected requests per second, 0..1e+09`, []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "resnet50=-1"}},
		{2, `--gpus: found type "tpu": expected one with profiles in ../../profiles: h100, rtx2080ti`, []string{"plan", "--gpus", "tpu:1", "--rates", "resnet50=1"}},
		{2, "--gpus: found 0 of rtx2080ti: expected 1..", []string{"plan", "--gpus", "rtx2080ti:0", "--rates", "resnet50=1"}},
		{2, "--gpus: found none", []string{"plan", "--rates", "resnet50=1"}},
		{2, "expected one of --rates and --rates-file", []string{"plan", "--gpus", "rtx2080ti:1"}},
		{2, `algorithm "best": expected one of elastic`, []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1", "--algorithm", "best"}},
		{2, `--format: found "xml"`, []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1", "--format", "xml"}},
		{2, "--over: found none", []string{"compare", "--gpus", "rtx2080ti:1"}},
		{2, `--grid: found "x"`, []string{"compare", "--gpus", "rtx2080ti:1", "--over", "vgg16", "--grid", "0,x"}},
		{2, "--mix: found none", []string{"peak", "--gpus", "rtx2080ti:1"}},
		{2, "expected model=value, or one of game, scen1", []string{"peak", "--gpus", "rtx2080ti:1", "--mix", "scen9"}},
		{2, "--grid: found only zeros", []string{"compare", "--gpus", "rtx2080ti:1", "--over", "vgg16", "--grid", "0"}},
		{2, "--grid: found 5 again", []string{"compare", "--gpus", "rtx2080ti:1", "--over", "vgg16", "--grid", "5,5"}},
		{2, "--over: found vgg16 again", []string{"compare", "--gpus", "rtx2080ti:1", "--over", "vgg16,vgg16"}},
		{2, "--algorithms: found sbp again", []string{"peak", "--gpus", "rtx2080ti:1", "--mix", "scen1", "--algorithms", "sbp,sbp"}},
		{2, `--gpus: found type "rtx2080ti" again`, []string{"plan", "--gpus", "rtx2080ti:1,rtx2080ti:1", "--rates", "resnet50=1"}},
		{2, "--explain: found --original", []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1", "--algorithm", "elastic", "--original", "--explain"}},
		{2, `--kind: found "cubic": expected one of linear`, []string{"fit", "--gpu", "h100", "--kind", "cubic"}},
		{1, "linear could not be fitted", []string{"fit", "--gpu", "h100", "--kind", "linear"}},
		{1, "the rates cannot be served; with --algorithm gpulet 4 GPUs would do:", []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "resnet50=4000", "--algorithm", "sbp"}},
		{1, "resnet50:", []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1e9"}}, // as many GPUs as that are not planned
		{2, `found type "tpu": expected one with profiles in ../../profiles: h100, rtx2080ti`, []string{"simulate", "--gpus", "tpu:1", "--rates", "resnet50=1"}},
		{2, `found type "tpu"`, []string{"simulate", "--scenario", scenario}},
		{1, "model resnet50: SLO 5ms: the fastest possible is 16.1 ms", []string{"simulate", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1", "--slos", "resnet50=5ms"}},
		{1, "found about 6e+10 requests, the rates over 1m0s: expected at most 1e+08", []string{"simulate", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1e9"}},
		{2, "--duration -5s", []string{"simulate", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1", "--duration", "-5s"}},
		{2, `--arrival: found "foo": expected poisson`, []string{"simulate", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1", "--arrival", "foo"}},
		{2, "--burst: found NaN: expected a factor", []string{"simulate", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1", "--burst", "NaN"}},
		{2, "--sojourn: found 0s: expected a positive", []string{"simulate", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1", "--sojourn", "0s"}},
		{2, `--slos: found model "vgg16": expected one that is asked for: resnet50`, []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1", "--slos", "vgg16=5ms"}},
		{1, "found no folder nosuch: SLOs are", []string{"plan", "--models", "nosuch", "--gpus", "rtx2080ti:1", "--rates", "alexnet=1"}},
		{1, "found no corun.json", []string{"fit", "--gpu", "rtx2080ti"}},
		{2, "--judge: found --write", []string{"fit", "--gpu", "h100", "--judge", "x.json", "--write"}},
		{1, `corun.json: key "gpu_type": found "h100": expected the one of --gpu, "rtx2080ti"`, []string{"fit", "--gpu", "rtx2080ti", "--judge", "../../profiles/h100/corun.json"}},
		{2, `--poisson: found "0": expected 1..4096`, []string{"plan", "--gpus", "rtx2080ti:1", "--rates", "resnet50=1", "--poisson", "0"}},
	} {
		code, _, errs := offline(t, c.args...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("planner %s: exit %d: %s\nexpected exit %d: %s", strings.Join(c.args, " "), code, errs, c.code, c.want)
		}
	}
}

func TestABrokenProfileIsNamedWhereItLacks(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../profiles")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rtx2080ti", "vgg16.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"plan", "simulate"} {
		var out, errs bytes.Buffer
		code := cli.Run(t.Context(), newRootCommand(), []string{command, "--gpus", "rtx2080ti:1", "--rates", "vgg16=1", "--profiles", dir}, &out, &errs)
		if want := "vgg16.json (it was left out: "; code != 1 || !strings.Contains(errs.String(), want) {
			t.Errorf("planner %s: exit %d: %s\nexpected exit 1: %s", command, code, errs.String(), want)
		}
	}
}

func TestCompareCounts(t *testing.T) {
	code, out, errs := offline(t, "compare", "--gpus", "rtx2080ti:1", "--over", "resnet50,vgg16", "--grid", "0,100,900", "--json")
	if code != 0 {
		t.Fatal(code, errs)
	}
	var c struct {
		Scenarios  int
		Bound      int
		Algorithms map[string]struct{ Schedulable, Unsound int }
	}
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatal(err)
	}
	if c.Scenarios != 8 || len(c.Algorithms) != 6 {
		t.Errorf("%+v", c)
	}
	ours := c.Algorithms["gpulet"].Schedulable
	for name, a := range c.Algorithms {
		if a.Unsound != 0 || a.Schedulable > ours || a.Schedulable > c.Bound {
			t.Errorf("%s: %+v, gpulet serves %d, bound %d", name, a, ours, c.Bound)
		}
	}
}

func TestPeakFindsARateBelowTheBound(t *testing.T) {
	code, out, errs := offline(t, "peak", "--gpus", "rtx2080ti:1", "--mix", "scen2", "--step", "10", "--json")
	if code != 0 {
		t.Fatal(code, errs)
	}
	var p peakResult
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		t.Fatal(err)
	}
	if got := p.Algorithms["gpulet"].TotalRPS; got < 500 || got > p.BoundRPS || p.Mix != "scen2" {
		t.Errorf("%+v", p)
	}
}

// TestPoissonPlansWithTheMarginOfPlannerRun compares with demand's own figures: the plan carries rate and
// margin, and requests of several samples, which come in bursts, need more of it.
func TestPoissonPlansWithTheMarginOfPlannerRun(t *testing.T) {
	carried := func(samples string) float64 {
		code, out, errs := offline(t, "plan", "--models", "", "--gpus", "rtx2080ti:2", "--rates", "resnet50=200", "--poisson", samples, "--json")
		if code != 0 {
			t.Fatal(code, errs)
		}
		p, err := plan.Parse("out", []byte(out))
		if err != nil {
			t.Fatal(err)
		}
		return served(p, "resnet50")
	}
	for samples, want := range map[string]float64{
		"":                   200,
		"1":                  200 + demand.Margin(200, 108*time.Millisecond, 12*time.Second, 0.005),
		"vgg16=2,resnet50=4": 200 + 4*demand.Margin(50, 108*time.Millisecond, 12*time.Second, 0.005),
	} {
		if got := carried(samples); math.Abs(got-want) > 1e-6*want {
			t.Errorf("--poisson %s: the plan carries %.6g/s: expected %.6g", samples, got, want)
		}
	}
}

func TestJudgeFindsTheErrorOfThePredictions(t *testing.T) {
	dir := t.TempDir()
	running := func(model string) profile.Running { return profile.Running{Model: model, Share: 50, Batch: 8} }
	// a's slowdown beside b is predicted as 1 + 0.5 x 0.4 x 50/50 = 1.2, b's beside a as 1 + 0.1 x 0.2 = 1.02.
	for path, v := range map[string]any{
		"g/a.json": profile.Profile{Model: "a", GPUType: "g", Points: []profile.Point{{Share: 50, Batch: 8, P50Ms: 1}}},
		"g/interference.json": profile.Interference{
			GPUType: "g", Kind: "pairwise", Margin: 1.1,
			Features: []string{"sensitivity:a", "sensitivity:b", "pressure:a", "pressure:b"}, Coefficients: []float64{0.5, 0.1, 0.2, 0.4},
		},
		"new.json": profile.Corun{GPUType: "g", Runs: []profile.Measurement{
			{Self: running("a"), Others: []profile.Running{running("b")}, Slowdown: 1.5},
			{Self: running("b"), Others: []profile.Running{running("a")}, Slowdown: 1.02},
		}},
	} {
		if err := profile.WriteJSON(filepath.Join(dir, path), v); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs bytes.Buffer
	code := cli.Run(t.Context(), newRootCommand(), []string{"fit", "--gpu", "g", "--profiles", dir, "--judge", filepath.Join(dir, "new.json"), "--json"}, &out, &errs)
	var j judged
	if err := json.Unmarshal(out.Bytes(), &j); code != 0 || err != nil {
		t.Fatal(code, err, errs.String())
	}
	if len(j.Runs) != 2 || math.Abs(j.Runs[0].Predicted-1.2) > 1e-9 || math.Abs(j.Runs[1].Predicted-1.02) > 1e-9 {
		t.Errorf("predicted %+v: expected 1.2 and 1.02", j.Runs)
	}
	if want := 0.2; math.Abs(j.Error.Max-want) > 1e-9 || j.Above != 1 || j.Margin != 1.1 {
		t.Errorf("judged %+v: expected at most %v off, one above the margin of 1.1", j, want)
	}
}
