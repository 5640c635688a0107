package wire

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmihailenco/msgpack/v5"
	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/shared/tensor"
)

func TestRequestsSurviveTheRoundTrip(t *testing.T) {
	for _, contentType := range []string{TypeMsgpack, TypeJSON, ""} {
		t.Run(contentType, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				want := drawRequest(t, contentType == TypeJSON)
				body, err := EncodeRequest(contentType, want)
				if err != nil {
					t.Fatal(err)
				}
				got, err := DecodeRequest(contentType, body, nil, Limits{})
				if err != nil {
					t.Fatalf("%v in %q", err, body)
				}
				if diff := cmp.Diff(want, got, sameEmpty); diff != "" {
					t.Fatal(diff)
				}
			})
		})
	}
}

func TestRepliesSurviveTheRoundTrip(t *testing.T) {
	for _, contentType := range []string{TypeMsgpack, TypeJSON, TypeRaw} {
		t.Run(contentType, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				want := drawReply(t, contentType == TypeJSON)
				header, body, err := EncodeReply(contentType, want)
				if err != nil {
					t.Fatal(err)
				}
				got, err := DecodeReply(headers(header), body)
				if err != nil {
					t.Fatalf("%v in %q", err, body)
				}
				if diff := cmp.Diff(want, got, sameEmpty); diff != "" {
					t.Fatal(diff)
				}
			})
		})
	}
}

func TestSamplesSurviveTheRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(1, 5).Draw(t, "samples")
		draw := func(label string) []tensor.Tensor {
			ts := drawTensors(t, false)
			for i := range ts {
				ts[i].Shape = append([]int64{n}, ts[i].Shape...)
				data := ts[i].Data
				for range n - 1 {
					ts[i].Data = append(ts[i].Data, data...)
				}
			}
			return ts
		}
		want := Samples{N: int(n), Inputs: draw("inputs")}
		if rapid.Bool().Draw(t, "with outputs") {
			want.Outputs = draw("outputs")
		}
		if rapid.Bool().Draw(t, "with labels") {
			want.Labels = rapid.SliceOfN(rapid.IntRange(-5, 1<<20), int(n), int(n)).Draw(t, "labels")
		}
		got, err := DecodeSamples("f", EncodeSamples(want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, sameEmpty); diff != "" {
			t.Fatal(diff)
		}
	})
}

// A v2 request keeps its tensors, binary or not, and every output its wish.
func TestV2RequestsSurviveTheRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		binary := rapid.Bool().Draw(t, "binary")
		want := V2Request{
			Request:       drawRequest(t, !binary),
			ID:            rapid.StringN(0, 40, 200).Draw(t, "id"),
			Timeout:       time.Duration(rapid.Int64Range(0, MaxTimeout.Microseconds()).Draw(t, "µs")) * time.Microsecond,
			BinaryOutputs: rapid.Bool().Draw(t, "binary outputs"),
		}
		for range want.Outputs {
			want.Binary = append(want.Binary, rapid.Bool().Draw(t, "binary output"))
		}
		body, jsonLen, err := EncodeV2Request(want, binary)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeV2Request(body, jsonLen, nil, Limits{})
		if err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		if diff := cmp.Diff(want, got, sameEmpty); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestV2ResponsesSurviveTheRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := V2Response{
			ID: rapid.StringN(0, 40, 200).Draw(t, "id"), Model: "lenet", Version: "3",
			Outputs: drawTensors(t, true),
		}
		wishes := map[string]bool{}
		for _, o := range want.Outputs {
			wishes[o.Name] = rapid.Bool().Draw(t, "binary")
		}
		wish := func(name string) bool { return wishes[name] }
		body, hasBinary, err := EncodeV2Response(want, wish)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(body) {
			t.Fatalf("not JSON: %s", body)
		}
		jsonLen := AllJSON
		if hasBinary {
			jsonLen = len(body)
			for _, o := range want.Outputs {
				if wish(o.Name) {
					body = append(body, o.Data...)
				}
			}
		}
		got, err := DecodeV2Response(body, jsonLen, Limits{})
		if err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		if diff := cmp.Diff(want, got, sameEmpty); diff != "" {
			t.Fatal(diff)
		}
	})
}

