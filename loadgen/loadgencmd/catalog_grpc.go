package loadgencmd

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gpulet/gpulet/loadgen/internal/drive"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/tensor"
)

// grpcCatalog asks a frontend over gRPC.
type grpcCatalog struct{ addr string }

func (c grpcCatalog) lookup(ctx context.Context, names []string) (map[string]model.Config, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	conn, err := drive.DialGRPC(c.addr)
	if err != nil {
		return nil, fmt.Errorf("frontend: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing is under way
	frontend := oip.NewGRPCInferenceServiceClient(conn)
	known := map[string]model.Config{}
	for _, name := range names {
		res, err := frontend.ModelMetadata(ctx, &oip.ModelMetadataRequest{Name: name})
		if status.Code(err) == codes.NotFound {
			return nil, unknownModel(name, c.index(ctx, frontend))
		}
		if err != nil {
			return nil, fmt.Errorf("frontend: metadata of %s: %s", name, status.Convert(err).Message())
		}
		md, err := fromMessage(res)
		if err != nil {
			return nil, fmt.Errorf("frontend: metadata of %s: %w", name, err)
		}
		known[name] = md.config(name)
	}
	return known, nil
}

// index lists the frontend's models; empty when it does not say.
func (c grpcCatalog) index(ctx context.Context, frontend oip.GRPCInferenceServiceClient) (names []string) {
	res, err := frontend.RepositoryIndex(ctx, &oip.RepositoryIndexRequest{})
	if err != nil {
		return nil
	}
	for _, m := range res.GetModels() {
		names = append(names, m.GetName())
	}
	return names
}

// fromMessage is the metadata in a message; its properties are the parameters of HTTP as text.
func fromMessage(res *oip.ModelMetadataResponse) (md metadata, err error) {
	if md.Inputs, err = fromTensors(res.GetInputs()); err != nil {
		return md, err
	}
	if md.Outputs, err = fromTensors(res.GetOutputs()); err != nil {
		return md, err
	}
	p := &md.Parameters
	number := func(key string) float64 { // 0 where a frontend does not say
		v, _ := strconv.ParseFloat(res.GetProperties()[key], 64)
		return v
	}
	p.SLOMs, p.TimeoutMs, p.MaxBatch = number("slo_ms"), number("timeout_ms"), int(number("max_batch_size"))
	for key, value := range res.GetProperties() {
		input, ok := strings.CutPrefix(key, "accepts.")
		if !ok {
			continue
		}
		if p.Accepts == nil {
			p.Accepts = map[string][]tensor.DType{}
		}
		for name := range strings.SplitSeq(value, ",") {
			dtype, err := tensor.ParseDType(name)
			if err != nil {
				return md, fmt.Errorf("property %s: %w", key, err)
			}
			p.Accepts[input] = append(p.Accepts[input], dtype)
		}
	}
	return md, nil
}

func fromTensors(ts []*oip.ModelMetadataResponse_TensorMetadata) (list []tensorMetadata, err error) {
	for _, t := range ts {
		dtype, err := tensor.ParseDType(t.GetDatatype())
		if err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.GetName(), err)
		}
		list = append(list, tensorMetadata{t.GetName(), dtype, t.GetShape()})
	}
	return list, nil
}
