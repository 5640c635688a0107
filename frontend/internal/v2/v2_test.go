package v2_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/frontend/internal/fleet"
	"github.com/gpulet/gpulet/frontend/internal/frontendtest"
	v2 "github.com/gpulet/gpulet/frontend/internal/v2"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

const jsonLength = "Inference-Header-Content-Length"

// door is an HTTP server over a system.
type door struct {
	*frontendtest.System
	url     string
	client  *http.Client
	metrics *prometheus.Registry
}

func open(t testing.TB, s *frontendtest.System) *door {
	t.Helper()
	return openWith(t, s, exchange.Options{Version: "1.2.3", MaxBody: 16 << 20, MaxBodies: 1 << 30, MaxPayload: s.Bus.MaxPayload, MaxInFlight: 1000})
}

func openWith(t testing.TB, s *frontendtest.System, opts exchange.Options) *door {
	t.Helper()
	reg := prometheus.NewRegistry()
	mux := http.NewServeMux()
	log := slog.New(slog.DiscardHandler)
	v2.New(exchange.New(s.Fleet, s.Inbox, opts, exchange.NewMetrics(reg), log), log).Register(mux)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return &door{System: s, url: srv.URL, client: srv.Client(), metrics: reg}
}

// answer is a whole HTTP answer.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

func (a answer) errorText() string {
	var e struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(a.body, &e); err != nil {
		return fmt.Sprintf("not an error body: %q", a.body)
	}
	return e.Error
}

func (d *door) do(t testing.TB, method, path string, body []byte, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, d.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := d.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, got}
}

func (d *door) post(t testing.TB, path, body string, headers ...string) answer {
	t.Helper()
	return d.do(t, "POST", path, []byte(body), headers...)
}

const toyInfer = "/v2/models/toy/infer"

func TestProtocolPaths(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy(), frontendtest.Model("other", nil, nil)))
	d.PublishPlan(t, plan.Ready, "toy")
	frontendtest.Eventually(t, "toy is ready", func() bool { return d.Fleet.ModelReady("toy") == nil && d.Fleet.Ready() == nil })

	toyMetadata := `{"name":"toy","versions":["3"],"platform":"pytorch_libtorch",
		"inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]}],
		"outputs":[{"name":"double","datatype":"FP32","shape":[-1,2]},{"name":"index","datatype":"INT64","shape":[-1,1]}],
		"parameters":{"slo_ms":10000,"timeout_ms":20000,"max_batch_size":8}}`
	toyConfig := `{"name":"toy","platform":"pytorch_libtorch","backend":"pytorch","max_batch_size":8,
		"input":[{"name":"x","data_type":"TYPE_FP32","dims":[2]}],
		"output":[{"name":"double","data_type":"TYPE_FP32","dims":[2]},{"name":"index","data_type":"TYPE_INT64","dims":[1]}]}`
	index := `[{"name":"other","version":"3","state":"UNAVAILABLE","reason":"no gpu-let serves it"},{"name":"toy","version":"3","state":"READY"}]`
	for _, c := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/v2", 200, `{"name":"gpulet","version":"1.2.3","extensions":["binary_tensor_data","model_configuration","model_repository"]}`},
		{"GET", "/v2/health/live", 200, `{"live":true}`},
		{"GET", "/v2/health/ready", 200, `{"ready":true}`},
		{"GET", "/v2/models", 200, index},
		{"POST", "/v2/repository/index", 200, index},
		{"GET", "/v2/models/toy", 200, toyMetadata},
		{"GET", "/v2/models/toy/versions/3", 200, toyMetadata},
		{"GET", "/v2/models/toy/ready", 200, `{"name":"toy","ready":true}`},
		{"GET", "/v2/models/toy/versions/3/ready", 200, `{"name":"toy","ready":true}`},
		{"GET", "/v2/models/toy/config", 200, toyConfig},
		{"GET", "/v2/models/toy/versions/3/config", 200, toyConfig},
		{"GET", "/v2/models/other/ready", 503, `{"error":"model other is not ready: no gpu-let serves it"}`},
		{"GET", "/v2/models/none", 404, `{"error":"unknown model \"none\""}`},
		{"GET", "/v2/models/none/ready", 404, `{"error":"unknown model \"none\""}`},
		{"GET", "/v2/models/toy/versions/4", 404, `{"error":"model toy has no version \"4\": expected 3"}`},
		{"POST", "/v2/models/none/infer", 404, `{"error":"unknown model \"none\""}`},
		{"POST", "/v2/models/toy/versions/9/infer", 404, `{"error":"model toy has no version \"9\": expected 3"}`},
		{"GET", "/v2/models/toy/infer", 405, `{"error":"method GET: expected POST"}`},
		{"DELETE", "/v2/models/toy", 405, `{"error":"method DELETE: expected GET"}`},
		{"GET", "/v2/systemsharedmemory/status", 404, `{"error":"no such path: /v2/systemsharedmemory/status"}`},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			got := d.do(t, c.method, c.path, nil)
			if got.code != c.code {
				t.Errorf("code %d: expected %d", got.code, c.code)
			}
			if ct := got.header.Get("Content-Type"); ct != "application/json" {
				t.Errorf("content type %q", ct)
			}
			var have, want any
			if err := json.Unmarshal(got.body, &have); err != nil {
				t.Fatalf("%v in %q", err, got.body)
			}
			if err := json.Unmarshal([]byte(c.body), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, have); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNotReadyBeforeThePlan(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	got := d.do(t, "GET", "/v2/health/ready", nil)
	if got.code != 503 || !strings.Contains(got.errorText(), "no plan has been published yet") {
		t.Errorf("%d %s", got.code, got.body)
	}
	d.PublishPlan(t, plan.Starting, "toy")
	frontendtest.Eventually(t, "the gpu-let is seen", func() bool {
		got := d.do(t, "GET", "/v2/models/toy/ready", nil)
		return got.code == 503 && strings.Contains(got.errorText(), "gpu-let h-0-50 is starting")
	})
}

