// Package wire is what crosses the bus: requests, replies, their headers and their codecs.
//
// Decoding is strict and bounded: sizes are checked before memory is taken, unknown keys of a
// request are refused, and every error names the field, what was found and what was expected.
// Decoded tensors alias the message's buffer. The package does no I/O and reads no clock.
package wire

import "github.com/gpulet/gpulet/shared/tensor"

// Headers of a request and of a reply.
const (
	HeaderReplyTo   = "Gpulet-Reply-To"
	HeaderRequestID = "Gpulet-Request-Id"
	HeaderDeadline  = "Gpulet-Deadline" // unix µs
	HeaderTimeout   = "Gpulet-Timeout"  // Go duration, from the stream's timestamp
	HeaderPriority  = "Gpulet-Priority"
	HeaderOutputs   = "Gpulet-Outputs" // names, separated by commas; for bodies that cannot name any
	HeaderKeep      = "Gpulet-Keep"    // "true": the reply is stored as a result, too
	HeaderStatus    = "Gpulet-Status"
	HeaderType      = "Content-Type"
)

// Content types of a request. A reply has its request's type, msgpack where that cannot hold tensors.
const (
	TypeMsgpack = "application/msgpack"
	TypeJSON    = "application/json"
	TypeRaw     = "application/octet-stream"
	TypeJPEG    = "image/jpeg"
	TypePNG     = "image/png"
)

// Status is the outcome of a request; StatusOK or an error code.
type Status string

// Every terminal state of a request.
const (
	StatusOK     Status = "ok"
	BadRequest   Status = "bad_request"
	UnknownModel Status = "unknown_model"
	Overloaded   Status = "overloaded"
	Unavailable  Status = "unavailable"
	Expired      Status = "expired"
	Cancelled    Status = "cancelled"
	Failed       Status = "failed"
	Poisoned     Status = "poisoned"
)

// Statuses lists them all, StatusOK first, in the order of tables.
func Statuses() []Status {
	return []Status{StatusOK, BadRequest, UnknownModel, Overloaded, Unavailable, Expired, Cancelled, Failed, Poisoned}
}

// Version is the version of the request and reply bodies that this build speaks.
const Version = 1

// Request is a decoded request body. The first dimension of every input is the number of samples.
type Request struct {
	Inputs  []tensor.Tensor
	Outputs []string // outputs wanted; empty: all
}

// Timing says where a request's time went.
type Timing struct {
	QueuedUs  int64  `json:"queued_us" msgpack:"queued_us"`   // stored → fetched
	BatchedUs int64  `json:"batched_us" msgpack:"batched_us"` // fetched → launched
	ExecUs    int64  `json:"exec_us" msgpack:"exec_us"`       // launched → results on the host
	Batch     int    `json:"batch" msgpack:"batch"`           // samples that ran together
	Gpulet    string `json:"gpulet" msgpack:"gpulet"`
	Share     int    `json:"share" msgpack:"share"`
	Plan      uint64 `json:"plan" msgpack:"plan"` // plan revision
}

// Reply is a decoded reply. Either Outputs or Error is set, as Status says.
type Reply struct {
	RequestID string
	Status    Status
	Model     string
	Version   int
	Outputs   []tensor.Tensor
	Timing    Timing
	Detail    string // of an error, for people
}

// Limits bounds what a decoder accepts.
type Limits struct {
	MaxBytes   int // of a body
	MaxTensors int
	MaxName    int // bytes of a tensor name
}

// DefaultLimits suit the server's max_payload of 8 MiB.
var DefaultLimits = Limits{MaxBytes: 8 << 20, MaxTensors: 64, MaxName: 256}
