package enginetest

import (
	"slices"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
)

// MaxBatch is the max_batch of every test model.
const MaxBatch = 16

func spec(name string, d tensor.DType, shape ...int64) tensor.Spec {
	return tensor.Spec{Name: name, DType: d, Shape: shape}
}

// The test models, by the name of their archives. What each computes is in
// testdata/make_archives.py and testdata/ref/*.txt.
var models = map[string]model.Config{
	// y = 2x + 1
	"affine":  single(spec("x", tensor.FP32, 3), spec("y", tensor.FP32, 3)),
	"inplace": single(spec("x", tensor.FP32, 3), spec("y", tensor.FP32, 3)),
	// y = 2x + 1, failing where an x is above 100
	"guard": single(spec("x", tensor.FP32, 3), spec("y", tensor.FP32, 3)),
	// y = 2x + 1, in batches of 4 only
	"fixed": single(spec("x", tensor.FP32, 3), spec("y", tensor.FP32, 3)),
	// y = x
	"copy": single(spec("x", tensor.FP32, 3), spec("y", tensor.FP32, 3)),
	// sum = a + b/2 + 1, total = the sum of a's row, twice = 2b
	"mixed": {
		Inputs:  []tensor.Spec{spec("a", tensor.FP32, 3), spec("b", tensor.INT64, 3)},
		Outputs: []tensor.Spec{spec("sum", tensor.FP32, 3), spec("total", tensor.FP32), spec("twice", tensor.INT64, 3)},
	},
}

func single(in, out tensor.Spec) model.Config {
	return model.Config{Inputs: []tensor.Spec{in}, Outputs: []tensor.Spec{out}}
}

// Model returns a test model for the target; change, if given, edits its configuration.
func (target Target) Model(t testing.TB, name string, change ...func(*model.Config)) model.Model {
	t.Helper()
	c, ok := models[name]
	if !ok {
		t.Fatalf("no test model %q", name)
	}
	c.Inputs, c.Outputs = slices.Clone(c.Inputs), slices.Clone(c.Outputs)
	c.Name, c.MaxBatch, c.Precision = name, MaxBatch, "stored"
	for _, f := range change {
		f(&c)
	}
	m := model.Model{Config: c, Version: 1}
	if target.Archive != nil {
		m.Path = target.Archive(name)
	}
	return m
}

// copyModel is the model "copy" for a dtype. The reference engine has a file for each.
func (target Target) copyModel(t testing.TB, d tensor.DType) model.Model {
	m := target.Model(t, "copy", func(c *model.Config) {
		c.Inputs = []tensor.Spec{spec("x", d, 3)}
		c.Outputs = []tensor.Spec{spec("y", d, 3)}
	})
	if target.Archive != nil && d != tensor.FP32 {
		m.Path = target.Archive("copy_" + strings.ToLower(d.String()))
	}
	return m
}
