package model

import (
	"fmt"
	"slices"

	"github.com/gpulet/gpulet/shared/tensor"
)

// Accepted are the inputs as clients may send them: in the model's own type or in one that
// Preprocess converts.
func (c Config) Accepted() []tensor.Spec {
	if len(c.Preprocess) == 0 {
		return c.Inputs
	}
	specs := slices.Clone(c.Inputs)
	for i := range specs {
		specs[i].Also = c.Preprocess[specs[i].Name].Accept
	}
	return specs
}

// ImageInput is the input of a model that takes images: its only one, of a fixed size, with the
// channels first (3: red, green, blue; 1: grey), and UINT8 itself or by Preprocess. In what is
// returned the type is UINT8. The error says why the model takes no images.
func (c Config) ImageInput() (tensor.Spec, error) {
	if len(c.Inputs) != 1 {
		return tensor.Spec{}, fmt.Errorf("takes no images: it has %d inputs: expected 1", len(c.Inputs))
	}
	s := c.Accepted()[0]
	if len(s.Shape) != 3 || s.Shape[0] != 1 && s.Shape[0] != 3 || s.Shape[1] < 1 || s.Shape[2] < 1 {
		return tensor.Spec{}, fmt.Errorf("takes no images: input %q has the shape %v: expected [3 height width] or [1 height width]", s.Name, s.Shape)
	}
	if !s.Accepts(tensor.UINT8) {
		return tensor.Spec{}, fmt.Errorf("takes no images: input %q is %s: expected UINT8, itself or in preprocess.%s.accept", s.Name, s.DType, s.Name)
	}
	return tensor.Spec{Name: s.Name, DType: tensor.UINT8, Shape: s.Shape}, nil
}
