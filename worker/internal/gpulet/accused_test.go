package gpulet

import (
	"log/slog"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// What is written down of a request on a host whose clock is wrong is found again on another, whose
// clock is wrong in another way, and on the same one, after it has looked at the clock again.
func TestASuspectIsKnownWhateverTheClocksSay(t *testing.T) {
	srv := embeddedtest.StartTest(t)
	if err := embeddedtest.Connect(t, srv, bus.RolePlanner).EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	worker := embeddedtest.Connect(t, srv, bus.RoleWorker)
	box, err := blackbox.New()
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close()
	recorder, err := blackbox.Open(int(box.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	stamped := time.Now()
	fetched := func(ahead time.Duration) *request {
		return &request{msg: &bus.Msg{Seq: 7, Stamped: stamped, Stored: stamped.Add(ahead)}}
	}
	newWitness(recorder).begin("m", fetched(5*time.Second))
	work, err := box.Read()
	if err != nil || len(work) != 1 || len(work[0].Requests) != 1 {
		t.Fatalf("the box holds %+v, %v", work, err)
	}
	r := work[0].Requests[0]
	if err := worker.PutSuspect(t.Context(), plan.Suspect{Model: "m", Seq: r.Seq, Stored: r.Stored, Deaths: 1}); err != nil {
		t.Fatal(err)
	}
	j := startJudge(t.Context(), worker)
	defer j.stop()
	for _, ahead := range []time.Duration{0, 5*time.Second + time.Microsecond, -3 * time.Second} {
		j.ask("m", fetched(ahead))
		if f := <-j.out; !f.suspect {
			t.Errorf("on a host whose clock is ahead by %v nothing is held against it", ahead)
		}
	}
}

// A request that is cancelled while it is judged is neither tried nor decoded, whatever is found.
func TestWhatIsCancelledWhileItIsJudgedIsGivenUp(t *testing.T) {
	srv := embeddedtest.StartTest(t)
	planner, client := embeddedtest.Connect(t, srv, bus.RolePlanner), embeddedtest.Connect(t, srv, bus.RoleClient)
	if err := planner.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	q := bus.Queue{Model: "m", MaxMsgs: 10, MaxBytes: 1 << 20, MaxAge: time.Minute, AckWait: time.Minute, MaxAckPending: 10}
	if err := planner.EnsureQueue(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	worker := embeddedtest.Connect(t, srv, bus.RoleWorker)
	replies := make(chan bus.Reply, 2)
	inbox, err := client.NewInbox(func(r bus.Reply) { replies <- r })
	if err != nil {
		t.Fatal(err)
	}
	defer inbox.Close()
	l := newLoop(Config{Bus: worker, Log: slog.New(slog.DiscardHandler)})
	m := newBound(link.Assignment{Assignment: plan.Assignment{Model: "m"}})
	puller, err := worker.NewPuller("m", bus.PullerOptions{Events: l.events})
	if err != nil {
		t.Fatal(err)
	}
	defer puller.Close()
	for _, suspect := range []bool{true, false} {
		err := client.Publish(t.Context(), &bus.Message{Model: "m", ReplyTo: inbox.Address("x"), ContentType: wire.TypeJPEG})
		if err != nil {
			t.Fatal(err)
		}
		if err := puller.Pull(1, true, time.Minute); err != nil {
			t.Fatal(err)
		}
		req := &request{msg: (<-l.events).Msg, model: m, unwanted: true}
		<-l.events // the end of the pull
		l.open[req] = struct{}{}
		m.judging++
		l.found(finding{req: req, suspect: suspect})
		if got := (<-replies).Get(wire.HeaderStatus); got != string(wire.Cancelled) {
			t.Errorf("suspect %v: %s, expected %s", suspect, got, wire.Cancelled)
		}
		if m.judging != 0 || len(l.suspects)+len(l.open) != 0 {
			t.Errorf("suspect %v: %d judged, %d to be tried, %d open: expected none", suspect, m.judging, len(l.suspects), len(l.open))
		}
	}
}
