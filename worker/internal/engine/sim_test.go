package engine_test

import (
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

func TestSimTakesTheProfiledTimeStretchedByInterference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		factor := 1.0
		e, err := engine.NewSim(engine.SimOptions{
			Latency: func(name string, samples int) (time.Duration, error) {
				return 2*time.Millisecond + time.Duration(samples)*time.Millisecond, nil
			},
			Interference: func(string) float64 { return factor },
			MemBytes:     func(string) int64 { return 42 },
		})
		if err != nil {
			t.Fatal(err)
		}
		target := enginetest.Target{Engine: e}
		m := target.Load(t, engine.Spec{Model: target.Model(t, "affine")})
		for _, c := range []struct {
			samples int64
			factor  float64
			want    time.Duration
		}{{1, 1, 3 * time.Millisecond}, {8, 1, 10 * time.Millisecond}, {8, 1.5, 15 * time.Millisecond}} {
			factor = c.factor
			start := time.Now()
			enginetest.MustRun(t, m, []engine.Input{enginetest.FP32([]int64{c.samples, 3}, enginetest.Count(3*c.samples)...)}, nil)
			if got := time.Since(start); got != c.want {
				t.Errorf("%d samples beside neighbours of %v took %v, want %v", c.samples, c.factor, got, c.want)
			}
		}
		if m.MemBytes() != 42 {
			t.Errorf("MemBytes() = %d, want 42", m.MemBytes())
		}
	})
}

func TestSimRefusesWhatItHasNoFiguresFor(t *testing.T) {
	unknown := errors.New("no profile of batch 16")
	factor := 1.0
	e, err := engine.NewSim(engine.SimOptions{
		Latency: func(_ string, samples int) (time.Duration, error) {
			if samples > 8 {
				return 0, unknown
			}
			return time.Millisecond, nil
		},
		Interference: func(string) float64 { return factor },
		Sleep:        func(time.Duration) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	target := enginetest.Target{Engine: e}
	spec := engine.Spec{Model: target.Model(t, "affine")}
	if _, err := e.Load(t.Context(), spec); engine.CodeOf(err) != engine.ELOAD {
		t.Errorf("Load without a latency for max batch: %v", err)
	}
	spec.MaxBatch = 8
	m := target.Load(t, spec)
	for _, factor = range []float64{0.5, 0, -1, math.NaN(), math.Inf(1)} {
		if _, err := m.Run([]engine.Input{enginetest.FP32([]int64{1, 3}, 1, 2, 3)}); engine.CodeOf(err) != engine.ERUN {
			t.Errorf("interference %v: error %v", factor, err)
		}
	}
}
