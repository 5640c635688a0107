package payload

import (
	"fmt"
	"math/rand/v2"

	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// Random makes n items of so many samples with random inputs of the given specs; dimensions that
// vary are given the length varying. The same seed gives the same items.
func Random(specs []tensor.Spec, n, samples, varying int, seed uint64) ([]Item, error) {
	rng := rand.New(rand.NewPCG(seed, 0x67707574))
	items := make([]Item, n)
	for i := range items {
		items[i].Label = -1
		for _, s := range specs {
			t, err := randomTensor(s, samples, varying, rng)
			if err != nil {
				return nil, err
			}
			items[i].Request.Inputs = append(items[i].Request.Inputs, t)
		}
	}
	return items, nil
}

func randomTensor(s tensor.Spec, samples, varying int, rng *rand.Rand) (tensor.Tensor, error) {
	shape := []int64{int64(samples)}
	for _, d := range s.Shape {
		if d == -1 {
			d = int64(varying)
		}
		shape = append(shape, d)
	}
	size, err := tensor.Bytes(s.DType, shape)
	if err == nil && size > int64(wire.DefaultLimits.MaxBytes) {
		err = fmt.Errorf("%s%v is %d bytes: expected at most %d in a request", s.DType, shape, size, wire.DefaultLimits.MaxBytes)
	}
	if err != nil {
		return tensor.Tensor{}, fmt.Errorf("input %q: %w", s.Name, err)
	}
	data := make([]byte, size)
	step := s.DType.Size()
	for i := 0; i < len(data); i += step {
		put(s.DType, data[i:i+step], rng.Float64())
	}
	return tensor.Tensor{Name: s.Name, DType: s.DType, Shape: shape, Data: data}, nil
}
