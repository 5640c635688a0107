package e2e

import (
	"cmp"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/wire"
)

// zoo are models of different kinds: two image classifiers, one with branches, a detector, a language
// model, and the trained one.
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
	bestOf(t, s)
}

// bestOf sees that the detector's short answer is what is best in its long one.
func bestOf(t *testing.T, s *harness.System) {
	t.Helper()
	const file = "ssd-mobilenetv1/samples.msgpack"
	data, err := os.ReadFile(filepath.Join(s.Models(), file))
	if err != nil {
		t.Fatal(err)
	}
	samples, err := wire.DecodeSamples(file, data)
	if err != nil {
		t.Fatal(err)
	}
	body, err := wire.EncodeRequest(wire.TypeMsgpack, samples.Request(0, 1))
	if err != nil {
		t.Fatal(err)
	}
	rep := newAsker(t, s).overNATS(t, "ssd-mobilenetv1", wire.TypeMsgpack, body)
	if len(rep.Outputs) != 3 {
		t.Fatalf("%s %s: %d outputs: expected 3", rep.Status, rep.Detail, len(rep.Outputs))
	}
	boxes, scores, best := floats(rep.Outputs[0]), floats(rep.Outputs[1]), floats(rep.Outputs[2])
	const classes, columns = 91, 6
	var want [][]float64
	for a := range len(boxes) / 4 {
		of := scores[a*classes : (a+1)*classes]
		class := 1 // 0 is the background
		for c := range of {
			if c > 0 && of[c] > of[class] {
				class = c
			}
		}
		want = append(want, append([]float64{float64(class), 1 / (1 + math.Exp(-of[class]))}, boxes[4*a:4*a+4]...))
	}
	slices.SortStableFunc(want, func(a, b []float64) int { return cmp.Compare(b[1], a[1]) })
	for i := range len(best) / columns {
		for c := range columns {
			if math.Abs(best[i*columns+c]-want[i][c]) > 1e-5 {
				t.Fatalf("object %d is %v: expected %v", i, best[i*columns:(i+1)*columns], want[i])
			}
		}
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
