package admit

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

var toy = &model.Model{Config: model.Config{
	Name: "toy", Timeout: 2 * time.Second, MaxBatch: 8,
	Inputs:  []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{2}}},
	Outputs: []tensor.Spec{{Name: "y", DType: tensor.FP32, Shape: []int64{1}}},
}}

// refusal fails the test unless err is a Refusal of this status with this text.
func refusal(t *testing.T, err error, status wire.Status, text string) *Refusal {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) {
		t.Fatalf("%v: expected a refusal with %q", err, text)
	}
	if r.Status != status || !strings.Contains(r.Detail, text) {
		t.Errorf("%s: %s: expected %s with %q", r.Status, r.Detail, status, text)
	}
	return r
}

func TestBodySize(t *testing.T) {
	if err := Body(100, 100); err != nil {
		t.Error(err)
	}
	if err := Body(-1, 100); err != nil {
		t.Errorf("a size that is not known yet: %v", err)
	}
	if r := refusal(t, Body(101, 100), wire.BadRequest, "request body of 101 bytes: expected at most 100"); !r.TooLarge {
		t.Error("not marked as too large")
	}
}

func TestMessageSizeLeavesRoomForHeaders(t *testing.T) {
	if err := Message(9000-headroom, 9000); err != nil {
		t.Error(err)
	}
	r := refusal(t, Message(9001-headroom, 9000), wire.BadRequest, "body of 7977 bytes as queued: expected at most 7976")
	if !r.TooLarge {
		t.Error("not marked as too large")
	}
}

func TestTensorsNameTheModel(t *testing.T) {
	x := tensor.Tensor{Name: "x", DType: tensor.FP32, Shape: []int64{1, 2}, Data: make([]byte, 8)}
	if err := Tensors(wire.Request{Inputs: []tensor.Tensor{x}, Outputs: []string{"y"}}, toy); err != nil {
		t.Error(err)
	}
	refusal(t, Tensors(wire.Request{}, toy), wire.BadRequest, `model toy: input "x" is missing`)
	refusal(t, Tensors(wire.Request{Inputs: []tensor.Tensor{x}, Outputs: []string{"z"}}, toy), wire.BadRequest, `model toy: output "z"`)
}

func TestMoreSamplesThanMaxBatchAreRefused(t *testing.T) {
	request := func(n int64) wire.Request {
		return wire.Request{Inputs: []tensor.Tensor{{Name: "x", DType: tensor.FP32, Shape: []int64{n, 2}, Data: make([]byte, 8*n)}}}
	}
	if err := Tensors(request(8), toy); err != nil {
		t.Error(err)
	}
	refusal(t, Tensors(request(9), toy), wire.BadRequest, "model toy: 9 samples: expected at most 8, the model's max_batch")
}

func TestDeadline(t *testing.T) {
	now := time.UnixMicro(1_700_000_000_000_000)
	header := func(key, value string) func(string) string {
		return func(k string) string {
			if k == key {
				return value
			}
			return ""
		}
	}
	none := header("", "")
	for _, c := range []struct {
		name      string
		header    func(string) string
		parameter time.Duration
		want      time.Duration // from now
	}{
		{"the model's own", none, 0, 2 * time.Second},
		{"header", header(wire.HeaderTimeout, "5s"), 0, 5 * time.Second},
		{"parameter", none, 300 * time.Millisecond, 300 * time.Millisecond},
		{"parameter longer than the model's own", none, time.Minute, time.Minute},
		{"the sooner of both: parameter", header(wire.HeaderTimeout, "5s"), time.Second, time.Second},
		{"the sooner of both: header", header(wire.HeaderTimeout, "5s"), time.Minute, 5 * time.Second},
		{"as late as the queue keeps it", header(wire.HeaderTimeout, "62s"), 0, 62 * time.Second},
		{"absolute", header(wire.HeaderDeadline, wire.FormatDeadline(now.Add(time.Millisecond))), 0, time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Deadline(c.header, c.parameter, toy, now)
			if err != nil || got.Sub(now) != c.want {
				t.Errorf("%v, %v: expected %v", got.Sub(now), err, c.want)
			}
		})
	}
	_, err := Deadline(header(wire.HeaderDeadline, wire.FormatDeadline(now)), 0, toy, now)
	refusal(t, err, wire.Expired, "the deadline passed 0s before")
	_, err = Deadline(header(wire.HeaderTimeout, "soon"), 0, toy, now)
	refusal(t, err, wire.BadRequest, `header Gpulet-Timeout: found "soon"`)
	_, err = Deadline(header(wire.HeaderTimeout, "48h"), 0, toy, now)
	refusal(t, err, wire.BadRequest, "model toy: deadline 48h0m0s from now: expected at most 1m2s, the model's timeout plus 1m0s")
}

// Whatever is asked for, an accepted deadline lies ahead and within what the queue keeps.
func TestAcceptedDeadlinesLieAhead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.UnixMicro(rapid.Int64Range(0, 1<<52).Draw(t, "now"))
		h := map[string]string{
			wire.HeaderDeadline: rapid.OneOf(rapid.Just(""), rapid.StringMatching(`-?[0-9]{1,19}`)).Draw(t, "deadline"),
			wire.HeaderTimeout:  rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[0-9]{1,12}(us|ms|s|h)`)).Draw(t, "timeout"),
		}
		parameter := time.Duration(rapid.Int64Range(0, int64(wire.MaxTimeout)).Draw(t, "parameter"))
		at, err := Deadline(func(k string) string { return h[k] }, parameter, toy, now)
		if err != nil {
			return
		}
		if left := at.Sub(now); left <= 0 || left > toy.Timeout+time.Minute {
			t.Fatalf("accepted a deadline %v from now", left)
		}
	})
}

func TestInFlight(t *testing.T) {
	if err := InFlight(5, 5); err != nil {
		t.Error(err)
	}
	if r := refusal(t, InFlight(6, 5), wire.Overloaded, "6 requests are in flight: expected at most 5"); r.Retry <= 0 {
		t.Error("an overload without a time to come back")
	}
}

func TestBodies(t *testing.T) {
	if err := Bodies(100, 100); err != nil {
		t.Error(err)
	}
	if r := refusal(t, Bodies(101, 100), wire.Overloaded, "request bodies of 101 bytes are in flight: expected at most 100"); r.Retry <= 0 {
		t.Error("an overload without a time to come back")
	}
}
