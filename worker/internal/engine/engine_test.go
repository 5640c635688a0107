package engine_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func archives(t testing.TB, kind, ext string) func(string) string {
	dir := filepath.Join(enginetest.Root(t), "worker/internal/engine/testdata", kind)
	return func(name string) string { return filepath.Join(dir, name+ext) }
}

func refTarget(t testing.TB) enginetest.Target {
	e, err := engine.Open(engine.Reference, engine.Options{Library: enginetest.ReferenceLibrary(t)})
	if err != nil {
		t.Fatal(err)
	}
	return enginetest.Target{Engine: e, Device: "cpu", Archive: archives(t, "ref", ".txt"), Computes: true}
}

func simTarget(t testing.TB) enginetest.Target {
	e, err := engine.Open(engine.Simulated, engine.Options{Sim: engine.SimOptions{
		Latency: func(string, int) (time.Duration, error) { return time.Microsecond, nil },
		Sleep:   func(time.Duration) {},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return enginetest.Target{Engine: e, Device: "h100:0"}
}

func torchTarget(t testing.TB) enginetest.Target {
	e, err := engine.Open(engine.Torch, engine.Options{Library: enginetest.TorchLibrary(t), Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	archive := archives(t, "torch", ".pt")
	return enginetest.Target{Engine: e, Device: enginetest.Device(), Computes: true, Archive: func(name string) string {
		if path := archive(name); exists(path) {
			return path
		}
		return archive("copy") // copy_int64 and its like: one archive copies every dtype
	}}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestReferenceEngineConforms(t *testing.T) { enginetest.Run(t, refTarget(t)) }

func TestSimulatedEngineConforms(t *testing.T) { enginetest.Run(t, simTarget(t)) }

func TestTorchEngineConforms(t *testing.T) { enginetest.Run(t, torchTarget(t)) }
