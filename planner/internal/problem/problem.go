// Package problem states what the planner has to solve: the GPUs there are, the models with their
// objectives and rates, and what is known of how they run.
//
// It holds values and a few questions about them. It knows no algorithm, reads no file and no
// clock; pack solves an Input, check judges a plan against one, and both see only this package.
package problem

import (
	"fmt"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// Input is one planning problem. Packers and the checker never change it.
type Input struct {
	GPUs   []GPU
	Models []Model
	// Profiles answers how long a batch takes. Required.
	Profiles Profiles
	// Interference predicts the slowdown by neighbours on the same GPU. Nil means none.
	Interference Interference
	// Buffer multiplies every predicted latency, as a reserve for what a profile does not see
	// (jitter, clocks). 0 means 1, no reserve.
	Buffer float64
	// ContextBytes is device memory that every gpu-let needs beside its models: its CUDA context.
	ContextBytes int64
	// MaxModels bounds the models that share one gpu-let in time; 0 means no bound.
	MaxModels int
	// Current is the plan that runs now. Algorithms that can, stay close to it. Nil means none.
	Current *plan.Plan
}

// GPU is one device that may be cut into gpu-lets.
type GPU struct {
	Host  string
	Index int    // of the device on its host
	Type  string // the folder under profiles/
	// MemBytes is what gpu-lets may use together; 0 means unknown, and memory is not checked.
	MemBytes int64
	// Shares lists the shares (percent) a gpu-let may have, ascending; empty means any of 1..100.
	Shares []int
}

// Model is what has to be served of one model.
type Model struct {
	Name string
	// SLO bounds the time from a request's arrival at a gpu-let's queue to its result: what is left
	// of the time to its answer. See Net.
	SLO time.Duration
	// Rate is in samples per second, margins included. A model with rate 0 is not placed.
	Rate float64
	// Weight is the worth of one served sample when not everything fits. 0 means 1.
	Weight float64
	// Offline models get what the others leave.
	Offline bool
	// MaxBatch bounds the planned batch; 0 means the largest that the profile knows.
	MaxBatch int
}

// Net is what is left of an SLO for queueing and running when reserve is spent elsewhere, but never
// less than half of it.
func Net(slo, reserve time.Duration) time.Duration { return max(slo-reserve, slo/2) }

// Profiles finds the profile of a model on a GPU type. *profile.Set is one.
type Profiles interface {
	Get(gpuType, model string) (*profile.Profile, bool)
}

// Load is a model running batches of one size on a share of a GPU.
type Load = interference.Load

// Interference predicts how much a batch slows down beside other gpu-lets of the same GPU.
type Interference interface {
	// Slowdown returns the factor, at least 1, on the latency of self while every neighbour gpu-let
	// is busy with the worst of its loads: neighbours[i] lists what gpu-let i may be running, one
	// at a time. It must not depend on the order of neighbours, and must not fall when one is added.
	Slowdown(gpuType string, self Load, neighbours [][]Load) float64
}

// BufferFactor is Buffer with its default.
func (in *Input) BufferFactor() float64 {
	if in.Buffer <= 0 {
		return 1
	}
	return in.Buffer
}

// Layout is how a model's profile on a GPU type says that images should be kept.
func (in *Input) Layout(gpuType, model string) string {
	p, ok := in.Profiles.Get(gpuType, model)
	if !ok {
		return ""
	}
	return p.Layout
}

// LeastSLOMs is the least SLO, in milliseconds, that any GPU can keep for a model: a request may wait
// for one batch before its own, and both are the fastest there are. False: no profile covers a share
// that the GPUs allow.
func (in *Input) LeastSLOMs(model string) (float64, bool) {
	fastest, known := 0.0, false
	var seen []GPU // one of each kind
	for _, g := range in.GPUs {
		if slices.ContainsFunc(seen, func(o GPU) bool { return o.Type == g.Type && slices.Equal(o.Shares, g.Shares) }) {
			continue
		}
		seen = append(seen, g)
		p, ok := in.Profiles.Get(g.Type, model)
		if !ok {
			continue
		}
		for share := 1; share <= 100; share++ {
			if !g.Allows(share) {
				continue
			}
			if ms, err := p.Latency(share, p.Batches()[0]); err == nil && (!known || ms < fastest) {
				fastest, known = ms, true
			}
		}
	}
	return 2 * fastest * in.BufferFactor(), known
}

// Count puts a number of things into words: 1 GPU, 2 GPUs.
func Count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// offlineWorth is that of an offline sample in interactive ones: next to nothing, and more than nothing.
const offlineWorth = 1e-6

// Worth is Weight with its default, far less for offline models.
func (m Model) Worth() float64 {
	worth := m.Weight
	if worth <= 0 {
		worth = 1
	}
	if m.Offline {
		worth *= offlineWorth
	}
	return worth
}

// Name identifies the device in messages and in gpu-let ids: "host/0".
func (g GPU) Name() string { return fmt.Sprintf("%s/%d", g.Host, g.Index) }

// Allows reports whether a gpu-let of this device may have the share.
func (g GPU) Allows(share int) bool {
	if share < 1 || share > 100 {
		return false
	}
	if len(g.Shares) == 0 {
		return true
	}
	for _, s := range g.Shares {
		if s == share {
			return true
		}
	}
	return false
}

// Slowdown is the input's interference for one batch; 1 without neighbours or without a model.
func (in *Input) Slowdown(gpuType string, self Load, neighbours [][]Load) float64 {
	if in.Interference == nil || len(neighbours) == 0 {
		return 1
	}
	if f := in.Interference.Slowdown(gpuType, self, neighbours); f > 1 {
		return f
	}
	return 1
}

// Pressure is an interference model in which neighbours act through one number: each load emits
// pressure, pressures of neighbours add up, and the slowdown of a load is linear in their sum.
// Packers evaluate such models far faster than through Slowdown; both must agree:
//
//	Slowdown(t, self, n) = max(1, Base(self) + Gain(self) x sum over i of max over l in n[i] of Emit(l))
type Pressure interface {
	Interference
	// Couplings returns the coupling of batches 1..maxBatch of a model on a share. Emit and Gain
	// are never negative.
	Couplings(gpuType, model string, share, maxBatch int) []Coupling
}

// Coupling is how one load acts on its neighbours and how it suffers from them.
type Coupling = interference.Coupling
