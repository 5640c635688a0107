// Package model is the model repository: models/<name>/model.yaml beside
// models/<name>/<version>/model.pt.
//
// It reads what users write and says precisely what is wrong with it. It loads no weights.
package model

import (
	"time"

	"github.com/gpulet/gpulet/shared/tensor"
)

// Config is a model.yaml, checked and with its defaults filled in.
type Config struct {
	Name string `json:"name"`
	// SLO is the planner's target for a request, queueing included.
	SLO time.Duration `json:"slo"`
	// Timeout is when a request is given up. Default 2 x SLO.
	Timeout  time.Duration `json:"timeout"`
	MaxBatch int           `json:"max_batch"`
	// Precision is "stored" (default), "fp32", "fp16" or "bf16".
	Precision string        `json:"precision"`
	Inputs    []tensor.Spec `json:"inputs"`
	Outputs   []tensor.Spec `json:"outputs"`
	// Preprocess, by input name, lets clients send another dtype than the model takes.
	Preprocess map[string]Preprocess `json:"preprocess,omitempty"`
	// Pin is the version to serve (`version:` in the file); 0 serves the newest.
	Pin int `json:"pin,omitempty"`
	// Weight is the model's importance when not everything fits. Default 1.
	Weight float64 `json:"weight"`
	// Class is "interactive" (default) or "offline": then requests get only what interactive ones leave.
	Class string `json:"class"`
	// Storage is where requests wait: in "memory", where they end with the NATS server, or in a "file",
	// where they outlive it. Default: memory for interactive, file for offline.
	Storage string `json:"storage"`
}

// QueueGrace is how much longer than its model's timeout a queue keeps a request, so that a worker
// that starts late can still tell its client that it expired.
const QueueGrace = time.Minute

// MaxWait is how long the model's queue keeps a request, and so the longest timeout that a client
// may ask for: the queue drops older requests and tells nobody.
func (c Config) MaxWait() time.Duration { return c.Timeout + QueueGrace }

// Offline reports whether the model's requests only fill time that interactive ones leave.
func (c Config) Offline() bool { return c.Class == "offline" }

// Preprocess turns an accepted dtype into the model's: y = (x * Scale - Mean) / Std, Mean and Std
// per channel (the first dimension of the input).
type Preprocess struct {
	Accept []tensor.DType `yaml:"accept,flow" json:"accept"`
	Scale  float64        `yaml:"scale" json:"scale"`
	Mean   []float64      `yaml:"mean,flow" json:"mean,omitempty"`
	Std    []float64      `yaml:"std,flow" json:"std,omitempty"`
}

// Model is one servable version of a model.
type Model struct {
	Config
	Version int    `json:"version"` // the version that serves
	Path    string `json:"-"`       // the archive
	Hash    string `json:"hash"`    // sha256 of the archive, hex
}
