package engine_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
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
		tolerance["stored"], tolerance["fp32"] = 1e-3, 1e-3 // other algorithms, other orders of adding up
	}
	for _, precision := range []string{"stored", "fp32", "bf16", "fp16"} {
		if precision == "fp16" && target.Device == "cpu" {
			continue
		}
		t.Run(precision, func(t *testing.T) {
			for name, spec := range map[string]engine.Spec{
				"NCHW":          {},
				"NHWC":          {ChannelsLast: true},
				"without graph": {Eager: true},
			} {
				spec.Model, spec.Precision, spec.Batches = m, precision, []int{1, 4}
				loaded := target.Load(t, spec)
				in := enginetest.FP32([]int64{3, 3, 8, 8}, want.Input...)
				enginetest.MustRun(t, loaded, []engine.Input{in}, func(out []tensor.Tensor) {
					if out[0].DType != tensor.FP32 {
						t.Fatalf("%s: output is %s: FP32 is declared", name, out[0].DType)
					}
					if err := enginetest.AllClose(enginetest.ParseFloats(out[0].Data), want.Output, tolerance[precision]); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				})
				if loaded.MemBytes() <= 0 {
					t.Errorf("%s: MemBytes() = %d: a model with weights takes memory", name, loaded.MemBytes())
				}
			}
		})
	}
}

// What LibTorch says of an error decides whether the process ends. An archive can say anything.
func TestTorchTellsErrorsApart(t *testing.T) {
	target := torchTarget(t)
	data, err := os.ReadFile(archives(t, "torch", ".json")("raises"))
	if err != nil {
		t.Fatal(err)
	}
	var messages []struct{ Text, Kind string }
	if err := json.Unmarshal(data, &messages); err != nil {
		t.Fatal(err)
	}
	codes := map[string]engine.Code{"device": engine.EDEVICE, "memory": engine.EOOM, "run": engine.ERUN}
	m := target.Load(t, engine.Spec{Model: torchModel(t, "raises", fp32("x", 1), fp32("y", 1))})
	for i, message := range messages {
		_, err := m.Run([]engine.Input{enginetest.FP32([]int64{1, 1}, float32(i+1))})
		if got, want := engine.CodeOf(err), codes[message.Kind]; got != want || !strings.Contains(err.Error(), message.Text) {
			t.Errorf("%q: error %v (%v), want %v", message.Text, err, got, want)
		}
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
	// Captures work after one that failed, and so does giving memory back.
	m, _ := convnet(t)
	if notes := target.Load(t, engine.Spec{Model: m, Batches: []int{1, 4}}).Notes(); len(notes) > 0 {
		t.Errorf("the next model has notes: %q", notes)
	}
}

func TestTorchGivesDeviceMemoryBack(t *testing.T) {
	target := torchTarget(t)
	if target.Device == "cpu" {
		t.Skip(enginetest.DeviceEnv + " names no GPU")
	}
	free := func() int64 {
		d, err := target.Engine.Device(target.Device)
		if err != nil {
			t.Fatal(err)
		}
		return d.MemFree
	}
	// Large enough to tell its memory from what libraries keep: 256 MB that a run takes.
	big := []engine.Input{enginetest.FP32([]int64{1, 1}, 64<<20)}
	load := func() engine.Model {
		m, err := target.Engine.Load(t.Context(), engine.Spec{
			Model: torchModel(t, "greedy", fp32("x", 1), fp32("y", 1)), Device: target.Device,
		})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	keeps := load() // makes the context and what lasts
	defer keeps.Close()
	before := free()
	m := load()
	enginetest.MustRun(t, m, big, nil)
	if taken := before - free(); taken < 200<<20 {
		t.Fatalf("a run that takes 256 MB left %d MB less: the test measures nothing", taken>>20)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if kept := before - free(); kept > 64<<20 {
		t.Errorf("%d MB are still taken after the model was closed", kept>>20)
	}
	enginetest.MustRun(t, keeps, big, nil)
	_, err := keeps.Run([]engine.Input{enginetest.FP32([]int64{1, 1}, 1e15)})
	if engine.CodeOf(err) != engine.EOOM {
		t.Fatalf("error %v (%v), want %v", err, engine.CodeOf(err), engine.EOOM)
	}
	if kept := before - free(); kept > 64<<20 {
		t.Errorf("%d MB are still taken after running out of memory", kept>>20)
	}
}

func TestTorchSurvivesRunningOutOfMemory(t *testing.T) {
	target := torchTarget(t)
	loaded := target.Load(t, engine.Spec{Model: torchModel(t, "greedy", fp32("x", 1), fp32("y", 1))})
	_, err := loaded.Run([]engine.Input{enginetest.FP32([]int64{1, 1}, 1e15)})
	if engine.CodeOf(err) != engine.EOOM {
		t.Fatalf("error %v (%v), want %v", err, engine.CodeOf(err), engine.EOOM)
	}
	if !strings.Contains(strings.ToLower(err.Error()), "tried to allocate ") {
		t.Errorf("error %q does not say how much was asked for", err)
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
	noGPU := "built without CUDA"
	if target.Engine.Info().CUDA {
		noGPU = "sees"
	}
	for name, c := range map[string]struct {
		spec  engine.Spec
		words []string
	}{
		"fp16 on a CPU":           {engine.Spec{Model: m, Device: "cpu", Precision: "fp16"}, []string{"fp16", "needs a CUDA device"}},
		"a GPU that is not there": {engine.Spec{Model: m, Device: "cuda:77"}, []string{`device "cuda:77"`, noGPU}},
		"no device":               {engine.Spec{Model: m, Device: "tpu"}, []string{`device "tpu"`, `expected "cpu" or "cuda:N"`}},
	} {
		_, err := target.Engine.Load(t.Context(), c.spec)
		if code := engine.CodeOf(err); code != engine.EUNSUPPORTED && code != engine.EINVAL {
			t.Errorf("%s: error %v (%v)", name, err, code)
			continue
		}
		for _, w := range c.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: error %q does not mention %q", name, err, w)
			}
		}
	}
}

// nobodysGPU is the UUID of no GPU.
const nobodysGPU = "GPU-00000000-0000-0000-0000-000000000000"

// A UUID that no GPU has, a driver that is too old and none at all look alike to LibTorch: it counts no
// GPU. CUDA reads its environment once, so a process of its own asks.
func TestTorchSaysWhyItSeesNoGPU(t *testing.T) {
	target := torchTarget(t)
	if !target.Engine.Info().CUDA {
		t.Skip("the engine was built without CUDA")
	}
	if os.Getenv("CUDA_VISIBLE_DEVICES") == nobodysGPU {
		_, err := target.Engine.Device("cuda:0")
		if engine.CodeOf(err) != engine.EUNSUPPORTED {
			t.Fatalf("error %v (%v), want %v", err, engine.CodeOf(err), engine.EUNSUPPORTED)
		}
		for _, w := range []string{"CUDA sees no GPU", "this engine was built for CUDA 1", `CUDA_VISIBLE_DEVICES is "` + nobodysGPU} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q does not mention %q", err, w)
			}
		}
		return
	}
	again := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$")
	again.Env = append(os.Environ(), "CUDA_VISIBLE_DEVICES="+nobodysGPU)
	if out, err := again.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
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
