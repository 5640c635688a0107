package gpulet_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
)

// suspects sends requests of one value, has somebody fetch them and give them back, and holds deaths
// against each.
func (r *rig) suspects(mdl string, value float32, timeout time.Duration, s plan.Suspect, ids ...string) {
	r.t.Helper()
	r.fetchSuspects(mdl, value, timeout, s, ids...)()
}

// fetchSuspects is suspects, but that they are given back later: until then nobody else gets them.
func (r *rig) fetchSuspects(mdl string, value float32, timeout time.Duration, s plan.Suspect, ids ...string) (giveBack func()) {
	r.t.Helper()
	for _, id := range ids {
		r.publish(&bus.Message{Model: mdl, RequestID: id, ReplyTo: r.inbox.Address(id), Timeout: timeout, Body: body(r.t, 1, value)})
	}
	r.unstored.Wait()
	worker := embeddedtest.Connect(r.t, r.srv, bus.RoleWorker)
	events := make(chan bus.PullEvent, 16)
	p, err := worker.NewPuller(mdl, bus.PullerOptions{Events: events})
	if err != nil {
		r.t.Fatal(err)
	}
	defer p.Close()
	if err := p.Pull(len(ids), true, time.Minute); err != nil {
		r.t.Fatal(err)
	}
	var fetched []*bus.Msg
	for range ids {
		msg := (<-events).Msg
		s.Model, s.Seq, s.Stored = mdl, msg.Seq, msg.Stamped
		if s.Deaths > 0 {
			if err := worker.PutSuspect(r.t.Context(), s); err != nil {
				r.t.Fatal(err)
			}
		}
		fetched = append(fetched, msg)
	}
	if err := worker.Flush(); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		for _, msg := range fetched {
			_ = msg.Nak(0) // else it is not delivered again, and the test says so
		}
	}
}

func TestASuspectRunsWhenNothingElseIsHeld(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a", "b"}, batch: 4, none: true, timeout: time.Minute})
	r.suspects("a", stalls, 0, plan.Suspect{Deaths: 1}, "suspect")
	waiting, open := r.engine.stall.shut()
	r.start("a", "b")
	r.await(waiting)
	// It runs. Nothing else is fetched, of its model or of another.
	ids := []string{"a0", "a1", "a2", "b0", "b1", "b2"}
	for _, id := range ids {
		r.send(id[:1], id, 1)
	}
	r.unstored.Wait()
	r.waitLag("a", func(l bus.Lag) bool { return l.AckPending == 1 && l.Pending == 3 })
	r.waitLag("b", func(l bus.Lag) bool { return l.AckPending == 0 && l.Pending == 3 })
	open()
	if rep := r.wait("suspect")[0]; rep.Status != wire.StatusOK || rep.Timing.Batch != 1 {
		t.Errorf("the suspect: %s in a batch of %d: expected ok, alone", rep.Status, rep.Timing.Batch)
	}
	r.ok(ids...)
	r.waitEmpty("a")
	r.waitEmpty("b")
}

func TestSeveralSuspectsAreTriedOneByOne(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, batch: 4, none: true, timeout: time.Minute})
	ids := []string{"0", "1", "2", "3"}
	r.suspects("a", 1, 0, plan.Suspect{Deaths: 1}, ids...)
	r.start("a")
	r.ok(ids...)
	for _, rep := range r.wait(ids...) {
		if rep.Timing.Batch != 1 {
			t.Errorf("%s ran in a batch of %d: expected alone", rep.RequestID, rep.Timing.Batch)
		}
	}
	r.waitEmpty("a")
}

func TestAConvictIsBuriedAndNeverRuns(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, batch: 4, none: true})
	r.suspects("a", 1, 0, plan.Suspect{
		Deaths: 2, Alone: true, Gpulet: "h-0-50", Reason: "exited: exit status 2", LastWords: "SIGABRT: abort",
	}, "killer")
	r.start("a")
	rep := r.wait("killer")[0]
	want := "2 processes died over it, the last one, of gpu-let h-0-50, while it was alone there: exited: exit status 2"
	if rep.Status != wire.Poisoned || rep.Detail != want {
		t.Errorf("reply %s %q: expected %s %q", rep.Status, rep.Detail, wire.Poisoned, want)
	}
	r.waitEmpty("a")
	var letters []bus.Letter
	for l, err := range r.planner.DeadLetters(t.Context(), "a") {
		if err != nil {
			t.Fatal(err)
		}
		letters = append(letters, l)
	}
	if len(letters) != 1 {
		t.Fatalf("%d dead letters: expected 1", len(letters))
	}
	l := letters[0]
	if l.RequestID != "killer" || l.Reason != want || l.LastWords != "SIGABRT: abort" || l.Gpulet != "h-0-50" || l.Delivered != 2 {
		t.Errorf("letter %+v", l)
	}
	r.gpulets[0].waitFor("the buried counted", func(p plan.GpuletReport) bool { return len(p.Models) > 0 && p.Models[0].Poisoned == 1 })
	if r.engine.mu.Lock(); r.engine.runs != 0 {
		t.Errorf("the engine ran %d batches: expected none", r.engine.runs)
	}
	r.engine.mu.Unlock()
}

