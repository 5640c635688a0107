package plannercmd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/plan"
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

func FuzzParseRates(f *testing.F) {
	f.Add("model,rate\nresnet50,3\n# x\nvgg16, 4\n")
	f.Fuzz(func(t *testing.T, text string) {
		rates, err := parseRates("f", strings.NewReader(text))
		for name, rate := range rates {
			if err == nil && !(rate >= 0 && rate <= 1e9) {
				t.Errorf("%q=%v", name, rate)
			}
		}
	})
}
