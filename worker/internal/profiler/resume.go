package profiler

import (
	"fmt"
	"maps"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
)

// Inputs are the element types that a model is measured with, by input.
func Inputs(m model.Model) map[string]string {
	types := map[string]string{}
	for _, in := range sent(m) {
		types[in.Name] = in.DType.String()
	}
	return types
}

// Resume returns a profile to go on with: earlier, if it is of the same archive, engine, precision and
// inputs as fresh, else fresh and why not earlier.
func Resume(earlier, fresh *profile.Profile) (*profile.Profile, error) {
	for _, c := range []struct{ what, found, want string }{
		{"archive", earlier.ModelHash, fresh.ModelHash},
		{"engine", earlier.Torch, fresh.Torch},
		{"precision", earlier.Precision, fresh.Precision},
		{"driver", earlier.Driver, fresh.Driver},
	} {
		if c.found != c.want {
			return fresh, fmt.Errorf("found a profile of the %s %.24q: expected %.24q", c.what, c.found, c.want)
		}
	}
	if !maps.Equal(earlier.Inputs, fresh.Inputs) {
		return fresh, fmt.Errorf("found a profile with inputs %v: expected %v", earlier.Inputs, fresh.Inputs)
	}
	return earlier, nil
}
