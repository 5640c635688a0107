package gpulet

import (
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/link"
)

func TestHoldsOneBatchUnlessBatchesAreShorterThanTheWay(t *testing.T) {
	for _, c := range []struct {
		way   time.Duration
		execs []time.Duration // of a full batch of each model
		want  int
		image time.Duration // of decoding one
	}{
		{way: ms, execs: nil, want: 1},
		{way: ms, execs: []time.Duration{0}, want: 1}, // nothing is known
		{way: ms, execs: []time.Duration{20 * ms}, want: 1},
		{way: ms, execs: []time.Duration{ms}, want: 1},
		{way: ms, execs: []time.Duration{ms / 2}, want: 3},
		{way: ms, execs: []time.Duration{ms / 2, ms / 4}, want: 2},
		{way: ms, execs: []time.Duration{ms / 2, 20 * ms}, want: 1},
		{way: ms, execs: []time.Duration{time.Microsecond}, want: maxAhead},
		{way: ms, execs: []time.Duration{20 * ms}, image: 4 * ms, want: 1},
		{way: ms, execs: []time.Duration{ms}, image: ms / 4, want: 2},
		{way: ms, execs: []time.Duration{ms}, image: 4 * ms, want: 6},
	} {
		l := newLoop(Config{})
		l.lead.roundTrip = c.way
		for _, exec := range c.execs {
			m := newBound(link.Assignment{
				Assignment: plan.Assignment{Batch: 4},
				Config:     model.Model{Config: model.Config{MaxBatch: 4}},
			})
			m.puller, m.decodeLead = &bus.Puller{}, c.image
			if exec > 0 {
				m.estimate.ran(4, exec)
			}
			l.order = append(l.order, m)
		}
		if got := l.batchesAhead(); got != c.want {
			t.Errorf("a way of %v, batches of %v: %d ahead: expected %d", c.way, c.execs, got, c.want)
		}
	}
}

func TestLeadFollowsTheWayToTheQueue(t *testing.T) {
	d := newLead()
	for range 50 {
		d.met(100 * time.Microsecond)
	}
	if got := d.roundTrip; got > 110*time.Microsecond {
		t.Errorf("after many round trips of 100µs: %v", got)
	}
	d.met(time.Second) // a parked pull that looked like a backlog
	if got := d.roundTrip; got > ms {
		t.Errorf("after one odd measurement: %v", got)
	}
	for range 500 {
		d.met(10 * ms)
	}
	if got := d.roundTrip; got < 9*ms {
		t.Errorf("after many round trips of 10ms: %v", got)
	}
	if got := d.time(); got > maxLead {
		t.Errorf("lead %v: expected at most %v", got, maxLead)
	}
}

func TestAsksForMoreWhenMostComesTooLate(t *testing.T) {
	for waste, want := range map[float64]int{0: 8, 0.5: 16, 0.75: 32, 0.999: 64} {
		m := &bound{waste: waste}
		if got := m.toAsk(8); got != want {
			t.Errorf("%v of the requests come too late: asks for %d: expected %d", waste, got, want)
		}
	}
}
