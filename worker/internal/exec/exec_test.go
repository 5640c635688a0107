package exec

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

var specs = []tensor.Spec{
	{Name: "x", DType: tensor.FP32, Shape: []int64{3}},
	{Name: "ids", DType: tensor.INT64, Shape: []int64{-1}},
}

// simulated is a model whose k-th run takes latency(k).
func simulated(t *testing.T, latency func(k int) time.Duration) engine.Model {
	t.Helper()
	k := 0
	e, err := engine.NewSim(engine.SimOptions{
		Latency: func(string, int) (time.Duration, error) { return 0, nil },
		Sleep:   func(time.Duration) { k++; time.Sleep(latency(k)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := e.Load(t.Context(), engine.Spec{Model: model.Model{Config: model.Config{
		Name: "sim", MaxBatch: 8, Inputs: specs, Outputs: specs[:1],
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestReportCoversTheMeasuredRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := simulated(t, func(k int) time.Duration {
			if k <= warmUps {
				return time.Hour // not part of it
			}
			return time.Duration(k-warmUps) * time.Millisecond
		})
		var seen []int
		got, err := Run(t.Context(), m, specs, Config{Count: 10, Batch: 4, VaryingDim: 5, Progress: func(done int) { seen = append(seen, done) }})
		if err != nil {
			t.Fatal(err)
		}
		want := Report{Count: 10, P50Ms: 5, P90Ms: 9, P99Ms: 10, MinMs: 1, MaxMs: 10, SamplesPerSec: 40 / 0.055}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("report (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, seen); diff != "" {
			t.Errorf("progress (-want +got):\n%s", diff)
		}
	})
}

func TestIntervalIsBetweenStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := simulated(t, func(int) time.Duration { return 30 * time.Millisecond })
		start := time.Now().Add(warmUps * 30 * time.Millisecond)
		if _, err := Run(t.Context(), m, specs, Config{Count: 5, Batch: 1, Interval: 100 * time.Millisecond, VaryingDim: 5}); err != nil {
			t.Fatal(err)
		}
		if got, want := time.Since(start), 430*time.Millisecond; got != want {
			t.Errorf("5 runs of 30 ms every 100 ms took %v, want %v", got, want)
		}
	})
}

func TestInterruptedRunReportsWhatWasDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		m := simulated(t, func(int) time.Duration { return time.Millisecond })
		got, err := Run(ctx, m, specs, Config{Count: 1000, Batch: 1, VaryingDim: 5, Progress: func(done int) {
			if done == 7 {
				cancel()
			}
		}})
		if !errors.Is(err, context.Canceled) || got.Count != 7 || got.P50Ms != 1 {
			t.Errorf("Run = %+v, %v; want 7 runs of 1 ms and %v", got, err, context.Canceled)
		}
	})
}

func TestRunReportsTheModelsError(t *testing.T) {
	m := simulated(t, func(int) time.Duration { return 0 })
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), m, specs, Config{Count: 1, Batch: 1, VaryingDim: 1}); engine.CodeOf(err) != engine.EINVAL {
		t.Errorf("Run of a closed model: %v", err)
	}
}

func TestModelsRunTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fast := simulated(t, func(int) time.Duration { return 2 * time.Millisecond })
		slow := simulated(t, func(int) time.Duration { return 6 * time.Millisecond })
		var last int
		c := Config{Count: 10, Batch: 4, VaryingDim: 5, Progress: func(done int) { last = done }}
		got, err := Together(t.Context(), []engine.Model{fast, slow}, specs, c)
		if err != nil {
			t.Fatal(err)
		}
		// 10 runs of each, the slow ones until 60 ms.
		want := Report{Count: 20, P50Ms: 2, P90Ms: 6, P99Ms: 6, MinMs: 2, MaxMs: 6, SamplesPerSec: 80 / 0.06}
		if diff := cmp.Diff(want, got, cmpopts.EquateApprox(0, 1e-6)); diff != "" {
			t.Errorf("report (-want +got):\n%s", diff)
		}
		if last != 20 {
			t.Errorf("progress ended at %d of 20", last)
		}
		if err := slow.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := Together(t.Context(), []engine.Model{fast, slow}, specs, c); engine.CodeOf(err) != engine.EINVAL || got.Count != 0 {
			t.Errorf("beside a closed model: %+v, %v", got, err)
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Count: 1, Batch: 1, VaryingDim: 1}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for word, c := range map[string]Config{
		"count":    {Batch: 1, VaryingDim: 1},
		"batch":    {Count: 1, VaryingDim: 1},
		"interval": {Count: 1, Batch: 1, VaryingDim: 1, Interval: -1},
		"varying":  {Count: 1, Batch: 1},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%+v: error %v, want one about %s", c, err, word)
		}
	}
}

func TestRank(t *testing.T) {
	for _, c := range []struct {
		q    float64
		n    int
		want int
	}{{0.5, 1, 0}, {0.5, 2, 0}, {0.5, 3, 1}, {0.9, 10, 8}, {0.99, 10, 9}, {0.99, 100, 98}, {0.99, 1000, 989}, {1, 5, 4}, {0, 5, 0}} {
		if got := Rank(c.q, c.n); got != c.want {
			t.Errorf("Rank(%v, %d) = %d, want %d", c.q, c.n, got, c.want)
		}
	}
}

func TestInputsFitTheirSpecs(t *testing.T) {
	for d := tensor.FP32; d <= tensor.BOOL; d++ {
		in, err := Inputs([]tensor.Spec{{Name: "x", DType: d, Shape: []int64{2, -1}}}, 3, 50)
		if err != nil {
			t.Fatal(err)
		}
		x := tensor.Tensor{Name: "x", DType: in[0].DType, Shape: in[0].Shape, Data: in[0].Segments[0]}
		if err := x.Validate(); err != nil || !cmp.Equal(x.Shape, []int64{3, 2, 50}) {
			t.Errorf("%s%v: %v", x.DType, x.Shape, err)
		}
		checkFinite(t, x)
	}
	if _, err := Inputs(specs, 1, 0); !errors.Is(err, errVarying) {
		t.Errorf("a varying dimension without a size: %v", err)
	}
	if _, err := Inputs([]tensor.Spec{{Name: "huge", DType: tensor.FP64, Shape: []int64{math.MaxInt64}}}, 1, 0); err == nil {
		t.Error("a shape beyond memory was accepted")
	}
}

// checkFinite finds exponents of all ones, and integers other than 0 and 1.
func checkFinite(t *testing.T, x tensor.Tensor) {
	t.Helper()
	size := x.DType.Size()
	for i := 0; i < len(x.Data); i += size {
		e := x.Data[i : i+size]
		switch x.DType {
		case tensor.UINT8:
		case tensor.FP32, tensor.FP16, tensor.BF16, tensor.FP64:
			if e[size-1] >= 0x40 {
				t.Fatalf("%s element % x is 2 or more", x.DType, e)
			}
		default:
			for b, v := range e {
				if v > 1 || b > 0 && v != 0 {
					t.Fatalf("%s element % x is neither 0 nor 1", x.DType, e)
				}
			}
		}
	}
}
