package epoch

import (
	"maps"
	"slices"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// memory is what gpu-lets have shown that models need of a device, in bytes. It is remembered, so
// that a model which did not fit somewhere is not put there again once its report is gone.
type memory map[profileKey]int64

// shortage is by how much more than was thought a model is taken to need when it did not fit: how
// much it lacked is not known. It grows with every decision until the model is placed elsewhere.
const shortage = 1.5

// learn returns what is known after the reports of now. It shares nothing with m.
func (m memory) learn(s State, known profiles) memory {
	learned := maps.Clone(m)
	if learned == nil {
		learned = memory{}
	}
	types := map[string]string{}
	for _, h := range s.Hosts {
		for _, d := range h.Devices {
			types[plan.Gpulet{Host: h.Host, GPU: d.Index}.Device()] = d.GPUType
		}
	}
	grown := map[profileKey]bool{} // once per decision, however many gpu-lets report it
	for _, g := range s.Gpulets {
		for _, r := range g.Models {
			key := profileKey{types[plan.Gpulet{Host: g.Host, GPU: g.GPU}.Device()], r.Model}
			prof := known[key]
			switch {
			case prof == nil:
			case r.OutOfMemory && !grown[key]:
				grown[key] = true
				believed := max(learned[key], r.MemBytes, prof.MemBytes(batchOf(s.Current, g.ID, r.Model)))
				learned[key] = int64(float64(believed) * shortage)
			case r.Loaded && !grown[key]:
				learned[key] = max(learned[key], r.MemBytes)
			}
		}
	}
	return learned
}

// batchOf is the largest batch that a plan gives a model on a gpu-let, at least 1.
func batchOf(p plan.Plan, gpulet, model string) int {
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			if g.ID == gpulet && a.Model == model {
				return a.MaxBatch()
			}
		}
	}
	return 1
}

// correct returns the profiles with the memory that was learned, where that is more.
func (m memory) correct(known profiles) profiles {
	out := maps.Clone(known)
	for key, bytes := range m {
		if prof := known[key]; prof != nil && bytes > 0 {
			out[key] = withMemory(prof, bytes)
		}
	}
	return out
}

// withMemory returns a copy of p whose model needs at least so many bytes at any batch.
func withMemory(p *profile.Profile, bytes int64) *profile.Profile {
	c := *p
	c.Memory = slices.Clone(p.Memory)
	if len(c.Memory) == 0 {
		batches := p.Batches()
		c.Memory = []profile.Memory{{Batch: batches[len(batches)-1]}}
	}
	for i := range c.Memory {
		c.Memory[i].Bytes = max(c.Memory[i].Bytes, bytes)
	}
	return &c
}
