package engine_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

// refModel is the model y = 2x + 1 with further statements of the reference engine.
func refModel(t *testing.T, target enginetest.Target, statements string, change ...func(*model.Config)) model.Model {
	t.Helper()
	m := target.Model(t, "affine", change...)
	m.Path = filepath.Join(t.TempDir(), "model.txt")
	text := "gpulet-ref 1\ninput x FP32\naffine y FP32 1 2 x\n" + statements
	if err := os.WriteFile(m.Path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

func open(t *testing.T, library string) enginetest.Target {
	t.Helper()
	e, err := engine.Open(engine.Reference, engine.Options{Library: library})
	if err != nil {
		t.Fatal(err)
	}
	return enginetest.Target{Engine: e, Device: "cpu", Archive: archives(t, "ref", ".txt"), Computes: true}
}

// An engine that was built before stage was added to the ABI is as good, but for the overlap.
func TestReferenceEngineWithoutStageConforms(t *testing.T) {
	enginetest.Run(t, open(t, enginetest.CompileReference(t, "-DREF_WITHOUT_STAGE")))
}

func TestReferenceEngineServesWhatItCannotCapture(t *testing.T) {
	target := refTarget(t)
	m := target.Load(t, engine.Spec{Model: refModel(t, target, "eager 4\n"), Batches: []int{1, 2, 4, 8}})
	notes := m.Notes()
	if len(notes) != 1 || !strings.Contains(notes[0], "batch of 4") || !strings.Contains(notes[0], "capture") {
		t.Errorf("notes %q: expected one about the batch of 4", notes)
	}
	for n := int64(1); n <= 9; n++ {
		x := enginetest.Count(3 * n)
		enginetest.MustRun(t, m, []engine.Input{enginetest.FP32([]int64{n, 3}, x...)}, nil)
	}
	if err := m.Prepare(t.Context(), []int{4, 16}); err != nil {
		t.Errorf("Prepare: %v", err)
	}
	if got := m.Notes(); len(got) != 1 {
		t.Errorf("notes %q: the batch of 4 was prepared again", got)
	}
}

func TestReferenceEngineRunsOutOfMemory(t *testing.T) {
	target := refTarget(t)
	neighbour := target.Load(t, engine.Spec{Model: target.Model(t, "affine")})
	_, err := target.Engine.Load(t.Context(), engine.Spec{Model: refModel(t, target, "memory 3\n"), Batches: []int{1, 4}})
	if engine.CodeOf(err) != engine.EOOM || !strings.Contains(err.Error(), "memory for 3") {
		t.Errorf("Load: %v (%v), want %v", err, engine.CodeOf(err), engine.EOOM)
	}
	m := target.Load(t, engine.Spec{Model: refModel(t, target, "memory 3\n"), Batches: []int{1, 2}})
	err = m.Prepare(t.Context(), []int{1, 2, 3, 4})
	if engine.CodeOf(err) != engine.EOOM || !strings.Contains(err.Error(), "affine") {
		t.Errorf("Prepare: %v (%v), want %v", err, engine.CodeOf(err), engine.EOOM)
	}
	for _, served := range []engine.Model{m, neighbour} {
		enginetest.MustRun(t, served, []engine.Input{enginetest.FP32([]int64{3, 3}, enginetest.Count(9)...)}, nil)
	}
}

func TestReferenceEngineLosesItsDeviceForGood(t *testing.T) {
	target := open(t, enginetest.CompileReference(t)) // of its own: the state lasts
	neighbour := target.Load(t, engine.Spec{Model: target.Model(t, "affine")})
	m := target.Load(t, engine.Spec{Model: refModel(t, target, "fault x 100\n")})
	good := []engine.Input{enginetest.FP32([]int64{1, 3}, 1, 2, 3)}
	staged := enginetest.MustStage(t, neighbour, good)
	_, err := m.Run([]engine.Input{enginetest.FP32([]int64{1, 3}, 1, 2, 101)})
	if engine.CodeOf(err) != engine.EDEVICE {
		t.Fatalf("Run: %v (%v), want %v", err, engine.CodeOf(err), engine.EDEVICE)
	}
	for _, served := range []engine.Model{m, neighbour} {
		if _, err := served.Run(good); engine.CodeOf(err) != engine.EDEVICE {
			t.Errorf("Run afterwards: %v (%v), want %v", err, engine.CodeOf(err), engine.EDEVICE)
		}
	}
	if _, err := staged.Run(); engine.CodeOf(err) != engine.EDEVICE {
		t.Errorf("Run of a staged batch afterwards: %v (%v), want %v", err, engine.CodeOf(err), engine.EDEVICE)
	}
	if err := m.Prepare(t.Context(), []int{2}); engine.CodeOf(err) != engine.EDEVICE {
		t.Errorf("Prepare afterwards: %v (%v), want %v", err, engine.CodeOf(err), engine.EDEVICE)
	}
}

// Choosing kernels for another batch size has taken seconds on a GPU, in which what is loaded must serve.
func TestModelServesWhileItIsPrepared(t *testing.T) {
	target := refTarget(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	m := target.Load(t, engine.Spec{Model: refModel(t, target, "meet 8 "+fifo+"\n"), Batches: []int{1}})
	prepared := make(chan error, 1)
	go func() { prepared <- m.Prepare(context.Background(), []int{8}) }()
	meet := func(flag int) {
		f, err := os.OpenFile(fifo, flag, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	meet(os.O_RDONLY) // the engine is preparing
	for range 3 {
		enginetest.MustRun(t, m, []engine.Input{enginetest.FP32([]int64{2, 3}, enginetest.Count(6)...)}, nil)
	}
	meet(os.O_WRONLY)
	if err := <-prepared; err != nil {
		t.Errorf("Prepare: %v", err)
	}
}
