package engine_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

func torchModel(t testing.TB, name string, in, out []tensor.Spec) model.Model {
	return model.Model{
		Config: model.Config{Name: name, MaxBatch: 16, Precision: "stored", Inputs: in, Outputs: out},
		Path:   archives(t, "torch", ".pt")(name),
	}
}

func fp32(name string, shape ...int64) []tensor.Spec {
	return []tensor.Spec{{Name: name, DType: tensor.FP32, Shape: shape}}
}

// reference is what Python computed for three images.
type reference struct{ Input, Output []float32 }

func convnet(t testing.TB) (model.Model, reference) {
	t.Helper()
	data, err := os.ReadFile(archives(t, "torch", ".json")("convnet"))
	if err != nil {
		t.Fatal(err)
	}
	var r reference
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	return torchModel(t, "convnet", fp32("image", 3, 8, 8), fp32("classes", 5)), r
}

func TestTorchEqualsPython(t *testing.T) {
	target := torchTarget(t)
	m, want := convnet(t)
	tolerance := map[string]float64{"stored": 1e-5, "fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}
	if target.Device != "cpu" {
		tolerance["stored"], tolerance["fp32"] = 1e-3, 1e-3 // TF32 convolutions
	}
	for _, precision := range []string{"stored", "fp32", "bf16", "fp16"} {
		if precision == "fp16" && target.Device == "cpu" {
			continue
		}
		t.Run(precision, func(t *testing.T) {
			loaded := target.Load(t, engine.Spec{Model: m, Precision: precision, Batches: []int{1, 4}})
			in := enginetest.FP32([]int64{3, 3, 8, 8}, want.Input...)
			enginetest.MustRun(t, loaded, []engine.Input{in}, func(out []tensor.Tensor) {
				if out[0].DType != tensor.FP32 {
					t.Fatalf("output is %s: FP32 is declared", out[0].DType)
				}
				if err := enginetest.AllClose(enginetest.ParseFloats(out[0].Data), want.Output, tolerance[precision]); err != nil {
					t.Error(err)
				}
			})
			if loaded.MemBytes() <= 0 {
				t.Errorf("MemBytes() = %d: a model with weights takes memory", loaded.MemBytes())
			}
		})
	}
}

// On a GPU, batches that are padded into a graph, that fill one exactly and that run eagerly must
// agree with the CPU.
func TestTorchDeviceAgreesWithCPU(t *testing.T) {
	target := torchTarget(t)
	if target.Device == "cpu" {
		t.Skip(enginetest.DeviceEnv + " names no GPU")
	}
	cpu := target
	cpu.Device = "cpu"
	m, _ := convnet(t)
	graphs := target.Load(t, engine.Spec{Model: m, Batches: []int{1, 4, 8}})
	if notes := graphs.Notes(); len(notes) > 0 {
		t.Fatalf("not all batches were captured: %v", notes)
	}
	eager := target.Load(t, engine.Spec{Model: m, Batches: []int{1}})
	want := cpu.Load(t, engine.Spec{Model: m})
	for n := int64(1); n <= 12; n++ {
		x := enginetest.Count(n * 3 * 8 * 8)
		for i := range x {
			x[i] = float32(int(x[i])%17) / 17
		}
		in := []engine.Input{enginetest.FP32([]int64{n, 3, 8, 8}, x...)}
		enginetest.MustRun(t, want, in, func(w []tensor.Tensor) {
			for name, got := range map[string]engine.Model{"graphs": graphs, "eager": eager} {
				enginetest.MustRun(t, got, in, func(g []tensor.Tensor) {
					if err := enginetest.AllClose(enginetest.ParseFloats(g[0].Data), enginetest.ParseFloats(w[0].Data), 1e-3); err != nil {
						t.Errorf("%s, batch of %d: %v", name, n, err)
					}
				})
			}
		})
	}
}

func TestTorchNamesPartsOfNestedOutputsInOrder(t *testing.T) {
	target := torchTarget(t)
	out := []tensor.Spec{fp32("one", 3)[0], fp32("two", 3)[0], fp32("three", 3)[0], fp32("four", 3)[0]}
	loaded := target.Load(t, engine.Spec{Model: torchModel(t, "nested", fp32("x", 3), out)})
	enginetest.MustRun(t, loaded, []engine.Input{enginetest.FP32([]int64{1, 3}, 1, 2, 3)}, func(out []tensor.Tensor) {
		for i, want := range [][]float32{{2, 3, 4}, {3, 4, 5}, {3, 6, 9}, {4, 8, 12}} {
			if err := enginetest.AllClose(enginetest.ParseFloats(out[i].Data), want, 0); err != nil {
				t.Errorf("output %q: %v", out[i].Name, err)
			}
		}
	})
}

func TestTorchServesEagerlyWhatCannotBeCaptured(t *testing.T) {
	target := torchTarget(t)
	loaded := target.Load(t, engine.Spec{Model: torchModel(t, "hostsync", fp32("x", 3), fp32("y", 3)), Batches: []int{1, 2}})
	enginetest.MustRun(t, loaded, []engine.Input{enginetest.FP32([]int64{1, 3}, 1, 2, 3)}, func(out []tensor.Tensor) {
		if err := enginetest.AllClose(enginetest.ParseFloats(out[0].Data), []float32{3, 5, 7}, 0); err != nil {
			t.Error(err)
		}
	})
	notes := strings.Join(loaded.Notes(), "\n")
	if want := target.Device != "cpu"; strings.Contains(notes, "capture") != want {
		t.Errorf("on %s the notes are %q", target.Device, notes)
	}
}

func TestTorchSurvivesRunningOutOfMemory(t *testing.T) {
	target := torchTarget(t)
	loaded := target.Load(t, engine.Spec{Model: torchModel(t, "greedy", fp32("x", 1), fp32("y", 1))})
	_, err := loaded.Run([]engine.Input{enginetest.FP32([]int64{1, 1}, 1e15)})
	if engine.CodeOf(err) != engine.EOOM {
		t.Fatalf("error %v (%v), want %v", err, engine.CodeOf(err), engine.EOOM)
	}
	enginetest.MustRun(t, loaded, []engine.Input{enginetest.FP32([]int64{1, 1}, 7)}, func(out []tensor.Tensor) {
		if err := enginetest.AllClose(enginetest.ParseFloats(out[0].Data), []float32{7}, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestTorchRefusesWhatTheDeviceCannotDo(t *testing.T) {
	target := torchTarget(t)
	m, _ := convnet(t)
	for name, spec := range map[string]engine.Spec{
		"fp16 on a CPU":           {Model: m, Device: "cpu", Precision: "fp16"},
		"a GPU that is not there": {Model: m, Device: "cuda:77"},
		"no device":               {Model: m, Device: "tpu"},
	} {
		_, err := target.Engine.Load(t.Context(), spec)
		if code := engine.CodeOf(err); code != engine.EUNSUPPORTED && code != engine.EINVAL {
			t.Errorf("%s: error %v (%v)", name, err, code)
		}
	}
}

// BenchmarkRun is a model's own time and what gathering and cgo add to it.
func BenchmarkRun(b *testing.B) {
	target := torchTarget(b)
	m, _ := convnet(b)
	loaded := target.Load(b, engine.Spec{Model: m, Batches: []int{1, 8}})
	for name, segments := range map[string]int{"1 segment": 1, "8 segments": 8} {
		b.Run(name, func(b *testing.B) {
			in := engine.Input{DType: tensor.FP32, Shape: []int64{8, 3, 8, 8}}
			for range segments {
				in.Segments = append(in.Segments, make([]byte, 8*3*8*8*4/segments))
			}
			b.ReportAllocs()
			for b.Loop() {
				r, err := loaded.Run([]engine.Input{in})
				if err != nil {
					b.Fatal(err)
				}
				r.Free()
			}
			b.ReportMetric(8*float64(b.N)/b.Elapsed().Seconds(), "samples/s")
		})
	}
}

// modelsEnv names a model repository whose samples are run too, besides the shipped one.
const modelsEnv = "GPULET_TEST_MODELS"

// Every sample of a repository is run in batches of several sizes and must be answered as Python
// answered it.
func TestTorchAnswersSamplesAsPythonDid(t *testing.T) {
	target := torchTarget(t)
	tolerance := 1e-4
	if target.Device != "cpu" {
		tolerance = 2e-3 // TF32 convolutions, as many as a deep model has
	}
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
			t.Run(m.Name, func(t *testing.T) { checkSamples(t, target, m, filepath.Join(root, m.Name), tolerance) })
		}
	}
}

func checkSamples(t *testing.T, target enginetest.Target, m model.Model, folder string, tolerance float64) {
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
	loaded := target.Load(t, engine.Spec{Model: m, Batches: []int{1, 4}})
	for from, size := 0, 1; from < samples.N; from, size = from+size, size%4+1 {
		to := min(from+size, samples.N)
		in := make([]engine.Input, len(samples.Inputs))
		for i, x := range samples.Inputs {
			part := rows(x, from, to)
			in[i] = engine.Input{DType: part.DType, Shape: part.Shape, Segments: [][]byte{part.Data}}
		}
		enginetest.MustRun(t, loaded, in, func(out []tensor.Tensor) {
			for i := range samples.Outputs {
				want := rows(samples.Outputs[i], from, to)
				if err := enginetest.AllClose(enginetest.ParseFloats(out[i].Data), enginetest.ParseFloats(want.Data), tolerance); err != nil {
					t.Fatalf("samples %d to %d, output %q: %v", from, to-1, out[i].Name, err)
				}
			}
		})
	}
}

// rows are the samples from..to-1 of a batch.
func rows(t tensor.Tensor, from, to int) tensor.Tensor {
	size := len(t.Data) / int(t.Shape[0])
	t.Data = t.Data[from*size : to*size]
	t.Shape = append([]int64{int64(to - from)}, t.Shape[1:]...)
	return t
}
