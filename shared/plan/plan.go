// Package plan is the plan document: which gpu-lets exist, on which GPU, and what each serves.
//
// The planner writes plans, agents reconcile towards them, everything else reads them. The
// package holds values only: it knows neither how a plan is found nor how it is carried.
package plan

import (
	"fmt"
	"strconv"
	"time"
)

// Plan is one whole plan. It is published and replaced as a unit; field names are a contract.
type Plan struct {
	// Revision grows by one with every published plan; 0 means "not published".
	Revision uint64 `json:"revision"`
	// Term is that of the planner that led when the plan was written (see Lease). It never falls from
	// one plan to the next: what an earlier leader writes late is refused.
	Term      uint64    `json:"term,omitempty"`
	Algorithm string    `json:"algorithm,omitempty"`
	Created   time.Time `json:"created,omitzero"`
	GPUsUsed  int       `json:"gpus_used"`
	Gpulets   []Gpulet  `json:"gpulets"`
	// Unserved holds, per model, the part of its rate that no gpu-let covers (requests/s).
	Unserved map[string]float64 `json:"unserved"`
	// DesiredGPUs is how many GPUs would serve everything; equal to GPUsUsed when all is served.
	DesiredGPUs int `json:"desired_gpus"`
	// Reason says in words why this plan replaced the one before.
	Reason string `json:"reason,omitempty"`
	// Pinned keeps the planner from replacing the plan until somebody takes the pin away.
	Pinned bool `json:"pinned,omitempty"`
}

// Gpulet is a virtual GPU: a share of one GPU and the models it serves in duty order.
type Gpulet struct {
	// ID is unique for ever: a gpu-let that changes host, GPU, share or limit is another gpu-let.
	// [a-z0-9-]{1,96}.
	ID      string `json:"id"`
	Host    string `json:"host"`
	GPU     int    `json:"gpu"` // index of the device on its host
	GPUType string `json:"gpu_type"`
	Share   int    `json:"share"` // percent of the GPU's SMs (of the cores on cpu), 1..100
	// Limit is how many percent of the GPU's SMs its process may use while neighbours leave them. 0: Share.
	Limit int `json:"limit,omitempty"`
	// MemBytes is the device memory that the gpu-let is planned to take: its context and its models
	// at their batches; 0: not known.
	MemBytes int64        `json:"mem_bytes,omitempty"`
	Models   []Assignment `json:"models"`
}

// MaxShare is how many percent of the GPU's SMs the gpu-let's process may use.
func (g Gpulet) MaxShare() int { return max(g.Share, g.Limit) }

// SameShares reports whether o has the same share and may use as much.
func (g Gpulet) SameShares(o Gpulet) bool { return g.Share == o.Share && g.MaxShare() == o.MaxShare() }

// Shares puts the share into words, with the limit where that is more: "20%", "20..40%".
func (g Gpulet) Shares() string {
	if g.MaxShare() > g.Share {
		return fmt.Sprintf("%d..%d%%", g.Share, g.MaxShare())
	}
	return fmt.Sprintf("%d%%", g.Share)
}

// Assignment is one model on one gpu-let.
type Assignment struct {
	Model string `json:"model"`
	// Batch is the batch (in samples) with which the model's rate and SLO are kept: the largest that the
	// gpu-let may run, but for Burst.
	Batch int `json:"batch"`
	// Burst is the largest batch (in samples) the gpu-let may run while more wait than a Batch. 0: Batch.
	Burst   int     `json:"burst,omitempty"`
	RateRPS float64 `json:"rate_rps"` // the part of the model's rate that this gpu-let covers
	DutyMs  float64 `json:"duty_ms"`  // duty cycle of the gpu-let: the sum of its inflated batch times
	ExecMs  float64 `json:"exec_ms"`  // predicted time of one full batch, interference included
	// Rank orders the gpu-lets that serve the same model: idle pulls of rank 1 are answered first.
	Rank int `json:"rank,omitempty"`
	// Layout is how the engine should keep images: empty as the model has them, or "channels_last"
	// where the profiler found that faster on this GPU type.
	Layout string `json:"layout,omitempty"`
}

// MaxBatch is the largest batch, in samples, that the gpu-let may run for the model.
func (a Assignment) MaxBatch() int { return max(a.Batch, a.Burst) }

// Batches puts the batch into words, with the largest where that is more: "2", "2..4".
func (a Assignment) Batches() string {
	if a.MaxBatch() > a.Batch {
		return fmt.Sprintf("%d..%d", a.Batch, a.MaxBatch())
	}
	return strconv.Itoa(a.Batch)
}