func TestInfersWithJSONTensors(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	got := d.post(t, toyInfer, `{"id":"my id","inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2],[3,-4.5]]}]}`)
	want := `{"model_name":"toy","model_version":"3","id":"my id","outputs":[` +
		`{"name":"double","datatype":"FP32","shape":[2,2],"data":[2,4,6,-9]},` +
		`{"name":"index","datatype":"INT64","shape":[2,1],"data":[0,1]}]}`
	if got.code != 200 || string(got.body) != want {
		t.Errorf("%d\n%s\nexpected\n%s", got.code, got.body, want)
	}
	for key, want := range map[string]string{
		"Content-Type": "application/json", "Gpulet-Queued-Us": "120", "Gpulet-Batched-Us": "30", "Gpulet-Exec-Us": "4500",
		"Gpulet-Batch": "2", "Gpulet-Id": "h-0-50", "Gpulet-Share": "50", "Gpulet-Plan": "7",
		"Content-Length": strconv.Itoa(len(want)),
	} {
		if have := got.header.Get(key); have != want {
			t.Errorf("header %s: %q: expected %q", key, have, want)
		}
	}
	if st := got.header.Get("Server-Timing"); !strings.HasPrefix(st, "queue;dur=0.120, batch;dur=0.030, exec;dur=4.500, total;dur=") {
		t.Errorf("Server-Timing %q", st)
	}
	if got.header.Get(wire.HeaderRequestID) == "" {
		t.Error("no request id")
	}
}

