// Package enginetest is the conformance suite that every engine passes, and the small models,
// libraries and helpers that tests around engines need.
//
// It is imported by tests only.
package enginetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

// Target is an engine under test.
type Target struct {
	Engine engine.Engine
	Device string
	// Archive returns the path of a test model's archive. Nil for an engine that reads none.
	Archive func(name string) string
	// Computes says that outputs are what the model says; else they are zeros.
	Computes bool
}

// Run runs the whole suite.
func Run(t *testing.T, target Target) {
	cases := []struct {
		name string
		run  func(*testing.T, Target)
	}{
		{"describes itself and its device", testInfo},
		{"runs one input and output", testAffine},
		{"runs several inputs and outputs", testMixed},
		{"carries every dtype", testDTypes},
		{"joins segments", testSegments},
		{"takes varying dimensions", testVarying},
		{"preprocesses uint8", testPreprocess},
		{"refuses wrong inputs", testRefusals},
		{"refuses wrong specs", testWrongSpecs},
		{"refuses archives it cannot use", testArchives},
		{"refuses archives that are not what is declared", testDeclarations},
		{"pads to prepared batches", testPadding},
		{"runs archives of a fixed batch", testFixedBatch},
		{"passes NaN and infinities through", testNaN},
		{"goes on after a failed run", testFailedRun},
		{"leaves its inputs alone", testInputsUntouched},
		{"gives outputs of their own", testOutputsOwned},
		{"refuses a closed model", testClosed},
		{"keeps results of a closed model", testResultOutlivesModel},
		{"stops loading when cancelled", testCancelled},
		{"runs models side by side", testConcurrentModels},
		{"lets goroutines share a model", testSharedModel},
		{"closes a model that is in use", testCloseWhileRunning},
		{"stages batches", testStaged},
		{"stages what it can run, and nothing else", testStagedInputs},
		{"runs a staged batch once", testStagedOnce},
		{"frees staged batches that never ran", testStagedNeverRun},
		{"goes on after a staged batch failed", testStagedFails},
		{"refuses staged batches of a closed model", testStagedClosed},
		{"stages while it runs", testStageWhileRunning},
		{"prepares more batches", testPrepare},
		{"prepares while it runs", testPrepareWhileRunning},
		{"answers in NHWC as in NCHW", testChannelsLast},
		{"answers without graphs as with them", testEager},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, target) })
	}
}

// Load loads a model for the length of the test.
func (target Target) Load(t testing.TB, spec engine.Spec) engine.Model {
	t.Helper()
	spec.Device = target.Device
	m, err := target.Engine.Load(t.Context(), spec)
	if err != nil {
		t.Fatalf("Load(%s): %v", spec.Model.Name, err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close(%s): %v", spec.Model.Name, err)
		}
	})
	return m
}

func (target Target) load(t testing.TB, name string, change ...func(*model.Config)) engine.Model {
	t.Helper()
	return target.Load(t, engine.Spec{Model: target.Model(t, name, change...)})
}

// floats fails unless an output has these shape and values (zeros where nothing is computed).
func (target Target) floats(t testing.TB, out tensor.Tensor, shape []int64, want []float32) {
	t.Helper()
	if out.DType != tensor.FP32 || !slices.Equal(out.Shape, shape) {
		t.Fatalf("output %q is %s%v, want FP32%v", out.Name, out.DType, out.Shape, shape)
	}
	if !target.Computes {
		want = make([]float32, len(want))
	}
	if err := AllClose(ParseFloats(out.Data), want, 1e-6); err != nil {
		t.Fatalf("output %q: %v", out.Name, err)
	}
}

// affine is what most test models compute.
func affine(x []float32) []float32 {
	y := make([]float32, len(x))
	for i := range x {
		y[i] = 2*x[i] + 1
	}
	return y
}

// checkAffine runs n samples and checks y = 2x + 1.
func (target Target) checkAffine(t testing.TB, m engine.Model, n int64) {
	t.Helper()
	x := Count(3 * n)
	MustRun(t, m, []engine.Input{FP32([]int64{n, 3}, x...)}, func(out []tensor.Tensor) {
		target.floats(t, out[0], []int64{n, 3}, affine(x))
	})
}

