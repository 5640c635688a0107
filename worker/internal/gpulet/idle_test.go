package gpulet_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
)

// TestWhoYieldsRunsAfterWhoWaits has one request of each model wait for a busy executor, the one of the
// model that yields first.
func TestWhoYieldsRunsAfterWhoWaits(t *testing.T) {
	for _, yields := range []string{"bulk", "guest"} {
		t.Run(yields, func(t *testing.T) {
			r := newRig(t, rigOptions{models: []string{"a", yields}, none: true})
			replies := make(chan string, 8)
			r.onReply = func(rep bus.Reply) { replies <- rep.Token }
			r.start("a", yields)
			r.waitReady(1)
			for _, m := range []string{"a", yields} {
				r.waitLag(m, func(l bus.Lag) bool { return l.Waiting == 1 })
			}
			waiting, open := r.engine.gate.shut()
			defer open()
			r.send("a", "first", 1)
			r.await(waiting)
			r.send(yields, "yields", 1)
			r.unstored.Wait()
			r.waitLag(yields, func(l bus.Lag) bool { return l.AckPending == 1 })
			r.send("a", "second", 1)
			r.unstored.Wait()
			r.waitLag("a", func(l bus.Lag) bool { return l.AckPending == 2 && l.Waiting == 1 }) // it asks for more,
			r.report()                                                                          // and is sure that there is none
			open()
			for _, want := range []string{"first", "second", "yields"} {
				if got := <-replies; got != want {
					t.Errorf("%s was answered: expected %s", got, want)
				}
			}
		})
	}
}

// backlog has n patient requests of one sample wait for a model, and returns their ids.
func (r *rig) backlog(mdl string, n int) []string {
	r.t.Helper()
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
		r.publish(&bus.Message{
			Model: mdl, RequestID: ids[i], ReplyTo: r.inbox.Address(ids[i]), Timeout: 30 * time.Second, Body: r.body(1),
		})
	}
	r.unstored.Wait()
	return ids
}

// TestAnOfflineBatchLeavesOthersTheirSLO: by the plan eight samples take 10 ms and four 7.5 ms; beside an
// SLO of 25 ms there is time for half of 25 - 10.
func TestAnOfflineBatchLeavesOthersTheirSLO(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a", "bulk"}, none: true, batch: 8, execMs: 10, timeout: 50 * time.Millisecond})
	ids := r.backlog("bulk", 8)
	waiting, open := r.engine.gate.shut()
	defer open()
	loading, load := r.engine.loading.shut()
	defer load()
	r.start("a", "bulk")
	r.await(loading)
	for range 2 { // a second at least, in which nobody can ask for the executor
		r.report()
	}
	load()
	r.await(waiting)
	r.engine.mu.Lock()
	if got := r.engine.worst; got != 4 {
		t.Errorf("a batch of %d samples: expected 4", got)
	}
	r.engine.mu.Unlock()
	open()
	r.wait(ids...)
}

// TestOfflineRequestsAloneAreServedAsAnyOther: with nobody to yield to, batches are as planned.
func TestOfflineRequestsAloneAreServedAsAnyOther(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"bulk"}, none: true, batch: 8, execMs: 10, timeout: 25 * time.Millisecond})
	ids := r.backlog("bulk", 8)
	r.start("bulk")
	for _, rep := range r.wait(ids...) {
		if rep.Timing.Batch != 8 {
			t.Errorf("%s ran in a batch of %d: expected 8", rep.RequestID, rep.Timing.Batch)
		}
	}
}

// TestASuspectDoesNotWaitForIdleTime: a suspect waits until nothing else is held, and nothing else is fetched
// meanwhile, so what yields is not held back on its account.
func TestASuspectDoesNotWaitForIdleTime(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a", "bulk"}, none: true, timeout: time.Minute, ackWait: time.Minute})
	giveBack := r.fetchSuspects("a", 1, 0, plan.Suspect{Deaths: 1}, "suspect")
	r.start("a", "bulk")
	r.waitReady(1)
	waiting, open := r.engine.gate.shut()
	defer open()
	r.send("a", "first", 1)
	r.await(waiting)
	r.send("bulk", "yields", 1)
	r.unstored.Wait()
	r.waitLag("bulk", func(l bus.Lag) bool { return l.AckPending == 1 })
	giveBack()
	r.waitLag("a", func(l bus.Lag) bool { return l.AckPending == 2 && l.Waiting == 0 }) // it is here: nothing is fetched
	open()
	r.ok("first", "yields", "suspect")
}
