package plan

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What a plan carries gives every model of a gpu-let its turn, and counts no guests; what can be answered at
// most has neither in its way.
func TestCapacitiesArePromisedAndPeaksAreBounds(t *testing.T) {
	p := Plan{Gpulets: []Gpulet{
		{Models: []Assignment{
			{Model: "a", Batch: 8, RateRPS: 100, DutyMs: 20, ExecMs: 5},
			{Model: "b", Batch: 3, RateRPS: 200, DutyMs: 20, ExecMs: 15},
		}},
		{Models: []Assignment{{Model: "a", Batch: 2, DutyMs: 4, ExecMs: 4}, {Model: "c", Batch: 1, RateRPS: 7}}},
	}}
	if d := cmp.Diff(map[string]float64{"a": 400, "b": 200, "c": 7}, p.Capacities()); d != "" {
		t.Errorf("capacities (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]float64{"a": 2100, "b": 200, "c": math.Inf(1)}, p.Peaks()); d != "" {
		t.Errorf("peaks (-want +got):\n%s", d)
	}
}
