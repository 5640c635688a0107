package pack

import (
	"cmp"
	"math"
	"slices"
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

// bursty is a problem of models with short SLOs that one GPU carries more than twice: widening the gpu-lets
// of its least plan gives all that is left to one of them.
func bursty(t *testing.T, rate float64) problem.Input {
	t.Helper()
	in := roomy(t)
	in.Models = nil
	for name, slo := range map[string]float64{"bert": 5.01, "googlenet": 3.324, "mnasnet1_0": 3, "mobilenet_v2": 3} {
		in.Models = append(in.Models, problem.Model{Name: name, SLO: time.Duration(slo * float64(time.Millisecond)), Rate: rate})
	}
	slices.SortFunc(in.Models, func(a, b problem.Model) int { return cmp.Compare(a.Name, b.Name) })
	return in
}

func TestHeadroomLetsEveryModelBurst(t *testing.T) {
	in := bursty(t, 740)
	got := Gpulet(in, Options{Headroom: true}).Plan
	if v := check.Plan(in, got); len(v) > 0 {
		t.Fatal(v)
	}
	carries, rates := map[string]float64{}, map[string]float64{}
	for _, g := range got.Gpulets {
		for _, a := range g.Models {
			carries[a.Model] += float64(a.Batch) / a.DutyMs * 1000
			rates[a.Model] += a.RateRPS
		}
	}
	for _, m := range in.Models {
		if factor := carries[m.Name] / m.Rate; factor < 2 {
			t.Errorf("%s: its gpu-lets carry %.2f of its rate: expected at least twice as much, as for all others", m.Name, factor)
		}
		if math.Abs(rates[m.Name]-m.Rate) > 1e-6*m.Rate {
			t.Errorf("%s: planned for %v samples/s: expected %v", m.Name, rates[m.Name], m.Rate)
		}
	}
	if got.GPUsUsed != 1 {
		t.Errorf("%d GPUs: expected one", got.GPUsUsed)
	}
}

// TestHeadroomKeepsItsCut: the room is there so that other rates need no other plan.
func TestHeadroomKeepsItsCut(t *testing.T) {
	current := Gpulet(bursty(t, 740), Options{Headroom: true}).Plan
	for _, rate := range []float64{740, 700, 790, 600, 850, 900} {
		in := bursty(t, rate)
		in.Current = &current
		next := Gpulet(in, Options{Headroom: true}).Plan
		if v := check.Plan(in, next); len(v) > 0 {
			t.Fatal(v)
		}
		if diff := plan.Diff(current, next); diff.Moves() > 0 {
			t.Errorf("%v samples/s each: %d moves: expected none\n%s", rate, diff.Moves(), diff)
		}
		current = next
	}
}

func TestLateRisesWithTheRate(t *testing.T) {
	in := bursty(t, 300)
	g := newSearch(newEnv(&in), Options{})
	s := g.solve()
	s.handOut()
	before := s.late()
	for _, factor := range []float64{1.2, 1.5, 2} {
		scaled := *s
		scaled.env = g.scaled(factor).env
		if after := scaled.late(); !(after > before && after <= 1) {
			t.Errorf("at %v times the rates %v of the requests are late: expected more than %v, and at most all", factor, after, before)
		} else {
			before = after
		}
	}
}
