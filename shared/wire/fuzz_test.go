package wire

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gpulet/gpulet/shared/tensor"
)

var fuzzSpecs = []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{-1}}}

// smallLimits keep a fuzzer from spending its time on large inputs.
var smallLimits = Limits{MaxBytes: 1 << 16, MaxTensors: 8, MaxName: 32}

func FuzzDecodeRequest(f *testing.F) {
	req := Request{
		Inputs:  []tensor.Tensor{{Name: "x", DType: tensor.FP32, Shape: []int64{1, 2}, Data: floats(1, 2)}},
		Outputs: []string{"y"},
	}
	for _, contentType := range []string{"", TypeMsgpack, TypeJSON} {
		body, err := EncodeRequest(contentType, req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(contentType, body)
	}
	f.Add(TypeRaw, floats(1, 2, 3))
	f.Add("", []byte("\x81\xa6inputs\x91\x84\xa4name\xa1x\xa5dtype\xa4FP32\xa5shape\x92\xcf\x40\x00\x00\x00\x00\x00\x00\x00\x04\xa4data\xc4\x00"))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		req, err := DecodeRequest(contentType, body, fuzzSpecs, smallLimits)
		if err != nil {
			return
		}
		for _, in := range req.Inputs {
			if err := in.Validate(); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = req.Check(fuzzSpecs)
		// What was decoded survives encoding and decoding.
		again, err := EncodeRequest(TypeMsgpack, req)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeRequest(TypeMsgpack, again, fuzzSpecs, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(req, back, sameEmpty); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	ok := Reply{Status: StatusOK, Model: "m", Version: 1, Timing: Timing{Gpulet: "g", Batch: 4}, Outputs: []tensor.Tensor{
		{Name: "y", DType: tensor.INT64, Shape: []int64{1}, Data: make([]byte, 8)},
	}}
	for _, rep := range []Reply{ok, {Status: Expired, Detail: "late"}} {
		for _, contentType := range []string{TypeMsgpack, TypeJSON} {
			h, body, err := EncodeReply(contentType, rep)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(h[HeaderType], h[HeaderStatus], body)
		}
	}
	f.Add("", "", []byte(`{"detail":"late"}`)) // ok, and the text of an error
	f.Add("", "", []byte("\x81\xa3new\x93\x01\xcb\x00\x00\x00\x00\x00\x00\x00\x00\x81\xa1k\xc0"))
	f.Fuzz(func(t *testing.T, contentType, status string, body []byte) {
		rep, err := DecodeReply(headers(map[string]string{HeaderType: contentType, HeaderStatus: status}), body)
		if err != nil {
			return
		}
		h, again, err := EncodeReply(TypeMsgpack, rep)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeReply(headers(h), again)
		if err != nil {
			t.Fatal(err)
		}
		if rep.Status != StatusOK { // an error carries nothing but its text
			rep = Reply{Status: rep.Status, Detail: clip(rep.Detail)}
		}
		if diff := cmp.Diff(rep, back, sameEmpty); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDecodeSamples(f *testing.F) {
	f.Add(EncodeSamples(Samples{
		N: 2, Labels: []int{3, -1},
		Inputs:  []tensor.Tensor{{Name: "x", DType: tensor.UINT8, Shape: []int64{2, 2}, Data: make([]byte, 4)}},
		Outputs: []tensor.Tensor{{Name: "y", DType: tensor.FP32, Shape: []int64{2}, Data: floats(1, 2)}},
	}))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := DecodeSamples("f", data)
		if err != nil {
			return
		}
		if req := s.Request(s.N-1, 1); req.Inputs[0].Validate() != nil {
			t.Fatal(req.Inputs[0].Validate())
		}
		back, err := DecodeSamples("f", EncodeSamples(s))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s, back, sameEmpty); diff != "" {
			t.Fatal(diff)
		}
	})
}

// FuzzDecodeV2 holds our JSON reader against encoding/json: what we accept is valid JSON.
func FuzzDecodeV2(f *testing.F) {
	text := `{"id":"7","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}],` +
		`"outputs":[{"name":"y","parameters":{"binary_data":true}}],"parameters":{"timeout":2500,"custom":{"a":[1,null,"\u00e9"]}}}`
	f.Add(append([]byte(text), floats(1, 2)...), len(text))
	f.Add([]byte(`{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP16","data":[[1,-2.5],[3e2,0.0]]}]}`), AllJSON)
	f.Add([]byte(`{"inputs":[{"data":[true,false],"name":"x","shape":[2],"datatype":"BOOL"}]}`), AllJSON)
	f.Fuzz(func(t *testing.T, body []byte, jsonLen int) {
		req, err := DecodeV2Request(body, jsonLen, fuzzSpecs, smallLimits)
		if err != nil {
			return
		}
		text, _, err := splitBinary(body, jsonLen)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(text) {
			t.Fatalf("accepted %q, which is not JSON", text)
		}
		for _, in := range req.Inputs {
			if err := in.Validate(); err != nil {
				t.Fatal(err)
			}
		}
		again, n, err := EncodeV2Request(req, true)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeV2Request(again, n, fuzzSpecs, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(req, back, sameEmpty); diff != "" {
			t.Fatal(diff)
		}
	})
}

// FuzzJSONSkip: whatever is passed over, encoding/json finds valid.
func FuzzJSONSkip(f *testing.F) {
	for _, s := range []string{`{"a":[1,-0.5e+7,"\u00e9\\"],"b":{}}`, `[[],[null,true]]`, `01`, `"\ud800"`, `[1,]`, `-`, `nul`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r := jsonReader{buf: text}
		err := r.skip(0)
		if err == nil {
			err = r.end()
		}
		if err == nil && !json.Valid(text) {
			t.Fatalf("passed over %q, which is not JSON", text)
		}
	})
}

// FuzzDecodeV2Response: what we accept of another server is valid JSON, and its tensors are whole.
func FuzzDecodeV2Response(f *testing.F) {
	rep := V2Response{Model: "m", Version: "1", ID: "7", Outputs: []tensor.Tensor{
		{Name: "y", DType: tensor.FP32, Shape: []int64{1, 2}, Data: floats(1, 2)},
		{Name: "z", DType: tensor.INT64, Shape: []int64{1}, Data: make([]byte, 8)},
	}}
	for _, binary := range []bool{false, true} {
		text, _, err := EncodeV2Response(rep, func(string) bool { return binary })
		if err != nil {
			f.Fatal(err)
		}
		n := len(text)
		if binary {
			text = append(append(text, rep.Outputs[0].Data...), rep.Outputs[1].Data...)
		}
		f.Add(text, n)
	}
	f.Add([]byte(`{"model_name":"m","outputs":[{"name":"y","shape":[2],"datatype":"BYTES","data":["a"]}]}`), AllJSON)
	f.Fuzz(func(t *testing.T, body []byte, jsonLen int) {
		rep, err := DecodeV2Response(body, jsonLen, smallLimits)
		if err != nil {
			return
		}
		text, _, err := splitBinary(body, jsonLen)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(text) {
			t.Fatalf("accepted %q, which is not JSON", text)
		}
		for _, out := range rep.Outputs {
			if err := out.Validate(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzResolveDeadline: a request is given up at its deadline, or a positive time after it was stored.
func FuzzResolveDeadline(f *testing.F) {
	f.Add("1700000000000000", "", int64(1e18))
	f.Add("", "250ms", int64(1e18))
	f.Add("-1", "9223372036854775807ns", int64(0))
	f.Fuzz(func(t *testing.T, deadline, timeout string, stored int64) {
		h := headers(map[string]string{HeaderDeadline: deadline, HeaderTimeout: timeout})
		from := time.Unix(0, stored)
		at, err := ResolveDeadline(h, from, time.Second)
		switch {
		case err != nil:
		case deadline == "" && !at.After(from):
			t.Errorf("given up at %v, stored at %v", at, from)
		case deadline != "" && !at.After(time.Unix(0, 0)):
			t.Errorf("deadline %q is %v", deadline, at)
		}
	})
}

// floats returns the bytes of an FP32 tensor.
func floats(vs ...float32) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

func headers(h map[string]string) func(string) string {
	return func(key string) string { return h[key] }
}

// An empty slice and nil mean the same in a body.
var sameEmpty = cmpopts.EquateEmpty()
