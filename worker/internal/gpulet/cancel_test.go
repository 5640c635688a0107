package gpulet_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/wire"
)

// cancel cancels requests and waits until the first gpu-let, which serves the model, has heard of it.
func (r *rig) cancel(mdl string, ids ...string) {
	r.t.Helper()
	heard := func(p plan.GpuletReport) uint64 {
		for _, m := range p.Models {
			if m.Model == mdl {
				return m.Cancels
			}
		}
		return 0
	}
	before := heard(r.report())
	for _, id := range ids {
		if err := r.client.Cancel(bus.Cancellation{Model: mdl, RequestID: id}); err != nil {
			r.t.Fatal(err)
		}
	}
	r.gpulets[0].waitFor("the cancellations", func(p plan.GpuletReport) bool { return heard(p) == before+uint64(len(ids)) })
}

// statuses checks how requests ended.
func (r *rig) statuses(want map[string]wire.Status) {
	r.t.Helper()
	for id, status := range want {
		if rep := r.wait(id)[0]; rep.Status != status {
			r.t.Errorf("%s: %s, expected %s: %s", id, rep.Status, status, rep.Detail)
		}
	}
}

// What is cancelled while it waits in the gpu-let is answered at once and does not run; what runs is not
// answered with its outputs; neighbours are not touched.
func TestCancelledRequestsAreNotRunOrNotAnswered(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, batch: 4})
	r.waitReady(1)
	r.send("a", "warm", 1) // tells what a sample takes
	r.wait("warm")
	waiting, open := r.engine.gate.shut()
	defer open()
	r.send("a", "runs", 1)
	r.await(waiting)
	for _, id := range []string{"held", "beside"} {
		r.send("a", id, 2)
	}
	r.waitHeld(2)
	r.cancel("a", "held", "runs", "nobody")
	r.statuses(map[string]wire.Status{"held": wire.Cancelled}) // the gate is shut: at once
	open()
	r.statuses(map[string]wire.Status{"runs": wire.Cancelled, "beside": wire.StatusOK, "warm": wire.StatusOK})
	r.waitEmpty("a")
	last := r.gpulets[0].waitFor("the counts", func(p plan.GpuletReport) bool {
		return p.Models[0].Answers["cancelled"] == 2 && p.Models[0].Answers["ok"] == 2
	}).Models[0]
	if last.Samples != 3 || last.Requests != 3 {
		t.Errorf("%d samples of %d requests ran: expected 3, without the one that was held", last.Samples, last.Requests)
	}
	if last.SavedMs <= 0 || last.SavedMs > last.BusyMs {
		t.Errorf("%v ms saved, %v ms spent on three samples: expected something, and less than that", last.SavedMs, last.BusyMs)
	}
}

// What is cancelled while it waits in the queue ends when it is fetched, and never runs.
func TestARequestThatWasCancelledInTheQueueIsNotRun(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, batch: 1, execMs: 60_000, timeout: time.Hour})
	r.waitReady(1)
	waiting, open := r.engine.gate.shut()
	defer open()
	r.send("a", "first", 1)
	r.await(waiting)
	// With a minute to go, nothing more is fetched.
	for i := range 3 {
		r.send("a", fmt.Sprint("queued", i), 1)
	}
	r.unstored.Wait()
	r.cancel("a", "queued0", "queued2", "later", "first")
	open()
	r.statuses(map[string]wire.Status{
		"first": wire.Cancelled, "queued0": wire.Cancelled, "queued1": wire.StatusOK, "queued2": wire.Cancelled,
	})
	r.send("a", "later", 1) // overtaken by its cancellation
	r.statuses(map[string]wire.Status{"later": wire.Cancelled})
	r.waitEmpty("a")
	last := r.gpulets[0].waitFor("the counts", func(p plan.GpuletReport) bool { return p.Models[0].Answers["cancelled"] == 4 }).Models[0]
	if last.Samples != 2 {
		t.Errorf("%d samples ran, expected 2", last.Samples)
	}
}

func TestAnImageThatIsCancelledWhileItIsDecodedIsNotRun(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, images: true})
	r.waitReady(1)
	waiting, open := r.engine.jpegs.shut()
	defer open()
	r.sendImage("a", "jpeg", wire.TypeJPEG, jpegOf(t, 3), 0)
	r.await(waiting)
	r.cancel("a", "jpeg")
	open()
	r.statuses(map[string]wire.Status{"jpeg": wire.Cancelled})
	r.waitEmpty("a")
	if n := r.report().Models[0].Samples; n != 0 {
		t.Errorf("%d samples ran", n)
	}
}

// A gpu-let hears of the models that it serves, also of one that comes back.
func TestHearsOfTheModelsThatItServes(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a", "b"}})
	r.waitReady(1)
	r.gpulets[0].assign(2, "b")
	r.gpulets[0].waitFor("a to go", func(p plan.GpuletReport) bool { return p.Revision == 2 && len(p.Models) == 1 })
	if err := r.client.Cancel(bus.Cancellation{Model: "a", RequestID: "x"}); err != nil { // nobody hears it
		t.Fatal(err)
	}
	r.cancel("b", "x")
	r.send("b", "x", 1)
	r.statuses(map[string]wire.Status{"x": wire.Cancelled})
	r.gpulets[0].assign(3, "a", "b")
	r.gpulets[0].waitFor("a to come back", func(p plan.GpuletReport) bool { return p.Revision == 3 && p.State == plan.Ready })
	r.send("a", "y", 1)
	r.statuses(map[string]wire.Status{"y": wire.StatusOK})
}

// A request that asks for it has its reply kept, too; the reply itself does not wait for that.
func TestAKeptReplyIsSentAndStored(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}})
	r.waitReady(1)
	r.publish(&bus.Message{Model: "a", RequestID: "good", ReplyTo: r.inbox.Address("good"), Idempotent: true, Body: body(t, 1, 21)})
	r.publish(&bus.Message{Model: "a", RequestID: "bad", ReplyTo: r.inbox.Address("bad"), Idempotent: true, Body: []byte("?")})
	r.publish(&bus.Message{Model: "a", RequestID: "nowhere", ReplyTo: "elsewhere", Idempotent: true, Body: body(t, 1, 21)})
	r.send("a", "plain", 1)
	r.statuses(map[string]wire.Status{"good": wire.StatusOK, "bad": wire.BadRequest, "plain": wire.StatusOK})
	r.waitEmpty("a")
	for id, want := range map[string]wire.Status{"good": wire.StatusOK, "bad": wire.BadRequest, "nowhere": wire.StatusOK} {
		got, err := r.client.Result(t.Context(), "a", id)
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		if rep, err := wire.DecodeReply(got.Get, got.Body); err != nil || rep.Status != want || rep.RequestID != id {
			t.Errorf("result of %s: %+v, %v", id, rep, err)
		}
	}
	if _, err := r.client.Result(t.Context(), "a", "plain"); err == nil {
		t.Error("a reply was kept that nobody asked to keep")
	}
}
