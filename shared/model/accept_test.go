package model

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/tensor"
)

// vision is a model with one input and, where accept is not empty, a preprocess of it.
func vision(dtype tensor.DType, shape []int64, accept ...tensor.DType) Config {
	c := Config{Name: "m", Inputs: []tensor.Spec{{Name: "x", DType: dtype, Shape: shape}}}
	if len(accept) > 0 {
		c.Preprocess = map[string]Preprocess{"x": {Accept: accept, Scale: 1}}
	}
	return c
}

func TestInputsComeInEveryAcceptedType(t *testing.T) {
	c := vision(tensor.FP32, []int64{2}, tensor.UINT8, tensor.INT16)
	spec := c.Accepted()[0]
	for d, want := range map[tensor.DType]bool{tensor.FP32: true, tensor.UINT8: true, tensor.INT16: true, tensor.FP16: false} {
		n, err := spec.Check(tensor.Tensor{Name: "x", DType: d, Shape: []int64{3, 2}, Data: make([]byte, 6*d.Size())})
		if (err == nil) != want || want && n != 3 {
			t.Errorf("%s: %d samples, %v; accepted: %v expected", d, n, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), "FP32 or UINT8 or INT16") {
			t.Errorf("%s: %v: expected the accepted types", d, err)
		}
	}
	if c.Inputs[0].Also != nil {
		t.Errorf("the model's own inputs were changed: %+v", c.Inputs[0])
	}
}

func TestImageInputs(t *testing.T) {
	for name, c := range map[string]Config{
		"colour, by preprocess": vision(tensor.FP32, []int64{3, 8, 9}, tensor.FP16, tensor.UINT8),
		"grey, UINT8 itself":    vision(tensor.UINT8, []int64{1, 28, 28}),
	} {
		spec, err := c.ImageInput()
		if d := cmp.Diff(tensor.Spec{Name: "x", DType: tensor.UINT8, Shape: c.Inputs[0].Shape}, spec); d != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, d)
		}
	}
	two := vision(tensor.UINT8, []int64{3, 8, 8})
	two.Inputs = append(two.Inputs, tensor.Spec{Name: "y", DType: tensor.UINT8, Shape: []int64{1}})
	for want, c := range map[string]Config{
		"it has 2 inputs: expected 1":                     two,
		`input "x" is FP32: expected UINT8`:               vision(tensor.FP32, []int64{3, 8, 8}),
		`input "x" has the shape [3 -1 8]`:                vision(tensor.UINT8, []int64{3, -1, 8}),
		`input "x" has the shape [8 8 3]`:                 vision(tensor.UINT8, []int64{8, 8, 3}),
		`input "x" has the shape [128]: expected [3 heig`: vision(tensor.UINT8, []int64{128}),
	} {
		if _, err := c.ImageInput(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v: expected %q", err, want)
		}
	}
}