// wantError fails unless err is an engine error of this code that mentions all words.
func wantError(t testing.TB, err error, code engine.Code, words ...string) {
	t.Helper()
	if engine.CodeOf(err) != code {
		t.Fatalf("error %v (%v), want code %v", err, engine.CodeOf(err), code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not mention %q", err, w)
		}
	}
}

func testInfo(t *testing.T, target Target) {
	info := target.Engine.Info()
	if info.Name == "" || info.Version == "" {
		t.Errorf("Info() = %+v: a name or version is missing", info)
	}
	d, err := target.Engine.Device(target.Device)
	if err != nil || d.Name == "" {
		t.Errorf("Device(%s) = %+v, %v", target.Device, d, err)
	}
	if target.Archive == nil {
		return // any device can be simulated
	}
	if d.MemTotal <= 0 || d.MemFree < 0 || d.MemFree > d.MemTotal {
		t.Errorf("Device(%s) = %+v: impossible memory", target.Device, d)
	}
	for _, name := range []string{"", "cuda:99", "abacus", "cpu:x"} {
		if d, err := target.Engine.Device(name); err == nil {
			t.Errorf("Device(%q) = %+v", name, d)
		}
	}
}

func testAffine(t *testing.T, target Target) {
	m := target.load(t, "affine")
	for n := int64(1); n <= MaxBatch; n++ {
		target.checkAffine(t, m, n)
	}
	if m.MemBytes() < 0 {
		t.Errorf("MemBytes() = %d", m.MemBytes())
	}
}

func testMixed(t *testing.T, target Target) {
	m := target.load(t, "mixed")
	in := []engine.Input{FP32([]int64{2, 3}, 1, 2, 3, 4, 5, 6), INT64([]int64{2, 3}, 10, 20, 30, -1, 0, 1<<40)}
	MustRun(t, m, in, func(out []tensor.Tensor) {
		target.floats(t, out[0], []int64{2, 3}, []float32{7, 13, 19, 4.5, 6, 7 + 1<<39})
		target.floats(t, out[1], []int64{2}, []float32{6, 15})
		want := []int64{20, 40, 60, -2, 0, 1 << 41}
		if !target.Computes {
			want = make([]int64, 6)
		}
		if diff := cmp.Diff(want, ParseInts(out[2].Data)); diff != "" || out[2].DType != tensor.INT64 {
			t.Errorf("output %q, %s (-want +got):\n%s", out[2].Name, out[2].DType, diff)
		}
		names := []string{out[0].Name, out[1].Name, out[2].Name}
		if diff := cmp.Diff([]string{"sum", "total", "twice"}, names); diff != "" {
			t.Errorf("names (-want +got):\n%s", diff)
		}
	})
}

func testDTypes(t *testing.T, target Target) {
	for d := tensor.FP32; d <= tensor.BOOL; d++ {
		t.Run(d.String(), func(t *testing.T) {
			m := target.Load(t, engine.Spec{Model: target.copyModel(t, d)})
			data := make([]byte, 2*3*d.Size())
			for i := range data {
				data[i] = byte(i % 2) // also a BOOL
			}
			in := engine.Input{DType: d, Shape: []int64{2, 3}, Segments: [][]byte{data}}
			MustRun(t, m, []engine.Input{in}, func(out []tensor.Tensor) {
				want := data
				if !target.Computes {
					want = make([]byte, len(data))
				}
				if out[0].DType != d || !slices.Equal(out[0].Data, want) {
					t.Errorf("got %s %v, want %s %v", out[0].DType, out[0].Data, d, want)
				}
			})
		})
	}
}

