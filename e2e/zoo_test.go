package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
)

// zoo are models of different kinds: two image classifiers, one with branches, a detector's
// backbone with two outputs, a language model, and the trained one.
var zoo = []string{"lenet", "mobilenet_v2", "googlenet", "ssd-mobilenetv1", "bert_tiny"}

// TestModelsEqualPython sends samples through the whole pipeline and compares the answers with what
// Python computed when the models were exported.
func TestModelsEqualPython(t *testing.T) {
	requireTorch(t)
	s := harness.Up(t, harness.Config{Models: exportZoo(t), Engine: "torch"})
	s.WaitReady(t, zoo...)
	var rates []string
	for _, m := range zoo {
		rates = append(rates, m+"=2")
	}
	got := load(t, s, "--rates", strings.Join(rates, ","), "--arrival", "uniform", "--duration", "5s", "--timeout", "60s", "--tolerance", "1e-4")
	for _, m := range zoo {
		allRight(t, m, got.Models[m])
	}
}

// exportZoo makes the models, once: they are kept in build/ for the next run.
func exportZoo(t *testing.T) string {
	t.Helper()
	root := harness.Root(t)
	dir := filepath.Join(root, "build", "zoo")
	// Long SLOs: this compares answers, also on a machine that is slow and busy.
	args := []string{filepath.Join(root, "scripts", "export_models.py"), dir}
	args = append(args, zoo...)
	for _, m := range zoo {
		args = append(args, "--slo", m+"=10s")
	}
	out, err := exec.Command(filepath.Join(root, "scripts", "python.sh"), args...).CombinedOutput()
	if err != nil {
		if os.Getenv("GPULET_REQUIRE_ZOO") == "1" {
			t.Fatalf("export models: %v\n%s", err, out)
		}
		t.Skipf("models cannot be exported here: %v\n%s", err, out)
	}
	return dir
}
