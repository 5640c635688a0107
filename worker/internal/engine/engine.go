// Package engine runs models: LibTorch or the small reference engine behind one C ABI, or a
// simulated engine that answers after a profiled latency.
//
// It knows tensors and archives. It knows nothing of requests, queues, plans or deadlines: whoever
// calls it has already decided what runs together.
//
// Threads: an Engine may be used by several goroutines. A Model belongs to one goroutine, which
// should be locked to its OS thread (runtime.LockOSThread): LibTorch keeps a team of worker threads
// for each thread that runs models. Different models may run at the same time. While a model runs,
// other goroutines may stage its next batch, or prepare it for batches of more sizes.
package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
)

// Engine loads models. Get one from Open.
type Engine interface {
	// Info says which engine this is. It never changes.
	Info() Info
	// Device describes a device ("cpu", "cuda:0") as this process sees it now: under MPS, SMs
	// are those of the process's share.
	Device(name string) (Device, error)
	// Load reads a model's archive, checks that it does what its model.yaml says, and warms it
	// up. It is safe to call while other models run. ctx is looked at between steps, since a
	// step inside the engine cannot be interrupted.
	Load(ctx context.Context, spec Spec) (Model, error)
	// Close ends the engine. Models must have been closed. The library stays mapped: neither
	// LibTorch nor CUDA survive being unloaded.
	Close() error
}

// JPEGDecoder decodes JPEGs on the CPU. It may be used by several goroutines.
type JPEGDecoder interface {
	// DecodeJPEG decodes data into pixels, which holds channels (3: red, green, blue; 1: grey)
	// planes of height x width bytes, and resizes where the JPEG is of another size. The caller
	// has looked at the JPEG's header. An error is EINVAL where the JPEG is broken; pixels then
	// hold anything.
	DecodeJPEG(pixels, data []byte, channels, height, width int) error
}

// JPEG returns e's decoder of JPEGs; nil where it has none.
func JPEG(e Engine) JPEGDecoder {
	if d, ok := e.(JPEGDecoder); ok && e.Info().JPEG {
		return d
	}
	return nil
}

// Info identifies an engine.
type Info struct {
	Name    string `json:"name"`    // "torch", "ref" or "sim"
	Version string `json:"version"` // "libtorch 1.13.1"
	Library string `json:"library"` // path of the shared library, empty for sim
	CUDA    bool   `json:"cuda"`    // built for CUDA
	JPEG    bool   `json:"jpeg"`    // decodes JPEGs: see JPEG
}

// String is how reports and logs call the engine.
func (i Info) String() string { return i.Version }

// Device is what an engine sees of a device.
type Device struct {
	Name     string `json:"name"`      // product name, "cpu" on a CPU
	SMs      int    `json:"sms"`       // 0 on a CPU
	MemFree  int64  `json:"mem_free"`  // bytes, 0 when unknown
	MemTotal int64  `json:"mem_total"` // bytes, 0 when unknown
}

// ChannelsLast is what profiles, plans and command lines call the layout of Spec.ChannelsLast.
const ChannelsLast = "channels_last"

// Spec asks for one model on one device.
type Spec struct {
	// Model gives the archive (Path), the names, dtypes and shapes of inputs and outputs, and
	// how uint8 inputs become what the model takes.
	Model model.Model
	// Device is "cpu" (default) or "cuda:N".
	Device string
	// Precision is "stored", "fp32", "fp16" or "bf16"; empty takes the model's own.
	Precision string
	// MaxBatch is the most samples of one Run; 0 takes the model's own max_batch.
	MaxBatch int
	// Batches are the batch sizes to prepare: run once, so that no request pays for the first
	// run, and captured as a CUDA graph where the device has them. A smaller batch is padded up
	// to the next captured size. Empty prepares batch 1. Models with a varying dimension are
	// not prepared.
	Batches []int
	// ChannelsLast keeps 4-d weights and inputs in NHWC order inside the engine, which some GPUs
	// convolve faster. Callers see no difference.
	ChannelsLast bool
	// Eager prepares batches without capturing graphs: to measure what they bring.
	Eager bool
	// FixedBatch makes every Run use one of Batches, padded, even without graphs: for archives
	// that were traced with their batch size baked in.
	FixedBatch bool
}

