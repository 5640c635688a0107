package loadgencmd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image/jpeg"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/gpulet/gpulet/loadgen/internal/echotest"
	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// seen is what a model was sent.
type seen struct {
	mu     sync.Mutex
	inputs []tensor.Tensor
}

func (s *seen) note(rep *wire.Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := rep.Outputs[0]
	t.Data = bytes.Clone(t.Data)
	s.inputs = append(s.inputs, t)
}

// visual serves "vision", which takes images, and "digits", which does not.
func visual(t *testing.T) (*echotest.System, *seen) {
	t.Helper()
	sys := echotest.Start(t)
	sys.Model(t, "digits", 1<<20)
	sys.Serve(t, "digits", nil)
	s := &seen{}
	sys.Vision(t, "vision")
	sys.Serve(t, "vision", s.note)
	return &sys, s
}

func TestModelsThatTakeImagesAreSentJPEGs(t *testing.T) {
	sys, vision := visual(t)
	r := loadgen(t, sys, "run", "--rates", "vision=300,digits=100", "--duration", "300ms", "--body", "jpeg", "--json", "-")
	var doc report.Run
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil || r.code != 0 {
		t.Fatalf("%v: %+v", err, r)
	}
	if d := doc.Models["digits"]; d.OK != d.Sent || d.Correct != d.Sent || d.Sent == 0 {
		t.Errorf("digits, which has samples: %+v", d)
	}
	if v := doc.Models["vision"]; v.OK != v.Sent || v.Sent == 0 || v.Labelled != 0 || doc.Body != "jpeg" {
		t.Errorf("vision, --body %s: %+v", doc.Body, v)
	}
	different := map[string]bool{}
	for _, in := range vision.inputs {
		img, err := jpeg.Decode(bytes.NewReader(in.Data))
		if err != nil || img.Bounds().Dx() != 16 || img.Bounds().Dy() != 16 {
			t.Fatalf("no JPEG of 16 x 16: %v", err)
		}
		different[string(in.Data)] = true
	}
	if len(different) != jpegs {
		t.Errorf("%d different JPEGs: expected %d", len(different), jpegs)
	}
}

func TestRandomRequestsHaveAsManySamplesAsAsked(t *testing.T) {
	sys, vision := visual(t)
	if r := loadgen(t, sys, "run", "--rates", "vision=100,digits=50", "--duration", "200ms", "--body", "random", "--samples", "3", "--strict"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	for _, in := range vision.inputs {
		if in.DType != tensor.UINT8 || fmt.Sprint(in.Shape) != "[3 3 16 16]" {
			t.Fatalf("%s%v: expected UINT8[3 3 16 16]", in.DType, in.Shape)
		}
	}
	if len(vision.inputs) == 0 {
		t.Error("nothing was sent")
	}
}

func TestAutoSendsTensorsAsTheModelHasThem(t *testing.T) {
	sys, vision := visual(t)
	if r := loadgen(t, sys, "run", "--rates", "vision=100", "--duration", "100ms", "--samples", "2"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if len(vision.inputs) == 0 || vision.inputs[0].DType != tensor.FP32 || vision.inputs[0].Shape[0] != 2 {
		t.Errorf("%+v", vision.inputs)
	}
}

func TestWrongBodies(t *testing.T) {
	sys, _ := visual(t)
	for want, args := range map[string][]string{
		`--outputs: model digits: output "z": the model has no such output: expected "y"`: {"--outputs", "digits=z", "--rates", "digits=1"},
		"--outputs vision: no requests are sent to that model":                            {"--outputs", "vision=y", "--rates", "digits=1"},
		`--outputs: digits: found "y+": expected names of outputs, separated by +`:        {"--outputs", "digits=y+"},
		`--body "gif": expected auto, random or jpeg`:                                     {"--body", "gif"},
		"--samples 0: expected 1 to":                                                      {"--samples", "0"},
		"--samples 2: --body jpeg sends one image per request":                            {"--samples", "2", "--body", "jpeg"},
		"--samples 9: model vision: expected at most 8, its max_batch":                    {"--samples", "9"},
		"samples.msgpack is sent one sample at a time: expected --body":                   {"--samples", "2", "--rates", "digits=1"},
		"--body jpeg: none of the models takes images":                                    {"--body", "jpeg", "--rates", "digits=1"},
	} {
		if r := loadgen(t, sys, append([]string{"run", "--rates", "vision=1"}, args...)...); r.code != 2 || !strings.Contains(r.stderr, want) {
			t.Errorf("%v: exit %d, expected 2 and %q in\n%s", args, r.code, want, r.stderr)
		}
	}
}

func TestJPEGsOverHTTP(t *testing.T) {
	var mu sync.Mutex
	bad, timeouts := 0, map[string]bool{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/models/vision", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"name":"vision","inputs":[{"name":"x","datatype":"FP32","shape":[-1,1,8,8]}],
			"parameters":{"slo_ms":1000,"timeout_ms":2000,"max_batch_size":4,"accepts":{"x":["FP32","UINT8"]}}}`))
	})
	mux.HandleFunc("POST /v2/models/vision/infer", func(w http.ResponseWriter, r *http.Request) {
		_, err := jpeg.Decode(r.Body)
		mu.Lock()
		defer mu.Unlock()
		timeouts[r.Header.Get(wire.HeaderTimeout)] = true
		if err != nil || r.Header.Get("Content-Type") != wire.TypeJPEG || r.Header.Get("Inference-Header-Content-Length") != "" {
			bad++
		}
		_, _ = w.Write([]byte(`{"model_name":"vision","model_version":"1","outputs":[]}`))
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	r := loadgen(t, nil, "run", "--via", "http", "--http-url", srv.URL, "--rates", "vision=100", "--duration", "200ms", "--timeout", "700ms", "--body", "jpeg", "--strict")
	if r.code != 0 || bad > 0 || len(timeouts) != 1 || !timeouts["700ms"] {
		t.Errorf("%d bad requests, timeouts %v, %+v", bad, timeouts, r)
	}
}
