package gpulet

import (
	"strconv"
	"testing"
	"time"
)

// What was cancelled is remembered until no queue can hold it any more, and never without bound.
func TestCancelledIsForgottenInTime(t *testing.T) {
	now := time.Unix(1000, 0)
	var c cancelled
	c.add("a", now, now.Add(time.Minute))
	for _, at := range []struct {
		after time.Duration
		id    string
		want  bool
	}{{0, "a", true}, {time.Minute, "a", true}, {time.Minute + 1, "a", false}, {0, "b", false}} {
		if got := c.has(at.id, now.Add(at.after)); got != at.want {
			t.Errorf("%s after %v: %v, expected %v", at.id, at.after, got, at.want)
		}
	}
	c.add("a", now.Add(time.Second), now.Add(2*time.Minute)) // again: for longer
	if !c.has("a", now.Add(2*time.Minute)) || len(c.order) != 1 {
		t.Errorf("cancelled twice: %+v", c)
	}
	late := now.Add(time.Hour)
	c.add("b", late, late.Add(time.Minute))
	if len(c.ids) != 1 || len(c.order) != 1 {
		t.Errorf("an hour later %d ids in %d places are remembered: expected 1", len(c.ids), len(c.order))
	}
	for i := range 2 * maxCancelled {
		c.add(strconv.Itoa(i), late, late.Add(time.Minute))
	}
	if len(c.ids) != maxCancelled || len(c.order) != maxCancelled || !c.has(strconv.Itoa(2*maxCancelled-1), late) {
		t.Errorf("%d ids in %d places: expected %d, the latest among them", len(c.ids), len(c.order), maxCancelled)
	}
}
