package plan

import (
	"slices"
	"time"
)

// HostReport is what an agent says of its host, every few seconds and on change.
type HostReport struct {
	Host     string    `json:"host"`
	Devices  []Device  `json:"devices"`
	Engine   string    `json:"engine"`           // e.g. "libtorch 1.13.1"
	Driver   string    `json:"driver,omitempty"` // of GPUs, e.g. "driver 580.159.04, CUDA 13.0"
	Revision uint64    `json:"revision"`
	Time     time.Time `json:"time"`
	// Problems are things an operator should see: a model that does not load, a missing library.
	Problems []string `json:"problems,omitempty"`
}

// Device is a GPU, or what stands in for one.
type Device struct {
	Index    int    `json:"index"`
	GPUType  string `json:"gpu_type"` // the folder under profiles/: h100, rtx2080ti, cpu-...
	Name     string `json:"name"`
	UUID     string `json:"uuid,omitempty"`
	MemBytes int64  `json:"mem_bytes"`
	SMs      int    `json:"sms,omitempty"` // streaming multiprocessors; 0: unknown, or none
	// Shares lists the shares a gpu-let may have, ascending; empty means every 1..100.
	Shares []int `json:"shares,omitempty"`
	// Sim marks a device that answers from a profile and computes nothing.
	Sim bool `json:"sim,omitempty"`
}

// GpuletState is where a gpu-let process is in its life.
type GpuletState string

// A gpu-let goes starting → ready → draining → gone; failed means its agent is backing off
// before the next start.
const (
	Starting GpuletState = "starting"
	Ready    GpuletState = "ready"
	Draining GpuletState = "draining"
	Failed   GpuletState = "failed"
)

// GpuletReport is what is known of one running gpu-let.
type GpuletReport struct {
	ID       string      `json:"id"`
	Host     string      `json:"host"`
	GPU      int         `json:"gpu"`
	Share    int         `json:"share"`
	State    GpuletState `json:"state"`
	Revision uint64      `json:"revision"` // the plan revision it serves
	PID      int         `json:"pid,omitempty"`
	Restarts int         `json:"restarts"`
	Detail   string      `json:"detail,omitempty"` // last error, in words
	// Note is why the gpu-let is there although the plan does not say so: what should replace it does
	// not come up, or its model was taken out of another one. Empty: it is as planned, or leaves.
	Note string `json:"note,omitempty"`
	// Hung is the batch that does not return from the engine, in words. Its agent ends the process.
	Hung   string        `json:"hung,omitempty"`
	Models []ModelReport `json:"models"`
	Time   time.Time     `json:"time"`
}

// Serves reports whether the gpu-let is ready and has the model loaded.
func (r GpuletReport) Serves(model string) bool {
	return r.State == Ready && slices.ContainsFunc(r.Models, func(m ModelReport) bool { return m.Model == model && m.Loaded })
}

// ModelReport counts what a gpu-let did for one model since it started.
type ModelReport struct {
	Model  string `json:"model"`
	Loaded bool   `json:"loaded"`
	Error  string `json:"error,omitempty"` // why it is not loaded
	// MemBytes is the device memory that the loaded model holds. Of one that did not fit it is the
	// least that would have been needed, as far as that is known; see OutOfMemory.
	MemBytes    int64  `json:"mem_bytes,omitempty"`
	OutOfMemory bool   `json:"out_of_memory,omitempty"` // why it is not loaded
	Requests    uint64 `json:"requests"`
	Samples     uint64 `json:"samples"`
	Batches     uint64 `json:"batches"`
	Expired     uint64 `json:"expired"`
	Failed      uint64 `json:"failed"`
	Rejected    uint64 `json:"rejected"` // bad requests
	// Answers are the requests that were answered, by status: the terminal states of docs/protocol.md.
	Answers map[string]uint64 `json:"answers,omitempty"`
	// Cancels are the cancellations of requests that it has heard of, wherever the requests are.
	Cancels uint64 `json:"cancels,omitempty"`
	// SavedMs is the time on the engine that requests would have taken that were cancelled before they
	// ran: as long as the others took, sample by sample.
	SavedMs float64 `json:"saved_ms,omitempty"`
	// Redelivered are requests that were delivered to a gpu-let before, which did not answer them.
	Redelivered uint64  `json:"redelivered"`
	Poisoned    uint64  `json:"poisoned"` // buried: processes died over them
	ExecMs      float64 `json:"exec_ms"`  // moving average of a batch's time on the engine
	BusyMs      float64 `json:"busy_ms"`  // total time on the engine
}
