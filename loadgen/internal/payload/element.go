package payload

import (
	"encoding/binary"
	"math"

	"github.com/gpulet/gpulet/shared/tensor"
)

// elements is the number of elements that t's data holds.
func elements(t tensor.Tensor) int {
	if t.DType.Size() == 0 {
		return 0
	}
	return len(t.Data) / t.DType.Size()
}

// at returns element i of t as a float64. 64-bit integers beyond 2^53 lose digits.
func at(t tensor.Tensor, i int) float64 {
	b := t.Data[i*t.DType.Size():]
	switch t.DType {
	case tensor.FP32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
	case tensor.FP64:
		return math.Float64frombits(binary.LittleEndian.Uint64(b))
	case tensor.FP16:
		return halfToFloat(binary.LittleEndian.Uint16(b))
	case tensor.BF16:
		return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b)) << 16))
	case tensor.INT64:
		return float64(int64(binary.LittleEndian.Uint64(b)))
	case tensor.INT32:
		return float64(int32(binary.LittleEndian.Uint32(b)))
	case tensor.INT16:
		return float64(int16(binary.LittleEndian.Uint16(b)))
	case tensor.INT8:
		return float64(int8(b[0]))
	default: // UINT8, BOOL
		return float64(b[0])
	}
}

// halfToFloat decodes an IEEE 754 binary16.
func halfToFloat(h uint16) float64 {
	exp, frac := int(h>>10&0x1f), float64(h&0x3ff)
	var v float64
	switch exp {
	case 0:
		v = math.Ldexp(frac, -24)
	case 0x1f:
		if v = math.Inf(1); frac != 0 {
			v = math.NaN()
		}
	default:
		v = math.Ldexp(1+frac/1024, exp-15)
	}
	if h&0x8000 != 0 {
		return -v
	}
	return v
}

// put writes u, in [0, 1), as an element of type d into b: floats as they are, integers and booleans
// as 0 or 1, which are in range of the smallest embedding too.
func put(d tensor.DType, b []byte, u float64) {
	n := uint64(u * 2)
	switch d {
	case tensor.FP32:
		binary.LittleEndian.PutUint32(b, math.Float32bits(float32(u)))
	case tensor.FP64:
		binary.LittleEndian.PutUint64(b, math.Float64bits(u))
	case tensor.FP16:
		binary.LittleEndian.PutUint16(b, unitToHalf(u))
	case tensor.BF16:
		binary.LittleEndian.PutUint16(b, uint16(math.Float32bits(float32(u))>>16))
	case tensor.INT64:
		binary.LittleEndian.PutUint64(b, n)
	case tensor.INT32:
		binary.LittleEndian.PutUint32(b, uint32(n))
	case tensor.INT16:
		binary.LittleEndian.PutUint16(b, uint16(n))
	default: // UINT8, INT8, BOOL
		b[0] = byte(n)
	}
}

// unitToHalf encodes u, in [0, 1), as binary16, rounding down; below 2^-14 it gives 0.
func unitToHalf(u float64) uint16 {
	frac, exp := math.Frexp(u) // u = frac * 2^exp, frac in [0.5, 1)
	if u == 0 || exp+14 < 1 {
		return 0
	}
	return uint16(exp+14)<<10 | uint16((frac*2-1)*1024)
}
