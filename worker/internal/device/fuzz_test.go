package device

import (
	"slices"
	"testing"
)

// FuzzParse: a device is refused, or asks for GPUs that a host can have.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"auto", "cpu", "cuda:0,2", "sim:h100x4", "sim:a10:2,x3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := Parse(s)
		if err != nil {
			return
		}
		total := 0
		for _, g := range c.Sim {
			total += g.Count
		}
		if total > MaxSim || (c.Kind == Sim) != (total > 0) || !slices.IsSorted(c.GPUs) || len(c.GPUs) > 0 && c.GPUs[0] < 0 {
			t.Errorf("%+v", c)
		}
	})
}
