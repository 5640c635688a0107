package v2

import (
	"fmt"
	"slices"

	"github.com/gpulet/gpulet/shared/tensor"
)

// choose returns the wanted outputs in the order in which they are wanted; none wanted means all.
func choose(outputs []tensor.Tensor, wanted []string) ([]tensor.Tensor, error) {
	if len(wanted) == 0 {
		return outputs, nil
	}
	chosen := make([]tensor.Tensor, len(wanted))
	for i, name := range wanted {
		at := slices.IndexFunc(outputs, func(t tensor.Tensor) bool { return t.Name == name })
		if at < 0 {
			return nil, fmt.Errorf("its reply lacks output %q", name)
		}
		chosen[i] = outputs[at]
	}
	return chosen, nil
}
