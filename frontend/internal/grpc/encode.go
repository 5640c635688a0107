package grpc

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// encode makes a message of the answer to req: its outputs as bytes where the request asks for that, or has
// its inputs so, or where a type has no other form; else as typed contents.
func encode(req request, rep wire.Reply) (*oip.ModelInferResponse, error) {
	res := &oip.ModelInferResponse{ModelName: req.model, ModelVersion: strconv.Itoa(rep.Version), Id: req.id}
	raw := req.raw || slices.ContainsFunc(rep.Outputs, func(t tensor.Tensor) bool { return fields[t.DType] == "" })
	for _, t := range rep.Outputs {
		if err := t.Validate(); err != nil {
			return nil, fmt.Errorf("model %s: its reply: %w", req.model, err)
		}
		out := &oip.ModelInferResponse_InferOutputTensor{Name: t.Name, Datatype: t.DType.String(), Shape: t.Shape}
		if raw {
			res.RawOutputContents = append(res.RawOutputContents, t.Data)
		} else {
			out.Contents = typed(t)
		}
		res.Outputs = append(res.Outputs, out)
	}
	return res, nil
}

// typed are the elements of a tensor whose type has a field for them.
func typed(t tensor.Tensor) *oip.InferTensorContents {
	c := &oip.InferTensorContents{}
	n, le := len(t.Data)/t.DType.Size(), binary.LittleEndian
	switch t.DType {
	case tensor.BOOL:
		c.BoolContents = each(n, func(i int) bool { return t.Data[i] != 0 })
	case tensor.UINT8:
		c.UintContents = each(n, func(i int) uint32 { return uint32(t.Data[i]) })
	case tensor.INT8:
		c.IntContents = each(n, func(i int) int32 { return int32(int8(t.Data[i])) })
	case tensor.INT16:
		c.IntContents = each(n, func(i int) int32 { return int32(int16(le.Uint16(t.Data[2*i:]))) })
	case tensor.INT32:
		c.IntContents = each(n, func(i int) int32 { return int32(le.Uint32(t.Data[4*i:])) })
	case tensor.INT64:
		c.Int64Contents = each(n, func(i int) int64 { return int64(le.Uint64(t.Data[8*i:])) })
	case tensor.FP32:
		c.Fp32Contents = each(n, func(i int) float32 { return math.Float32frombits(le.Uint32(t.Data[4*i:])) })
	case tensor.FP64:
		c.Fp64Contents = each(n, func(i int) float64 { return math.Float64frombits(le.Uint64(t.Data[8*i:])) })
	}
	return c
}

func each[T any](n int, element func(i int) T) []T {
	list := make([]T, n)
	for i := range list {
		list[i] = element(i)
	}
	return list
}