func testSegments(t *testing.T, target Target) {
	m := target.load(t, "affine")
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		n := 1 + random.Int64N(MaxBatch)
		x := Count(3 * n)
		in := engine.Input{DType: tensor.FP32, Shape: []int64{n, 3}, Segments: split(random, Floats(x...))}
		MustRun(t, m, []engine.Input{in}, func(out []tensor.Tensor) {
			target.floats(t, out[0], []int64{n, 3}, affine(x))
		})
	}
}

// split cuts data into random segments, some empty, each a copy at an odd address, as requests in
// messages are.
func split(random *rand.Rand, data []byte) [][]byte {
	var segments [][]byte
	for len(data) > 0 || len(segments) == 0 {
		n := random.IntN(len(data) + 1)
		if random.IntN(3) == 0 {
			n = len(data)
		}
		buf := make([]byte, n+1)
		copy(buf[1:], data[:n])
		segments, data = append(segments, buf[1:]), data[n:]
	}
	return segments
}

func testVarying(t *testing.T, target Target) {
	m := target.load(t, "affine", func(c *model.Config) {
		c.Inputs[0].Shape, c.Outputs[0].Shape = []int64{-1}, []int64{-1}
	})
	for _, length := range []int64{1, 7, 3} {
		x := Count(2 * length)
		MustRun(t, m, []engine.Input{FP32([]int64{2, length}, x...)}, func(out []tensor.Tensor) {
			target.floats(t, out[0], []int64{2, length}, affine(x))
		})
	}
}

func testPreprocess(t *testing.T, target Target) {
	m := target.load(t, "affine", func(c *model.Config) {
		c.Inputs[0].Shape, c.Outputs[0].Shape = []int64{2, 2, 1}, []int64{2, 2, 1}
		c.Preprocess = map[string]model.Preprocess{"x": {
			Accept: []tensor.DType{tensor.UINT8}, Scale: 0.5, Mean: []float64{1, 2}, Std: []float64{0.5, 4},
		}}
	})
	shape := []int64{2, 2, 2, 1}
	bytes := engine.Input{DType: tensor.UINT8, Shape: shape, Segments: [][]byte{{0, 2, 4, 6}, {255, 254, 253, 252}}}
	want := affine([]float32{-2, 0, 0, 0.25, 253, 252, 31.125, 31})
	MustRun(t, m, []engine.Input{bytes}, func(out []tensor.Tensor) { target.floats(t, out[0], shape, want) })

	x := Count(8)
	MustRun(t, m, []engine.Input{FP32(shape, x...)}, func(out []tensor.Tensor) {
		target.floats(t, out[0], shape, affine(x)) // what comes in the model's own dtype stays as it is
	})
}

