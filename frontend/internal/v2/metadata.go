package v2

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
)

func (s *Server) server(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]any{
		"name": exchange.Name, "version": s.x.Version,
		"extensions": []string{"binary_tensor_data", "model_configuration", "model_repository"},
	})
}

// live: the process answers.
func (s *Server) live(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]bool{"live": true})
}

// ready: the bus is reached and a plan has been published; one model's readiness has its own path.
func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if err := s.x.Ready(); err != nil {
		writeError(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	writeJSON(w, map[string]bool{"ready": true})
}

func (s *Server) index(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.x.Index()) }

// lookup finds the model, and the version where the path has one.
func (s *Server) lookup(r *http.Request) (*model.Model, *admit.Refusal) {
	return s.x.Lookup(r.PathValue("model"), r.PathValue("version"))
}

func (s *Server) modelReady(w http.ResponseWriter, r *http.Request) {
	m, refusal := s.lookup(r)
	if refusal != nil {
		writeError(w, code(refusal), refusal.Detail)
		return
	}
	if err := s.x.ModelReady(m.Name); err != nil {
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
		Name       string               `json:"name"`
		Versions   []string             `json:"versions"`
		Platform   string               `json:"platform"`
		Inputs     []tensorMetadata     `json:"inputs"`
		Outputs    []tensorMetadata     `json:"outputs"`
		Parameters exchange.Description `json:"parameters"`
	}{
		m.Name,
		[]string{strconv.Itoa(m.Version)},
		exchange.Platform, describe(m.Inputs), describe(m.Outputs),
		exchange.Describe(m),
	})
}

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
	}{m.Name, exchange.Platform, "pytorch", m.MaxBatch, configure(m.Inputs), configure(m.Outputs)})
}

func configure(specs []tensor.Spec) []tensorConfig {
	list := make([]tensorConfig, len(specs))
	for i, s := range specs {
		list[i] = tensorConfig{s.Name, "TYPE_" + s.DType.String(), append([]int64{}, s.Shape...)}
	}
	return list
}
