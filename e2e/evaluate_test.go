package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/profile"
)

// TestEvaluateMeasuresEveryArm runs the experiments' program on a simulated GPU, with the programs that it
// starts itself: every arm gets a cell, predictions are added, and nothing is measured twice. Which rates
// are good is not judged.
func TestEvaluateMeasuresEveryArm(t *testing.T) {
	r := newRepository(t, "a", "b")
	profiles, out := t.TempDir(), t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := profile.Save(profiles, simulatedProfile(name)); err != nil {
			t.Fatal(err)
		}
	}
	evaluate := filepath.Join(t.TempDir(), "evaluate")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", evaluate, "./scripts/gpu/evaluate")
	build.Dir = harness.Root(t)
	if words, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, words)
	}
	run := func(args ...string) {
		t.Helper()
		args = append(args, "--out", out, "--profiles", profiles, "--models", r.dir, "--bin", filepath.Dir(harness.Binary(t, "worker")), "--device", "sim:g", "--budget", "3m")
		if words, err := exec.CommandContext(t.Context(), evaluate, args...).CombinedOutput(); err != nil {
			t.Fatalf("evaluate %v: %v: %s", args, err, words)
		}
	}
	goodput := []string{"goodput", "--mixes", "a=1,b=1", "--tries", "2", "--warmup", "200ms", "--step", "500ms"}
	run(goodput...)
	written := map[string]time.Time{}
	for _, arm := range []string{"gpulet", "sbp", "elastic", "even", "mps", "streams"} {
		file := filepath.Join(out, "goodput", "a-1_b-1."+arm+".json")
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		written[file] = info.ModTime()
	}
	run(goodput...)
	for file, at := range written {
		if info, err := os.Stat(file); err != nil || !info.ModTime().Equal(at) {
			t.Errorf("%s was measured again (%v)", file, err)
		}
	}
	run("predict")
	for file := range written {
		checkCell(t, file)
	}
}

// simulatedProfile is one of a model that takes 1 ms and 0.2 ms per sample on the whole GPU, more on less.
func simulatedProfile(name string) *profile.Profile {
	p := &profile.Profile{Model: name, GPUType: "g"}
	for _, share := range []int{20, 50, 100} {
		for _, batch := range []int{1, 8} {
			p.Points = append(p.Points, profile.Point{Share: share, Batch: batch, P50Ms: (1 + 0.2*float64(batch)) * 20 / (0.2 * float64(share))})
		}
	}
	return p
}

func checkCell(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		About    struct{ Sim bool }
		Arm      string
		Skipped  string
		Expected float64 `json:"expected_rps"`
		Tries    []struct {
			Rate      float64  `json:"rate_rps"`
			Predicted *float64 `json:"predicted_violations"`
			Unsound   []string
			Models    map[string]struct{ Requests int64 }
			Plan      struct{ Gpulets []any }
		}
	}
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	if !c.About.Sim || c.Skipped != "" || len(c.Tries) == 0 {
		t.Fatalf("%s: sim %v, skipped %q, %d tries", c.Arm, c.About.Sim, c.Skipped, len(c.Tries))
	}
	for _, try := range c.Tries {
		planned := c.Expected > 0
		switch {
		case try.Models["a"].Requests == 0 || try.Models["b"].Requests == 0 || len(try.Plan.Gpulets) == 0:
			t.Errorf("%s at %.0f: %+v: expected requests to both models", c.Arm, try.Rate, try)
		case planned != (try.Predicted != nil):
			t.Errorf("%s at %.0f: predicted %v: expected one of plans alone", c.Arm, try.Rate, try.Predicted)
		case planned && len(try.Unsound) > 0:
			t.Errorf("%s at %.0f: the plan is unsound: %v", c.Arm, try.Rate, try.Unsound)
		}
	}
}