func testRefusals(t *testing.T, target Target) {
	m := target.load(t, "mixed")
	a, b := FP32([]int64{2, 3}, Count(6)...), INT64([]int64{2, 3}, 1, 2, 3, 4, 5, 6)
	with := func(in engine.Input, change func(*engine.Input)) engine.Input { change(&in); return in }
	shaped := func(shape ...int64) engine.Input { return with(a, func(in *engine.Input) { in.Shape = shape }) }
	for _, c := range []struct {
		name  string
		in    []engine.Input
		words []string
	}{
		{"no inputs", nil, []string{"0 inputs", "expected 2", "a, b"}},
		{"a missing input", []engine.Input{a}, []string{"1 inputs", "expected 2"}},
		{"an input too many", []engine.Input{a, b, b}, []string{"3 inputs", "expected 2"}},
		{"another dtype", []engine.Input{with(a, func(in *engine.Input) { in.DType = tensor.INT32 }), b}, []string{`"a"`, "INT32", "FP32"}},
		{"an unknown dtype", []engine.Input{with(a, func(in *engine.Input) { in.DType = 77 }), b}, []string{`"a"`, "77", "FP32"}},
		{"another shape", []engine.Input{a, with(b, func(in *engine.Input) { in.Shape = []int64{3, 2} })}, []string{`"b"`, "[3 2]", "[batch 3]"}},
		{"no batch dimension", []engine.Input{shaped(3), b}, []string{`"a"`, "[batch 3]"}},
		{"no dimensions", []engine.Input{shaped(), b}, []string{`"a"`, "[batch 3]"}},
		{"too many dimensions", []engine.Input{shaped(1, 1, 1, 1, 1, 1, 1, 1, 1, 6), b}, []string{`"a"`, "[batch 3]"}},
		{"a negative dimension", []engine.Input{shaped(-2, 3), b}, []string{`"a"`, "[-2 3]"}},
		{"an enormous dimension", []engine.Input{shaped(math.MaxInt64, 3), b}, []string{`"a"`}},
		{"no samples", []engine.Input{with(shaped(0, 3), func(in *engine.Input) { in.Segments = nil }), b}, []string{`"a"`, "[0 3]"}},
		{"different samples", []engine.Input{FP32([]int64{1, 3}, 1, 2, 3), b}, []string{`"b" has 2`, `"a" has 1`}},
		{"too few bytes", []engine.Input{with(a, func(in *engine.Input) { in.Segments = [][]byte{make([]byte, 23)} }), b}, []string{`"a"`, "23 bytes", "24"}},
		{"too many bytes", []engine.Input{a, with(b, func(in *engine.Input) { in.Segments = [][]byte{make([]byte, 24), make([]byte, 25)} })}, []string{`"b"`, "49 bytes", "48"}},
		{"no segments", []engine.Input{with(a, func(in *engine.Input) { in.Segments = nil }), b}, []string{`"a"`, "0 bytes", "24"}},
		{"too many samples", []engine.Input{FP32([]int64{MaxBatch + 1, 3}, Count(3*(MaxBatch+1))...), INT64([]int64{MaxBatch + 1, 3}, make([]int64, 3*(MaxBatch+1))...)}, []string{"17 samples", "16"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := m.Run(c.in)
			wantError(t, err, engine.EINVAL, append(c.words, "mixed")...)
			_, err = m.Stage(c.in)
			wantError(t, err, engine.EINVAL, append(c.words, "mixed")...)
		})
	}
	MustRun(t, m, []engine.Input{a, b}, nil) // and it still works
}

func testWrongSpecs(t *testing.T, target Target) {
	good := target.Model(t, "affine")
	edit := func(f func(*engine.Spec)) engine.Spec {
		s := engine.Spec{Model: good, Device: target.Device}
		f(&s)
		return s
	}
	for name, c := range map[string]struct {
		spec  engine.Spec
		words []string
	}{
		"no outputs":      {edit(func(s *engine.Spec) { s.Model.Outputs = nil }), []string{"0 outputs"}},
		"no inputs":       {edit(func(s *engine.Spec) { s.Model.Inputs = nil }), []string{"0 inputs"}},
		"negative batch":  {edit(func(s *engine.Spec) { s.Batches = []int{4, -1} }), []string{"batch of -1"}},
		"no max batch":    {edit(func(s *engine.Spec) { s.Model.MaxBatch = 0 }), []string{"max batch 0"}},
		"fixed, no batch": {edit(func(s *engine.Spec) { s.FixedBatch = true }), []string{"fixed batch"}},
		"precision":       {edit(func(s *engine.Spec) { s.Precision = "fp8" }), []string{`"fp8"`, "fp16"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := target.Engine.Load(t.Context(), c.spec)
			wantError(t, err, engine.EINVAL, c.words...)
		})
	}
}

