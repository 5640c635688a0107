package pack

import (
	"cmp"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

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
		if factor := carries[m.Name] / m.Rate; factor < 1.9 {
			t.Errorf("%s: its gpu-lets carry %.2f of its rate: expected nearly twice as much, as for all others", m.Name, factor)
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

// paperMix is a problem of six of the paper's models, at the same rate each.
func paperMix(t *testing.T, gpus int, rate float64) problem.Input {
	t.Helper()
	in := roomy(t)
	in.GPUs, in.Models = nil, nil
	for i := range gpus {
		in.GPUs = append(in.GPUs, problem.GPU{Host: "a", Index: i, Type: "h100"})
	}
	for _, m := range []struct {
		name string
		ms   time.Duration
	}{{"bert", 22}, {"densenet161", 60}, {"googlenet", 20}, {"lenet", 5}, {"resnet50", 20}, {"vgg16", 30}} {
		in.Models = append(in.Models, problem.Model{Name: m.name, SLO: m.ms * time.Millisecond, Rate: rate})
	}
	return in
}

// TestHeadroomIsFoundAtOnce: the first plan is as good as the one after it would be, which then moves nothing.
func TestHeadroomIsFoundAtOnce(t *testing.T) {
	for gpus, rate := range map[int]float64{1: 1124, 4: 5283} {
		in := paperMix(t, gpus, rate)
		first := Gpulet(in, Options{Headroom: true}).Plan
		in.Current = &first
		if diff := plan.Diff(first, Gpulet(in, Options{Headroom: true}).Plan); diff.Moves() > 0 {
			t.Errorf("%d GPUs: %d moves though nothing changed\n%s", gpus, diff.Moves(), diff)
		}
	}
}

// TestOfflineModelsTakeNoHeadroom: what waits anyway is not late, and needs no room for bursts.
func TestOfflineModelsTakeNoHeadroom(t *testing.T) {
	in := bursty(t, 740)
	in.Models = append(in.Models, problem.Model{Name: "vgg16", SLO: time.Minute, Rate: 20, Offline: true})
	g := newSearch(newEnv(&in), Options{})
	if h := g.scaled(2); h.env.models[4].rate != 20 || h.env.models[0].rate != 1480 {
		t.Errorf("twice the rates: %v: expected that of the offline model to stay", h.env.models)
	}
	s := newState(g.env)
	parts := []part{{len(g.env.classes[0].shares) - 1, []slot{{m: 4, rate: 20}}}}
	if !g.env.settle(0, parts) {
		t.Fatal("the offline model does not fit a GPU alone: expected it to")
	}
	s.set(0, parts)
	g.env.models[4].rate = 1e6 // which it cannot carry
	if late := s.late(); late > 0 {
		t.Errorf("%v of the requests are late: expected none, since those of an offline model wait", late)
	}
}

// TestPropertyHeadroomKeepsToItsGPUs: from any current plan, it takes no more GPUs and serves as much.
func TestPropertyHeadroomKeepsToItsGPUs(t *testing.T) {
	set := shipped(t)
	predict, err := interference.New(set)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		in := randomInput(t, set, predict)
		if rapid.Bool().Draw(t, "near") { // a plan of before: other rates, and a GPU that is lost or new
			was := in
			was.Models = slices.Clone(in.Models)
			for i := range was.Models {
				was.Models[i].Rate *= rapid.SampledFrom([]float64{0, 0.5, 0.97, 1, 1.03, 2}).Draw(t, "was")
			}
			was.GPUs = was.GPUs[:rapid.IntRange(0, len(was.GPUs)).Draw(t, "had")]
			in.GPUs = in.GPUs[rapid.IntRange(0, len(in.GPUs)).Draw(t, "lost"):]
			before := Gpulet(was, Options{Steps: 20, Headroom: true}).Plan
			before.Revision = 7
			in.Current = &before
		}
		for i := range in.Models {
			in.Models[i].Offline = rapid.Bool().Draw(t, "offline")
		}
		bare, got := Gpulet(in, Options{Steps: 20}).Plan, Gpulet(in, Options{Steps: 20, Headroom: true}).Plan
		for _, v := range check.Plan(in, got) {
			t.Errorf("%v", v)
		}
		planned := map[string]float64{}
		for _, g := range got.Gpulets {
			for _, a := range g.Models {
				planned[a.Model] += a.RateRPS
			}
		}
		for _, m := range in.Models {
			if sum := planned[m.Name] + got.Unserved[m.Name]; math.Abs(sum-m.Rate) > 1e-6*m.Rate {
				t.Errorf("%s: %v/s planned or unserved, %v/s asked", m.Name, sum, m.Rate)
			}
		}
		if got.GPUsUsed > bare.GPUsUsed || len(got.Unserved) != len(bare.Unserved) {
			t.Errorf("%d GPUs, unserved %v: expected no more than the %d GPUs, and %v, of a plan without headroom", got.GPUsUsed, got.Unserved, bare.GPUsUsed, bare.Unserved)
		}
	})
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
