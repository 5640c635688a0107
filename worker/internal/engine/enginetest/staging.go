package enginetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

// MustStage stages a batch for the length of the test.
func MustStage(t testing.TB, m engine.Model, in []engine.Input) engine.Staged {
	t.Helper()
	s, err := m.Stage(in)
	if err != nil {
		t.Fatalf("Stage: %v", err)
	}
	t.Cleanup(s.Free)
	return s
}

// staged is a batch of n samples of y = 2x + 1 that was staged, and what it must answer.
type staged struct {
	engine.Staged
	n int64
	x []float32
}

// stageAffine stages n samples whose values depend on seed.
func stageAffine(t testing.TB, m engine.Model, n int64, seed int) staged {
	t.Helper()
	x := Count(3 * n)
	for i := range x {
		x[i] += float32(seed)
	}
	// Two segments, so that engines gather.
	data := Floats(x...)
	in := engine.Input{DType: tensor.FP32, Shape: []int64{n, 3}, Segments: [][]byte{data[:4], data[4:]}}
	return staged{MustStage(t, m, []engine.Input{in}), n, x}
}

// check runs the batch.
func (s staged) check(t testing.TB, target Target) {
	t.Helper()
	r, err := s.Run()
	if err != nil {
		t.Fatalf("Run of a staged batch: %v", err)
	}
	defer r.Free()
	target.floats(t, r.Outputs()[0], []int64{s.n, 3}, affine(s.x))
}

func testStaged(t *testing.T, target Target) {
	m := target.Load(t, engine.Spec{Model: target.Model(t, "affine"), Batches: []int{1, 4, 8}})
	var all []staged
	for n := int64(1); n <= 5; n++ { // more than any engine keeps buffers for
		all = append(all, stageAffine(t, m, n, int(100*n)))
	}
	target.checkAffine(t, m, 3) // between them
	for i := len(all) - 1; i >= 0; i-- {
		all[i].check(t, target)
		all[i].Free()
	}
	for n := int64(MaxBatch); n >= 1; n-- { // in pairs, as a server does
		next := stageAffine(t, m, n, 7)
		target.checkAffine(t, m, n)
		next.check(t, target)
		next.Free()
	}
	fixed := target.Load(t, engine.Spec{Model: target.Model(t, "fixed"), Batches: []int{4}, FixedBatch: true, MaxBatch: 4})
	for n := int64(4); n >= 1; n-- {
		stageAffine(t, fixed, n, 1).check(t, target)
	}
	inplace := target.load(t, "inplace")
	stageAffine(t, inplace, 2, 1).check(t, target)
}

func testStagedInputs(t *testing.T, target Target) {
	m := target.load(t, "mixed")
	in := []engine.Input{FP32([]int64{2, 3}, 1, 2, 3, 4, 5, 6), INT64([]int64{2, 3}, 10, 20, 30, -1, 0, 1<<40)}
	r, err := MustStage(t, m, in).Run()
	if err != nil {
		t.Fatal(err)
	}
	target.floats(t, r.Outputs()[0], []int64{2, 3}, []float32{7, 13, 19, 4.5, 6, 7 + 1<<39})
	if got := r.Outputs()[2]; got.Name != "twice" || got.DType != tensor.INT64 {
		t.Errorf("the third output is %q, %s", got.Name, got.DType)
	}
	r.Free()

	uint8s := target.load(t, "affine", func(c *model.Config) {
		c.Preprocess = map[string]model.Preprocess{"x": {Accept: []tensor.DType{tensor.UINT8}, Scale: 0.5}}
	})
	bytes := engine.Input{DType: tensor.UINT8, Shape: []int64{2, 3}, Segments: [][]byte{{0, 2, 4}, {6, 8, 255}}}
	if r, err = MustStage(t, uint8s, []engine.Input{bytes}).Run(); err != nil {
		t.Fatal(err)
	}
	target.floats(t, r.Outputs()[0], []int64{2, 3}, []float32{1, 3, 5, 7, 9, 256})
	r.Free()
}

func testStagedOnce(t *testing.T, target Target) {
	m := target.load(t, "affine")
	s := stageAffine(t, m, 2, 1)
	s.check(t, target)
	_, err := s.Run()
	wantError(t, err, engine.EINVAL, "affine", "run already")
	s.Free()
	s.Free()
	_, err = s.Run()
	wantError(t, err, engine.EINVAL, "affine", "freed")
	target.checkAffine(t, m, 2)
}

func testStagedNeverRun(t *testing.T, target Target) {
	m := target.Load(t, engine.Spec{Model: target.Model(t, "affine"), Batches: []int{4}})
	for k := range 20 {
		wasted := stageAffine(t, m, 4, 1000*k)
		kept := stageAffine(t, m, 3, k)
		wasted.Free()
		again := stageAffine(t, m, 4, 2000*k) // where the wasted one was
		kept.check(t, target)
		again.check(t, target)
		kept.Free()
		again.Free()
	}
}

func testStagedFails(t *testing.T, target Target) {
	m := target.load(t, "guard")
	bad := MustStage(t, m, []engine.Input{FP32([]int64{2, 3}, 1, 2, 3, 4, 500, 6)})
	good := stageAffine(t, m, 2, 1)
	if target.Computes {
		_, err := bad.Run()
		wantError(t, err, engine.ERUN, "guard", "100")
		_, err = bad.Run()
		wantError(t, err, engine.EINVAL, "run already")
	}
	good.check(t, target)
}

