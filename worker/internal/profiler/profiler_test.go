package profiler_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/profiler"
)

var specs = []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{4, -1}}}

// simulated is a model whose batches take base and each per sample.
func simulated(t *testing.T, base, each time.Duration) engine.Model {
	t.Helper()
	e, err := engine.NewSim(engine.SimOptions{Latency: func(_ string, n int) (time.Duration, error) {
		return base + time.Duration(n)*each, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := e.Load(t.Context(), engine.Spec{Model: model.Model{Config: model.Config{
		Name: "m", MaxBatch: 64, Inputs: specs, Outputs: []tensor.Spec{{Name: "y", DType: tensor.FP32}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMeasuresWhatTheModelTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		plan := profiler.Quick(50, profiler.Batches(6), 3*time.Second)
		points, err := profiler.Measure(t.Context(), simulated(t, 2*time.Millisecond, time.Millisecond), specs, plan)
		if err != nil {
			t.Fatal(err)
		}
		want := []profile.Point{
			{Share: 50, Batch: 1, P50Ms: 3, P95Ms: 3, P99Ms: 3, N: 50},
			{Share: 50, Batch: 2, P50Ms: 4, P95Ms: 4, P99Ms: 4, N: 50},
			{Share: 50, Batch: 4, P50Ms: 6, P95Ms: 6, P99Ms: 6, N: 50},
			{Share: 50, Batch: 6, P50Ms: 8, P95Ms: 8, P99Ms: 8, N: 50},
		}
		if diff := cmp.Diff(want, points); diff != "" {
			t.Error(diff)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("took %v: expected at most the budget", took)
		}
	})
}

func TestKeepsToItsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		plan := profiler.Quick(100, profiler.Batches(64), 2*time.Second)
		points, err := profiler.Measure(t.Context(), simulated(t, 0, 30*time.Millisecond), specs, plan)
		if err != nil {
			t.Fatal(err)
		}
		var batches []int
		for _, p := range points {
			batches = append(batches, p.Batch)
			if p.N < plan.MinRuns {
				t.Errorf("batch %d: %d runs: expected at least %d", p.Batch, p.N, plan.MinRuns)
			}
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("%v took %v: expected at most the budget", batches, took)
		}
		if len(batches) < 2 {
			t.Errorf("measured only %v", batches)
		}
	})
}

func TestMeasuresTheSmallestBatchWhateverItTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plan := profiler.Quick(100, profiler.Batches(64), 2*time.Second)
		points, err := profiler.Measure(t.Context(), simulated(t, 0, time.Minute), specs, plan)
		if err != nil {
			t.Fatal(err)
		}
		if len(points) != 1 || points[0].P50Ms != 60_000 || points[0].N != plan.MinRuns {
			t.Errorf("measured %+v", points)
		}
	})
}

func TestStopsWhenItIsToldTo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := profiler.Measure(ctx, simulated(t, 0, 0), specs, profiler.Quick(100, []int{1}, time.Second))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestMergesShares(t *testing.T) {
	p := &profile.Profile{}
	profiler.Merge(p, []profile.Point{{Share: 100, Batch: 1}, {Share: 100, Batch: 2}}, []profile.Memory{{Batch: 2, Bytes: 5}})
	profiler.Merge(p, []profile.Point{{Share: 50, Batch: 1}}, []profile.Memory{{Batch: 1, Bytes: 3}, {Batch: 2, Bytes: 7}})
	want := &profile.Profile{
		Points: []profile.Point{{Share: 50, Batch: 1}, {Share: 100, Batch: 1}, {Share: 100, Batch: 2}},
		Memory: []profile.Memory{{Batch: 1, Bytes: 3}, {Batch: 2, Bytes: 7}},
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Error(diff)
	}
}

func TestCacheIsOfOneArchiveOnly(t *testing.T) {
	dir := t.TempDir()
	m := model.Model{Config: model.Config{Name: "m"}, Version: 2, Hash: strings.Repeat("ab", 32)}
	if _, err := profiler.Cached(dir, "cpu-x-2c", m); !errors.Is(err, profiler.ErrNotCached) {
		t.Errorf("error %v: expected that there is none", err)
	}
	p := &profile.Profile{
		Model: "m", ModelHash: m.Hash, GPUType: "cpu-x-2c",
		Points: []profile.Point{{Share: 100, Batch: 1, P50Ms: 1}},
	}
	if err := profile.Save(dir, p); err != nil {
		t.Fatal(err)
	}
	if got, err := profiler.Cached(dir, "cpu-x-2c", m); err != nil || len(got.Points) != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	m.Hash = strings.Repeat("cd", 32)
	_, err := profiler.Cached(dir, "cpu-x-2c", m)
	if err == nil || !strings.Contains(err.Error(), "found a profile of the archive abababababab: expected cdcdcdcdcdcd, version 2 of m") {
		t.Errorf("error %v: expected both archives", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cpu-x-2c", "m.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := profiler.Cached(dir, "cpu-x-2c", m); err == nil || errors.Is(err, profiler.ErrNotCached) {
		t.Errorf("error %v: expected the broken file", err)
	}
}