// The bodies as the msgpack library sees them: the oracle of our own reader and appenders.
type (
	libTensor struct {
		Name  string  `msgpack:"name"`
		DType string  `msgpack:"dtype"`
		Shape []int64 `msgpack:"shape"`
		Data  []byte  `msgpack:"data"`
	}
	libRequest struct {
		Inputs  []libTensor `msgpack:"inputs"`
		Outputs []string    `msgpack:"outputs,omitempty"`
		V       int         `msgpack:"v,omitempty"`
	}
	libReply struct {
		V       int         `msgpack:"v"`
		Model   string      `msgpack:"model"`
		Version int         `msgpack:"version"`
		Outputs []libTensor `msgpack:"outputs"`
		Timing  Timing      `msgpack:"timing"`
		Error   string      `msgpack:"error"`
		Detail  string      `msgpack:"detail"`
	}
)

func toLib(ts []tensor.Tensor) []libTensor {
	out := make([]libTensor, len(ts))
	for i, t := range ts {
		out[i] = libTensor{t.Name, t.DType.String(), t.Shape, t.Data}
	}
	return out
}

func TestReadsWhatTheMsgpackLibraryWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawRequest(t, false)
		body, err := msgpack.Marshal(libRequest{Inputs: toLib(want.Inputs), Outputs: want.Outputs, V: rapid.IntRange(0, 1).Draw(t, "v")})
		if err != nil {
			t.Fatal(err)
		}
		for i := range want.Inputs { // the library writes nil for empty slices
			if len(want.Inputs[i].Data) == 0 || len(want.Inputs[i].Shape) == 0 {
				return
			}
		}
		got, err := DecodeRequest(TypeMsgpack, body, nil, Limits{})
		if err != nil {
			t.Fatalf("%v in %x", err, body)
		}
		if diff := cmp.Diff(want, got, sameEmpty); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestTheMsgpackLibraryReadsWhatWeWrite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		req := drawRequest(t, false)
		body, err := EncodeRequest(TypeMsgpack, req)
		if err != nil {
			t.Fatal(err)
		}
		var gotReq libRequest
		if err := msgpack.Unmarshal(body, &gotReq); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(libRequest{toLib(req.Inputs), req.Outputs, Version}, gotReq, sameEmpty); diff != "" {
			t.Fatal(diff)
		}

		rep := drawReply(t, false)
		_, body, err = EncodeReply(TypeMsgpack, rep)
		if err != nil {
			t.Fatal(err)
		}
		var gotRep libReply
		if err := msgpack.Unmarshal(body, &gotRep); err != nil {
			t.Fatal(err)
		}
		want := libReply{V: Version, Model: rep.Model, Version: rep.Version, Outputs: toLib(rep.Outputs), Timing: rep.Timing, Detail: rep.Detail}
		if rep.Status != StatusOK {
			want.Error = string(rep.Status)
		}
		if diff := cmp.Diff(want, gotRep, sameEmpty); diff != "" {
			t.Fatal(diff)
		}
	})
}

// Bodies are made with one allocation: the size that is reserved is never too small.
func TestReservedSizesAreEnough(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		req := drawRequest(t, false)
		if n, room := len(appendMsgpackRequest(nil, req)), requestSize(req); n > room {
			t.Fatalf("a request of %d bytes, %d reserved", n, room)
		}
		rep := drawReply(t, false)
		if n, room := len(appendMsgpackReply(nil, rep)), replySize(rep); n > room {
			t.Fatalf("a reply of %d bytes, %d reserved", n, room)
		}
	})
}

func TestDecodedDataAliasesTheBody(t *testing.T) {
	req := Request{Inputs: []tensor.Tensor{{Name: "x", DType: tensor.FP32, Shape: []int64{1, 2}, Data: floats(1, 2)}}}
	msg, err := EncodeRequest(TypeMsgpack, req)
	if err != nil {
		t.Fatal(err)
	}
	v2, jsonLen, err := EncodeV2Request(V2Request{Request: req}, true)
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := DecodeRequest("", msg, nil, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	decodedV2, err := DecodeV2Request(v2, jsonLen, nil, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ body, data []byte }{{msg, decoded.Inputs[0].Data}, {v2, decodedV2.Inputs[0].Data}} {
		c.data[0] ^= 0xff
		if c.body[len(c.body)-len(c.data)] != c.data[0] {
			t.Error("the data was copied")
		}
	}
}