// Every combination of how inputs come and how outputs are wanted gives the same numbers.
func TestBinaryExtensionInBothDirections(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	double := tensor.Tensor{Name: "double", DType: tensor.FP32, Shape: []int64{1, 2}, Data: frontendtest.Floats(2, 4)}
	index := tensor.Tensor{Name: "index", DType: tensor.INT64, Shape: []int64{1, 1}, Data: make([]byte, 8)}
	for _, binaryIn := range []bool{false, true} {
		for _, c := range []struct {
			name   string
			change func(*wire.V2Request)
			want   []tensor.Tensor
			bytes  int // of binary data
		}{
			{"all JSON", func(*wire.V2Request) {}, []tensor.Tensor{double, index}, 0},
			{"all binary", func(r *wire.V2Request) { r.BinaryOutputs = true }, []tensor.Tensor{double, index}, 16},
			{"one binary", func(r *wire.V2Request) {
				r.Outputs, r.Binary = []string{"index", "double"}, []bool{false, true}
			}, []tensor.Tensor{index, double}, 8},
			{"one of all not binary", func(r *wire.V2Request) {
				r.BinaryOutputs, r.Outputs, r.Binary = true, []string{"double", "index"}, []bool{false, true}
			}, []tensor.Tensor{double, index}, 8},
			{"one output only", func(r *wire.V2Request) { r.Outputs, r.Binary = []string{"index"}, []bool{true} }, []tensor.Tensor{index}, 8},
		} {
			t.Run(fmt.Sprintf("%s from binary %v", c.name, binaryIn), func(t *testing.T) {
				req := wire.V2Request{ID: "7", Request: wire.Request{Inputs: []tensor.Tensor{
					{Name: "x", DType: tensor.FP32, Shape: []int64{1, 2}, Data: frontendtest.Floats(1, 2)},
				}}}
				c.change(&req)
				body, n, err := wire.EncodeV2Request(req, binaryIn)
				if err != nil {
					t.Fatal(err)
				}
				var headers []string
				if binaryIn {
					headers = []string{jsonLength, strconv.Itoa(n), "Content-Type", "application/octet-stream"}
				}
				got := d.post(t, toyInfer, string(body), headers...)
				if got.code != 200 {
					t.Fatalf("%d %s", got.code, got.body)
				}
				n = wire.AllJSON
				if v := got.header.Get(jsonLength); v != "" {
					if n, err = strconv.Atoi(v); err != nil {
						t.Fatal(err)
					}
					if len(got.body)-n != c.bytes {
						t.Errorf("%d bytes of binary data: expected %d", len(got.body)-n, c.bytes)
					}
					if ct := got.header.Get("Content-Type"); ct != "application/octet-stream" {
						t.Errorf("content type %q", ct)
					}
				} else if c.bytes > 0 {
					t.Error("no binary data in the answer")
				}
				rep, err := wire.DecodeV2Response(got.body, n, wire.Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(wire.V2Response{ID: "7", Model: "toy", Version: "3", Outputs: c.want}, rep); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func TestRawBodyIsTheOnlyInput(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	for _, headers := range [][]string{
		{"Content-Type", "application/octet-stream"},
		{jsonLength, "0"},
	} {
		got := d.do(t, "POST", toyInfer, frontendtest.Floats(1, 2, 3, 4), headers...)
		if got.code != 200 || !strings.Contains(string(got.body), `"shape":[2,2],"data":[2,4,6,8]`) {
			t.Errorf("%v: %d %s", headers, got.code, got.body)
		}
	}
}

// What is wrong with a request is said before it costs a place in the queue.
func TestBadRequestsNeverReachTheQueue(t *testing.T) {
	pair := frontendtest.Model("pair", []tensor.Spec{
		{Name: "a", DType: tensor.FP32, Shape: []int64{-1}}, {Name: "b", DType: tensor.INT32, Shape: []int64{}},
	}, []tensor.Spec{{Name: "y", DType: tensor.FP32, Shape: []int64{}}})
	d := open(t, frontendtest.Start(t, frontendtest.Toy(), frontendtest.Vision(), pair))
	x := func(rest string) string { return `{"inputs":[{"name":"x",` + rest + `}]}` }
	good := x(`"shape":[1,2],"datatype":"FP32","data":[1,2]`)
	short := x(`"shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}`)
	past := strconv.FormatInt(time.Now().Add(-time.Minute).UnixMicro(), 10)
	for _, c := range []struct {
		name, path, body string
		headers          []string
		code             int
		want             string
	}{
		{"no JSON", "toy", "boom", nil, 400, `at byte 0: found 'b': expected an object`},
		{"nothing", "toy", "", nil, 400, `found the end of the JSON: expected an object`},
		{"NaN", "toy", x(`"shape":[1,2],"datatype":"FP32","data":[NaN,1]`), nil, 400, "found NaN, which JSON does not have"},
		{"wrong name", "toy", `{"inputs":[{"name":"z","shape":[1,2],"datatype":"FP32","data":[1,2]}]}`, nil, 400, `model toy: input "z": the model has no such input: expected "x"`},
		{"wrong dtype", "toy", x(`"shape":[1,2],"datatype":"FP64","data":[1,2]`), nil, 400, `model toy: input "x": dtype FP64: expected FP32`},
		{"wrong shape", "toy", x(`"shape":[1,3],"datatype":"FP32","data":[1,2,3]`), nil, 400, `input "x": shape [1 3]: expected [batch 2]`},
		{"no batch dimension", "toy", x(`"shape":[2],"datatype":"FP32","data":[1,2]`), nil, 400, `input "x": shape [2]: expected [batch 2]`},
		{"no sample", "toy", x(`"shape":[0,2],"datatype":"FP32","data":[]`), nil, 400, `input "x": shape [0 2]: expected [batch 2]`},
		{"too many samples", "toy", x(`"shape":[9,2],"datatype":"FP32","data":[1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9]`), nil, 400, "model toy: 9 samples: expected at most 8"},
		{"too few elements", "toy", x(`"shape":[1,2],"datatype":"FP32","data":[1]`), nil, 400, "inputs[0].data: 1 elements: expected 2"},
		{"huge dimensions", "toy", x(`"shape":[4611686018427387904,2],"datatype":"FP32","data":[1]`), nil, 400, "is too large"},
		{"unknown datatype", "toy", x(`"shape":[1,2],"datatype":"BYTES","data":["a","b"]`), nil, 400, `dtype "BYTES": expected one of FP32`},
		{"missing input", "pair", `{"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","data":[1,2]}]}`, nil, 400, `input "b" is missing: expected "a", "b"`},
		{"different samples", "pair", `{"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","data":[1,2]},{"name":"b","shape":[2],"datatype":"INT32","data":[1,2]}]}`, nil, 400, `input "b": 2 samples: expected 1 as in input "a"`},
		{"unknown output", "toy", good[:len(good)-1] + `,"outputs":[{"name":"triple"}]}`, nil, 400, `output "triple": the model has no such output: expected "double", "index"`},
		{"unknown output by header", "toy", good, []string{wire.HeaderOutputs, "triple"}, 400, `output "triple": the model has no such output: expected "double", "index"`},
		{"outputs chosen twice", "toy", good[:len(good)-1] + `,"outputs":[{"name":"double"}]}`, []string{wire.HeaderOutputs, "index"}, 400, `header Gpulet-Outputs: found "index" beside a body that names outputs: expected one of the two`},
		{"unknown output of an image", "vision", "\xff\xd8\xff", []string{"Content-Type", "image/jpeg", wire.HeaderOutputs, "shape"}, 400, `model vision: output "shape": the model has no such output: expected "size"`},
		{"shared memory", "toy", x(`"shape":[1,2],"datatype":"FP32","parameters":{"shared_memory_region":"r","shared_memory_byte_size":8}`), nil, 400, "shared memory is not supported"},
		{"binary bytes missing", "toy", short + "abc", []string{jsonLength, strconv.Itoa(len(short))}, 400, "binary_data_size 8: 3 bytes of binary data are left"},
		{"JSON length beyond the body", "toy", good, []string{jsonLength, "100000"}, 400, "100000 bytes of JSON announced: the body has"},
		{"JSON length no number", "toy", good, []string{jsonLength, "many"}, 400, `header Inference-Header-Content-Length: found "many"`},
		{"raw bytes", "toy", "12345", []string{"Content-Type", "application/octet-stream"}, 400, "5 bytes of raw data: expected a multiple of 8"},
		{"raw for two inputs", "pair", "12345678", []string{jsonLength, "0"}, 400, "the model has 2 inputs: expected 1"},
		{"gzip", "toy", good, []string{"Content-Encoding", "gzip"}, 400, `content encoding "gzip": expected none`},
		{"image for another model", "toy", "\xff\xd8\xff", []string{"Content-Type", "image/jpeg"}, 400, `model toy: takes no images: input "x" has the shape [2]: expected [3 height width] or [1 height width]`},
		{"image with JSON", "toy", good, []string{"Content-Type", "image/png", jsonLength, "9"}, 400, `header Inference-Header-Content-Length: found "9": expected none with a body of image/png`},
		{"image packed", "toy", good, []string{"Content-Type", "image/png", "Content-Encoding", "gzip"}, 400, `content encoding "gzip"`},
		{"bad timeout header", "toy", good, []string{wire.HeaderTimeout, "fast"}, 400, `header Gpulet-Timeout: found "fast": expected a positive duration`},
		{"bad deadline header", "toy", good, []string{wire.HeaderDeadline, "now"}, 400, `header Gpulet-Deadline: found "now"`},
		{"bad timeout parameter", "toy", `{"parameters":{"timeout":-5},` + good[1:], nil, 400, "parameters.timeout: found -5"},
		{"expired", "toy", good, []string{wire.HeaderDeadline, past}, 504, "the deadline passed 1m"},
		{"body over the limit", "toy", strings.Repeat(" ", 16<<20+1), nil, 413, "request body of 16777217 bytes: expected at most 16777216"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := d.post(t, "/v2/models/"+c.path+"/infer", c.body, c.headers...)
			if got.code != c.code || !strings.Contains(got.errorText(), c.want) {
				t.Errorf("%d %s\nexpected %d with %q", got.code, got.body, c.code, c.want)
			}
		})
	}
	for _, m := range []string{"toy", "pair"} {
		lag, err := d.Planner.Lag(t.Context(), m)
		if err != nil || lag.LastSeq != 0 {
			t.Errorf("queue of %s: %d requests were stored (%v)", m, lag.LastSeq, err)
		}
	}
}

// A body within the HTTP limit whose tensors do not fit a message is refused with both sizes.
func TestTensorsLargerThanAMessageAreRefused(t *testing.T) {
	blob := frontendtest.Model("blob", []tensor.Spec{{Name: "b", DType: tensor.UINT8, Shape: []int64{-1}}}, nil)
	d := open(t, frontendtest.Start(t, blob))
	got := d.do(t, "POST", "/v2/models/blob/infer", make([]byte, 9<<20), "Content-Type", "application/octet-stream")
	if got.code != 413 || !strings.Contains(got.errorText(), "expected at most 8387584 (the server's max_payload of 8388608") {
		t.Errorf("%d %s", got.code, got.body)
	}
	// The door stays open.
	if got := d.do(t, "GET", "/v2/health/live", nil); got.code != 200 {
		t.Errorf("live: %d", got.code)
	}
}

// A client that sends all of a refused body before it reads gets the answer, and may go on.
func TestRefusedBodiesAreReadSoThatTheAnswerArrives(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	for path, want := range map[string]int{toyInfer: 413, "/v2/models/none/infer": 404} {
		const size = 40 << 20
		c := d.announceTo(t, path, size)
		if _, err := io.Copy(c, io.LimitReader(spaces{}, size)); err != nil {
			t.Fatalf("%s: the connection was cut while the body was sent: %v", path, err)
		}
		in := bufio.NewReader(c)
		for _, code := range []int{want, 200} {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != code {
				t.Errorf("%s: %d, %v: expected %d", path, resp.StatusCode, err, code)
			}
			_ = resp.Body.Close()
			if _, err := io.WriteString(c, "GET /v2 HTTP/1.1\r\nHost: door\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A refused body that never comes is answered all the same.
func TestARefusedBodyIsNotWaitedForWithoutEnd(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	c := d.announce(t, 40<<20)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 413 {
		t.Errorf("%d: expected 413", resp.StatusCode)
	}
}

func TestBodyInChunks(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	send := func(body io.Reader) answer {
		req, err := http.NewRequestWithContext(t.Context(), "POST", d.url+toyInfer, struct{ io.Reader }{body})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := d.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close() //nolint:errcheck // read to its end
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{resp.StatusCode, resp.Header, got}
	}
	text := `{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]` + strings.Repeat(" ", 100_000) + `}]}`
	if got := send(strings.NewReader(text)); got.code != 200 {
		t.Errorf("%d %s", got.code, got.body)
	}
	got := send(io.LimitReader(spaces{}, 17<<20))
	if got.code != 413 || !strings.Contains(got.errorText(), "expected at most 16777216") {
		t.Errorf("%d %s", got.code, got.body)
	}
}

type spaces struct{}

func (spaces) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

const goodToy = `{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}`

func TestStatusOfTheReplyDecidesTheCode(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	// The first element of the input says how the worker shall end the request.
	endings := []struct {
		status wire.Status
		code   int
		retry  string
	}{
		{wire.BadRequest, 400, ""},
		{wire.UnknownModel, 404, ""},
		{wire.Overloaded, 429, "1"},
		{wire.Unavailable, 503, "1"},
		{wire.Expired, 504, ""},
		{wire.Cancelled, 409, ""},
		{wire.Failed, 500, ""},
		{wire.Poisoned, 500, ""},
		{"melted", 500, ""}, // a code of a newer worker
	}
	d.Work(t, frontendtest.Toy(), func(_ *bus.Msg, req wire.Request) wire.Reply {
		i := int(math.Float32frombits(binary.LittleEndian.Uint32(req.Inputs[0].Data)))
		return wire.Reply{Status: endings[i].status, Detail: "because"}
	})
	for i, c := range endings {
		got := d.post(t, toyInfer, fmt.Sprintf(`{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[%d,0]}]}`, i))
		want := fmt.Sprintf("model toy: %s: because", c.status)
		if got.code != c.code || got.errorText() != want || got.header.Get("Retry-After") != c.retry {
			t.Errorf("%s: %d %s, Retry-After %q", c.status, got.code, got.body, got.header.Get("Retry-After"))
		}
		if have := got.header.Get(wire.HeaderStatus); have != string(c.status) {
			t.Errorf("%s: header %s is %q", c.status, wire.HeaderStatus, have)
		}
	}
}

func TestAReplyThatCannotBeUsedIsAFailure(t *testing.T) {
	for _, c := range []struct {
		name   string
		handle frontendtest.Handler
		body   string
		want   string
	}{
		{"output missing", func(*bus.Msg, wire.Request) wire.Reply {
			return wire.Reply{Status: wire.StatusOK, Model: "toy"}
		}, goodToy[:len(goodToy)-1] + `,"outputs":[{"name":"index"}]}`, `its reply lacks output "index"`},
		{"NaN in JSON", func(*bus.Msg, wire.Request) wire.Reply {
			return wire.Reply{Status: wire.StatusOK, Outputs: []tensor.Tensor{
				{Name: "double", DType: tensor.FP32, Shape: []int64{1}, Data: frontendtest.Floats(float32(math.NaN()))},
			}}
		}, goodToy, `tensor "double": element 0 is NaN, which JSON does not have: ask for binary data`},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, frontendtest.Start(t, frontendtest.Toy()))
			d.Work(t, frontendtest.Toy(), c.handle)
			got := d.post(t, toyInfer, c.body)
			if got.code != 500 || !strings.Contains(got.errorText(), c.want) {
				t.Errorf("%d %s", got.code, got.body)
			}
		})
	}
}

func TestExpiresWithoutAWorker(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	for name, send := range map[string]func() answer{
		"header":    func() answer { return d.post(t, toyInfer, goodToy, wire.HeaderTimeout, "20ms") },
		"parameter": func() answer { return d.post(t, toyInfer, `{"parameters":{"timeout":20000},`+goodToy[1:]) },
		"deadline": func() answer {
			return d.post(t, toyInfer, goodToy, wire.HeaderDeadline, wire.FormatDeadline(time.Now().Add(20*time.Millisecond)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := send(); got.code != 504 || got.header.Get(wire.HeaderStatus) != "expired" || !strings.Contains(got.errorText(), "no gpu-let serves it") {
				t.Errorf("%d %s", got.code, got.body)
			}
		})
	}
}

// The worker gets the deadline as a timeout from when the queue stored the request.
func TestTheTimeoutTravelsWithTheRequest(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	deadlines := make(chan time.Duration, 1)
	d.Work(t, frontendtest.Toy(), func(m *bus.Msg, req wire.Request) wire.Reply {
		at, err := wire.ResolveDeadline(m.Get, m.Stored, 0)
		if err != nil {
			return wire.Reply{Status: wire.Failed, Detail: err.Error()}
		}
		deadlines <- at.Sub(m.Stored)
		return frontendtest.ToyWorker(m, req)
	})
	for _, c := range []struct {
		headers []string
		most    time.Duration
	}{{nil, 20 * time.Second}, {[]string{wire.HeaderTimeout, "3s"}, 3 * time.Second}} {
		if got := d.post(t, toyInfer, goodToy, c.headers...); got.code != 200 {
			t.Fatalf("%d %s", got.code, got.body)
		}
		if got := <-deadlines; got > c.most || got < c.most/2 {
			t.Errorf("the request may take %v: expected a little less than %v", got, c.most)
		}
	}
}

// A request that expires while it is read and checked is not sent: the queue takes no timeout of
// zero, so it would run for nobody.
func TestARequestThatExpiresOnTheWayInIsNotSent(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	got := d.post(t, toyInfer, goodToy, wire.HeaderTimeout, "1ns")
	if got.code != 504 || got.header.Get(wire.HeaderStatus) != "expired" || !strings.Contains(got.errorText(), "while the request was read") {
		t.Errorf("%d %s", got.code, got.body)
	}
	if id := got.header.Get(wire.HeaderRequestID); id != "" {
		t.Errorf("the request was sent as %s", id)
	}
}

func TestTheTraceTravelsWithTheRequest(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	traces := make(chan string, 1)
	d.Work(t, frontendtest.Toy(), func(m *bus.Msg, req wire.Request) wire.Reply {
		traces <- m.Get("traceparent")
		return frontendtest.ToyWorker(m, req)
	})
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for sent, want := range map[string]string{trace: trace, strings.Repeat("x", 300): ""} {
		d.post(t, toyInfer, goodToy, "Traceparent", sent)
		if got := <-traces; got != want {
			t.Errorf("the worker was told the trace %q: expected %q", got, want)
		}
	}
}

func TestRefusalsOfTheQueue(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	full := frontendtest.Queue("toy")
	full.MaxMsgs = 1
	if err := s.Planner.EnsureQueue(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	d := open(t, s)
	ctx, leave := context.WithCancel(t.Context())
	var first sync.WaitGroup
	first.Go(func() {
		req, err := http.NewRequestWithContext(ctx, "POST", d.url+toyInfer, strings.NewReader(goodToy))
		if err != nil {
			t.Error(err)
			return
		}
		if resp, err := d.client.Do(req); err == nil {
			_ = resp.Body.Close()
			t.Error("the request was answered although its client left")
		}
	})
	frontendtest.Eventually(t, "the queue is full", func() bool {
		lag, err := d.Planner.Lag(t.Context(), "toy")
		return err == nil && lag.Pending == 1
	})
	got := d.post(t, toyInfer, goodToy)
	if got.code != 429 || got.header.Get("Retry-After") != "1" || !strings.Contains(got.errorText(), "overloaded") {
		t.Errorf("full queue: %d %s", got.code, got.body)
	}
	// What is known to be refused is refused unread: a body that is no request is none of its business.
	frontendtest.Eventually(t, "a request is refused unread", func() bool {
		d.post(t, toyInfer, goodToy) // it may be a while since the queue was asked
		got := d.post(t, toyInfer, "nonsense")
		return got.code == 429 && got.header.Get("Retry-After") == "1" && strings.Contains(got.errorText(), "full a moment ago")
	})
	leave()
	first.Wait()
	frontendtest.Eventually(t, "the client's leaving is counted", func() bool {
		return d.counter(t, "toy", "cancelled") == 1
	})
	if n := d.Inbox.Stats().Pending; n != 0 {
		t.Errorf("%d requests are still waited for", n)
	}

	if err := d.Planner.DeleteQueue(t.Context(), "toy"); err != nil {
		t.Fatal(err)
	}
	frontendtest.Eventually(t, "the queue is found to be gone", func() bool {
		got = d.post(t, toyInfer, goodToy)
		return got.code == 503 && got.header.Get("Retry-After") == "1"
	})
}

// What waits takes longer than the request has: it is told at once, and not when its time is over.
func TestRequestsThatCannotBeAnsweredInTimeAreRefusedAtOnce(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.PublishPlan(t, plan.Ready, "toy") // 1600 samples/s at most
	client := embeddedtest.Connect(t, d.NATS, bus.RoleClient)
	for range 1600 {
		if err := client.Publish(t.Context(), &bus.Message{Model: "toy", Timeout: time.Minute, Body: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	frontendtest.Eventually(t, "a request with 100 ms is refused", func() bool {
		got := d.post(t, toyInfer, goodToy, wire.HeaderTimeout, "100ms")
		return got.code == 429 && got.header.Get("Retry-After") == "1" && strings.Contains(got.errorText(), "requests wait for at least")
	})
}

// counter reads a series of gpulet_frontend_requests_total; it is zero before its first request.
func (d *door) counter(t testing.TB, model, status string) float64 {
	t.Helper()
	families, err := d.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if f.GetName() == "gpulet_frontend_requests_total" && labels["model"] == model && labels["status"] == status {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestCountsByModelAndStatus(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	d.post(t, toyInfer, goodToy)
	d.post(t, toyInfer, goodToy)
	d.post(t, toyInfer, "{}")
	d.post(t, "/v2/models/a/infer", goodToy)
	d.post(t, "/v2/models/b/infer", goodToy)
	for _, c := range []struct {
		model, status string
		want          float64
	}{{"toy", "ok", 2}, {"toy", "bad_request", 1}, {"unknown", "unknown_model", 2}, {"a", "unknown_model", 0}} {
		if got := d.counter(t, c.model, c.status); got != c.want {
			t.Errorf("%s %s: %v: expected %v", c.model, c.status, got, c.want)
		}
	}
}

func TestMoreThanMaxInFlightAreRefused(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	d := openWith(t, s, exchange.Options{MaxBody: 1 << 20, MaxBodies: 1 << 30, MaxPayload: s.Bus.MaxPayload, MaxInFlight: 1})
	var first sync.WaitGroup
	first.Go(func() { d.post(t, toyInfer, goodToy) })
	frontendtest.Eventually(t, "the first request is in flight", func() bool { return d.Inbox.Stats().Pending == 1 })
	got := d.post(t, toyInfer, goodToy)
	if got.code != 429 || !strings.Contains(got.errorText(), "2 requests are in flight: expected at most 1") {
		t.Errorf("%d %s", got.code, got.body)
	}
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	first.Wait()
}

// Bodies that never come take no memory: far more are announced than may be held.
func TestAnnouncedBodiesTakeNoMemory(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	d := openWith(t, s, exchange.Options{MaxBody: 16 << 20, MaxBodies: 256 << 20, MaxPayload: s.Bus.MaxPayload, MaxInFlight: 1000})
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	var idle []net.Conn
	for range 20 {
		idle = append(idle, d.announce(t, 16<<20))
	}
	frontendtest.Eventually(t, "the idle requests are in flight", func() bool {
		return d.inFlight(t) == float64(len(idle))
	})
	if got := d.post(t, toyInfer, goodToy); got.code != 200 {
		t.Errorf("%d %s", got.code, got.body)
	}
	for _, c := range idle {
		_ = c.Close()
	}
}

func (d *door) inFlight(t testing.TB) float64 {
	t.Helper()
	families, err := d.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "gpulet_frontend_requests_in_flight" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return 0
}

// announce begins a request whose body of n bytes is not sent.
func (d *door) announce(t testing.TB, n int) net.Conn {
	t.Helper()
	return d.announceTo(t, toyInfer, n)
}

func (d *door) announceTo(t testing.TB, path string, n int) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: door\r\nContent-Length: %d\r\n\r\n", path, n); err != nil {
		t.Fatal(err)
	}
	return c
}

// Concurrent clients get their own answers, in their own form.
func TestConcurrentClientsGetTheirOwnAnswers(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	for range 3 {
		d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	}
	const clients, each = 16, 25
	var all sync.WaitGroup
	for c := range clients {
		all.Go(func() {
			for i := range each {
				v := float32(c*1000 + i)
				req := wire.V2Request{ID: fmt.Sprint(v), BinaryOutputs: i%2 == 0, Request: wire.Request{Inputs: []tensor.Tensor{
					{Name: "x", DType: tensor.FP32, Shape: []int64{1, 2}, Data: frontendtest.Floats(v, -v)},
				}}}
				if err := d.roundTrip(t, req, i%3 == 0); err != nil {
					t.Errorf("client %d, request %d: %v", c, i, err)
				}
			}
		})
	}
	all.Wait()
	if st := d.Inbox.Stats(); st.Pending+int(st.Late+st.Duplicates+st.Strays) != 0 {
		t.Errorf("after %d requests: %+v", clients*each, st)
	}
}

// roundTrip sends req and holds the answer against what the toy computes.
func (d *door) roundTrip(t testing.TB, req wire.V2Request, binaryIn bool) error {
	body, n, err := wire.EncodeV2Request(req, binaryIn)
	if err != nil {
		return err
	}
	var headers []string
	if binaryIn {
		headers = []string{jsonLength, strconv.Itoa(n)}
	}
	got := d.do(t, "POST", toyInfer, body, headers...)
	if got.code != 200 {
		return fmt.Errorf("%d %s", got.code, got.body)
	}
	n = wire.AllJSON
	if v := got.header.Get(jsonLength); v != "" {
		if n, err = strconv.Atoi(v); err != nil {
			return err
		}
	}
	rep, err := wire.DecodeV2Response(got.body, n, wire.Limits{})
	if err != nil {
		return err
	}
	want := frontendtest.ToyWorker(nil, req.Request)
	if diff := cmp.Diff(want.Outputs, rep.Outputs); diff != "" || rep.ID != req.ID {
		return fmt.Errorf("id %q: %s", rep.ID, diff)
	}
	return nil
}

func TestWithoutTheBus(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.Bus.Close()
	got := d.post(t, toyInfer, goodToy)
	if got.code != 503 {
		t.Errorf("without the bus: %d %s", got.code, got.body)
	}
	if got := d.do(t, "GET", "/v2/health/ready", nil); got.code != 503 || got.errorText() != "not connected to NATS" {
		t.Errorf("ready without the bus: %d %s", got.code, got.body)
	}
}

// TestNoModelIsUnknownBeforeTheyWereRead asks a frontend that has just started: it cannot know which
// models there are, and a client that is told "unknown" does not come back.
func TestNoModelIsUnknownBeforeTheyWereRead(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	s.Fleet = fleet.New(s.Bus, time.Second, slog.New(slog.DiscardHandler)) // not running: nothing was read
	d := open(t, s)
	for _, ask := range []struct{ method, path string }{
		{"GET", "/v2/models/toy"}, {"GET", "/v2/models/toy/ready"}, {"GET", "/v2/models/none/config"}, {"POST", "/v2/models/toy/infer"},
	} {
		got := d.do(t, ask.method, ask.path, nil)
		if got.code != http.StatusServiceUnavailable || got.errorText() != "the registered models have not been read yet" {
			t.Errorf("%s %s: %d %s", ask.method, ask.path, got.code, got.body)
		}
	}
	got := d.do(t, "POST", "/v2/models/toy/infer", nil)
	if got.header.Get(wire.HeaderStatus) != string(wire.Unavailable) || got.header.Get("Retry-After") == "" {
		t.Errorf("headers %v: expected the status unavailable and when to try again", got.header)
	}
}
