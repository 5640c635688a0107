package glet

import (
	"fmt"
	"strings"

	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/plan"
)

// ModelList writes a plan as the ModelList.txt that glet's frontend reads: per line GPU, share,
// number among equal shares of the GPU, model, batch, duty cycle in ms. What is left of a GPU, and
// every idle GPU, is "reserved". Gpu-lets keep the order of the plan, served before reserved.
func ModelList(gpus []problem.GPU, p plan.Plan) string {
	var b strings.Builder
	for i, g := range gpus {
		left := 100
		seen := map[int]int{}
		for _, let := range p.Gpulets {
			if let.Device() != g.Name() {
				continue
			}
			for _, a := range let.Models {
				fmt.Fprintf(&b, "%d,%d,%d,%s,%d,%f\n", i, let.Share, seen[let.Share], a.Model, a.Batch, a.DutyMs)
			}
			seen[let.Share]++
			left -= let.Share
		}
		if left > 0 {
			fmt.Fprintf(&b, "%d,%d,%d,reserved,%d,%f\n", i, left, seen[left], MaxBatch, 0.0)
		}
	}
	return b.String()
}
