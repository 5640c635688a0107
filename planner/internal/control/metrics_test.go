package control

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/shared/plan"
)

// What a cancelled request would have taken is what a sample takes where that is least.
func TestCancelledRequestsAreCountedWithWhatTheyWouldHaveTaken(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	m.Cancelled("bert") // before there is a plan
	m.costs(plan.Plan{Gpulets: []plan.Gpulet{
		{ID: "a", Models: []plan.Assignment{{Model: "bert", Batch: 4, ExecMs: 20}, {Model: "lenet", ExecMs: 3}}},
		{ID: "b", Models: []plan.Assignment{{Model: "bert", Batch: 2, ExecMs: 16}}},
	}})
	m.Cancelled("bert")
	m.Cancelled("bert")
	m.Cancelled("lenet")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if name, ours := strings.CutPrefix(f.GetName(), "gpulet_planner_cancelled_"); ours {
			for _, series := range f.GetMetric() {
				got[name+" "+series.GetLabel()[0].GetValue()] = series.GetCounter().GetValue()
			}
		}
	}
	want := map[string]float64{
		"requests_total bert": 3, "exec_seconds_saved_total bert": 0.010,
		"requests_total lenet": 1, "exec_seconds_saved_total lenet": 0.003,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
