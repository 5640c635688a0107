package reconcile

import (
	"slices"
	"strconv"

	"github.com/gpulet/gpulet/shared/plan"
)

// Isolate takes the models that isolated names out of gpu-lets that they share with others, each into a
// gpu-let of its own on the same GPU with the same share: its process may die without taking the
// others with it. That cuts the GPU into more than the plan does, for as long as it lasts.
func Isolate(gpulets []plan.Gpulet, isolated func(model string) bool) []plan.Gpulet {
	var all []plan.Gpulet
	for _, g := range gpulets {
		var stay []plan.Assignment
		var apart []plan.Gpulet
		for i, a := range g.Models {
			if !isolated(a.Model) || i == len(g.Models)-1 && len(stay) == 0 {
				stay = append(stay, a)
				continue
			}
			own := g
			own.ID, own.Models = IsolatedID(g.ID, i), []plan.Assignment{a}
			apart = append(apart, own)
		}
		g.Models = stay
		all = append(append(all, g), apart...)
	}
	return slices.Clip(all)
}

// IsolatedID is the id of the gpu-let of a model that was the i-th of gpu-let id.
func IsolatedID(id string, i int) string { return id + "-q" + strconv.Itoa(i) }
