package gpulet_test

import (
	"bytes"
	"fmt"
	"regexp"
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

// Whatever the answer, the gpu-let sends it, and stores it where it is to be kept, before it acknowledges
// the request: package lifetest shows what is lost otherwise.
func TestAnswersBeforeItAcknowledges(t *testing.T) {
	line := &tap{}
	r := newRig(t, rigOptions{models: []string{"a"}, tap: line})
	r.waitReady(1)
	r.cancel("a", "cancelled")
	var ids []string
	add := func(id string, m bus.Message) {
		ids = append(ids, id) // the places in the queue, from 1
		m.Model, m.RequestID = "a", id
		r.publish(&m)
	}
	inbox := r.inbox.Address
	add("ok", bus.Message{ReplyTo: inbox("ok"), Body: body(t, 1, 1)})
	add("failed", bus.Message{ReplyTo: inbox("failed"), Body: body(t, 1, poison)})
	add("bad", bus.Message{ReplyTo: inbox("bad"), Body: []byte("?")})
	add("late", bus.Message{ReplyTo: inbox("late"), Body: body(t, 1, 1), Deadline: time.Now().Add(-time.Second)})
	add("cancelled", bus.Message{ReplyTo: inbox("cancelled"), Body: body(t, 1, 1)})
	add("stored", bus.Message{Body: body(t, 1, 1)})
	add("kept", bus.Message{ReplyTo: inbox("kept"), Idempotent: true, Body: body(t, 1, 1)})
	r.waitEmpty("a")
	sent := line.sent()
	for i, id := range ids {
		ack := regexp.MustCompile(fmt.Sprintf(`PUB \$JS\.ACK\.INFER_a\.W\.1\.%d\.\S+ 4\r\n\+ACK`, i+1)).FindIndex(sent)
		if ack == nil {
			t.Errorf("%s was not acknowledged", id)
			continue
		}
		for _, to := range [][]byte{[]byte(" " + inbox(id) + " "), []byte(" result.a." + id + " ")} {
			if at := bytes.LastIndex(sent, to); at > ack[0] {
				t.Errorf("%s was acknowledged at byte %d and answered, to%s, at %d", id, ack[0], to, at)
			}
		}
		if !bytes.Contains(sent[:ack[0]], []byte("Gpulet-Request-Id: "+id+"\r\n")) {
			t.Errorf("%s was acknowledged and not answered before", id)
		}
	}
	if !bytes.Contains(sent, []byte(" result.a.kept ")) || !bytes.Contains(sent, []byte(" "+inbox("kept")+" ")) {
		t.Error("what is to be kept was not both sent and stored")
	}
}
