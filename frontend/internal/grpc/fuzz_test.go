//fuzz:with decode.go encode.go

package grpc

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// FuzzDecode: whatever a client sends, what is admitted reaches a worker as it was, and comes back the
// same in the form of an answer.
func FuzzDecode(f *testing.F) {
	add := func(m *oip.ModelInferRequest) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	input := func(datatype string, c *oip.InferTensorContents) []*oip.ModelInferRequest_InferInputTensor {
		return []*oip.ModelInferRequest_InferInputTensor{{Name: "x", Datatype: datatype, Shape: []int64{1, 2}, Contents: c}}
	}
	add(&oip.ModelInferRequest{Inputs: input("FP32", &oip.InferTensorContents{Fp32Contents: []float32{1, -2.5}})})
	add(&oip.ModelInferRequest{Inputs: input("INT8", &oip.InferTensorContents{IntContents: []int32{1, -2}})})
	add(&oip.ModelInferRequest{Inputs: input("BOOL", &oip.InferTensorContents{BoolContents: []bool{true, false}})})
	add(&oip.ModelInferRequest{
		ModelName: "toy", Id: "7", Inputs: input("FP16", nil), RawInputContents: [][]byte{make([]byte, 4)},
		Outputs:    []*oip.ModelInferRequest_InferRequestedOutputTensor{{Name: "x"}},
		Parameters: map[string]*oip.InferParameter{"timeout": {ParameterChoice: &oip.InferParameter_Int64Param{Int64Param: 2500}}},
	})
	add(&oip.ModelInferRequest{Inputs: []*oip.ModelInferRequest_InferInputTensor{{
		Name: "x", Datatype: "BYTES", Shape: []int64{1}, Contents: &oip.InferTensorContents{BytesContents: [][]byte{[]byte("\xff\xd8\xff")}},
	}}})
	spec := tensor.Spec{Name: "x", DType: tensor.FP32, Shape: []int64{2}}
	for d := tensor.FP16; d.Size() > 0; d++ {
		spec.Also = append(spec.Also, d)
	}
	toy := model.Model{Config: model.Config{Name: "toy", MaxBatch: 8, Inputs: []tensor.Spec{spec}, Outputs: []tensor.Spec{spec}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, plain := new(oip.ModelInferRequest), new(oip.ModelInferRequest)
		err := unmarshal(b, m)
		if plainErr := proto.Unmarshal(b, plain); (err == nil) != (plainErr == nil) || err == nil && !proto.Equal(m, plain) {
			t.Fatalf("%v, %v, not copied\n%v, %v, copied", err, m, plainErr, plain)
		}
		if err != nil {
			return
		}
		req, err := decode(m, toy.Inputs, 1<<16)
		if err != nil || req.image != nil {
			return
		}
		if _, err := req.Check([]tensor.Spec{spec}); err != nil || req.CheckOutputs(toy.Outputs) != nil {
			return
		}
		_ = admit.Tensors(req.Request, &toy)
		queued, err := wire.AppendRequest(nil, req.Request)
		if err != nil {
			t.Fatal(err)
		}
		got, err := wire.DecodeRequest("", queued, toy.Inputs, wire.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(req.Request, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
		outputs, err := req.Choose(got.Inputs)
		if err != nil {
			t.Fatal(err)
		}
		res, err := encode(req, wire.Reply{Outputs: outputs})
		if err != nil {
			t.Fatal(err)
		}
		again := &oip.ModelInferRequest{RawInputContents: res.GetRawOutputContents()}
		for _, o := range res.GetOutputs() {
			again.Inputs = append(again.Inputs, &oip.ModelInferRequest_InferInputTensor{
				Name: o.GetName(), Datatype: o.GetDatatype(), Shape: o.GetShape(), Contents: o.GetContents(),
			})
		}
		back, err := decode(again, toy.Inputs, 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		if req.Inputs[0].DType == tensor.BOOL {
			return // whatever is not 0 comes back as 1 where outputs are typed
		}
		if diff := cmp.Diff(outputs, back.Inputs, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}
