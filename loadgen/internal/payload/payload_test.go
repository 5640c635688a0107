package payload

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

func fp32(name string, shape []int64, values ...float32) tensor.Tensor {
	var data []byte
	for _, v := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return tensor.Tensor{Name: name, DType: tensor.FP32, Shape: shape, Data: data}
}

var specs = []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{2}}}

func TestSamplesBecomeOneItemEach(t *testing.T) {
	items, err := FromSamples(wire.Samples{
		N:       2,
		Inputs:  []tensor.Tensor{fp32("x", []int64{2, 2}, 1, 2, 3, 4)},
		Outputs: []tensor.Tensor{fp32("y", []int64{2, 1}, 10, 20)},
		Labels:  []int{1, 0},
	}, specs)
	if err != nil {
		t.Fatal(err)
	}
	want := []Item{
		{
			Request:  wire.Request{Inputs: []tensor.Tensor{fp32("x", []int64{1, 2}, 1, 2)}},
			Expected: []tensor.Tensor{fp32("y", []int64{1, 1}, 10)}, Label: 1,
		},
		{
			Request:  wire.Request{Inputs: []tensor.Tensor{fp32("x", []int64{1, 2}, 3, 4)}},
			Expected: []tensor.Tensor{fp32("y", []int64{1, 1}, 20)}, Label: 0,
		},
	}
	if d := cmp.Diff(want, items); d != "" {
		t.Error(d)
	}
}

func TestSamplesOfAnotherModelAreRefused(t *testing.T) {
	_, err := FromSamples(wire.Samples{N: 1, Inputs: []tensor.Tensor{fp32("x", []int64{1, 3}, 1, 2, 3)}}, specs)
	if err == nil || !strings.Contains(err.Error(), `sample 0: input "x": shape [1 3]`) {
		t.Errorf("error %v", err)
	}
}

func TestAnswersAreJudged(t *testing.T) {
	it := Item{Expected: []tensor.Tensor{fp32("y", []int64{1, 3}, 0.1, 0.7, 0.2)}, Label: 1}
	nan := float32(math.NaN())
	for name, c := range map[string]struct {
		got  []tensor.Tensor
		want Verdict
	}{
		"right":       {[]tensor.Tensor{fp32("y", []int64{1, 3}, 0.1, 0.7, 0.2)}, Verdict{Labelled: true, Correct: true}},
		"near enough": {[]tensor.Tensor{fp32("y", []int64{1, 3}, 0.10005, 0.7, 0.2)}, Verdict{Labelled: true, Correct: true}},
		"off":         {[]tensor.Tensor{fp32("y", []int64{1, 3}, 0.102, 0.7, 0.2)}, Verdict{Wrong: true, Labelled: true, Correct: true}},
		"other class": {[]tensor.Tensor{fp32("y", []int64{1, 3}, 0.7, 0.1, 0.2)}, Verdict{Wrong: true, Labelled: true}},
		"NaN":         {[]tensor.Tensor{fp32("y", []int64{1, 3}, nan, 0.7, 0.2)}, Verdict{Wrong: true, Labelled: true, Correct: true}},
		"short":       {[]tensor.Tensor{fp32("y", []int64{1, 2}, 0.1, 0.7)}, Verdict{Wrong: true, Labelled: true, Correct: true}},
		"other name":  {[]tensor.Tensor{fp32("z", []int64{1, 3}, 0.1, 0.7, 0.2)}, Verdict{Wrong: true, Labelled: true, Correct: true}},
		"none":        {nil, Verdict{Wrong: true, Labelled: true}},
	} {
		v := it.Judge(c.got, 1e-4)
		if (v.Why != "") != v.Wrong {
			t.Errorf("%s: wrong %v because %q", name, v.Wrong, v.Why)
		}
		if v.Why = ""; v != c.want {
			t.Errorf("%s: %+v, expected %+v", name, v, c.want)
		}
	}
	if v := (Item{Label: -1}).Judge(nil, 0); v != (Verdict{}) {
		t.Errorf("nothing expected, judged %+v", v)
	}
}

