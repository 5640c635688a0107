package grpc

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// every has a tensor of two elements of each type: its least value and another.
var every = []tensor.Tensor{
	{Name: "bool", DType: tensor.BOOL, Data: []byte{0, 1}},
	{Name: "uint8", DType: tensor.UINT8, Data: []byte{0, 255}},
	{Name: "int8", DType: tensor.INT8, Data: []byte{0x80, 127}},
	{Name: "int16", DType: tensor.INT16, Data: []byte{0, 0x80, 255, 127}},
	{Name: "int32", DType: tensor.INT32, Data: []byte{0, 0, 0, 0x80, 1, 2, 3, 4}},
	{Name: "int64", DType: tensor.INT64, Data: []byte{0, 0, 0, 0, 0, 0, 0, 0x80, 1, 2, 3, 4, 5, 6, 7, 8}},
	{Name: "fp32", DType: tensor.FP32, Data: []byte{0, 0, 0x80, 0xff, 0, 0, 0xc0, 0x7f}}, // -inf, NaN
	{Name: "fp64", DType: tensor.FP64, Data: []byte{0, 0, 0, 0, 0, 0, 0xf0, 0xff, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f}},
	{Name: "fp16", DType: tensor.FP16, Data: []byte{0, 0xfc, 0, 0x3c}},
	{Name: "bf16", DType: tensor.BF16, Data: []byte{0x80, 0xff, 0x80, 0x3f}},
}

// message makes a request of tensors, in the form of encode's answers.
func message(t testing.TB, raw bool, inputs ...tensor.Tensor) *oip.ModelInferRequest {
	t.Helper()
	res, err := encode(request{model: "m", raw: raw}, wire.Reply{Outputs: inputs})
	if err != nil {
		t.Fatal(err)
	}
	m := &oip.ModelInferRequest{ModelName: "m", RawInputContents: res.GetRawOutputContents()}
	for _, o := range res.GetOutputs() {
		m.Inputs = append(m.Inputs, &oip.ModelInferRequest_InferInputTensor{
			Name: o.GetName(), Datatype: o.GetDatatype(), Shape: o.GetShape(), Contents: o.GetContents(),
		})
	}
	return m
}

// sent is m as it comes over the wire.
func sent(t testing.TB, m *oip.ModelInferRequest) *oip.ModelInferRequest {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got := new(oip.ModelInferRequest)
	if err := unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestEveryTypeComesBackAsItWas(t *testing.T) {
	for _, x := range every {
		for _, shape := range [][]int64{{1, 2}, {2, 1, 1}, {2}} {
			x.Shape = shape
			for _, raw := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s%v raw=%v", x.DType, shape, raw), func(t *testing.T) {
					m := sent(t, message(t, raw, x))
					hasType := x.DType != tensor.FP16 && x.DType != tensor.BF16
					if typed := m.GetInputs()[0].GetContents() != nil; typed != (!raw && hasType) {
						t.Errorf("typed %v: %v", typed, m)
					}
					got, err := decode(m, nil, 8<<20)
					if err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff([]tensor.Tensor{x}, got.Inputs); diff != "" {
						t.Error(diff)
					}
				})
			}
		}
	}
}

func TestOneTypeWithoutContentsMakesAllOutputsRaw(t *testing.T) {
	outputs := []tensor.Tensor{every[6], every[8]}
	for i := range outputs {
		outputs[i].Shape = []int64{2}
	}
	res, err := encode(request{model: "m", id: "7"}, wire.Reply{Version: 4, Outputs: outputs})
	if err != nil {
		t.Fatal(err)
	}
	want := &oip.ModelInferResponse{
		ModelName: "m", ModelVersion: "4", Id: "7",
		Outputs:           []*oip.ModelInferResponse_InferOutputTensor{{Name: "fp32", Datatype: "FP32", Shape: []int64{2}}, {Name: "fp16", Datatype: "FP16", Shape: []int64{2}}},
		RawOutputContents: [][]byte{outputs[0].Data, outputs[1].Data},
	}
	if !proto.Equal(want, res) {
		t.Errorf("%v\nexpected %v", res, want)
	}
}

