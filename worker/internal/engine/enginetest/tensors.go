package enginetest

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

// Floats encodes values as FP32.
func Floats(values ...float32) []byte {
	b := make([]byte, 0, 4*len(values))
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

// ParseFloats decodes FP32.
func ParseFloats(data []byte) []float32 {
	values := make([]float32, len(data)/4)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
	}
	return values
}

// Ints encodes values as INT64.
func Ints(values ...int64) []byte {
	b := make([]byte, 0, 8*len(values))
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	return b
}

// ParseInts decodes INT64.
func ParseInts(data []byte) []int64 {
	values := make([]int64, len(data)/8)
	for i := range values {
		values[i] = int64(binary.LittleEndian.Uint64(data[8*i:]))
	}
	return values
}

// FP32 is an input of floats.
func FP32(shape []int64, values ...float32) engine.Input {
	return engine.Input{DType: tensor.FP32, Shape: shape, Segments: [][]byte{Floats(values...)}}
}

// INT64 is an input of integers.
func INT64(shape []int64, values ...int64) engine.Input {
	return engine.Input{DType: tensor.INT64, Shape: shape, Segments: [][]byte{Ints(values...)}}
}

// Count is n floats: 0, 1, 2, ...
func Count(n int64) []float32 {
	values := make([]float32, n)
	for i := range values {
		values[i] = float32(i)
	}
	return values
}

// AllClose compares floats with a tolerance that is absolute below 1 and relative above; NaN
// equals NaN.
func AllClose(got, want []float32, tolerance float64) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d values, want %d", len(got), len(want))
	}
	for i := range got {
		g, w := float64(got[i]), float64(want[i])
		if g == w || math.IsNaN(g) && math.IsNaN(w) {
			continue
		}
		if !(math.Abs(g-w) <= tolerance*max(1, math.Abs(w))) {
			return fmt.Errorf("value %d is %v, want %v within %v", i, g, w, tolerance)
		}
	}
	return nil
}

// MustRun runs a batch, hands the outputs to check while they live, and frees them.
func MustRun(t testing.TB, m engine.Model, in []engine.Input, check func([]tensor.Tensor)) {
	t.Helper()
	r, err := m.Run(in)
	if err != nil {
		t.Fatalf("Run: %v", err)
	}
	defer r.Free()
	for _, o := range r.Outputs() {
		if err := o.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	if check != nil {
		check(r.Outputs())
	}
}
