package pack

import (
	"testing"
	"time"

	"github.com/gpulet/gpulet/planner/internal/check"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/interference"
	"github.com/gpulet/gpulet/shared/plan"
)

// roomy is a problem that one GPU solves with much to spare.
func roomy(t *testing.T) problem.Input {
	t.Helper()
	set := shipped(t)
	predict, err := interference.New(set)
	if err != nil {
		t.Fatal(err)
	}
	return problem.Input{
		GPUs: []problem.GPU{{Host: "a", Type: "h100"}}, Profiles: set, Interference: predict,
		Models: []problem.Model{
			{Name: "resnet50", SLO: 20 * time.Millisecond, Rate: 600},
			{Name: "googlenet", SLO: 20 * time.Millisecond, Rate: 300},
		},
	}
}

func TestHeadroomIsHandedOut(t *testing.T) {
	in := roomy(t)
	bare, roomy := Gpulet(in, Options{}).Plan, Gpulet(in, Options{Headroom: true}).Plan
	if v := check.Plan(in, roomy); len(v) > 0 {
		t.Fatal(v)
	}
	total := func(p plan.Plan) (share, batches int) {
		for _, g := range p.Gpulets {
			share += g.Share
			for _, a := range g.Models {
				batches += a.Batch
			}
		}
		return share, batches
	}
	share, batches := total(bare)
	wider, larger := total(roomy)
	if share >= 100 {
		t.Fatalf("the plan takes %d %%: expected one with room", share)
	}
	if wider != 100 || larger <= batches {
		t.Errorf("shares of %d %% and batches of %d in all: expected 100 %% and more than %d", wider, larger, batches)
	}
	if len(roomy.Gpulets) != len(bare.Gpulets) || roomy.GPUsUsed != bare.GPUsUsed {
		t.Errorf("%d gpu-lets on %d GPUs: expected those of the plan, %d on %d", len(roomy.Gpulets), roomy.GPUsUsed, len(bare.Gpulets), bare.GPUsUsed)
	}
}

// TestHeadroomStays: the same problem again, from the plan that has it, moves nothing.
func TestHeadroomStays(t *testing.T) {
	in := roomy(t)
	first := Gpulet(in, Options{Headroom: true}).Plan
	in.Current = &first
	again := Gpulet(in, Options{Headroom: true}).Plan
	for i, g := range again.Gpulets {
		if was := first.Gpulets[i]; g.ID != was.ID || g.Share != was.Share {
			t.Errorf("%s on %d %%: expected %s on %d %% to stay", g.ID, g.Share, was.ID, was.Share)
		}
	}
}