func TestEmptyTensorsAreTensors(t *testing.T) {
	x := tensor.Tensor{Name: "x", DType: tensor.FP32, Shape: []int64{1, 0}, Data: []byte{}}
	got, err := decode(sent(t, message(t, false, x)), nil, 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]tensor.Tensor{x}, got.Inputs); diff != "" {
		t.Error(diff)
	}
}

func parameter(v any) *oip.InferParameter {
	switch v := v.(type) {
	case bool:
		return &oip.InferParameter{ParameterChoice: &oip.InferParameter_BoolParam{BoolParam: v}}
	case int:
		return &oip.InferParameter{ParameterChoice: &oip.InferParameter_Int64Param{Int64Param: int64(v)}}
	case uint64:
		return &oip.InferParameter{ParameterChoice: &oip.InferParameter_Uint64Param{Uint64Param: v}}
	case float64:
		return &oip.InferParameter{ParameterChoice: &oip.InferParameter_DoubleParam{DoubleParam: v}}
	case string:
		return &oip.InferParameter{ParameterChoice: &oip.InferParameter_StringParam{StringParam: v}}
	}
	return &oip.InferParameter{}
}

func parameters(kv ...any) map[string]*oip.InferParameter {
	ps := map[string]*oip.InferParameter{}
	for i := 0; i < len(kv); i += 2 {
		ps[kv[i].(string)] = parameter(kv[i+1])
	}
	return ps
}

func TestParametersMeanWhatTheyMeanOverHTTP(t *testing.T) {
	x := every[6]
	x.Shape = []int64{2}
	for _, c := range []struct {
		kv      []any
		raw     bool // of the inputs
		timeout time.Duration
		wantRaw bool
	}{
		{nil, false, 0, false},
		{nil, true, 0, true},
		{[]any{"timeout", 2500, "priority", 3, "unknown", "anything"}, false, 2500 * time.Microsecond, false},
		{[]any{"timeout", uint64(1)}, true, time.Microsecond, true},
		{[]any{"binary_data_output", true}, false, 0, true},
		{[]any{"binary_data_output", false}, true, 0, false},
		{[]any{"sequence_id", 0, "sequence_start", false}, false, 0, false},
		{[]any{"sequence_id", ""}, false, 0, false},
	} {
		m := message(t, c.raw, x)
		m.Parameters = parameters(c.kv...)
		m.Id, m.Outputs = "id 1", []*oip.ModelInferRequest_InferRequestedOutputTensor{{Name: "b", Parameters: parameters("classification", 0)}, {Name: "a"}}
		got, err := decode(sent(t, m), nil, 8<<20)
		if err != nil {
			t.Errorf("%v: %v", c.kv, err)
			continue
		}
		if got.timeout != c.timeout || got.raw != c.wantRaw || got.id != "id 1" || !cmp.Equal(got.Outputs, []string{"b", "a"}) {
			t.Errorf("%v: %+v", c.kv, got)
		}
	}
}

