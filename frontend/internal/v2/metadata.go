package v2

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// Name of the server and platform of its models, as the protocol asks for them.
const (
	serverName = "gpulet"
	platform   = "pytorch_libtorch"
)

func (s *Server) server(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]any{
		"name": serverName, "version": s.opts.Version,
		"extensions": []string{"binary_tensor_data", "model_configuration", "model_repository"},
	})
}

// live: the process answers.
func (s *Server) live(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]bool{"live": true})
}

// ready: the bus is reached and a plan has been published; one model's readiness has its own path.
func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if err := s.fleet.Ready(); err != nil {
		writeError(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	writeJSON(w, map[string]bool{"ready": true})
}

// indexEntry is one model of the model repository extension.
type indexEntry struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	State   string `json:"state"`
	Reason  string `json:"reason,omitempty"`
}

func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	entries := []indexEntry{}
	for _, m := range s.fleet.Models() {
		e := indexEntry{Name: m.Name, Version: strconv.Itoa(m.Version), State: "READY"}
		if err := s.fleet.ModelReady(m.Name); err != nil {
			e.State, e.Reason = "UNAVAILABLE", err.Error()
		}
		entries = append(entries, e)
	}
	writeJSON(w, entries)
}

// lookup finds the model, and the version where the path has one. Which models there are is not
// known right after a start: that is no reason to call one unknown.
func (s *Server) lookup(r *http.Request) (*model.Model, *admit.Refusal) {
	name := r.PathValue("model")
	m, ok := s.fleet.Model(name)
	if !ok && !s.fleet.Listed() {
		return nil, &admit.Refusal{Status: wire.Unavailable, Retry: time.Second, Detail: "the registered models have not been read yet"}
	}
	if !ok {
		return nil, admit.Refusef(wire.UnknownModel, "unknown model %q", name)
	}
	if v := r.PathValue("version"); v != "" && v != strconv.Itoa(m.Version) {
		return nil, admit.Refusef(wire.UnknownModel, "model %s has no version %q: expected %d", name, v, m.Version)
	}
	return m, nil
}

func (s *Server) modelReady(w http.ResponseWriter, r *http.Request) {
	m, refusal := s.lookup(r)
	if refusal != nil {
		writeError(w, code(refusal), refusal.Detail)
		return
	}
	if err := s.fleet.ModelReady(m.Name); err != nil {
		writeError(w, http.StatusServiceUnavailable, fmt.Sprintf("model %s is not ready: %v", m.Name, err))
		return
	}
	writeJSON(w, map[string]any{"name": m.Name, "ready": true})
}

type tensorMetadata struct {
	Name     string       `json:"name"`
	DataType tensor.DType `json:"datatype"`
	Shape    []int64      `json:"shape"`
}

func (s *Server) metadata(w http.ResponseWriter, r *http.Request) {
	m, refusal := s.lookup(r)
	if refusal != nil {
		writeError(w, code(refusal), refusal.Detail)
		return
	}
	writeJSON(w, struct {
		Name       string           `json:"name"`
		Versions   []string         `json:"versions"`
		Platform   string           `json:"platform"`
		Inputs     []tensorMetadata `json:"inputs"`
		Outputs    []tensorMetadata `json:"outputs"`
		Parameters parameters       `json:"parameters"`
	}{
		m.Name,
		[]string{strconv.Itoa(m.Version)},
		platform, describe(m.Inputs), describe(m.Outputs),
		describeModel(m),
	})
}

// parameters are what the protocol has no field for: what a model is held to, and how else its inputs
// may come.
type parameters struct {
	SLOMs     float64 `json:"slo_ms"`
	TimeoutMs float64 `json:"timeout_ms"`
	MaxBatch  int     `json:"max_batch_size"`
	// Accepts are the types of the inputs that may come in more than their own, which is the first.
	Accepts map[string][]tensor.DType `json:"accepts,omitempty"`
	// Images are the content types of images that may be a whole request.
	Images []string `json:"images,omitempty"`
}

func describeModel(m *model.Model) parameters {
	p := parameters{SLOMs: milliseconds(m.SLO), TimeoutMs: milliseconds(m.Timeout), MaxBatch: m.MaxBatch}
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

// describe puts the batch dimension, which varies, before the shapes.
func describe(specs []tensor.Spec) []tensorMetadata {
	list := make([]tensorMetadata, len(specs))
	for i, s := range specs {
		list[i] = tensorMetadata{s.Name, s.DType, append([]int64{-1}, s.Shape...)}
	}
	return list
}

type tensorConfig struct {
	Name     string  `json:"name"`
	DataType string  `json:"data_type"`
	Dims     []int64 `json:"dims"`
}

// config answers the part of the model configuration extension that load generators ask for.
func (s *Server) config(w http.ResponseWriter, r *http.Request) {
	m, refusal := s.lookup(r)
	if refusal != nil {
		writeError(w, code(refusal), refusal.Detail)
		return
	}
	writeJSON(w, struct {
		Name         string         `json:"name"`
		Platform     string         `json:"platform"`
		Backend      string         `json:"backend"`
		MaxBatchSize int            `json:"max_batch_size"`
		Input        []tensorConfig `json:"input"`
		Output       []tensorConfig `json:"output"`
	}{m.Name, platform, "pytorch", m.MaxBatch, configure(m.Inputs), configure(m.Outputs)})
}

func configure(specs []tensor.Spec) []tensorConfig {
	list := make([]tensorConfig, len(specs))
	for i, s := range specs {
		list[i] = tensorConfig{s.Name, "TYPE_" + s.DType.String(), append([]int64{}, s.Shape...)}
	}
	return list
}
