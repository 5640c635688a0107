package grpc

import (
	"context"
	"strconv"
	"strings"

	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/tensor"
)

// ServerLive: the process answers.
func (s *Server) ServerLive(context.Context, *oip.ServerLiveRequest) (*oip.ServerLiveResponse, error) {
	return &oip.ServerLiveResponse{Live: true}, nil
}

// ServerReady: the bus is reached and a plan has been published.
func (s *Server) ServerReady(context.Context, *oip.ServerReadyRequest) (*oip.ServerReadyResponse, error) {
	return &oip.ServerReadyResponse{Ready: s.x.Ready() == nil}, nil
}

// ModelReady: a gpu-let serves the model.
func (s *Server) ModelReady(ctx context.Context, req *oip.ModelReadyRequest) (*oip.ModelReadyResponse, error) {
	m, refusal := s.x.Lookup(req.GetName(), req.GetVersion())
	if refusal != nil {
		return nil, refuse(ctx, refusal)
	}
	return &oip.ModelReadyResponse{Ready: s.x.ModelReady(m.Name) == nil}, nil
}

// ServerMetadata names the server and its extensions of the protocol.
func (s *Server) ServerMetadata(context.Context, *oip.ServerMetadataRequest) (*oip.ServerMetadataResponse, error) {
	return &oip.ServerMetadataResponse{Name: exchange.Name, Version: s.x.Version, Extensions: []string{"model_repository"}}, nil
}

// ModelMetadata describes a model.
func (s *Server) ModelMetadata(ctx context.Context, req *oip.ModelMetadataRequest) (*oip.ModelMetadataResponse, error) {
	m, refusal := s.x.Lookup(req.GetName(), req.GetVersion())
	if refusal != nil {
		return nil, refuse(ctx, refusal)
	}
	return &oip.ModelMetadataResponse{
		Name: m.Name, Versions: []string{strconv.Itoa(m.Version)}, Platform: exchange.Platform,
		Inputs: describe(m.Inputs), Outputs: describe(m.Outputs), Properties: properties(m),
	}, nil
}

// describe puts the batch dimension, which varies, before the shapes.
func describe(specs []tensor.Spec) []*oip.ModelMetadataResponse_TensorMetadata {
	list := make([]*oip.ModelMetadataResponse_TensorMetadata, len(specs))
	for i, s := range specs {
		list[i] = &oip.ModelMetadataResponse_TensorMetadata{Name: s.Name, Datatype: s.DType.String(), Shape: append([]int64{-1}, s.Shape...)}
	}
	return list
}

// properties are the parameters of HTTP's metadata as text: numbers as they are, names separated by commas,
// and for each input that may come in several types accepts.<input>.
func properties(m *model.Model) map[string]string {
	d := exchange.Describe(m)
	number := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	p := map[string]string{"slo_ms": number(d.SLOMs), "timeout_ms": number(d.TimeoutMs), "max_batch_size": strconv.Itoa(d.MaxBatch)}
	for input, types := range d.Accepts {
		names := make([]string, len(types))
		for i, t := range types {
			names[i] = t.String()
		}
		p["accepts."+input] = strings.Join(names, ",")
	}
	if len(d.Images) > 0 {
		p["images"] = strings.Join(d.Images, ",")
	}
	return p
}

// RepositoryIndex lists the registered models.
func (s *Server) RepositoryIndex(_ context.Context, req *oip.RepositoryIndexRequest) (*oip.RepositoryIndexResponse, error) {
	res := &oip.RepositoryIndexResponse{}
	for _, e := range s.x.Index() {
		if req.GetReady() && e.State != exchange.StateReady {
			continue
		}
		res.Models = append(res.Models, &oip.RepositoryIndexResponse_ModelIndex{Name: e.Name, Version: e.Version, State: e.State, Reason: e.Reason})
	}
	return res, nil
}