func TestOnlyOutputsAskedForAreJudged(t *testing.T) {
	specs := []tensor.Spec{{Name: "a", DType: tensor.UINT8}, {Name: "b", DType: tensor.UINT8}}
	out := func(name string, v byte) tensor.Tensor {
		return tensor.Tensor{Name: name, DType: tensor.UINT8, Shape: []int64{1}, Data: []byte{v}}
	}
	items := []Item{{Expected: []tensor.Tensor{out("a", 1), out("b", 2)}, Label: -1}}
	if err := Ask(items, nil, specs); err != nil || len(items[0].Expected) != 2 || items[0].Request.Outputs != nil {
		t.Errorf("asked for nothing: %+v, %v", items[0], err)
	}
	if err := Ask(items, []string{"b"}, specs); err != nil || !slices.Equal(items[0].Request.Outputs, []string{"b"}) {
		t.Fatalf("%+v, %v", items[0], err)
	}
	if v := items[0].Judge([]tensor.Tensor{out("b", 2)}, 0); v.Wrong {
		t.Errorf("b alone is wrong: %s", v.Why)
	}
	if v := items[0].Judge([]tensor.Tensor{out("a", 1)}, 0); !v.Wrong {
		t.Error("a alone is right")
	}
	if err := Ask(items, []string{"c"}, specs); err == nil {
		t.Error("an output that the model does not have was taken")
	}
}

func TestRandomItemsFitTheirSpecs(t *testing.T) {
	var specs []tensor.Spec
	for d := tensor.FP32; d.Size() > 0; d++ {
		specs = append(specs, tensor.Spec{Name: d.String(), DType: d, Shape: []int64{3, -1}})
	}
	items, err := Random(specs, 4, 2, 5, 9)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		if n, err := it.Request.Check(specs); err != nil || n != 2 {
			t.Fatalf("%d samples, %v: expected 2", n, err)
		}
		for _, in := range it.Request.Inputs {
			for i := range elements(in) {
				if v := at(in, i); !(v >= 0 && v <= 1) {
					t.Errorf("%s element %d is %v", in.Name, i, v)
				}
			}
		}
	}
	again, _ := Random(specs, 4, 2, 5, 9)
	if d := cmp.Diff(items, again); d != "" {
		t.Errorf("same seed, other items:\n%s", d)
	}
	if cmp.Equal(items[0], items[1]) {
		t.Error("two items are the same")
	}
	if _, err := Random([]tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{4096, 4096}}}, 1, 1, 1, 1); err == nil {
		t.Error("a 64 MiB request was made")
	}
}

func TestElementsReadBackAsWritten(t *testing.T) {
	for d := tensor.FP32; d.Size() > 0; d++ {
		for _, u := range []float64{0, 0.25, 0.5, 0.75} {
			b := make([]byte, d.Size())
			put(d, b, u)
			want := u
			switch d {
			case tensor.FP32, tensor.FP64, tensor.FP16, tensor.BF16:
			default:
				want = math.Floor(u * 2)
			}
			if got := at(tensor.Tensor{DType: d, Data: b}, 0); got != want {
				t.Errorf("%s: wrote %v, read %v", d, want, got)
			}
		}
	}
}

func TestHalfs(t *testing.T) {
	for bits, want := range map[uint16]float64{0: 0, 1: math.Ldexp(1, -24), 0x3c00: 1, 0xc000: -2, 0x7bff: 65504, 0x7c00: math.Inf(1), 0xfc00: math.Inf(-1)} {
		if got := halfToFloat(bits); got != want {
			t.Errorf("%#x: %v, expected %v", bits, got, want)
		}
	}
	if !math.IsNaN(halfToFloat(0x7e00)) {
		t.Error("0x7e00 is NaN")
	}
}

func TestNegativeIntegers(t *testing.T) {
	for d, data := range map[tensor.DType][]byte{
		tensor.INT8: {0xff}, tensor.INT16: {0xff, 0xff}, tensor.INT32: {0xff, 0xff, 0xff, 0xff},
		tensor.INT64: {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	} {
		if got := at(tensor.Tensor{DType: d, Data: data}, 0); got != -1 {
			t.Errorf("%s: %v, expected -1", d, got)
		}
	}
}
