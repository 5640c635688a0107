// Package payload makes the requests that are sent to a model and judges the answers.
//
// Requests come from the model's samples, or are random tensors of its input specs, or random
// images. They are made once, before the run, and encoded once by the transport that sends them. The package does no I/O.
package payload

import (
	"fmt"
	"math"
	"slices"

	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// Item is one request and what is known of its right answer.
type Item struct {
	Request wire.Request
	// Image, of type ContentType, is the whole body in place of Request's inputs where it is not nil.
	Image       []byte
	ContentType string
	// ImageInput is the name of the input that Image is for.
	ImageInput string
	// Expected holds the right outputs; empty: unknown.
	Expected []tensor.Tensor
	// Label is the right class; -1: unknown.
	Label int
}

// FromSamples makes one item of every sample and checks it against the model's input specs, so that
// samples of another model are refused before anything is sent.
func FromSamples(s wire.Samples, specs []tensor.Spec) ([]Item, error) {
	items := make([]Item, s.N)
	for i := range items {
		it := Item{Request: s.Request(i, 1), Label: -1}
		if _, err := it.Request.Check(specs); err != nil {
			return nil, fmt.Errorf("sample %d: %w", i, err)
		}
		if len(s.Outputs) > 0 {
			it.Expected = wire.Rows(s.Outputs, i, 1)
		}
		if len(s.Labels) > 0 {
			it.Label = s.Labels[i]
		}
		items[i] = it
	}
	return items, nil
}

// Ask has every item ask for the named outputs of those that the model has, and judges only them; no
// names: all.
func Ask(items []Item, names []string, specs []tensor.Spec) error {
	if err := (wire.Request{Outputs: names}).CheckOutputs(specs); err != nil || len(names) == 0 {
		return err
	}
	for i := range items {
		items[i].Request.Outputs = names
		items[i].Expected = slices.DeleteFunc(items[i].Expected, func(t tensor.Tensor) bool { return !slices.Contains(names, t.Name) })
	}
	return nil
}

// Verdict is what an answer is worth.
type Verdict struct {
	Wrong    bool   // an output is missing or differs from what was expected
	Why      string // of Wrong
	Labelled bool   // the right class is known
	Correct  bool   // the largest value of the first output is at the right class
}

// Judge compares the outputs of a successful reply with what it expects: absolutely, within
// tolerance, element by element; NaN where a number was expected is wrong.
func (it Item) Judge(outputs []tensor.Tensor, tolerance float64) Verdict {
	var v Verdict
	for _, want := range it.Expected {
		if why := differs(want, outputs, tolerance); why != "" {
			v.Wrong, v.Why = true, why
			break
		}
	}
	if it.Label >= 0 {
		v.Labelled = true
		v.Correct = len(outputs) > 0 && argmax(outputs[0]) == it.Label
	}
	return v
}

// differs says how the output called as want differs from it; "" when it does not.
func differs(want tensor.Tensor, outputs []tensor.Tensor, tolerance float64) string {
	for _, got := range outputs {
		if got.Name != want.Name {
			continue
		}
		if n, m := elements(got), elements(want); n != m {
			return fmt.Sprintf("output %q: shape %v: expected %v", want.Name, got.Shape, want.Shape)
		}
		for i := range elements(want) {
			g, w := at(got, i), at(want, i)
			if !(math.Abs(g-w) <= tolerance) && g != w {
				return fmt.Sprintf("output %q: element %d is %g: expected %g within %g", want.Name, i, g, w, tolerance)
			}
		}
		return ""
	}
	return fmt.Sprintf("output %q: missing", want.Name)
}

// argmax is the index of the largest element; the first of equals; -1 for none.
func argmax(t tensor.Tensor) int {
	best, index := math.Inf(-1), -1
	for i := range elements(t) {
		if v := at(t, i); v > best {
			best, index = v, i
		}
	}
	return index
}
