package gpulet

import (
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
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
