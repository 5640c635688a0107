package sim

import (
	"math/rand/v2"

	"github.com/gpulet/gpulet/planner/internal/problem"
)

func randFrom(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// interferenceOf is a constant slowdown beside any neighbour.
type interferenceOf float64

func (f interferenceOf) Slowdown(string, problem.Load, [][]problem.Load) float64 { return float64(f) }
