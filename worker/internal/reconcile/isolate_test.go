package reconcile_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/reconcile"
)

func TestIsolateTakesModelsApart(t *testing.T) {
	let := func(id string, models ...string) plan.Gpulet {
		g := plan.Gpulet{ID: id, Share: 40, GPU: 1, MemBytes: 7}
		for _, m := range models {
			g.Models = append(g.Models, plan.Assignment{Model: m, Batch: 3})
		}
		return g
	}
	in := []plan.Gpulet{let("a", "x", "bad", "y"), let("b", "bad"), let("c", "z"), let("d", "bad", "worse"), let("e")}
	want := []plan.Gpulet{let("a", "x", "y"), let("a-q1", "bad"), let("b", "bad"), let("c", "z"), let("d", "worse"), let("d-q0", "bad"), let("e")}
	got := reconcile.Isolate(in, func(m string) bool { return m == "bad" || m == "worse" })
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(in, reconcile.Isolate(in, func(string) bool { return false })); d != "" {
		t.Errorf("without anything to isolate:\n%s", d)
	}
}
