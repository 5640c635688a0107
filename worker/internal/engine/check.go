package engine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gpulet/gpulet/shared/tensor"
)

// precisions are what a model may be converted to; Invalid keeps it as it is stored.
var precisions = map[string]tensor.DType{
	"stored": tensor.Invalid,
	"fp32":   tensor.FP32,
	"fp16":   tensor.FP16,
	"bf16":   tensor.BF16,
}

// resolve fills in a Spec's defaults and refuses what no engine could do.
func (s Spec) resolve() (Spec, error) {
	if s.Device == "" {
		s.Device = "cpu"
	}
	if s.Precision == "" {
		s.Precision = s.Model.Precision
	}
	if s.Precision == "" {
		s.Precision = "stored"
	}
	if _, ok := precisions[s.Precision]; !ok {
		return s, errorf(EINVAL, "%s: precision %q: expected stored, fp32, fp16 or bf16", s.Model.Name, s.Precision)
	}
	if s.MaxBatch == 0 {
		s.MaxBatch = s.Model.MaxBatch
	}
	if s.MaxBatch < 1 {
		return s, errorf(EINVAL, "%s: max batch %d: expected 1 or more", s.Model.Name, s.MaxBatch)
	}
	if len(s.Model.Inputs) == 0 || len(s.Model.Outputs) == 0 {
		return s, errorf(EINVAL, "%s: %d inputs and %d outputs are declared: expected at least one of each",
			s.Model.Name, len(s.Model.Inputs), len(s.Model.Outputs))
	}
	return s.resolveBatches()
}

// resolveBatches puts the batches to prepare in descending order: what a graph of a large batch
// holds can be shared by the smaller ones that are captured after it.
func (s Spec) resolveBatches() (Spec, error) {
	if len(s.Batches) == 0 {
		if s.FixedBatch {
			return s, errorf(EINVAL, "%s: a fixed batch needs the batches it may have", s.Model.Name)
		}
		s.Batches = []int{1}
	}
	var err error
	s.Batches, err = descending(s.Model.Name, s.Batches)
	return s, err
}

// descending returns the different sizes among batches, largest first.
func descending(model string, batches []int) ([]int, error) {
	batches = slices.Clone(batches)
	slices.Sort(batches)
	batches = slices.Compact(batches)
	slices.Reverse(batches)
	if n := len(batches); n > 0 && batches[n-1] < 1 {
		return nil, errorf(EINVAL, "%s: a batch of %d: expected 1 or more", model, batches[n-1])
	}
	return batches, nil
}

// varies reports whether an input has a dimension that is not fixed.
func (s Spec) varies() bool {
	return slices.ContainsFunc(s.Model.Inputs, func(in tensor.Spec) bool {
		return slices.Contains(in.Shape, -1)
	})
}

// check reports whether in is a batch of the model and returns its number of samples. All engines
// refuse the same calls with the same words.
func (s *Spec) check(in []Input) (samples int64, err error) {
	specs := s.Model.Inputs
	if len(in) != len(specs) {
		return 0, errorf(EINVAL, "%s: %d inputs: expected %d (%s)", s.Model.Name, len(in), len(specs), inputNames(specs))
	}
	for i := range in {
		if err := s.checkInput(&specs[i], &in[i]); err != nil {
			return 0, errorf(EINVAL, "%s: input %q: %v", s.Model.Name, specs[i].Name, err)
		}
		n := in[i].Shape[0]
		if i > 0 && n != samples {
			return 0, errorf(EINVAL, "%s: input %q has %d samples: %q has %d", s.Model.Name, specs[i].Name, n, specs[0].Name, samples)
		}
		samples = n
	}
	if samples > int64(s.MaxBatch) {
		return 0, errorf(EINVAL, "%s: %d samples: expected at most %d", s.Model.Name, samples, s.MaxBatch)
	}
	return samples, nil
}

func (s *Spec) checkInput(spec *tensor.Spec, in *Input) error {
	if in.DType != spec.DType && !slices.Contains(s.Model.Preprocess[spec.Name].Accept, in.DType) {
		return fmt.Errorf("dtype %s: expected %s", in.DType, s.acceptedDTypes(spec))
	}
	if !fitsBatch(spec.Shape, in.Shape) || in.Shape[0] < 1 {
		return fmt.Errorf("shape %v: expected %s", in.Shape, batchShape(spec.Shape))
	}
	want, err := tensor.Bytes(in.DType, in.Shape)
	if err != nil {
		return err
	}
	var got int64
	for _, segment := range in.Segments {
		got += int64(len(segment))
	}
	if got != want {
		return fmt.Errorf("%d bytes in %d segments: %s%v needs %d", got, len(in.Segments), in.DType, in.Shape, want)
	}
	return nil
}

func (s *Spec) acceptedDTypes(spec *tensor.Spec) string {
	names := []string{spec.DType.String()}
	for _, d := range s.Model.Preprocess[spec.Name].Accept {
		if d != spec.DType {
			names = append(names, d.String())
		}
	}
	return strings.Join(names, " or ")
}

// checkOutputs reports whether a model returned what its model.yaml declares, for so many samples.
func (s *Spec) checkOutputs(out []tensor.Tensor, samples int64) error {
	specs := s.Model.Outputs
	if len(out) != len(specs) {
		return fmt.Errorf("the model returned %d outputs: %d are declared", len(out), len(specs))
	}
	for i := range out {
		if out[i].DType != specs[i].DType {
			return fmt.Errorf("output %q is %s: %s is declared", specs[i].Name, out[i].DType, specs[i].DType)
		}
		if !fitsBatch(specs[i].Shape, out[i].Shape) || out[i].Shape[0] != samples {
			return fmt.Errorf("output %q has the shape %v for %d samples: %s is declared", specs[i].Name, out[i].Shape, samples, batchShape(specs[i].Shape))
		}
	}
	return nil
}

// fitsBatch reports whether shape is spec with a batch dimension in front.
func fitsBatch(spec, shape []int64) bool {
	if len(shape) != len(spec)+1 || shape[0] < 0 {
		return false
	}
	for i, v := range spec {
		if got := shape[i+1]; got < 0 || v != -1 && v != got {
			return false
		}
	}
	return true
}

func batchShape(spec []int64) string {
	var b strings.Builder
	b.WriteString("[batch")
	for _, v := range spec {
		fmt.Fprintf(&b, " %d", v)
	}
	b.WriteString("]")
	return b.String()
}

func inputNames(specs []tensor.Spec) string {
	names := make([]string, len(specs))
	for i := range specs {
		names[i] = specs[i].Name
	}
	return strings.Join(names, ", ")
}