func TestBadRequestsAreNamed(t *testing.T) {
	const tooMany = 65
	typed := func(datatype string, c *oip.InferTensorContents) func(*oip.ModelInferRequest) {
		return func(m *oip.ModelInferRequest) {
			m.Inputs[0].Datatype, m.Inputs[0].Contents, m.Inputs[0].Shape = datatype, c, []int64{2}
		}
	}
	set := func(kv ...any) func(*oip.ModelInferRequest) {
		return func(m *oip.ModelInferRequest) { m.Parameters = parameters(kv...) }
	}
	raw := func(data ...string) func(*oip.ModelInferRequest) {
		return func(m *oip.ModelInferRequest) {
			m.Inputs[0].Contents = nil
			for _, d := range data {
				m.RawInputContents = append(m.RawInputContents, []byte(d))
			}
		}
	}
	image := func(shape []int64, data ...string) func(*oip.ModelInferRequest) {
		return func(m *oip.ModelInferRequest) {
			m.Inputs[0].Datatype, m.Inputs[0].Shape, m.Inputs[0].Contents = "BYTES", shape, &oip.InferTensorContents{}
			for _, d := range data {
				m.Inputs[0].Contents.BytesContents = append(m.Inputs[0].Contents.BytesContents, []byte(d))
			}
		}
	}
	ints := func(v ...int32) *oip.InferTensorContents { return &oip.InferTensorContents{IntContents: v} }
	for _, c := range []struct {
		name   string
		change func(*oip.ModelInferRequest)
		want   string
	}{
		{"no contents", typed("FP32", nil), "inputs[0].contents.fp32_contents: 0 elements: expected 2"},
		{"too few", typed("FP32", &oip.InferTensorContents{Fp32Contents: []float32{1}}), "inputs[0].contents.fp32_contents: 1 elements: expected 2"},
		{"another field", typed("FP32", &oip.InferTensorContents{Fp64Contents: []float64{1, 2}}), "inputs[0].contents.fp32_contents: 0 elements: expected 2"},
		{"another field too", typed("FP32", &oip.InferTensorContents{Fp32Contents: []float32{1, 2}, IntContents: []int32{1}}), "inputs[0].contents.int_contents: found 1 elements: expected those of FP32 in fp32_contents"},
		{"beyond INT8", typed("INT8", ints(1, -129)), "inputs[0].contents.int_contents[1]: found -129: expected a number that fits INT8"},
		{"beyond INT16", typed("INT16", ints(40000, 1)), "inputs[0].contents.int_contents[0]: found 40000: expected a number that fits INT16"},
		{"beyond UINT8", typed("UINT8", &oip.InferTensorContents{UintContents: []uint32{1, 256}}), "inputs[0].contents.uint_contents[1]: found 256: expected a number that fits UINT8"},
		{"FP16 typed", typed("FP16", &oip.InferTensorContents{Fp32Contents: []float32{1, 2}}), "inputs[0].datatype: FP16 has no contents of its type: expected its bytes in raw_input_contents"},
		{"unknown datatype", typed("UINT16", nil), `inputs[0].datatype: dtype "UINT16": expected one of FP32`},
		{"negative dimension", func(m *oip.ModelInferRequest) { m.Inputs[0].Shape = []int64{-1} }, "inputs[0].shape: dimension 0 is -1: expected 0 or more"},
		{"huge dimensions", func(m *oip.ModelInferRequest) { m.Inputs[0].Shape = []int64{1 << 40, 1 << 40} }, "is too large"},
		{"beyond the limit", func(m *oip.ModelInferRequest) { m.Inputs[0].Shape = []int64{1 << 30} }, "inputs[0]: FP32[1073741824] needs 4294967296 bytes: expected at most 8388608"},
		{"nine dimensions", func(m *oip.ModelInferRequest) { m.Inputs[0].Shape = make([]int64, 9) }, "inputs[0].shape: 9 dimensions: expected at most 8"},
		{"long name", func(m *oip.ModelInferRequest) { m.Inputs[0].Name = strings.Repeat("n", 257) }, "inputs[0].name: a string of 257 bytes: expected at most 256"},
		{"long id", func(m *oip.ModelInferRequest) { m.Id = strings.Repeat("n", 257) }, "id: 257 bytes: expected at most 256"},
		{"many inputs", func(m *oip.ModelInferRequest) {
			m.Inputs = make([]*oip.ModelInferRequest_InferInputTensor, tooMany)
		}, "inputs: 65 tensors: expected at most 64"},
		{"many outputs", func(m *oip.ModelInferRequest) {
			m.Outputs = make([]*oip.ModelInferRequest_InferRequestedOutputTensor, tooMany)
		}, "outputs: 65 tensors: expected at most 64"},
		{"raw too short", raw("1234567"), `inputs[0]: tensor "x": 7 bytes of data: FP32[2] needs 8`},
		{"raw for two", raw("12345678", ""), "raw_input_contents: data of 2 inputs: expected 1, one for each input, or none"},
		{"raw beside contents", func(m *oip.ModelInferRequest) { m.RawInputContents = [][]byte{make([]byte, 8)} }, "inputs[0].contents: found beside raw_input_contents: expected one of the two"},
		{"timeout is negative", set("timeout", -5), "parameters.timeout: found -5: expected 0 to 86400000000 microseconds"},
		{"timeout is huge", set("timeout", uint64(1<<63)), "parameters.timeout: found 9223372036854775807: expected"},
		{"timeout is text", set("timeout", "5"), "parameters.timeout: found string_param: expected int64_param"},
		{"timeout is a fraction", set("timeout", 1.5), "parameters.timeout: found double_param: expected int64_param"},
		{"timeout is empty", set("timeout", nil), "parameters.timeout: found no value: expected int64_param"},
		{"binary_data_output is a number", set("binary_data_output", 1), "parameters.binary_data_output: found int64_param: expected bool_param"},
		{"sequence", set("sequence_id", 7), `parameters.sequence_id: found "7": sequences are not supported`},
		{"named sequence", set("sequence_id", "s"), `parameters.sequence_id: found "s": sequences are not supported`},
		{"shared memory in", func(m *oip.ModelInferRequest) {
			m.Inputs[0].Parameters = parameters("shared_memory_region", "r")
		}, "inputs[0].parameters.shared_memory_region: shared memory is not supported"},
		{"shared memory out", func(m *oip.ModelInferRequest) {
			m.Outputs = []*oip.ModelInferRequest_InferRequestedOutputTensor{{Name: "y", Parameters: parameters("shared_memory_region", "r")}}
		}, "outputs[0].parameters.shared_memory_region: shared memory is not supported"},
		{"classification", func(m *oip.ModelInferRequest) {
			m.Outputs = []*oip.ModelInferRequest_InferRequestedOutputTensor{{Name: "y", Parameters: parameters("classification", 3)}}
		}, "outputs[0].parameters.classification: found 3: classification is not supported"},
		{"text", image([]int64{1}, "hello"), `inputs[0]: BYTES of 5 bytes that begin with "hello": expected a JPEG or PNG image`},
		{"two images", image([]int64{2}, "\xff\xd8\xff", "\xff\xd8\xff"), "inputs[0]: BYTES[2], one of 1 inputs: expected one image as the only input, of the shape [1]"},
		{"no image", image([]int64{1}), "inputs[0].contents.bytes_contents: 0 elements: expected 1"},
		{"image under another name", func(m *oip.ModelInferRequest) { image([]int64{1}, "\xff\xd8\xff")(m); m.Inputs[0].Name = "z" }, `inputs[0].name: found "z": expected "x"`},
		{"raw image without its length", func(m *oip.ModelInferRequest) {
			image([]int64{1})(m)
			m.RawInputContents = [][]byte{[]byte("\xff\xd8\xff....")}
		}, "inputs[0]: 7 bytes of raw data: expected the length of one element in 4 bytes, and the element"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := tensor.Tensor{Name: "x", DType: tensor.FP32, Shape: []int64{2}, Data: make([]byte, 8)}
			m := message(t, false, x)
			c.change(m)
			_, err := decode(m, []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{3, 2, 2}}}, 8<<20)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nexpected %q", err, c.want)
			}
		})
	}
}

func TestImagesAreOneElementOfBytes(t *testing.T) {
	specs := []tensor.Spec{{Name: "x", DType: tensor.UINT8, Shape: []int64{1, 2, 2}}}
	for data, kind := range map[string]string{"\xff\xd8\xff and more": wire.TypeJPEG, "\x89PNG\r\n\x1a\n and more": wire.TypePNG} {
		for _, raw := range []bool{true, false} {
			for _, shape := range [][]int64{{1}, {1, 1}, nil} {
				m := &oip.ModelInferRequest{Inputs: []*oip.ModelInferRequest_InferInputTensor{{Name: "x", Datatype: "BYTES", Shape: shape}}}
				if raw {
					m.RawInputContents = [][]byte{append([]byte{byte(len(data)), 0, 0, 0}, data...)}
				} else {
					m.Inputs[0].Contents = &oip.InferTensorContents{BytesContents: [][]byte{[]byte(data)}}
				}
				got, err := decode(sent(t, m), specs, 8<<20)
				if err != nil || string(got.image) != data || got.imageType != kind || len(got.Inputs) != 0 {
					t.Errorf("raw %v, shape %v: %+v, %v", raw, shape, got, err)
				}
			}
		}
	}
}
