package tensor

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestEveryHalfSurvivesTheRoundTrip(t *testing.T) {
	for h := range uint16(math.MaxUint16) {
		if v := FP16ToFloat(h); v == v {
			if got := FloatToFP16(float64(v)); got != h {
				t.Fatalf("FP16 %#04x is %v, which becomes %#04x", h, v, got)
			}
		}
		if v := BF16ToFloat(h); v == v {
			if got := FloatToBF16(float64(v)); got != h {
				t.Fatalf("BF16 %#04x is %v, which becomes %#04x", h, v, got)
			}
		}
	}
}

func TestKnownHalves(t *testing.T) {
	cases := []struct {
		v    float64
		fp16 uint16
		bf16 uint16
	}{
		{0, 0, 0},
		{math.Copysign(0, -1), 0x8000, 0x8000},
		{1, 0x3c00, 0x3f80},
		{-2, 0xc000, 0xc000},
		{65504, 0x7bff, 0x4780},
		{65519.99, 0x7bff, 0x4780},
		{65520, 0x7c00, 0x4780},
		{math.Inf(-1), 0xfc00, 0xff80},
		{0x1p-24, 0x0001, 0x3380},
		{0x1p-25, 0x0000, 0x3300},           // a tie goes to even
		{1 + 0x1p-11, 0x3c00, 0x3f80},       // a tie goes to even
		{1 + 3*0x1p-11, 0x3c02, 0x3f80},     // a tie goes to even
		{0x1p-14 - 0x1p-26, 0x0400, 0x3880}, // the largest subnormals round up to the first normal
	}
	for _, c := range cases {
		if got := FloatToFP16(c.v); got != c.fp16 {
			t.Errorf("FloatToFP16(%v) = %#04x: expected %#04x", c.v, got, c.fp16)
		}
		if got := FloatToBF16(c.v); got != c.bf16 {
			t.Errorf("FloatToBF16(%v) = %#04x: expected %#04x", c.v, got, c.bf16)
		}
	}
	if v := FP16ToFloat(FloatToFP16(math.NaN())); v == v {
		t.Errorf("NaN became the half %v", v)
	}
	if v := BF16ToFloat(FloatToBF16(math.NaN())); v == v {
		t.Errorf("NaN became the bfloat16 %v", v)
	}
}

// A rounded value is never farther from the original than its neighbours are.
func TestRoundsToTheNearestHalf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Float64Range(-65504, 65504).Draw(t, "v")
		h := FloatToFP16(v)
		dist := func(h uint16) float64 { return math.Abs(float64(FP16ToFloat(h)) - v) }
		for _, near := range []uint16{h - 1, h + 1} {
			if near&0x7fff < 0x7c00 && near&0x8000 == h&0x8000 && dist(near) < dist(h) {
				t.Fatalf("%v became %v although %v is nearer", v, FP16ToFloat(h), FP16ToFloat(near))
			}
		}
	})
}
