//fuzz:with decode.go

package v2

import (
	"net/http"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// FuzzDecode: whatever a client sends, what is admitted reaches a worker as it was, and its answer
// can be written in the form the client asked for.
func FuzzDecode(f *testing.F) {
	text := `{"id":"7","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}],` +
		`"outputs":[{"name":"double","parameters":{"binary_data":true}}],"parameters":{"timeout":2500}}`
	f.Add(strconv.Itoa(len(text)), "", append([]byte(text), make([]byte, 8)...))
	f.Add("", "application/json", []byte(`{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,-2.5],[3e2,0.0]]}]}`))
	f.Add("0", "", make([]byte, 8))
	f.Add("", "application/octet-stream", make([]byte, 16))
	toy := model.Model{Config: model.Config{
		Name: "toy", MaxBatch: 8, Inputs: []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{2}}},
		Outputs: []tensor.Spec{{Name: "double", DType: tensor.FP32, Shape: []int64{2}}, {Name: "index", DType: tensor.INT64, Shape: []int64{1}}},
	}}
	f.Fuzz(func(t *testing.T, jsonLength, contentType string, body []byte) {
		h := http.Header{}
		h.Set(headerJSONLength, jsonLength)
		h.Set("Content-Type", contentType)
		req, err := decode(h, body, &toy, wire.Limits{MaxBytes: 1 << 16})
		if err != nil || admit.Tensors(req.Request, &toy) != nil {
			return
		}
		message, err := wire.AppendRequest(nil, req.Request)
		if err != nil {
			t.Fatal(err)
		}
		got, err := wire.DecodeRequest("", message, toy.Inputs, wire.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(req.Request, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
		x := got.Inputs[0]
		outputs, err := req.Choose([]tensor.Tensor{
			{Name: "double", DType: tensor.FP32, Shape: x.Shape, Data: x.Data},
			{Name: "index", DType: tensor.INT64, Shape: []int64{x.Shape[0], 1}, Data: make([]byte, 8*x.Shape[0])},
		})
		if err != nil {
			t.Fatal(err)
		}
		rep := wire.V2Response{ID: req.ID, Outputs: outputs}
		if _, _, err := wire.EncodeV2Response(rep, func(string) bool { return true }); err != nil {
			t.Fatal(err)
		}
	})
}
