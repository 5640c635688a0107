package grpc_test

import (
	"testing"

	"github.com/gpulet/gpulet/frontend/internal/frontendtest"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// BenchmarkInfer is the whole way over loopback: gRPC client, door, queue, worker and back, all on this
// machine's cores. v2 has the same over HTTP.
func BenchmarkInfer(b *testing.B) {
	for _, size := range []struct {
		name   string
		floats int64
	}{{"1KB", 256}, {"600KB", 3 * 224 * 224}} {
		for _, raw := range []bool{true, false} {
			name := size.name + "/typed"
			if raw {
				name = size.name + "/raw"
			}
			b.Run(name+"/one", func(b *testing.B) {
				d, req := benchDoor(b, size.floats, raw)
				b.ReportAllocs()
				for b.Loop() {
					d.mustInfer(b, req)
				}
			})
			b.Run(name+"/many", func(b *testing.B) {
				d, req := benchDoor(b, size.floats, raw)
				b.ReportAllocs()
				b.SetParallelism(32)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						d.mustInfer(b, req)
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
			})
		}
	}
}

// benchDoor serves a model that makes 10 floats of n.
func benchDoor(b *testing.B, n int64, raw bool) (*door, *oip.ModelInferRequest) {
	m := frontendtest.Model("bench", []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{n}}},
		[]tensor.Spec{{Name: "y", DType: tensor.FP32, Shape: []int64{10}}})
	d := open(b, frontendtest.Start(b, m))
	d.Work(b, m, func(*bus.Msg, wire.Request) wire.Reply {
		return wire.Reply{Status: wire.StatusOK, Model: "bench", Version: 1, Outputs: []tensor.Tensor{
			{Name: "y", DType: tensor.FP32, Shape: []int64{1, 10}, Data: make([]byte, 40)},
		}}
	})
	in := &oip.ModelInferRequest_InferInputTensor{Name: "x", Datatype: "FP32", Shape: []int64{1, n}}
	req := &oip.ModelInferRequest{ModelName: "bench", Inputs: []*oip.ModelInferRequest_InferInputTensor{in}}
	if raw {
		req.RawInputContents = [][]byte{make([]byte, 4*n)}
	} else {
		in.Contents = &oip.InferTensorContents{Fp32Contents: make([]float32, n)}
	}
	return d, req
}

func (d *door) mustInfer(b *testing.B, req *oip.ModelInferRequest) {
	if _, err := d.ModelInfer(b.Context(), req); err != nil {
		b.Error(err)
	}
}
