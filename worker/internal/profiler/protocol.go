package profiler

import (
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
)

// Ops of a Request.
const (
	// opLoad replaces the process's model of that name by one with these batches prepared.
	opLoad = "load"
	// opMeasure times one batch size by a Rule.
	opMeasure = "measure"
	// opLoop keeps the model busy: for Settle, then for Window, which is timed, then for Settle again,
	// so that neighbours that began a little later are never alone within their windows.
	opLoop   = "loop"
	opUnload = "unload"
)

// Request is what a process is asked to do, one JSON object a line.
type Request struct {
	Op    string `json:"op"`
	Model string `json:"model"`

	Config       *model.Model  `json:"config,omitempty"` // of opLoad
	Path         string        `json:"path,omitempty"`   // of the archive
	Batches      []int         `json:"batches,omitempty"`
	ChannelsLast bool          `json:"channels_last,omitempty"`
	Batch        int           `json:"batch,omitempty"` // of opMeasure and opLoop
	Rule         Rule          `json:"rule,omitzero"`
	Settle       time.Duration `json:"settle,omitempty"`
	Window       time.Duration `json:"window,omitempty"`
}

// Answer is what a process says to a Request; Hello comes first, unasked.
type Answer struct {
	Error string `json:"error,omitempty"`
	// OutOfMemory: the error is that the device has no room.
	OutOfMemory bool `json:"out_of_memory,omitempty"`
	// Fatal: the process cannot go on after the error.
	Fatal bool `json:"fatal,omitempty"`

	Hello  *Hello         `json:"hello,omitempty"`
	Loaded *Loaded        `json:"loaded,omitempty"`
	Point  *profile.Point `json:"point,omitempty"`
}

// Hello says where a process runs.
type Hello struct {
	Engine string `json:"engine"`
	Device string `json:"device"` // product name
	SMs    int    `json:"sms"`    // that the process sees; 0 on a CPU
}

// Loaded says what a model took.
type Loaded struct {
	MemBytes int64    `json:"mem_bytes"`
	Notes    []string `json:"notes,omitempty"`
	Ms       float64  `json:"ms"`
}
