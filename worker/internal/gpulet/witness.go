package gpulet

import (
	"sync/atomic"

	"github.com/gpulet/gpulet/worker/internal/blackbox"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

// witness writes down what one goroutine works on, for whoever has to explain why the process died.
type witness struct {
	slot    *blackbox.Slot
	current atomic.Pointer[run] // for the watchdog, who reads it from another thread; nil: none
	work    []blackbox.Request  // kept between batches
}

func newWitness(r *blackbox.Recorder) *witness { return &witness{slot: r.Slot()} }

// begin says that requests of a model are worked on from now on; without requests, the model itself.
func (w *witness) begin(model string, requests ...*request) {
	w.work = w.work[:0]
	for _, req := range requests {
		w.work = append(w.work, blackbox.Request{Seq: req.msg.Seq, Stored: req.msg.Stamped})
	}
	w.slot.Begin(blackbox.Work{Model: model, Requests: w.work})
}

// beginRun says that a run is executed or staged from now on.
func (w *witness) beginRun(r *run) {
	w.begin(r.name, r.requests...)
	w.current.Store(r)
}

// end says that they are done, or that err came of it. Over a device that failed, the process is about to
// end: what it failed under stays written down.
func (w *witness) end(err error) {
	w.current.Store(nil)
	if engine.CodeOf(err) != engine.EDEVICE {
		w.slot.End()
	}
}