// Model is a loaded model. One goroutine should own it and call Run; calls from several take turns.
// After Close, which waits for calls in progress, all others return an error (EINVAL). MemBytes and
// Notes change only when Prepare does something.
type Model interface {
	// Run executes one batch: one Input per declared input, in the order of the model's specs.
	// The inputs' memory is only read, and only during the call. On an error the model stays
	// usable, unless the error is EDEVICE: then the process must end.
	Run(in []Input) (Result, error)
	// Stage gathers a batch, and starts its way to the device, while the model may be running
	// another. It does not wait for that. It refuses what Run refuses. The inputs' memory must
	// stay as it is until the batch was run or freed.
	Stage(in []Input) (Staged, error)
	// Prepare makes the model ready for batches of these sizes too, as Load did for its own; those
	// that are ready already cost nothing. On a CPU runs wait for the size that is being prepared; on a
	// GPU only for its capture, not for the choice and compiling of kernels. ctx is looked at between
	// sizes. On an error the model stays as it was, with what was prepared until then.
	Prepare(ctx context.Context, batches []int) error
	// MemBytes is the device memory that the model holds: weights, and what preparing it needed.
	MemBytes() int64
	// Notes are things that an operator should know, such as a batch that could not be captured.
	Notes() []string
	// Close frees the model. Results stay valid. Closing twice is harmless.
	Close() error
}

// Input is one input of a batch: the concatenation of Segments along the first dimension, one
// segment per request, each pointing into that request's own buffer. The engine gathers them.
type Input struct {
	DType    tensor.DType
	Shape    []int64 // of the whole batch; Shape[0] is the number of samples
	Segments [][]byte
}

// Staged is a batch that only has to be run. It must be freed, run or not.
type Staged interface {
	// Run executes the batch, as Model.Run does. It can be run once.
	Run() (Result, error)
	// Free gives the batch's memory back; its result stays valid. Freeing twice is harmless. It may
	// be called after the model was closed, and from any goroutine.
	Free()
}

// Result holds the outputs of one Run until Free.
type Result interface {
	// Outputs are named and ordered as the model declares them, with the samples that were
	// asked for (padding removed). Data is engine memory: it must not be used after Free.
	Outputs() []tensor.Tensor
	Timing() Timing
	// Free gives the memory back. Freeing twice is harmless. It may be called from any goroutine.
	Free()
}

// Timing is where the time of a Run went.
type Timing struct {
	Gather time.Duration // segments → one (pinned) buffer
	Run    time.Duration // the model itself; on CUDA until it was launched
	Fetch  time.Duration // outputs → host; on CUDA this waits for the model
}

// Total is the time inside the engine.
func (t Timing) Total() time.Duration { return t.Gather + t.Run + t.Fetch }

// Code classifies an Error by what the caller can do about it. Values are gle_status in engine.h.
type Code int

// The codes.
const (
	EINVAL       Code = iota + 1 // the call was wrong: shapes, dtypes, byte counts, a closed model
	ELOAD                        // the archive is missing, corrupt, or not what its model.yaml says
	ERUN                         // the model failed on these inputs; others may succeed
	EOOM                         // out of memory
	EDEVICE                      // the device context is broken: end the process
	EUNSUPPORTED                 // this engine cannot do that
)

func (c Code) String() string {
	names := [...]string{"", "invalid", "load", "run", "out of memory", "device", "unsupported"}
	if c > 0 && int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("code %d", int(c))
}

// Error is what every method of an engine fails with.
type Error struct {
	Code Code
	Msg  string
}

func (e *Error) Error() string { return e.Msg }

// CodeOf returns the Code of the engine error in err's chain, 0 when there is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

func errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// Options are what Open needs beside a name. The zero value is good for torch and ref.
type Options struct {
	// Library is the engine's shared library, or the folder that holds it. Empty: the environment's
	// GPULET_ENGINE_LIB, else ../lib, ../build/lib and . as seen from the executable.
	Library string
	// Threads is how many cores a model may use on a CPU; 0 leaves the library's default (all).
	Threads int
	// Sim configures the simulated engine.
	Sim SimOptions
}

// SimOptions configure the simulated engine.
type SimOptions struct {
	// Latency is how long a batch of that many samples takes, from a profile. Required.
	Latency func(model string, samples int) (time.Duration, error)
	// Interference stretches a latency by what runs beside it now; nil means 1.
	Interference func(model string) float64
	// MemBytes is a loaded model's memory; nil means 0.
	MemBytes func(model string) int64
	// Sleep waits; nil is time.Sleep.
	Sleep func(time.Duration)
}