func testArchives(t *testing.T, target Target) {
	if target.Archive == nil {
		t.Skip("reads no archives")
	}
	whole, err := os.ReadFile(target.Archive("affine"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	noise := make([]byte, 5000)
	for i := range noise {
		noise[i] = byte(i * 7)
	}
	for name, path := range map[string]string{
		"missing":   filepath.Join(dir, "nothing.pt"),
		"folder":    dir,
		"empty":     write("empty.pt", nil),
		"text":      write("text.pt", []byte("<html>404 not found</html>\n")),
		"noise":     write("noise.pt", noise),
		"truncated": write("truncated.pt", whole[:len(whole)/2]),
	} {
		t.Run(name, func(t *testing.T) {
			m := target.Model(t, "affine")
			m.Path = path
			_, err := target.Engine.Load(t.Context(), engine.Spec{Model: m, Device: target.Device})
			wantError(t, err, engine.ELOAD, path, "affine")
		})
	}
	target.checkAffine(t, target.load(t, "affine"), 2) // other models keep loading
}

func testDeclarations(t *testing.T, target Target) {
	if target.Archive == nil {
		t.Skip("reads no archives")
	}
	for name, c := range map[string]struct {
		change func(*model.Config)
		words  []string
	}{
		"an input too many": {func(c *model.Config) {
			c.Inputs = append(c.Inputs, spec("c", tensor.FP32, 3))
		}, []string{"3", "declared"}},
		"an input too few":  {func(c *model.Config) { c.Inputs = c.Inputs[:1] }, []string{"1", "declared"}},
		"an output too few": {func(c *model.Config) { c.Outputs = c.Outputs[:2] }, []string{"3 outputs", "2 are declared"}},
		"another output shape": {func(c *model.Config) {
			c.Outputs = []tensor.Spec{c.Outputs[0], spec("total", tensor.FP32, 3), c.Outputs[2]}
		}, []string{`"total"`, "[batch 3] is declared"}},
		"another output dtype": {func(c *model.Config) {
			c.Outputs = []tensor.Spec{c.Outputs[0], c.Outputs[1], spec("twice", tensor.FP32, 3)}
		}, []string{`"twice"`, "INT64", "FP32 is declared"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := engine.Spec{Model: target.Model(t, "mixed", c.change), Device: target.Device}
			_, err := target.Engine.Load(t.Context(), s)
			wantError(t, err, engine.ELOAD, append(c.words, "mixed")...)
		})
	}
}

func testPadding(t *testing.T, target Target) {
	m := target.Load(t, engine.Spec{Model: target.Model(t, "affine"), Batches: []int{8, 2, 4, 2}})
	for _, n := range []int64{1, 2, 3, 4, 5, 8, 9, MaxBatch, 1} {
		target.checkAffine(t, m, n)
	}
}

func testFixedBatch(t *testing.T, target Target) {
	m := target.Load(t, engine.Spec{Model: target.Model(t, "fixed"), Batches: []int{4}, FixedBatch: true, MaxBatch: 4})
	for n := int64(4); n >= 1; n-- { // so that samples of the batch before could shine through
		target.checkAffine(t, m, n)
	}
}

func testNaN(t *testing.T, target Target) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	m := target.load(t, "affine")
	MustRun(t, m, []engine.Input{FP32([]int64{1, 3}, nan, inf, -inf)}, func(out []tensor.Tensor) {
		target.floats(t, out[0], []int64{1, 3}, []float32{nan, inf, -inf})
	})
}

func testFailedRun(t *testing.T, target Target) {
	m := target.load(t, "guard")
	if target.Computes {
		_, err := m.Run([]engine.Input{FP32([]int64{2, 3}, 1, 2, 3, 4, 500, 6)})
		wantError(t, err, engine.ERUN, "guard", "100")
	}
	target.checkAffine(t, m, 2)
}

func testInputsUntouched(t *testing.T, target Target) {
	for _, name := range []string{"affine", "inplace", "copy"} {
		m := target.load(t, name)
		x := FP32([]int64{2, 3}, Count(6)...)
		for range 3 {
			MustRun(t, m, []engine.Input{x}, nil)
		}
		if err := AllClose(ParseFloats(x.Segments[0]), Count(6), 0); err != nil {
			t.Errorf("%s wrote into its input: %v", name, err)
		}
	}
	m := target.load(t, "inplace")
	target.checkAffine(t, m, 4)
}

func testOutputsOwned(t *testing.T, target Target) {
	m := target.load(t, "copy")
	for _, segments := range []int{1, 2} {
		data := Floats(1, 2, 3, 4, 5, 6)
		in := engine.Input{DType: tensor.FP32, Shape: []int64{2, 3}, Segments: [][]byte{data}}
		if segments == 2 {
			in.Segments = [][]byte{data[:12], data[12:]}
		}
		MustRun(t, m, []engine.Input{in}, func(out []tensor.Tensor) {
			clear(data) // as when its message is reused
			in.Segments = [][]byte{Floats(9, 9, 9), Floats(9, 9, 9)}
			MustRun(t, m, []engine.Input{in}, nil) // as when the next batch is gathered
			target.floats(t, out[0], []int64{2, 3}, []float32{1, 2, 3, 4, 5, 6})
		})
	}
}

func testClosed(t *testing.T, target Target) {
	m := target.load(t, "affine")
	target.checkAffine(t, m, 1)
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := m.Run([]engine.Input{FP32([]int64{1, 3}, 1, 2, 3)})
		wantError(t, err, engine.EINVAL, "affine", "closed")
	}
	_ = m.MemBytes()
	_ = m.Notes()
}

