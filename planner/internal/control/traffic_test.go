package control

import (
	"testing"
	"time"

	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/shared/bus"
)

// TestAQueueIsFullWhenItStaysFull: bursts fill it too.
func TestAQueueIsFullWhenItStaysFull(t *testing.T) {
	tr := newTraffic(demand.DefaultConfig(10 * time.Second))
	now := time.Unix(1000, 0)
	look := func(pending, fetched uint64) bool {
		now = now.Add(time.Second)
		tr.observe("m", bus.Lag{Pending: pending, AckPending: fetched}, 40, now)
		return tr.loads(now)["m"].Full
	}
	for i, c := range []struct {
		pending, fetched uint64
		want             bool
	}{{40, 0, false}, {30, 6, false}, {35, 0, false}, {24, 16, false}, {36, 0, false}, {40, 0, true}, {39, 1, true}, {20, 8, false}, {40, 0, false}} {
		if got := look(c.pending, c.fetched); got != c.want {
			t.Errorf("look %d: full %v, expected %v", i, got, c.want)
		}
	}
	look(40, 0)
	look(40, 0)
	tr.replanned()
	if look(40, 0) {
		t.Error("full at the first look at a new plan")
	}
}
