package exchange

import (
	"strconv"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// Name of the server and platform of its models, as the protocol asks for them.
const (
	Name     = "gpulet"
	Platform = "pytorch_libtorch"
)

// Entry is one model of the model repository extension.
type Entry struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	State   string `json:"state"`
	Reason  string `json:"reason,omitempty"`
}

// StateReady is the state of an Entry that is served; the others say why not.
const StateReady = "READY"

// Index lists the registered models, sorted by name.
func (x *Exchange) Index() []Entry {
	entries := []Entry{}
	for _, m := range x.Models() {
		e := Entry{Name: m.Name, Version: strconv.Itoa(m.Version), State: StateReady}
		if err := x.ModelReady(m.Name); err != nil {
			e.State, e.Reason = "UNAVAILABLE", err.Error()
		}
		entries = append(entries, e)
	}
	return entries
}

// Description is what the protocol has no field for: what a model is held to, and how else its inputs
// may come.
type Description struct {
	SLOMs     float64 `json:"slo_ms"`
	TimeoutMs float64 `json:"timeout_ms"`
	MaxBatch  int     `json:"max_batch_size"`
	// Accepts are the types of the inputs that may come in more than their own, which is the first.
	Accepts map[string][]tensor.DType `json:"accepts,omitempty"`
	// Images are the content types of images that may be a whole request.
	Images []string `json:"images,omitempty"`
}

// Describe tells what there is to know of m beyond its tensors.
func Describe(m *model.Model) Description {
	p := Description{SLOMs: milliseconds(m.SLO), TimeoutMs: milliseconds(m.Timeout), MaxBatch: m.MaxBatch}
	for _, s := range m.Accepted() {
		if len(s.Also) == 0 {
			continue
		}
		if p.Accepts == nil {
			p.Accepts = map[string][]tensor.DType{}
		}
		p.Accepts[s.Name] = append([]tensor.DType{s.DType}, s.Also...)
	}
	if _, err := m.ImageInput(); err == nil {
		p.Images = []string{wire.TypeJPEG, wire.TypePNG}
	}
	return p
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
