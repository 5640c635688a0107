package wire

import (
	"fmt"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/gpulet/gpulet/shared/tensor"
)

// The sizes of a small model's request and of a 3x224x224 FP32 image.
var benchSizes = []struct {
	name string
	n    int64 // FP32 elements
}{{"1KB", 256}, {"600KB", 3 * 224 * 224}}

func benchRequest(n int64) (Request, []tensor.Spec) {
	data := make([]byte, 4*n)
	for i := range n {
		copy(data[4*i:], floats(float32(i)/float32(n)))
	}
	return Request{Inputs: []tensor.Tensor{{Name: "input", DType: tensor.FP32, Shape: []int64{1, n}, Data: data}}},
		[]tensor.Spec{{Name: "input", DType: tensor.FP32, Shape: []int64{n}}}
}

func BenchmarkDecodeRequest(b *testing.B) {
	for _, size := range benchSizes {
		for _, contentType := range []string{TypeMsgpack, TypeJSON} {
			b.Run(fmt.Sprintf("%s/%s", contentType, size.name), func(b *testing.B) {
				req, specs := benchRequest(size.n)
				body, err := EncodeRequest(contentType, req)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(body)))
				b.ReportAllocs()
				for b.Loop() {
					got, err := DecodeRequest(contentType, body, specs, Limits{})
					if err != nil || len(got.Inputs) != 1 {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkDecodeRequestByLibrary is what the msgpack library takes for the same bodies.
func BenchmarkDecodeRequestByLibrary(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(size.name, func(b *testing.B) {
			req, _ := benchRequest(size.n)
			body, err := EncodeRequest(TypeMsgpack, req)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				var got libRequest
				if err := msgpack.Unmarshal(body, &got); err != nil || len(got.Inputs) != 1 {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncodeRequest(b *testing.B) {
	for _, size := range benchSizes {
		for _, contentType := range []string{TypeMsgpack, TypeJSON} {
			b.Run(fmt.Sprintf("%s/%s", contentType, size.name), func(b *testing.B) {
				req, _ := benchRequest(size.n)
				b.ReportAllocs()
				for b.Loop() {
					body, err := EncodeRequest(contentType, req)
					if err != nil {
						b.Fatal(err)
					}
					b.SetBytes(int64(len(body)))
				}
			})
		}
	}
}

func BenchmarkReply(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(size.name, func(b *testing.B) {
			req, _ := benchRequest(size.n)
			rep := Reply{RequestID: "7", Status: StatusOK, Model: "lenet", Version: 1, Outputs: req.Inputs, Timing: Timing{Gpulet: "h-0-40"}}
			b.ReportAllocs()
			for b.Loop() {
				h, body, err := EncodeReply(TypeMsgpack, rep)
				if err != nil {
					b.Fatal(err)
				}
				if got, err := DecodeReply(headers(h), body); err != nil || got.Status != StatusOK {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(body)))
			}
		})
	}
}
