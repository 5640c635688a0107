package v2_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/frontend/internal/frontendtest"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

const visionInfer = "/v2/models/vision/infer"

// sized is VisionWorker's answer to n bytes.
func sized(n int) string {
	return fmt.Sprintf(`{"model_name":"vision","model_version":"3","outputs":[{"name":"size","datatype":"INT64","shape":[1],"data":[%d]}]}`, n)
}

func TestInputsComeInEveryTypeThatIsPreprocessed(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Vision()))
	d.Work(t, frontendtest.Vision(), frontendtest.VisionWorker)
	for _, in := range []tensor.Tensor{
		{Name: "x", DType: tensor.UINT8, Shape: []int64{2, 1, 2, 2}, Data: make([]byte, 8)},
		{Name: "x", DType: tensor.FP32, Shape: []int64{2, 1, 2, 2}, Data: make([]byte, 32)},
	} {
		for _, binary := range []bool{false, true} {
			body, n, err := wire.EncodeV2Request(wire.V2Request{Request: wire.Request{Inputs: []tensor.Tensor{in}}}, binary)
			if err != nil {
				t.Fatal(err)
			}
			var headers []string
			if binary {
				headers = []string{jsonLength, fmt.Sprint(n)}
			}
			if got := d.do(t, "POST", visionInfer, body, headers...); got.code != 200 || string(got.body) != sized(len(in.Data)) {
				t.Errorf("%s, binary %v: %d %s", in.DType, binary, got.code, got.body)
			}
		}
	}
	got := d.post(t, visionInfer, `{"inputs":[{"name":"x","datatype":"INT8","shape":[1,1,2,2],"data":[1,2,3,4]}]}`)
	if want := `model vision: input "x": dtype INT8: expected FP32 or UINT8`; got.code != 400 || got.errorText() != want {
		t.Errorf("%d %s: expected %q", got.code, got.body, want)
	}
}

func TestImagesAreQueuedAsTheyCame(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Vision()))
	types := make(chan string, 1)
	d.Work(t, frontendtest.Vision(), func(m *bus.Msg, req wire.Request) wire.Reply {
		types <- m.Get(wire.HeaderType)
		return frontendtest.VisionWorker(m, req)
	})
	for given, queued := range map[string]string{"image/jpeg": wire.TypeJPEG, "image/jpg": wire.TypeJPEG, "Image/PNG; a=b": wire.TypePNG} {
		got := d.post(t, visionInfer, "any bytes: the gpu-let looks at them", "Content-Type", given)
		if got.code != 200 || string(got.body) != sized(36) {
			t.Errorf("%s: %d %s", given, got.code, got.body)
		}
		if kind := <-types; kind != queued {
			t.Errorf("%s was queued as %q: expected %q", given, kind, queued)
		}
	}
}

// An image has no place for a choice of outputs: it is made by a header, which reaches the gpu-let.
func TestOutputsOfAnImageAreChosenByHeader(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Vision()))
	chosen := make(chan string, 1)
	d.Work(t, frontendtest.Vision(), func(m *bus.Msg, req wire.Request) wire.Reply {
		chosen <- m.Get(wire.HeaderOutputs)
		return frontendtest.VisionWorker(m, req)
	})
	got := d.post(t, visionInfer, "an image", "Content-Type", wire.TypePNG, wire.HeaderOutputs, "size")
	if outputs := <-chosen; got.code != 200 || outputs != "size" {
		t.Errorf("%d %s, the gpu-let was told %q: expected size", got.code, got.body, outputs)
	}
}

func TestMetadataSaysHowInputsMayCome(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Vision()))
	var got struct {
		Parameters map[string]any `json:"parameters"`
	}
	if err := json.Unmarshal(d.do(t, "GET", "/v2/models/vision", nil).body, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"slo_ms": 10000., "timeout_ms": 20000., "max_batch_size": 8.,
		"accepts": map[string]any{"x": []any{"FP32", "UINT8"}},
		"images":  []any{"image/jpeg", "image/png"},
	}
	if diff := cmp.Diff(want, got.Parameters); diff != "" {
		t.Error(diff)
	}
}
