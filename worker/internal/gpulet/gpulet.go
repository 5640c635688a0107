// Package gpulet serves models on one gpu-let: it fetches requests from the queues when its executor
// is about to be free, batches them, runs them, answers them and acknowledges them.
//
// One goroutine, the loop, owns all state: the batcher, the pullers, what is in flight. A second
// one, the executor, is locked to its OS thread and owns the loaded models; a third stages the next
// batch while one runs; a fourth loads models, and prepares loaded ones for larger batches, while the
// others serve; further ones decode images. The loop hands the executor its next batch before it answers
// the last one, and a full one while another runs, so the engine waits neither for replies to be encoded
// nor for inputs.
//
// Requests are fetched late on purpose: not before the executor is about to be free, and never
// beyond the next batch of a model (unless batches take less time than the way to the queue and
// back), so that a request waits in the queue, where any gpu-let can take it, and not here. A
// request is acknowledged after its reply was sent; whatever kills the process before that makes
// the queue deliver it again. Redelivered requests run alone, and one that was running when a process
// died runs when nothing else is held, so that it takes no others with it a second time.
//
// The package does not know why it serves what it is told to serve, nor who started it.
package gpulet

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// Config is what a gpu-let needs to serve.
type Config struct {
	ID     string
	Host   string
	GPU    int    // index of the device on its host
	Share  int    // percent of the device
	Device string // for the engine: "cpu", "cuda:0"
	PID    int

	Engine engine.Engine
	Bus    *bus.Bus
	// Commands say what to serve; closing it drains like a Drain command.
	Commands <-chan link.Command
	// Report is called with the state on every change and every second. It must not block.
	Report func(plan.GpuletReport)
	// Decoders is how many images are decoded at once; 0: one per core, at most 16.
	Decoders int
	// Grace is how long draining may take; what is held then is left unacknowledged.
	Grace time.Duration
	// HangAfter is how long a batch of a model may take at least, whatever is expected of it, before it
	// is reported as hung; 0: none is.
	HangAfter time.Duration
	// Box is where what is being worked on is written down, for the agent to read if the process
	// dies. Nil: nobody reads it.
	Box *blackbox.Recorder
	Log *slog.Logger
}

// ErrDevice is returned when the device broke: what was in flight is neither answered nor
// acknowledged, and the process must end.
var ErrDevice = errors.New("the device failed")

// ErrAborted is returned when draining took too long or was cut short.
var ErrAborted = errors.New("gave up what was in flight")

// Timings of the loop.
const (
	reportEvery   = time.Second
	progressEvery = 400 * time.Millisecond // under half of the least AckWait, 1s
	idleExpires   = 5 * time.Second        // of a parked pull; a lost one is noticed after this
	endGrace      = time.Millisecond       // for the end of a pull that has begun to deliver
	ackTimeout    = 2 * time.Second        // of one acknowledgement while draining
)

// Run serves until it is told to drain, by command or by the end of ctx (see lifecycle.Notify for
// what cuts the draining short), and returns nil when everything that was taken has been answered
// and acknowledged.
func Run(ctx context.Context, cfg Config) error {
	return newLoop(cfg).run(ctx)
}
