package epoch

import (
	"testing"
	"time"

	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// offer lets the queues of f take what gpu-lets answer of what is offered, somewhat less than the plan
// carries: that is all that is seen of it.
func (f *fleet) offer(offered map[string]float64) {
	capacity := f.state.Current.Capacities()
	for name, rate := range offered {
		f.rate(name, min(rate, 0.8*capacity[name]))
		l := f.state.Loads[name]
		l.Full = rate > capacity[name]
		f.state.Loads[name] = l
	}
}

// TestWeightDecidesWhoIsShed: two models are offered far more than the fleet carries, of which the planner
// sees only what their queues do not refuse.
func TestWeightDecidesWhoIsShed(t *testing.T) {
	f := newFleet(t, "gpulet")
	f.host("a", 2)
	f.model("resnet50", 108*time.Millisecond, 100)
	f.model("vgg16", 142*time.Millisecond, 100)
	f.state.Models[1].Weight = 20
	f.expect(First, 1)
	offered := map[string]float64{"resnet50": 5000, "vgg16": 5000}
	for range 8 {
		f.offer(offered)
		f.epoch()
	}
	alone := newFleet(t, "gpulet")
	alone.host("a", 2)
	alone.model("vgg16", 142*time.Millisecond, 5000)
	alone.expect(First, 1)
	most := alone.state.Current.Capacities()["vgg16"]
	if got := f.state.Current.Capacities()["vgg16"]; got < 0.9*most {
		t.Errorf("the plan carries %.0f/s of the model of weight 20, %.0f/s of it when it is alone: %v", got, most, f.state.Current.Capacities())
	}
	f.offer(offered)
	if d := f.epoch(); d.Publish {
		t.Errorf("published again without anything better: %s: %s", d.Cause, d.Reason)
	}
}

func TestAFullQueueIsUrgent(t *testing.T) {
	f := newFleet(t, "elastic")
	f.host("a", 1)
	f.model("resnet50", 108*time.Millisecond, 50)
	f.expect(First, 1)
	f.state.Loads["resnet50"] = Load{Full: true, Backlog: 2, Estimate: demand.Estimate{RateRPS: 50, Window: time.Minute}}
	if cause, _, changed := Urgent(f.state, Look(f.state)); cause != Demand || changed {
		t.Errorf("cause %q, changed %v: expected %q", cause, changed, Demand)
	}
}

// TestAFloodGetsNoRoomForABurst: what is let in while a queue is full for long would wait in vain.
func TestAFloodGetsNoRoomForABurst(t *testing.T) {
	m := model.Model{Config: model.Config{Name: "m", Timeout: 200 * time.Millisecond}}
	guest := plan.Assignment{Model: "m", Batch: 1, DutyMs: 26, ExecMs: 6}
	small := guest
	small.RateRPS = 30
	for _, c := range []struct {
		a    plan.Assignment
		full bool
		want int64
	}{
		{guest, false, 32},
		{guest, true, 2},
		{small, false, 32},
		{small, true, 5}, // 1000/26 a second for 0.7 of 200 ms
	} {
		p := plan.Plan{Gpulets: []plan.Gpulet{{Models: []plan.Assignment{c.a}}}}
		if got := QueueFor(m, p, Load{Full: c.full}, 1<<20).MaxMsgs; got != c.want {
			t.Errorf("rate %v, full %v: %d requests, expected %d", c.a.RateRPS, c.full, got, c.want)
		}
	}
}