// That a process died which held a request says nothing against it.
func TestARedeliveredRequestWithoutDeathsIsServedAtOnce(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, none: true})
	r.suspects("a", 1, 0, plan.Suspect{}, "innocent")
	r.start("a")
	r.ok("innocent")
	r.waitEmpty("a")
}

func TestASuspectThatBecomesTooLateIsTold(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a", "b"}, none: true, timeout: time.Minute})
	r.suspects("b", 1, 2*time.Second, plan.Suspect{Deaths: 1}, "late")
	r.send("a", "endless", stalls)
	r.unstored.Wait()
	waiting, open := r.engine.stall.shut()
	defer open()
	r.start("a")
	r.await(waiting)
	r.gpulets[0].assign(2, "a", "b")
	if rep := r.wait("late")[0]; rep.Status != wire.Expired {
		t.Errorf("%s: expected expired", rep.Status)
	}
	open()
	r.ok("endless")
}

// A suspect that nobody wants any more is told so at once, does not run, and holds up nothing.
func TestASuspectThatIsCancelledIsNotTried(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a", "b"}, none: true, timeout: time.Minute})
	r.suspects("b", 1, 0, plan.Suspect{Deaths: 1}, "suspect")
	r.send("a", "endless", stalls)
	r.unstored.Wait()
	waiting, open := r.engine.stall.shut()
	defer open()
	r.start("a")
	r.await(waiting)
	r.gpulets[0].assign(2, "a", "b")
	// The queue says nothing of it: what was given back counts as not acknowledged, fetched again or not.
	r.gpulets[0].waitFor("the suspect to come", func(p plan.GpuletReport) bool { return len(p.Models) == 2 && p.Models[1].Redelivered == 1 })
	r.cancel("b", "suspect")
	if rep := r.wait("suspect")[0]; rep.Status != wire.Cancelled {
		t.Errorf("%s: expected cancelled", rep.Status)
	}
	open()
	r.send("b", "after", 1)
	r.ok("endless", "after")
	if n := r.gpulets[0].waitFor("b to have run", func(p plan.GpuletReport) bool { return len(p.Models) == 2 && p.Models[1].Samples > 0 }).Models[1].Samples; n != 1 {
		t.Errorf("%d samples of b ran: expected 1, without the suspect", n)
	}
}

func TestABatchThatFailsIsHalvedUntilTheCulpritIsAlone(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, batch: 16})
	r.waitReady(1)
	waiting, open := r.engine.stall.shut()
	r.send("a", "first", stalls)
	r.await(waiting)
	var good []string
	for i := range 16 {
		if i == 5 {
			r.send("a", "bad", poison)
			continue
		}
		good = append(good, "good"+strconv.Itoa(i))
		r.send("a", good[len(good)-1], 1)
	}
	r.waitHeld(16)
	open()
	r.ok(good...)
	if rep := r.wait("bad")[0]; rep.Status != wire.Failed {
		t.Errorf("the bad one: %s: expected failed", rep.Status)
	}
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	if r.engine.runs != 1+1+8 {
		t.Errorf("%d runs: expected 1, then 1 of sixteen and 2 of eight, of four, of two and of one", r.engine.runs)
	}
}

func TestTheBoxShowsWhatIsWorkedOn(t *testing.T) {
	box, err := blackbox.New()
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close()
	recorder, err := blackbox.Open(int(box.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, rigOptions{models: []string{"a"}, box: recorder})
	r.waitReady(1)
	waiting, open := r.engine.stall.shut()
	r.send("a", "x", stalls)
	r.await(waiting)
	read := func() (words []string) {
		works, err := box.Read()
		if err != nil {
			t.Error(err)
		}
		for _, w := range works {
			word := w.Model
			for _, req := range w.Requests {
				word += " " + strconv.FormatUint(req.Seq, 10)
			}
			words = append(words, word)
		}
		return words
	}
	if d := cmp.Diff([]string{"a 1"}, read()); d != "" {
		t.Error(d)
	}
	open()
	r.ok("x")
	if got := read(); len(got) != 0 {
		t.Errorf("afterwards: %s", strings.Join(got, ", "))
	}
}
