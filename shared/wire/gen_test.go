package wire

import (
	"encoding/binary"
	"fmt"
	"math"

	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/shared/tensor"
)

// drawTensor draws a tensor; finite ones hold no NaN or infinity, so that JSON can carry them.
func drawTensor(t *rapid.T, name string, finite bool) tensor.Tensor {
	d := tensor.DType(rapid.IntRange(int(tensor.FP32), int(tensor.BOOL)).Draw(t, "dtype"))
	shape := rapid.SliceOfN(rapid.Int64Range(0, 4), 0, 4).Draw(t, "shape")
	n, err := tensor.Bytes(d, shape)
	if err != nil {
		t.Fatal(err)
	}
	data := rapid.SliceOfN(rapid.Byte(), int(n), int(n)).Draw(t, "data")
	if d == tensor.BOOL {
		for i := range data {
			data[i] &= 1
		}
	}
	if finite {
		makeFinite(d, data)
	}
	return tensor.Tensor{Name: name, DType: d, Shape: shape, Data: data}
}

// makeFinite clears the top bit of the exponent of every infinity and NaN.
func makeFinite(d tensor.DType, data []byte) {
	for off := 0; off < len(data); off += d.Size() {
		e := data[off:]
		switch d {
		case tensor.FP32:
			if v := float64(math.Float32frombits(binary.LittleEndian.Uint32(e))); math.IsNaN(v) || math.IsInf(v, 0) {
				e[3] &^= 0x40
			}
		case tensor.FP64:
			if v := math.Float64frombits(binary.LittleEndian.Uint64(e)); math.IsNaN(v) || math.IsInf(v, 0) {
				e[7] &^= 0x40
			}
		case tensor.FP16, tensor.BF16:
			if e[1]&0x7c == 0x7c {
				e[1] &^= 0x40
			}
		}
	}
}

func drawTensors(t *rapid.T, finite bool) []tensor.Tensor {
	ts := make([]tensor.Tensor, rapid.IntRange(1, 4).Draw(t, "tensors"))
	for i := range ts {
		name := rapid.StringN(1, 40, 80).Draw(t, "name")
		ts[i] = drawTensor(t, fmt.Sprintf("%d%s", i, name), finite)
	}
	return ts
}

func drawRequest(t *rapid.T, finite bool) Request {
	req := Request{Inputs: drawTensors(t, finite)}
	if rapid.Bool().Draw(t, "choose outputs") {
		req.Outputs = rapid.SliceOfN(rapid.StringN(0, 20, 60), 1, 20).Draw(t, "outputs")
	}
	return req
}

func drawReply(t *rapid.T, finite bool) Reply {
	rep := Reply{RequestID: rapid.String().Draw(t, "id"), Status: StatusOK}
	if rapid.Bool().Draw(t, "error") {
		rep.Status = Status(rapid.SampledFrom([]string{"bad_request", "overloaded", "expired", "failed"}).Draw(t, "status"))
		rep.Detail = rapid.String().Draw(t, "detail")
		return rep
	}
	rep.Model = rapid.StringMatching(`[a-z0-9_-]{1,64}`).Draw(t, "model")
	rep.Version = rapid.IntRange(0, math.MaxInt32).Draw(t, "version")
	rep.Outputs = drawTensors(t, finite)
	rep.Timing = Timing{
		QueuedUs: rapid.Int64().Draw(t, "queued"), BatchedUs: rapid.Int64().Draw(t, "batched"),
		ExecUs: rapid.Int64().Draw(t, "exec"), Batch: rapid.Int().Draw(t, "batch"),
		Gpulet: rapid.StringMatching(`[a-z0-9-]{0,96}`).Draw(t, "gpulet"),
		Share:  rapid.IntRange(0, 100).Draw(t, "share"),
		Plan:   rapid.Uint64Max(math.MaxInt64).Draw(t, "plan"),
	}
	return rep
}
