package tensor

import (
	"encoding/json"
	"math"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestDTypeNamesAreTheirOwnInverse(t *testing.T) {
	for d := FP32; d <= BOOL; d++ {
		got, err := ParseDType(d.String())
		if err != nil || got != d {
			t.Errorf("ParseDType(%q) = %v, %v", d.String(), got, err)
		}
		if d.Size() == 0 {
			t.Errorf("%s has no size", d)
		}
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var back DType
		if err := json.Unmarshal(text, &back); err != nil || back != d {
			t.Errorf("%s came back from %s as %v, %v", d, text, back, err)
		}
	}
}

func TestUnknownDTypeErrorListsTheKnownOnes(t *testing.T) {
	for _, name := range []string{"", "fp32", "BYTES", "UINT16"} {
		_, err := ParseDType(name)
		if err == nil || !strings.Contains(err.Error(), "FP32, FP16") {
			t.Errorf("ParseDType(%q): %v", name, err)
		}
	}
	if _, err := json.Marshal(Invalid); err == nil {
		t.Error("the invalid dtype was marshalled")
	}
	if _, err := json.Marshal(BOOL + 1); err == nil {
		t.Error("a dtype beyond the last one was marshalled")
	}
}

// Bytes is exact where the product fits an int64 and an error where it does not.
func TestBytesAgreesWithBigIntegers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := DType(rapid.IntRange(int(FP32), int(BOOL)).Draw(t, "dtype"))
		shape := rapid.SliceOfN(rapid.OneOf(rapid.Int64Range(0, 9), rapid.Int64Range(0, math.MaxInt64)), 0, MaxDims).Draw(t, "shape")
		want := big.NewInt(int64(d.Size()))
		zero := false
		for _, v := range shape {
			zero = zero || v == 0
			want.Mul(want, big.NewInt(v))
		}
		got, err := Bytes(d, shape)
		switch {
		case err == nil && want.Cmp(big.NewInt(got)) != 0:
			t.Fatalf("%s%v: %d bytes: expected %s", d, shape, got, want)
		case err != nil && want.IsInt64() && !zero:
			t.Fatalf("%s%v: %v although it needs only %s bytes", d, shape, err, want)
		}
	})
}

func TestBytesRefuses(t *testing.T) {
	for _, c := range []struct {
		dtype DType
		shape []int64
		want  string
	}{
		{Invalid, []int64{1}, "expected one of FP32"},
		{FP32, []int64{1, -1}, "dimension 1 is -1"},
		{FP32, make([]int64, MaxDims+1), "9 dimensions: expected at most 8"},
		{FP64, []int64{math.MaxInt64, 2}, "too large"},
	} {
		if _, err := Bytes(c.dtype, c.shape); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Bytes(%v, %v): %v: expected an error with %q", c.dtype, c.shape, err, c.want)
		}
	}
}

func TestValidateWantsExactlyTheBytesOfTheShape(t *testing.T) {
	x := Tensor{Name: "x", DType: FP32, Shape: []int64{2, 3}, Data: make([]byte, 24)}
	if err := x.Validate(); err != nil {
		t.Error(err)
	}
	x.Data = x.Data[:23]
	if err := x.Validate(); err == nil || !strings.Contains(err.Error(), "23 bytes of data: FP32[2 3] needs 24") {
		t.Errorf("a byte short: %v", err)
	}
}

func TestSpecCheck(t *testing.T) {
	spec := Spec{Name: "x", DType: FP32, Shape: []int64{3, -1}}
	ok := func(shape ...int64) Tensor {
		n, err := Bytes(FP32, shape)
		if err != nil {
			n = 0
		}
		return Tensor{Name: "x", DType: FP32, Shape: shape, Data: make([]byte, n)}
	}
	if n, err := spec.Check(ok(4, 3, 7)); n != 4 || err != nil {
		t.Errorf("4 samples: %d, %v", n, err)
	}
	wrong := ok(1, 3, 1)
	wrong.DType = INT32
	for _, c := range []struct {
		tensor Tensor
		want   string
	}{
		{wrong, `input "x": dtype INT32: expected FP32`},
		{ok(4, 3), `shape [4 3]: expected [batch 3 -1]`},
		{ok(4, 2, 7), `shape [4 2 7]: expected [batch 3 -1]`},
		{ok(0, 3, 7), `shape [0 3 7]: expected [batch 3 -1]`},
		{ok(1, 3, -1), `shape [1 3 -1]: expected [batch 3 -1]`},
		{Tensor{Name: "x", DType: FP32, Shape: []int64{1, 3, 7}, Data: make([]byte, 5)}, `5 bytes of data`},
	} {
		if _, err := spec.Check(c.tensor); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v: expected an error with %q", c.tensor.Shape, err, c.want)
		}
	}
}

func TestJSONWithoutADTypeIsRefused(t *testing.T) {
	for doc, want := range map[string]string{
		`{"name":"x","dtype":"FP32","shape":[-1,2]}`: "",
		`{"name":"x","shape":[2]}`:                   `tensor "x": no dtype: expected one of`,
		`{"name":"x","dtyp":"FP32"}`:                 `tensor "x": no dtype`,
		`{"name":"x","dtype":null}`:                  "dtype: found null",
		`{"name":"x","dtype":7}`:                     "dtype: json: cannot unmarshal number",
		`{"name":"x","dtype":"FP31"}`:                `"FP31"`,
	} {
		var s Spec
		err := json.Unmarshal([]byte(doc), &s)
		switch {
		case want == "" && (err != nil || s.DType != FP32):
			t.Errorf("%s: %+v, %v", doc, s, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: error %v: expected %s", doc, err, want)
		}
	}
}
