package gpulet_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
)

// Every answer is counted under the status that the client was told.
func TestAnswersAreCountedByStatus(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}})
	r.waitReady(1)
	r.send("a", "ok1", 1)
	r.send("a", "ok2", 1)
	r.send("a", "failed", poison)
	r.publish(&bus.Message{Model: "a", RequestID: "bad", ReplyTo: r.inbox.Address("bad"), Body: []byte("?")})
	r.publish(&bus.Message{Model: "a", RequestID: "late", ReplyTo: r.inbox.Address("late"), Body: body(t, 1, 1), Deadline: time.Now().Add(-time.Second)})
	r.publish(&bus.Message{Model: "a", RequestID: "stored", Body: body(t, 1, 1)})
	r.publish(&bus.Message{Model: "a", RequestID: "nowhere", ReplyTo: "elsewhere", Body: body(t, 1, 1)})
	r.waitEmpty("a")
	want := map[string]uint64{"ok": 4, "failed": 1, "bad_request": 1, "expired": 1}
	last := r.gpulets[0].waitFor("all answers", func(p plan.GpuletReport) bool {
		return len(p.Models) == 1 && cmp.Equal(want, p.Models[0].Answers)
	})
	if d := cmp.Diff(want, last.Models[0].Answers); d != "" {
		t.Error(d)
	}
}
