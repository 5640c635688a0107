// Package tensor holds the vocabulary of tensors: element types, shapes and named buffers.
//
// It knows nothing of transports or engines; wire, model and the engines all speak it.
package tensor

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
)

// DType is an element type. Its numeric values are those of gle_dtype in engine.h,
// so that crossing the C ABI needs no table.
type DType uint8

// The element types, named as the open inference protocol (v2) names them.
const (
	Invalid DType = iota
	FP32
	FP16
	BF16
	FP64
	UINT8
	INT8
	INT16
	INT32
	INT64
	BOOL
)

var dtypes = [...]struct {
	name string
	size int
}{
	{"", 0},
	{"FP32", 4},
	{"FP16", 2},
	{"BF16", 2},
	{"FP64", 8},
	{"UINT8", 1},
	{"INT8", 1},
	{"INT16", 2},
	{"INT32", 4},
	{"INT64", 8},
	{"BOOL", 1},
}

// MaxDims is the largest number of dimensions a tensor may have, the batch dimension included.
const MaxDims = 8

// ParseDType returns the type called name ("FP32"); the error lists the known ones.
func ParseDType(name string) (DType, error) {
	for i := 1; i < len(dtypes); i++ {
		if dtypes[i].name == name {
			return DType(i), nil
		}
	}
	return Invalid, fmt.Errorf("dtype %q: expected one of %s", name, knownDTypes())
}

func knownDTypes() string {
	names := make([]string, 0, len(dtypes)-1)
	for _, d := range dtypes[1:] {
		names = append(names, d.name)
	}
	return strings.Join(names, ", ")
}

func (d DType) String() string {
	if int(d) < len(dtypes) && d != Invalid {
		return dtypes[d].name
	}
	return fmt.Sprintf("DType(%d)", uint8(d))
}

// Size is the number of bytes of one element, 0 for an unknown type.
func (d DType) Size() int {
	if int(d) < len(dtypes) {
		return dtypes[d].size
	}
	return 0
}

// MarshalText and UnmarshalText let a DType stand in JSON and YAML under its name.
func (d DType) MarshalText() ([]byte, error) {
	if d == Invalid || int(d) >= len(dtypes) {
		return nil, fmt.Errorf("no such dtype: %d", uint8(d))
	}
	return []byte(dtypes[d].name), nil
}

// UnmarshalText is the inverse of MarshalText.
func (d *DType) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDType(string(text))
	return err
}

// UnmarshalJSON is UnmarshalText for a JSON string; null, which would leave d as it was, is refused.
func (d *DType) UnmarshalJSON(data []byte) error {
	var name *string
	if err := json.Unmarshal(data, &name); err != nil {
		return fmt.Errorf("dtype: %w", err)
	}
	if name == nil {
		return fmt.Errorf("dtype: found null: expected one of %s", knownDTypes())
	}
	return d.UnmarshalText([]byte(*name))
}

// Tensor is a named, dense, row-major, little-endian buffer. Shape includes the batch dimension.
// Data may alias the message it was decoded from and must not be written to.
type Tensor struct {
	Name  string
	DType DType
	Shape []int64
	Data  []byte
}

// Bytes is the number of bytes of a dense tensor of this type and shape. It fails on an unknown
// type, more than MaxDims dimensions, a negative dimension, and a product beyond an int64.
func Bytes(d DType, shape []int64) (int64, error) {
	if d.Size() == 0 {
		return 0, fmt.Errorf("dtype %d: expected one of %s", uint8(d), knownDTypes())
	}
	if len(shape) > MaxDims {
		return 0, fmt.Errorf("%d dimensions: expected at most %d", len(shape), MaxDims)
	}
	n := int64(d.Size())
	for i, v := range shape {
		if v < 0 {
			return 0, fmt.Errorf("dimension %d is %d: expected 0 or more", i, v)
		}
		if v > 0 && n > math.MaxInt64/v {
			return 0, fmt.Errorf("shape %v is too large", shape)
		}
		n *= v
	}
	return n, nil
}

// Validate reports whether Data holds exactly the bytes that DType and Shape ask for.
func (t Tensor) Validate() error {
	want, err := Bytes(t.DType, t.Shape)
	if err != nil {
		return fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	if int64(len(t.Data)) != want {
		return fmt.Errorf("tensor %q: %d bytes of data: %s%v needs %d", t.Name, len(t.Data), t.DType, t.Shape, want)
	}
	return nil
}

// Spec describes a tensor of a model: Shape leaves out the batch dimension, -1 stands where a
// dimension varies.
type Spec struct {
	Name  string  `yaml:"name" json:"name"`
	DType DType   `yaml:"dtype" json:"dtype"`
	Shape []int64 `yaml:"shape,flow" json:"shape"`
	// Also are further types that a tensor may come in; whoever takes it converts it.
	Also []DType `yaml:"-" json:"-"`
}

// UnmarshalJSON refuses a tensor without a type, which nobody could write again.
func (s *Spec) UnmarshalJSON(data []byte) error {
	type plain Spec
	if err := json.Unmarshal(data, (*plain)(s)); err != nil {
		return err
	}
	if s.DType == Invalid {
		return fmt.Errorf("tensor %q: no dtype: expected one of %s", s.Name, knownDTypes())
	}
	return nil
}

// Accepts reports whether a tensor may come in type d.
func (s Spec) Accepts(d DType) bool { return d == s.DType || slices.Contains(s.Also, d) }

// dtypes are the types that a tensor may come in, in words.
func (s Spec) dtypes() string {
	names := []string{s.DType.String()}
	for _, d := range s.Also {
		if d != s.DType {
			names = append(names, d.String())
		}
	}
	return strings.Join(names, " or ")
}

// Check reports whether t is a batch of s and returns its number of samples (its first dimension).
// The error names the tensor, what was found and what was expected.
func (s Spec) Check(t Tensor) (samples int64, err error) {
	if !s.Accepts(t.DType) {
		return 0, fmt.Errorf("input %q: dtype %s: expected %s", s.Name, t.DType, s.dtypes())
	}
	if len(t.Shape) != len(s.Shape)+1 || t.Shape[0] < 1 || !fits(s.Shape, t.Shape[1:]) {
		return 0, fmt.Errorf("input %q: shape %v: expected %s", s.Name, t.Shape, s.batchShape())
	}
	if err := t.Validate(); err != nil {
		return 0, err
	}
	return t.Shape[0], nil
}

func fits(spec, got []int64) bool {
	for i, v := range spec {
		if v != -1 && v != got[i] || got[i] < 0 {
			return false
		}
	}
	return true
}

func (s Spec) batchShape() string {
	var b strings.Builder
	b.WriteString("[batch")
	for _, v := range s.Shape {
		fmt.Fprintf(&b, " %d", v)
	}
	b.WriteString("]")
	return b.String()
}
