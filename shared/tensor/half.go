package tensor

import "math"

// FP16ToFloat returns the value of an IEEE 754 half.
func FP16ToFloat(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exp := uint32(h>>10) & 0x1f
	frac := uint32(h & 0x3ff)
	switch exp {
	case 0: // zero and subnormals, in units of 2^-24
		v := float32(frac) * 0x1p-24
		return math.Float32frombits(math.Float32bits(v) | sign)
	case 0x1f: // infinity and NaN
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}

// FloatToFP16 returns the half nearest to f, ties to even; what is too large becomes infinity.
func FloatToFP16(f float64) uint16 {
	sign := uint16(math.Float64bits(f)>>48) & 0x8000
	f = math.Abs(f)
	switch {
	case f != f:
		return sign | 0x7e00
	case f >= 65520: // halfway between the largest half and the next power of two
		return sign | 0x7c00
	case f < 0x1p-14:
		return sign | uint16(math.RoundToEven(f*0x1p24))
	}
	frac, exp := math.Frexp(f) // f = frac * 2^exp, frac in [0.5, 1)
	m := math.RoundToEven(frac * 2048)
	// m holds the leading 1 as bit 10, which adds the one that exp+13 leaves out; a carry out of
	// the rounding runs into the exponent as it should.
	return sign | (uint16(exp+13)<<10 + uint16(m))
}

// BF16ToFloat returns the value of a bfloat16.
func BF16ToFloat(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// FloatToBF16 returns the bfloat16 nearest to f, ties to even; what is too large becomes infinity.
func FloatToBF16(f float64) uint16 {
	if f != f {
		return 0x7fc0
	}
	b := math.Float32bits(float32(f))
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}
