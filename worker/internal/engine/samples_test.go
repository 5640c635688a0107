package engine_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

// modelsEnv names a model repository whose samples are run too, besides the shipped one.
const modelsEnv = "GPULET_TEST_MODELS"

// way is a way to serve a model, and how far its answers may be from Python's.
type way struct {
	name string
	spec engine.Spec
	// tolerance is the largest difference, as a part of the output's largest magnitude.
	tolerance float64
}

func ways(device string) []way {
	if device == "cpu" {
		return []way{{"fp32", engine.Spec{Precision: "fp32"}, 1e-4}}
	}
	return []way{
		{"fp32", engine.Spec{Precision: "fp32"}, 1e-3},
		{"fp32 NHWC", engine.Spec{Precision: "fp32", ChannelsLast: true}, 1e-3},
		{"fp16", engine.Spec{Precision: "fp16"}, 2e-2},
		{"fp16 NHWC", engine.Spec{Precision: "fp16", ChannelsLast: true}, 2e-2},
	}
}

// Every sample of a repository is run in batches of several sizes, alone and staged, and must be
// answered as Python answered it.
func TestTorchAnswersSamplesAsPythonDid(t *testing.T) {
	target := torchTarget(t)
	roots := []string{filepath.Join(enginetest.Root(t), "models")}
	if extra := os.Getenv(modelsEnv); extra != "" {
		roots = append(roots, extra)
	}
	for _, root := range roots {
		models, problems := model.Scan(root)
		for _, err := range problems {
			t.Error(err)
		}
		for _, m := range models {
			t.Run(m.Name, func(t *testing.T) {
				samples := loadSamples(t, filepath.Join(root, m.Name))
				for _, w := range ways(target.Device) {
					t.Run(w.name, func(t *testing.T) { checkSamples(t, target, m, samples, w) })
				}
			})
		}
	}
}

// loadSamples reads the samples of a model's folder, and skips the test where there are none.
func loadSamples(t *testing.T, folder string) wire.Samples {
	t.Helper()
	path := filepath.Join(folder, "samples.msgpack")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("no samples")
	}
	if err != nil {
		t.Fatal(err)
	}
	samples, err := wire.DecodeSamples(path, data)
	if err != nil {
		t.Fatal(err)
	}
	if len(samples.Outputs) == 0 {
		t.Skip("the samples have no outputs")
	}
	return samples
}

func checkSamples(t *testing.T, target enginetest.Target, m model.Model, samples wire.Samples, w way) {
	w.spec.Model, w.spec.Batches = m, []int{1, 4}
	loaded := target.Load(t, w.spec)
	for _, note := range loaded.Notes() {
		t.Logf("note: %s", note)
	}
	worst := 0.0
	for from, size := 0, 1; from < samples.N; from, size = from+size, size%4+1 {
		to := min(from+size, samples.N)
		in := make([]engine.Input, len(samples.Inputs))
		for i, x := range samples.Inputs {
			part := rows(x, from, to)
			in[i] = engine.Input{DType: part.DType, Shape: part.Shape, Segments: [][]byte{part.Data}}
		}
		for _, run := range []func() (engine.Result, error){
			func() (engine.Result, error) { return loaded.Run(in) },
			enginetest.MustStage(t, loaded, in).Run,
		} {
			r, err := run()
			if err != nil {
				t.Fatalf("samples %d to %d: %v", from, to-1, err)
			}
			outputs := r.Outputs()
			for _, want := range samples.Outputs {
				i := slices.IndexFunc(outputs, func(out tensor.Tensor) bool { return out.Name == want.Name })
				if i < 0 {
					t.Fatalf("the model does not answer %q", want.Name)
				}
				far, err := distance(outputs[i], want, from, to)
				if err != nil {
					t.Fatalf("samples %d to %d, output %q: %v", from, to-1, want.Name, err)
				}
				worst = max(worst, far)
			}
			r.Free()
		}
	}
	t.Logf("%s, %s: largest error %.2g of the outputs' magnitude, at most %g is allowed", m.Name, w.name, worst, w.tolerance)
	if !(worst <= w.tolerance) {
		t.Errorf("%s, %s: largest error %.3g: expected at most %g", m.Name, w.name, worst, w.tolerance)
	}
}

// distance is the largest difference between an output and rows from..to-1 of what is expected, as
// a part of the largest magnitude of all that is expected. Whole numbers must be equal.
func distance(got, all tensor.Tensor, from, to int) (float64, error) {
	want := rows(all, from, to)
	if got.DType != want.DType || len(got.Data) != len(want.Data) {
		return 0, fmt.Errorf("%s%v: expected %s%v", got.DType, got.Shape, want.DType, want.Shape)
	}
	if got.DType != tensor.FP32 {
		if !bytes.Equal(got.Data, want.Data) {
			return 0, fmt.Errorf("%s%v differs", got.DType, got.Shape)
		}
		return 0, nil
	}
	magnitude := 0.0
	for _, v := range enginetest.ParseFloats(all.Data) {
		magnitude = max(magnitude, math.Abs(float64(v)))
	}
	far, w := 0.0, enginetest.ParseFloats(want.Data)
	for i, v := range enginetest.ParseFloats(got.Data) {
		// NaN is as far as can be: no comparison with it is true.
		if d := math.Abs(float64(v) - float64(w[i])); !(d <= far) {
			far = d
		}
		if math.IsNaN(far) {
			return 0, fmt.Errorf("value %d is %v, want %v", i, v, w[i])
		}
	}
	return far / max(magnitude, math.SmallestNonzeroFloat32), nil
}

// rows are the samples from..to-1 of a batch.
func rows(t tensor.Tensor, from, to int) tensor.Tensor {
	size := len(t.Data) / int(t.Shape[0])
	t.Data = t.Data[from*size : to*size]
	t.Shape = append([]int64{int64(to - from)}, t.Shape[1:]...)
	return t
}
