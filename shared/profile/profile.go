// Package profile holds measured latencies of models on shares of a GPU.
//
// A profile answers "how long does a batch of b take on s percent of this GPU", interpolating
// between measured points and never extrapolating silently.
package profile

import "time"

// ChannelsLast is the Layout NHWC.
const ChannelsLast = "channels_last"

// Profile is one model on one GPU type: profiles/<gpu-type>/<model>.json.
type Profile struct {
	Model     string `json:"model"`
	ModelHash string `json:"model_hash,omitempty"` // sha256 of the archive; empty: any
	GPUType   string `json:"gpu_type"`
	GPU       string `json:"gpu,omitempty"` // product name
	Driver    string `json:"driver,omitempty"`
	Torch     string `json:"torch,omitempty"`
	Precision string `json:"precision,omitempty"`
	// Layout is how the engine should keep images and the weights that work on them: empty as the
	// model has them (NCHW), or ChannelsLast.
	Layout string `json:"layout,omitempty"`
	// Inputs is the element type that each input was measured with, as clients send it.
	Inputs map[string]string `json:"inputs,omitempty"`
	// Notes are what the engine said of the model, such as a batch that could not be captured.
	Notes     []string  `json:"notes,omitempty"`
	Date      string    `json:"date,omitempty"`
	Source    string    `json:"source,omitempty"` // where the figures come from
	Synthetic bool      `json:"synthetic,omitempty"`
	Points    []Point   `json:"points"`
	Memory    []Memory  `json:"memory,omitempty"`
	Demand    []Demand  `json:"demand,omitempty"`
	Updated   time.Time `json:"updated,omitzero"`
}

// Point is one measured (share, batch).
type Point struct {
	Share int     `json:"share"` // percent
	Batch int     `json:"batch"` // samples
	P50Ms float64 `json:"p50_ms"`
	P95Ms float64 `json:"p95_ms,omitempty"`
	P99Ms float64 `json:"p99_ms,omitempty"`
	N     int     `json:"n,omitempty"`
	// CIMs is half the width of the 95 % confidence interval of P50Ms.
	CIMs float64 `json:"ci_ms,omitempty"`
}

// Memory is the device memory a loaded model needs at a batch size: weights and workspace.
type Memory struct {
	Batch int   `json:"batch"`
	Bytes int64 `json:"bytes"`
}

// Demand is how hard a model alone drives the shared parts of its GPU, as fractions 0..1 of the
// whole GPU: the features from which interference between neighbours is predicted.
type Demand struct {
	Share int     `json:"share"`
	Batch int     `json:"batch"`
	SM    float64 `json:"sm,omitempty"` // of the time that SMs had work
	// Occupancy is warps in flight over what the SMs could hold.
	Occupancy float64 `json:"occupancy,omitempty"`
	Tensor    float64 `json:"tensor,omitempty"` // of the tensor cores' cycles
	L2        float64 `json:"l2,omitempty"`
	DRAM      float64 `json:"dram,omitempty"` // of the memory's bandwidth
}
