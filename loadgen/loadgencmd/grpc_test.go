package loadgencmd

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/shared/oip"
)

// grpcFrontend knows the model "digits", takes tensors and images for it, and echoes them.
type grpcFrontend struct {
	oip.UnimplementedGRPCInferenceServiceServer
}

func (grpcFrontend) ModelMetadata(_ context.Context, req *oip.ModelMetadataRequest) (*oip.ModelMetadataResponse, error) {
	tensors := func(name string, shape ...int64) []*oip.ModelMetadataResponse_TensorMetadata {
		return []*oip.ModelMetadataResponse_TensorMetadata{{Name: name, Datatype: "FP32", Shape: shape}}
	}
	switch req.GetName() {
	case "digits":
		return &oip.ModelMetadataResponse{
			Inputs: tensors("x", -1, 3), Outputs: tensors("y", -1, 3),
			Properties: map[string]string{"slo_ms": "1000", "timeout_ms": "2000", "max_batch_size": "4"},
		}, nil
	case "vision":
		return &oip.ModelMetadataResponse{Inputs: tensors("x", -1, 1, 8, 8), Properties: map[string]string{"accepts.x": "FP32,UINT8"}}, nil
	}
	return nil, status.Error(codes.NotFound, "unknown model")
}

func (grpcFrontend) RepositoryIndex(context.Context, *oip.RepositoryIndexRequest) (*oip.RepositoryIndexResponse, error) {
	return &oip.RepositoryIndexResponse{Models: []*oip.RepositoryIndexResponse_ModelIndex{{Name: "digits"}}}, nil
}

func (grpcFrontend) ModelInfer(_ context.Context, req *oip.ModelInferRequest) (*oip.ModelInferResponse, error) {
	in := req.GetInputs()[0]
	if in.GetDatatype() == "BYTES" {
		if !strings.HasPrefix(string(req.GetRawInputContents()[0][4:]), "\xff\xd8\xff") {
			return nil, status.Error(codes.InvalidArgument, "no JPEG")
		}
		return &oip.ModelInferResponse{}, nil
	}
	return &oip.ModelInferResponse{
		RawOutputContents: req.GetRawInputContents(),
		Outputs:           []*oip.ModelInferResponse_InferOutputTensor{{Name: "y", Datatype: in.GetDatatype(), Shape: in.GetShape()}},
	}, nil
}

func TestRunOverGRPC(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	oip.RegisterGRPCInferenceServiceServer(srv, grpcFrontend{})
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(listener) })
	t.Cleanup(func() {
		srv.Stop()
		serving.Wait()
	})
	over := func(args ...string) result {
		return loadgen(t, nil, append([]string{"run", "--via", "grpc", "--grpc-url", listener.Addr().String(), "--duration", "200ms"}, args...)...)
	}
	r := over("--rates", "digits=100", "--models", modelDir(t), "--outputs", "digits=y", "--json", "-")
	var doc report.Run
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil || r.code != 0 {
		t.Fatalf("%v: %+v", err, r)
	}
	if f := doc.Total; f.OK != f.Sent || f.Correct != f.Sent || f.Sent == 0 || doc.Models["digits"].SLOMs != 1000 || doc.Via != "grpc" {
		t.Errorf("%+v", f)
	}
	if r := over("--rates", "vision=100", "--body", "jpeg", "--strict"); r.code != 0 {
		t.Errorf("JPEGs: %+v", r)
	}
	if r := over("--rates", "nets=100"); r.code != 2 || !strings.Contains(r.stderr, "model nets is not registered: expected one of digits") {
		t.Errorf("%+v", r)
	}
	srv.Stop()
	if r := over("--rates", "digits=100"); r.code != 1 || !strings.Contains(r.stderr, "frontend: metadata of digits: ") {
		t.Errorf("without a frontend: %+v", r)
	}
}
