package epoch

import (
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// offline is a model of that class whose requests have an hour.
func (f *fleet) offline(name string, rate float64) {
	f.model(name, time.Hour, rate)
	f.state.Models[len(f.state.Models)-1].Class = "offline"
}

func TestOfflineModelsCostInteractiveOnesNothing(t *testing.T) {
	for _, rate := range []float64{300, 5000} { // what the GPU carries, and far more
		alone := newFleet(t, "gpulet")
		alone.host("a", 1)
		alone.model("resnet50", 108*time.Millisecond, rate)
		want := alone.expect(First, 1)
		f := newFleet(t, "gpulet")
		f.host("a", 1)
		f.model("resnet50", 108*time.Millisecond, rate)
		f.offline("googlenet", 5000)
		got := f.expect(First, 1)
		if a, b := served(got.Plan, "resnet50"), served(want.Plan, "resnet50"); a < 0.999*b {
			t.Errorf("rate %v: %.1f/s of the interactive model are planned, %.1f/s without an offline one", rate, a, b)
		}
		if got.DesiredGPUs != want.DesiredGPUs {
			t.Errorf("rate %v: %d GPUs are desired, %d without an offline model", rate, got.DesiredGPUs, want.DesiredGPUs)
		}
		if !loaded(got.Plan)["googlenet"] {
			t.Errorf("rate %v: the offline model is not loaded: %q", rate, got.Problems)
		}
		if _, lacks := got.Plan.Unserved["googlenet"]; lacks || hasProblem(got, "googlenet", "have no place") {
			t.Errorf("rate %v: what an offline model lacks is no problem: %v, %q", rate, got.Plan.Unserved, got.Problems)
		}
		if d := f.epoch(); d.Publish {
			t.Errorf("rate %v: published again without anything better: %s: %s", rate, d.Cause, d.Reason)
		}
	}
}

func TestOfflineModelsFillIdleGPUs(t *testing.T) {
	f := newFleet(t, "gpulet")
	f.host("a", 3)
	f.model("resnet50", 108*time.Millisecond, 50)
	f.offline("vgg16", 1)
	f.expect(First, 1)
	f.rate("vgg16", 400)
	d := f.expect(Demand, 2)
	if got := served(d.Plan, "vgg16"); got < 400 {
		t.Errorf("%.1f of 400/s are planned", got)
	}
}

func TestAnOfflineBacklogCanWait(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.offline("vgg16", 10)
	f.expect(First, 1)
	l := f.state.Loads["vgg16"]
	l.Backlog, l.Full = 1_000_000, true
	f.state.Loads["vgg16"] = l
	if cause, reason, _ := Urgent(f.state, Look(f.state)); cause != "" {
		t.Errorf("urgent: %s: %s", cause, reason)
	}
}

// TestAnOfflineQueueCollectsABacklog: idle times are not planned.
func TestAnOfflineQueueCollectsABacklog(t *testing.T) {
	m := model.Model{Config: model.Config{Name: "m", Timeout: time.Minute, Class: "offline"}}
	a := plan.Assignment{Model: "m", Batch: 1, RateRPS: 1, DutyMs: 1000}
	p := plan.Plan{Gpulets: []plan.Gpulet{{Models: []plan.Assignment{a}}}}
	if got := QueueFor(m, p, Load{Full: true}, 1<<20).MaxMsgs; got < leastLoading {
		t.Errorf("%d requests, expected %d or more", got, leastLoading)
	}
}
