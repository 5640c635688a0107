package wire

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/gpulet/gpulet/shared/tensor"
)

type m = map[string]any

func pack(t *testing.T, v any) []byte {
	t.Helper()
	b, err := msgpack.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// input is a good tensor with the given keys replaced; nil removes a key.
func input(change m) m {
	in := m{"name": "x", "dtype": "FP32", "shape": []int64{1, 2}, "data": make([]byte, 8)}
	for k, v := range change {
		if v == nil {
			delete(in, k)
		} else {
			in[k] = v
		}
	}
	return in
}

func TestBadMsgpackRequestsAreNamed(t *testing.T) {
	one := func(change m) any { return m{"inputs": []m{input(change)}} }
	long := strings.Repeat("n", 257)
	cases := []struct {
		name string
		body any // []byte as it is, else packed
		want string
	}{
		{"empty", []byte{}, "ends in the middle"},
		{"not a map", []byte{0x93}, "found array: expected a map"},
		{"reserved byte", []byte{0xc1}, "found type byte 0xc1: expected a map"},
		{"huge map", []byte{0xdf, 0xff, 0xff, 0xff, 0xff}, "4294967295 items announced, 0 bytes left"},
		{"no inputs key", m{"v": 1}, `key "inputs" is missing`},
		{"unknown key", m{"inputs": []m{}, "foo": 1}, `unknown key "foo": expected one of ["inputs" "v" "outputs"]`},
		{"key twice", append([]byte("\x82\xa1v\x01"), "\xa1v\x01"...), `key "v" comes twice`},
		{"key no string", []byte("\x81\x01\x01"), "key: found int: expected a string"},
		{"other version", m{"inputs": []m{}, "v": 2}, "v: version 2: expected 1"},
		{"version is a float", m{"inputs": []m{}, "v": 1.0}, "v: found float: expected an integer"},
		{"inputs no array", m{"inputs": "x"}, "inputs: found string: expected an array"},
		{"input no map", m{"inputs": []int{1}}, "inputs[0]: found int: expected a map"},
		{"unknown tensor key", one(m{"datatype": "FP32"}), `inputs[0]: unknown key "datatype"`},
		{"no data", one(m{"data": nil}), `inputs[0]: key "data" is missing`},
		{"data is text", one(m{"data": "12345678"}), "inputs[0].data: found string: expected bin"},
		{"data too short", one(m{"data": make([]byte, 7)}), `inputs[0]: tensor "x": 7 bytes of data: FP32[1 2] needs 8`},
		{"unknown dtype", one(m{"dtype": "BYTES"}), `inputs[0].dtype: dtype "BYTES": expected one of FP32`},
		{"name too long", one(m{"name": long}), "inputs[0].name: a string of 257 bytes: expected at most 256"},
		{"name no UTF-8", one(m{"name": "\xff"}), "inputs[0].name: string \"\\xff\": expected UTF-8"},
		{"nine dimensions", one(m{"shape": make([]int64, 9)}), "inputs[0].shape: 9 dimensions: expected at most 8"},
		{"float dimension", one(m{"shape": []float64{1, 2}}), "inputs[0].shape[0]: found float: expected an integer"},
		{"negative dimension", one(m{"shape": []int64{1, -2}}), "dimension 1 is -2"},
		{"huge dimensions", one(m{"shape": []int64{1 << 40, 1 << 40}}), "shape [1099511627776 1099511627776] is too large"},
		{"dimension beyond int64", one(m{"shape": []uint64{1 << 63}}), "inputs[0].shape[0]: integer 9223372036854775808"},
		{"65 inputs", m{"inputs": make([]m, 65)}, "inputs: 65 tensors: expected at most 64"},
		{"output is a number", m{"inputs": []m{}, "outputs": []int{1}}, "outputs[0]: found int: expected a string"},
		{"bytes follow", append(pack(t, one(nil)), 0), "1 bytes follow the body"},
		{"data longer than the body", []byte("\x81\xa6inputs\x91\x81\xa4data\xc6\xff\xff\xff\xff"), "4294967295 bytes announced, 0 left"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			body, isBytes := c.body.([]byte)
			if !isBytes {
				body = pack(t, c.body)
			}
			_, err := DecodeRequest(TypeMsgpack, body, nil, Limits{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nexpected an error with %q", err, c.want)
			}
		})
	}
}

func TestOutputsAreChosenInTheOrderTheyAreAskedFor(t *testing.T) {
	outputs := []tensor.Tensor{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	for want, asked := range map[string][]string{"abc": nil, "ca": {"c", "a"}, "b": {"b"}} {
		got, err := Request{Outputs: asked}.Choose(outputs)
		names := ""
		for _, o := range got {
			names += o.Name
		}
		if err != nil || names != want {
			t.Errorf("%v: %s, %v: expected %s", asked, names, err, want)
		}
	}
	if _, err := (Request{Outputs: []string{"a", "z"}}).Choose(outputs); err == nil || err.Error() != `its reply lacks output "z"` {
		t.Errorf("%v", err)
	}
}

func TestBadJSONRequestsAreNamed(t *testing.T) {
	one := func(shape, datatype, rest string) string {
		return `{"inputs":[{"name":"x","shape":` + shape + `,"datatype":"` + datatype + `",` + rest + `}]}`
	}
	cases := []struct{ name, body, want string }{
		{"empty object", `{}`, `key "inputs" is missing`},
		{"cut off", `{"inputs":[`, "found the end of the JSON"},
		{"case matters", `{"Inputs":[]}`, `unknown key "Inputs"`},
		{"key twice", `{"inputs":[],"inputs":[]}`, `key "inputs" comes twice`},
		{"NaN", one(`[1]`, "FP32", `"data":[NaN]`), "inputs[0].data[0]: at byte 61: found NaN, which JSON does not have"},
		{"infinity", one(`[1]`, "FP32", `"data":[-Infinity]`), "inputs[0].data[0]: at byte 61: found '-': expected a number"},
		{"too large for FP32", one(`[1]`, "FP32", `"data":[1e39]`), "found 1e39: expected a number that fits FP32"},
		{"too large for FP16", one(`[1]`, "FP16", `"data":[65520]`), "found 65520: expected a number that fits FP16"},
		{"too large for BF16", one(`[1]`, "BF16", `"data":[1e39]`), "found 1e39: expected a number that fits BF16"},
		{"fraction for INT32", one(`[1]`, "INT32", `"data":[1.5]`), "found 1.5: expected a number that fits INT32"},
		{"300 for UINT8", one(`[1]`, "UINT8", `"data":[300]`), "found 300: expected a number that fits UINT8"},
		{"-1 for UINT8", one(`[1]`, "UINT8", `"data":[-1]`), "found -1: expected a number that fits UINT8"},
		{"1 for BOOL", one(`[1]`, "BOOL", `"data":[1]`), "expected true or false"},
		{"string for FP32", one(`[1]`, "FP32", `"data":["1"]`), "found a string: expected a number"},
		{"null", one(`[1]`, "FP32", `"data":null`), "found null: expected an array"},
		{"leading zero", one(`[1]`, "FP32", `"data":[01]`), "expected a number"},
		{"no fraction", one(`[1]`, "FP32", `"data":[1.]`), "expected a number"},
		{"no exponent", one(`[1]`, "FP32", `"data":[1e]`), "expected a number"},
		{"too few", one(`[3]`, "FP32", `"data":[1,2]`), "inputs[0].data: 2 elements: expected 3"},
		{"too many", one(`[1]`, "FP32", `"data":[1,2]`), "inputs[0].data: more than 1 elements"},
		{"none", one(`[1]`, "FP32", `"data":[]`), "inputs[0].data: 0 elements: expected 1"},
		{"ragged", one(`[2,2]`, "FP32", `"data":[[1,2],[3]]`), "inputs[0].data[1]: 1 elements: expected 2"},
		{"a row short", one(`[2,2]`, "FP32", `"data":[[1,2]]`), "inputs[0].data: 1 elements: expected 2"},
		{"a row over", one(`[1,2]`, "FP32", `"data":[[1,2],[3,4]]`), "inputs[0].data: more than 1 elements"},
		{"nested too shallow", one(`[1,1,1]`, "FP32", `"data":[[1]]`), "expected an array"},
		{"trailing comma", one(`[2]`, "FP32", `"data":[1,]`), "expected a number"},
		{"huge dimensions", one(`[1099511627776,1099511627776]`, "FP32", `"data":[1]`), "is too large"},
		{"dimensions beyond the limit", one(`[4194304]`, "FP32", `"data":[1]`), "needs 16777216 bytes: expected at most 8388608"},
		{"dimensions beyond the text", one(`[1000000]`, "FP32", `"data":[1]`), "the text is too short"},
		{"dimension with a fraction", one(`[1.0]`, "FP32", `"data":[1]`), "inputs[0].shape[0]: found 1.0: expected an integer"},
		{"negative dimension", one(`[-1]`, "FP32", `"data":[1]`), "dimension 0 is -1"},
		{"nine dimensions", one(`[1,1,1,1,1,1,1,1,1]`, "FP32", `"data":[1]`), "inputs[0].shape: more than 8 elements"},
		{"unknown datatype", one(`[1]`, "BYTES", `"data":["a"]`), `inputs[0].datatype: dtype "BYTES": expected one of FP32`},
		{"no data", `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}`, `tensor "x" has neither data nor binary_data_size`},
		{"binary without bytes", one(`[1]`, "FP32", `"parameters":{"binary_data_size":4}`), "binary_data_size 4: 0 bytes of binary data are left"},
		{"both", one(`[1]`, "FP32", `"data":[1],"parameters":{"binary_data_size":4}`), "both data and binary_data_size"},
		{"negative size", one(`[1]`, "FP32", `"parameters":{"binary_data_size":-4}`), "binary_data_size: found -4: expected 0 or more"},
		{"shared memory", one(`[1]`, "FP32", `"parameters":{"shared_memory_region":"r"}`), "shared memory is not supported"},
		{"classification", `{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":3}}]}`, "outputs[0].parameters.classification: found 3: classification is not supported"},
		{"sequence", `{"inputs":[],"parameters":{"sequence_id":7}}`, `parameters.sequence_id: found "7": sequences are not supported`},
		{"negative timeout", `{"inputs":[],"parameters":{"timeout":-1}}`, "parameters.timeout: found -1: expected 0 to 86400000000 microseconds"},
		{"output without name", `{"inputs":[],"outputs":[{}]}`, `outputs[0]: key "name" is missing`},
		{"text follows", `{"inputs":[]} {}`, "2 bytes follow the JSON"},
		{"control character", "{\"inputs\":[],\"id\":\"\n\"}", "control character 0xa"},
		{"string without end", `{"inputs`, "string without an end"},
		{"bad escape", `{"inputs":[],"id":"\x"}`, "invalid character"},
		{"id too long", `{"inputs":[],"id":"` + strings.Repeat("i", 257) + `"}`, "id: a string of 257 bytes: expected at most 256"},
		{"deep nesting", `{"inputs":[],"parameters":{"deep":` + strings.Repeat("[", 40) + `}}`, "nested deeper than 16"},
		{"elements named before the shape is known", `{"inputs":[{"data":[1,2],"name":"x","shape":[1],"datatype":"FP32"}]}`, "inputs[0].data: more than 1 elements"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := DecodeRequest(TypeJSON, []byte(c.body), nil, Limits{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nexpected an error with %q", err, c.want)
			}
		})
	}
}

func TestJSONTensorsMayBeFlatOrNested(t *testing.T) {
	want := Request{Inputs: []tensor.Tensor{{Name: "x", DType: tensor.FP32, Shape: []int64{2, 2}, Data: floats(1, -2.5, 3e2, 0)}}}
	for _, body := range []string{
		`{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,-2.5,3e2,0]}]}`,
		` {"inputs" : [ {"name":"x","shape":[ 2 , 2 ],"datatype":"FP32","data": [ [1, -2.5] , [3E+2 , 0.0] ] } ] } `,
		`{"inputs":[{"data":[[1,-2.5],[300,0]],"datatype":"FP32","shape":[2,2],"name":"\u0078"}]}`,
	} {
		got, err := DecodeRequest("", []byte(body), nil, Limits{})
		if err != nil {
			t.Errorf("%v in %s", err, body)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s\n%s", body, diff)
		}
	}
}

// What tritonclient 2.x sends must decode: its parameters are known or harmless.
func TestReadsWhatTheFieldsClientsSend(t *testing.T) {
	text := `{"id":"7","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}],` +
		`"outputs":[{"name":"y","parameters":{"binary_data":true}},{"name":"z","parameters":{"binary_data":false}}],` +
		`"parameters":{"sequence_id":0,"sequence_start":false,"priority":0,"timeout":2500,"custom":"x"}}`
	got, err := DecodeV2Request(append([]byte(text), floats(1, 2)...), len(text), nil, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := V2Request{
		ID:      "7",
		Timeout: 2500 * time.Microsecond,
		Request: Request{
			Inputs:  []tensor.Tensor{{Name: "x", DType: tensor.FP32, Shape: []int64{1, 2}, Data: floats(1, 2)}},
			Outputs: []string{"y", "z"},
		},
		Binary: []bool{true, false},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !got.WantsBinary("y") || got.WantsBinary("z") || got.WantsBinary("other") {
		t.Error("the outputs' wishes were mixed up")
	}
}

func TestBinaryDataMustBeClaimedExactly(t *testing.T) {
	text := `{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}`
	for _, c := range []struct {
		tail    int
		jsonLen int
		want    string
	}{
		{5, len(text), "1 bytes of binary data are no input's"},
		{3, len(text), "binary_data_size 4: 3 bytes of binary data are left"},
		{0, len(text) + 1, "bytes of JSON announced: the body has"},
		{0, -5, "-5 bytes of JSON announced"},
	} {
		body := append([]byte(text), make([]byte, c.tail)...)
		if _, err := DecodeV2Request(body, c.jsonLen, nil, Limits{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: expected an error with %q", err, c.want)
		}
	}
}

func TestRawBodies(t *testing.T) {
	fixed := []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{2}}}
	varying := []tensor.Spec{{Name: "x", DType: tensor.INT64, Shape: []int64{-1}}}
	for _, c := range []struct {
		name  string
		specs []tensor.Spec
		bytes int
		shape []int64
		want  string
	}{
		{"one sample", fixed, 8, []int64{1, 2}, ""},
		{"three samples", fixed, 24, []int64{3, 2}, ""},
		{"varying dimension", varying, 40, []int64{1, 5}, ""},
		{"not a multiple", fixed, 12, nil, "12 bytes of raw data: expected a multiple of 8 (FP32[1 2])"},
		{"nothing", fixed, 0, nil, "0 bytes of raw data"},
		{"two inputs", append(fixed, varying...), 8, nil, "the model has 2 inputs: expected 1"},
		{"two varying dimensions", []tensor.Spec{{Name: "x", DType: tensor.INT64, Shape: []int64{-1, -1}}}, 8, nil, "varies in more than one dimension"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := DecodeRequest(TypeRaw, make([]byte, c.bytes), c.specs, Limits{})
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("%v: expected an error with %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.shape, req.Inputs[0].Shape); diff != "" {
				t.Error(diff)
			}
			if _, err := req.Check(c.specs); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestContentTypes(t *testing.T) {
	body := []byte(`{"inputs":[]}`)
	for _, contentType := range []string{"", "application/json", "Application/JSON; charset=utf-8"} {
		if _, err := DecodeRequest(contentType, body, nil, Limits{}); err != nil {
			t.Errorf("%q: %v", contentType, err)
		}
	}
	_, err := DecodeRequest("text/plain", body, nil, Limits{})
	if err == nil || !strings.Contains(err.Error(), `content type "text/plain": expected one of application/msgpack`) {
		t.Errorf("text/plain: %v", err)
	}
	_, err = DecodeRequest("", make([]byte, 101), nil, Limits{MaxBytes: 100})
	if err == nil || !strings.Contains(err.Error(), "101 bytes: expected at most 100") {
		t.Errorf("a body over the limit: %v", err)
	}
}

func TestRequestCheck(t *testing.T) {
	specs := []tensor.Spec{
		{Name: "a", DType: tensor.FP32, Shape: []int64{2}},
		{Name: "b", DType: tensor.INT32, Shape: []int64{}},
	}
	a := tensor.Tensor{Name: "a", DType: tensor.FP32, Shape: []int64{3, 2}, Data: make([]byte, 24)}
	b := tensor.Tensor{Name: "b", DType: tensor.INT32, Shape: []int64{3}, Data: make([]byte, 12)}
	short := tensor.Tensor{Name: "b", DType: tensor.INT32, Shape: []int64{2}, Data: make([]byte, 8)}
	other := tensor.Tensor{Name: "c", DType: tensor.INT32, Shape: []int64{3}, Data: make([]byte, 12)}
	typed := tensor.Tensor{Name: "b", DType: tensor.FP32, Shape: []int64{3}, Data: make([]byte, 12)}

	if n, err := (Request{Inputs: []tensor.Tensor{b, a}}).Check(specs); n != 3 || err != nil {
		t.Errorf("any order: %d, %v", n, err)
	}
	for _, c := range []struct {
		inputs []tensor.Tensor
		want   string
	}{
		{nil, `input "a" is missing: expected "a", "b"`},
		{[]tensor.Tensor{a}, `input "b" is missing`},
		{[]tensor.Tensor{a, b, other}, `input "c": the model has no such input: expected "a", "b"`},
		{[]tensor.Tensor{a, b, a}, `input "a" comes twice`},
		{[]tensor.Tensor{a, short}, `input "b": 2 samples: expected 3 as in input "a"`},
		{[]tensor.Tensor{a, typed}, `input "b": dtype FP32: expected INT32`},
	} {
		if _, err := (Request{Inputs: c.inputs}).Check(specs); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: expected an error with %q", err, c.want)
		}
	}

	for _, c := range []struct {
		outputs []string
		want    string
	}{{[]string{"z"}, `output "z": the model has no such output: expected "a", "b"`}, {[]string{"a", "a"}, `output "a" comes twice`}} {
		if err := (Request{Outputs: c.outputs}).CheckOutputs(specs); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: expected an error with %q", err, c.want)
		}
	}
	var chosen Request
	if err := chosen.ChooseOutputs("b, a"); err != nil || chosen.CheckOutputs(specs) != nil {
		t.Errorf("chosen by header: %v, %q: expected b and a", err, chosen.Outputs)
	}
	if err := (&Request{}).ChooseOutputs(strings.Repeat("b,", 1<<14)); err == nil || !strings.Contains(err.Error(), "bytes: expected the names of at most") {
		t.Errorf("a header without end: %v", err)
	}
	if err := (Request{Outputs: []string{"b", "a"}}).CheckOutputs(specs); err != nil {
		t.Error(err)
	}
}

func TestReplies(t *testing.T) {
	t.Run("an error may come without a body", func(t *testing.T) {
		rep, err := DecodeReply(headers(m2{HeaderStatus: "expired", HeaderRequestID: "7"}), nil)
		if err != nil || rep.Status != Expired || rep.RequestID != "7" {
			t.Errorf("%+v, %v", rep, err)
		}
	})
	t.Run("the body alone tells the status", func(t *testing.T) {
		rep, err := DecodeReply(headers(nil), []byte(`{"error":"failed","detail":"d"}`))
		if err != nil || rep.Status != Failed || rep.Detail != "d" {
			t.Errorf("%+v, %v", rep, err)
		}
	})
	t.Run("keys of a newer worker are passed over", func(t *testing.T) {
		body := pack(t, m{
			"v": 1, "model": "a", "version": 2, "outputs": []m{}, "new": []any{1, 2.5, nil, true, "s", []byte{1}, m{"k": -1}},
			"timing": m{"exec_us": 5, "newer": 1 << 40},
		})
		rep, err := DecodeReply(headers(nil), body)
		if err != nil || rep.Model != "a" || rep.Timing.ExecUs != 5 {
			t.Errorf("%+v, %v", rep, err)
		}
	})
	for _, c := range []struct {
		name   string
		header m2
		body   []byte
		want   string
	}{
		{"nothing", nil, nil, "neither a body nor a Gpulet-Status header"},
		{"ok without a body", m2{HeaderStatus: "ok"}, nil, "status ok without a body"},
		{"two opinions", m2{HeaderStatus: "ok"}, []byte(`{"error":"failed"}`), `status "failed" in the body, "ok" in the Gpulet-Status header`},
		{"error ok", nil, []byte(`{"error":"ok"}`), `error: found "ok": expected an error code`},
		{"no code in the header", m2{HeaderStatus: "Not OK"}, nil, `header Gpulet-Status: found "Not OK": expected an error code`},
		{"other version", nil, pack(t, m{"v": 9}), "v: version 9: expected 1"},
		{"not msgpack", m2{HeaderType: TypeMsgpack}, []byte("boom"), "found int: expected a map"},
		{"raw", m2{HeaderType: TypeRaw}, []byte("boom"), `content type "application/octet-stream": expected`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if rep, err := DecodeReply(headers(c.header), c.body); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v, %v: expected an error with %q", rep, err, c.want)
			}
		})
	}
}

type m2 = map[string]string

func TestRepliesThatCannotBeEncoded(t *testing.T) {
	nan := tensor.Tensor{Name: "y", DType: tensor.FP32, Shape: []int64{2}, Data: []byte{0, 0, 0, 0, 0, 0, 0xc0, 0x7f}}
	for _, c := range []struct {
		contentType string
		reply       Reply
		want        string
	}{
		{TypeJSON, Reply{Status: StatusOK, Outputs: []tensor.Tensor{nan}}, `tensor "y": element 1 is NaN, which JSON does not have`},
		{TypeMsgpack, Reply{Status: StatusOK, Outputs: []tensor.Tensor{{Name: "y", DType: tensor.FP32, Shape: []int64{2}}}}, `0 bytes of data: FP32[2] needs 8`},
		{TypeMsgpack, Reply{}, "no status"},
	} {
		if _, _, err := EncodeReply(c.contentType, c.reply); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: expected an error with %q", err, c.want)
		}
	}
	if _, _, err := EncodeReply(TypeMsgpack, Reply{Status: StatusOK, Outputs: []tensor.Tensor{nan}}); err != nil {
		t.Errorf("NaN in msgpack: %v", err)
	}
}

func TestAnErrorsTextIsMadeSendable(t *testing.T) {
	for _, contentType := range []string{TypeMsgpack, TypeJSON} {
		h, body, err := EncodeReply(contentType, Reply{Status: Failed, Detail: "\xff" + strings.Repeat("é", maxDetail)})
		if err != nil {
			t.Fatal(err)
		}
		rep, err := DecodeReply(headers(h), body)
		if err != nil || len(rep.Detail) > maxDetail+2 || !strings.HasPrefix(rep.Detail, "?é") {
			t.Errorf("%s: %d bytes, %v", contentType, len(rep.Detail), err)
		}
	}
}

func TestResolveDeadline(t *testing.T) {
	stored := time.UnixMicro(1_700_000_000_000_000)
	for _, c := range []struct {
		header m2
		want   time.Time
		err    string
	}{
		{nil, stored.Add(time.Second), ""},
		{m2{HeaderTimeout: "250ms"}, stored.Add(250 * time.Millisecond), ""},
		{m2{HeaderDeadline: "1700000000000007"}, stored.Add(7 * time.Microsecond), ""},
		{m2{HeaderDeadline: "1700000000000007", HeaderTimeout: "1h"}, stored.Add(7 * time.Microsecond), ""},
		{m2{HeaderDeadline: "soon"}, time.Time{}, `header Gpulet-Deadline: found "soon": expected microseconds since 1970`},
		{m2{HeaderDeadline: "-4"}, time.Time{}, `header Gpulet-Deadline: found "-4"`},
		{m2{HeaderTimeout: "5"}, time.Time{}, `header Gpulet-Timeout: found "5": expected a positive duration such as 250ms`},
		{m2{HeaderTimeout: "-1s"}, time.Time{}, `header Gpulet-Timeout: found "-1s"`},
	} {
		got, err := ResolveDeadline(headers(c.header), stored, time.Second)
		switch {
		case c.err == "" && (err != nil || !got.Equal(c.want)):
			t.Errorf("%v: %v, %v: expected %v", c.header, got, err, c.want)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%v: %v: expected an error with %q", c.header, err, c.err)
		}
	}
	if got, err := ResolveDeadline(headers(m2{HeaderDeadline: FormatDeadline(stored)}), time.Time{}, 0); err != nil || !got.Equal(stored) {
		t.Errorf("a formatted deadline came back as %v, %v", got, err)
	}
}

func TestBadSamplesAreNamed(t *testing.T) {
	two := m{"name": "x", "dtype": "UINT8", "shape": []int64{2, 1}, "data": make([]byte, 2)}
	three := m{"name": "y", "dtype": "UINT8", "shape": []int64{3, 1}, "data": make([]byte, 3)}
	scalar := m{"name": "s", "dtype": "UINT8", "shape": []int64{1}[:0], "data": make([]byte, 1)}
	for _, c := range []struct {
		name string
		body any
		want string
	}{
		{"no inputs", m{"labels": []int{1}}, `f.msgpack: key "inputs" is missing`},
		{"empty inputs", m{"inputs": []m{}}, "f.msgpack: inputs: none: expected at least 1"},
		{"different counts", m{"inputs": []m{two}, "outputs": []m{three}}, `f.msgpack: outputs: tensor "y": 3 samples: expected 2 as in "x"`},
		{"labels", m{"inputs": []m{two}, "labels": []int{1}}, "f.msgpack: labels: 1: expected 2, one for each sample"},
		{"label is text", m{"inputs": []m{two}, "labels": []string{"1", "2"}}, "f.msgpack: labels[0]: found string: expected an integer"},
		{"unknown key", m{"inputs": []m{two}, "targets": []int{1}}, `f.msgpack: unknown key "targets"`},
		{"scalar", m{"inputs": []m{scalar}}, `inputs: tensor "s": shape []: expected at least one sample`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := DecodeSamples("f.msgpack", pack(t, c.body)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: expected an error with %q", err, c.want)
			}
		})
	}
}

func TestRowsOfSamples(t *testing.T) {
	s := Samples{N: 3, Inputs: []tensor.Tensor{{Name: "x", DType: tensor.FP32, Shape: []int64{3, 2}, Data: floats(1, 2, 3, 4, 5, 6)}}}
	want := Request{Inputs: []tensor.Tensor{{Name: "x", DType: tensor.FP32, Shape: []int64{2, 2}, Data: floats(3, 4, 5, 6)}}}
	if diff := cmp.Diff(want, s.Request(1, 2)); diff != "" {
		t.Error(diff)
	}
}

func TestImageTypes(t *testing.T) {
	for given, want := range map[string]string{
		"image/jpeg": TypeJPEG, "IMAGE/JPEG": TypeJPEG, "image/jpg": TypeJPEG, "image/png; q=1": TypePNG,
		"": "", "image/": "", "image/webp": "", "application/json": "", "imagejpeg": "",
	} {
		if kind, ok := ImageType(given); kind != want || ok != (want != "") {
			t.Errorf("%q: %q, %v: expected %q", given, kind, ok, want)
		}
	}
}