func testResultOutlivesModel(t *testing.T, target Target) {
	for _, name := range []string{"affine", "copy"} {
		m := target.load(t, name)
		x := []float32{1, 2, 3}
		r, err := m.Run([]engine.Input{FP32([]int64{1, 3}, x...)})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		want := x
		if name == "affine" {
			want = affine(x)
		}
		target.floats(t, r.Outputs()[0], []int64{1, 3}, want)
		if r.Timing().Total() < 0 {
			t.Errorf("Timing() = %+v", r.Timing())
		}
		r.Free()
		r.Free()
	}
}

func testCancelled(t *testing.T, target Target) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m, err := target.Engine.Load(ctx, engine.Spec{Model: target.Model(t, "affine"), Device: target.Device})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Load = %v, %v; want %v", m, err, context.Canceled)
	}
}

// together runs f on n goroutines that have a thread of their own.
func together(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if err := f(i); err != nil {
				t.Errorf("goroutine %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// verify runs a batch whose values depend on seed and checks them.
func (target Target) verify(m engine.Model, seed int) error {
	x := []float32{float32(seed), float32(seed + 1), float32(seed + 2)}
	return target.verifyResult(func() (engine.Result, error) {
		return m.Run([]engine.Input{FP32([]int64{1, 3}, x...)})
	}, x)
}

// verifyResult runs a batch of one sample x and checks y = 2x + 1.
func (target Target) verifyResult(run func() (engine.Result, error), x []float32) error {
	r, err := run()
	if err != nil {
		return err
	}
	defer r.Free()
	want := affine(x)
	if !target.Computes {
		want = make([]float32, len(x))
	}
	return AllClose(ParseFloats(r.Outputs()[0].Data), want, 1e-6)
}

func testConcurrentModels(t *testing.T, target Target) {
	spec := engine.Spec{Model: target.Model(t, "affine"), Device: target.Device, Batches: []int{1, 4}}
	together(t, 4, func(i int) error {
		m, err := target.Engine.Load(context.Background(), spec)
		if err != nil {
			return err
		}
		for k := range 100 {
			if err := target.verify(m, 1000*i+k); err != nil {
				return fmt.Errorf("run %d: %w", k, err)
			}
		}
		return m.Close()
	})
}

func testSharedModel(t *testing.T, target Target) {
	m := target.load(t, "affine")
	together(t, 4, func(i int) error {
		for k := range 100 {
			if err := target.verify(m, 1000*i+k); err != nil {
				return fmt.Errorf("run %d: %w", k, err)
			}
		}
		return nil
	})
}

func testCloseWhileRunning(t *testing.T, target Target) {
	m := target.load(t, "affine")
	started := make(chan struct{}, 4)
	together(t, 5, func(i int) error {
		if i == 4 {
			for range 4 {
				<-started
			}
			return m.Close()
		}
		started <- struct{}{}
		for {
			err := target.verify(m, i)
			if engine.CodeOf(err) == engine.EINVAL {
				return nil // closed meanwhile
			}
			if err != nil {
				started <- struct{}{}
				return err
			}
		}
	})
}