func testStagedClosed(t *testing.T, target Target) {
	m := target.load(t, "affine")
	s, other := stageAffine(t, m, 2, 1), stageAffine(t, m, 3, 1)
	r, err := other.Run()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Free()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = s.Run()
	wantError(t, err, engine.EINVAL, "affine", "closed")
	s.Free()
	other.Free()
	target.floats(t, r.Outputs()[0], []int64{3, 3}, affine(other.x)) // it outlives both
	_, err = m.Stage([]engine.Input{FP32([]int64{1, 3}, 1, 2, 3)})
	wantError(t, err, engine.EINVAL, "affine", "closed")
	wantError(t, m.Prepare(t.Context(), []int{2}), engine.EINVAL, "closed")
}

// testStageWhileRunning has one goroutine stage and another run, as an executor does, and a third
// run batches of its own.
func testStageWhileRunning(t *testing.T, target Target) {
	m := target.Load(t, engine.Spec{Model: target.Model(t, "affine"), Batches: []int{1, 4}})
	const rounds = 200
	type job struct {
		staged engine.Staged
		x      []float32
	}
	jobs := make(chan job, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(jobs)
		for k := range rounds {
			x := []float32{float32(k), float32(k + 1), float32(k + 2)}
			s, err := m.Stage([]engine.Input{FP32([]int64{1, 3}, x...)})
			if err != nil {
				t.Errorf("stage %d: %v", k, err)
				return
			}
			jobs <- job{s, x}
		}
	})
	together(t, 2, func(i int) error {
		if i == 0 {
			for k := range rounds {
				if err := target.verify(m, k); err != nil {
					return err
				}
			}
			return nil
		}
		for j := range jobs {
			err := target.verifyResult(j.staged.Run, j.x)
			j.staged.Free()
			if err != nil {
				return err
			}
		}
		return nil
	})
	wg.Wait()
}

func testPrepare(t *testing.T, target Target) {
	m := target.Load(t, engine.Spec{Model: target.Model(t, "affine"), Batches: []int{1}})
	early := stageAffine(t, m, 3, 1) // before there is a batch of 4 to pad it to
	if err := m.Prepare(t.Context(), []int{4, 1, 8, 4}); err != nil {
		t.Fatal(err)
	}
	early.check(t, target)
	for n := int64(1); n <= MaxBatch; n++ {
		target.checkAffine(t, m, n)
	}
	if err := m.Prepare(t.Context(), nil); err != nil {
		t.Errorf("Prepare of nothing: %v", err)
	}
	wantError(t, m.Prepare(t.Context(), []int{2, 0}), engine.EINVAL, "affine", "batch of 0")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Prepare(ctx, []int{16}); !errors.Is(err, context.Canceled) {
		t.Errorf("Prepare after the end: %v; want %v", err, context.Canceled)
	}
	if m.MemBytes() < 0 {
		t.Errorf("MemBytes() = %d", m.MemBytes())
	}
	target.checkAffine(t, m, 16)
}

func testPrepareWhileRunning(t *testing.T, target Target) {
	m := target.Load(t, engine.Spec{Model: target.Model(t, "affine"), Batches: []int{1}})
	other := target.load(t, "affine")
	prepared := make(chan struct{})
	together(t, 3, func(i int) error {
		if i == 0 {
			defer close(prepared)
			for _, batch := range []int{2, 4, 8, 16} {
				if err := m.Prepare(t.Context(), []int{batch}); err != nil {
					return err
				}
			}
			return nil
		}
		served := []engine.Model{m, other}[i-1]
		for k := 0; ; k++ {
			if err := target.verify(served, k); err != nil {
				return fmt.Errorf("run %d: %w", k, err)
			}
			select {
			case <-prepared:
				return nil
			default:
				runtime.Gosched()
			}
		}
	})
	for n := int64(1); n <= MaxBatch; n++ {
		target.checkAffine(t, m, n)
	}
}

func testChannelsLast(t *testing.T, target Target) {
	image := target.Model(t, "affine", func(c *model.Config) {
		c.Inputs[0].Shape, c.Outputs[0].Shape = []int64{3, 2, 5}, []int64{3, 2, 5}
		c.Preprocess = map[string]model.Preprocess{"x": {
			Accept: []tensor.DType{tensor.UINT8}, Scale: 1, Mean: []float64{1, 2, 3}, Std: []float64{1, 2, 4},
		}}
	})
	m := target.Load(t, engine.Spec{Model: image, ChannelsLast: true, Batches: []int{1, 4}})
	for n := int64(1); n <= 5; n++ {
		shape, x := []int64{n, 3, 2, 5}, Count(n*3*2*5)
		in := []engine.Input{FP32(shape, x...)}
		MustRun(t, m, in, func(out []tensor.Tensor) { target.floats(t, out[0], shape, affine(x)) })
		r, err := MustStage(t, m, in).Run()
		if err != nil {
			t.Fatal(err)
		}
		target.floats(t, r.Outputs()[0], shape, affine(x))
		r.Free()

		bytes := make([]byte, len(x))
		want := make([]float32, len(x))
		for i := range bytes {
			bytes[i] = byte(i)
			channel := i / 10 % 3
			want[i] = (float32(bytes[i]) - []float32{1, 2, 3}[channel]) / []float32{1, 2, 4}[channel]
		}
		in = []engine.Input{{DType: tensor.UINT8, Shape: shape, Segments: [][]byte{bytes}}}
		MustRun(t, m, in, func(out []tensor.Tensor) { target.floats(t, out[0], shape, affine(want)) })
	}
}

func testEager(t *testing.T, target Target) {
	m := target.Load(t, engine.Spec{Model: target.Model(t, "affine"), Batches: []int{1, 4}, Eager: true})
	for n := int64(1); n <= 5; n++ {
		target.checkAffine(t, m, n)
		stageAffine(t, m, n, 3).check(t, target)
	}
	if notes := m.Notes(); len(notes) > 0 {
		t.Errorf("notes %q of a model that was to run eagerly", notes)
	}
}
