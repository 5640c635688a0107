package gpulet_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/gpulet"
	"github.com/gpulet/gpulet/worker/internal/link"
)

func TestAnswersEveryRequestOnceWithItsOwnResult(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a", "b"}})
	r.waitReady(1)
	want := map[string][]float32{}
	var ids []string
	for i := range 300 {
		id := fmt.Sprint("r", i)
		values := make([]float32, 1+i%4)
		for k := range values {
			values[k] = float32(100*i + k)
		}
		r.send([]string{"a", "b"}[i%2], id, values...)
		ids, want[id] = append(ids, id), values
	}
	for _, rep := range r.wait(ids...) {
		if rep.Status != wire.StatusOK || rep.Version != 7 {
			t.Fatalf("%s: status %s, version %d: %s", rep.RequestID, rep.Status, rep.Version, rep.Detail)
		}
		for k, v := range want[rep.RequestID] {
			if got := float(rep.Outputs[0], k); got != 2*v {
				t.Errorf("%s: sample %d is %v: expected %v", rep.RequestID, k, got, 2*v)
			}
		}
		if diff := cmp.Diff([]int64{int64(len(want[rep.RequestID]))}, rep.Outputs[1].Shape); diff != "" {
			t.Errorf("%s: shape of the second output: %s", rep.RequestID, diff)
		}
		tm := rep.Timing
		if tm.Gpulet != "g0" || tm.Share != 50 || tm.Plan != 1 || tm.Batch < len(want[rep.RequestID]) || tm.Batch > 4 || tm.BatchedUs < 0 {
			t.Errorf("%s: timing %+v", rep.RequestID, tm)
		}
	}
	if err := r.gpulets[0].stop(); err != nil {
		t.Error(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, reps := range r.replies {
		if len(reps) != 1 {
			t.Errorf("%s was answered %d times", id, len(reps))
		}
	}
	last := r.gpulets[0].last.Models
	if got := last[0].Requests + last[1].Requests; got != 300 {
		t.Errorf("%d requests counted: expected 300", got)
	}
}

func float(t tensor.Tensor, i int) float32 {
	return math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:]))
}

func TestBatchesWhatCameWhileTheExecutorWasBusy(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, batch: 4})
	r.waitReady(1)
	waiting, open := r.engine.gate.shut()
	r.send("a", "first", 1)
	r.await(waiting)
	for i := range 4 {
		r.send("a", fmt.Sprint(i), 1)
	}
	r.waitHeld(4)
	open()
	for _, rep := range r.wait("0", "1", "2", "3") {
		if rep.Timing.Batch != 4 {
			t.Errorf("%s ran in a batch of %d: expected 4", rep.RequestID, rep.Timing.Batch)
		}
	}
}

// await waits until a run waits at the gate.
func (r *rig) await(waiting <-chan struct{}) {
	r.t.Helper()
	select {
	case <-waiting:
	case <-time.After(30 * time.Second):
		r.t.Fatal("waited 30s for a batch to be run")
	}
}

// waitHeld waits until a gpu-let has fetched n requests beside the one that runs.
func (r *rig) waitHeld(n uint64) {
	r.t.Helper()
	r.unstored.Wait()
	r.waitLag("a", func(l bus.Lag) bool { return l.Pending == 0 && l.AckPending == n+1 })
}

func TestFetchesNothingWhileBusy(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, batch: 4, execMs: 60_000, timeout: time.Hour, ackWait: time.Minute})
	r.waitReady(1)
	waiting, open := r.engine.gate.shut()
	defer open()
	r.send("a", "first", 1)
	r.await(waiting)
	ids := []string{"first"}
	for i := range 20 {
		ids = append(ids, fmt.Sprint(i))
		r.send("a", fmt.Sprint(i), 1)
	}
	// The first gpu-let is busy for a minute by the plan's word: it leaves the work to the second,
	// which takes one batch and is then as busy.
	r.unstored.Wait()
	r.start("a")
	r.await(waiting)
	r.waitLag("a", func(l bus.Lag) bool { return l.Pending == 16 && l.AckPending == 5 })
	open()
	r.wait(ids...)
}

func TestRefusesBadRequests(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}})
	r.waitReady(1)
	x := func(d tensor.DType, shape []int64, data []byte) wire.Request {
		return wire.Request{Inputs: []tensor.Tensor{{Name: "x", DType: d, Shape: shape, Data: data}}}
	}
	encode := func(contentType string, req wire.Request) []byte {
		data, err := wire.EncodeRequest(contentType, req)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	other := x(tensor.FP32, []int64{1, 1}, floats(1))
	other.Inputs[0].Name = "z"
	outputs := x(tensor.FP32, []int64{1, 1}, floats(1))
	outputs.Outputs = []string{"nope"}
	good := body(t, 1, 1)
	cases := map[string]struct {
		msg    bus.Message
		detail string
	}{
		"empty":            {bus.Message{Body: nil}, "request body"},
		"garbage":          {bus.Message{Body: []byte("\xc1\xff\x00garbage")}, "request body"},
		"cut off":          {bus.Message{Body: good[:len(good)-3]}, "request body"},
		"more behind it":   {bus.Message{Body: append(append([]byte{}, good...), 1)}, "request body"},
		"unknown type":     {bus.Message{Body: good, ContentType: "text/html"}, "text/html"},
		"wrong dtype":      {bus.Message{Body: encode(wire.TypeMsgpack, x(tensor.FP64, []int64{1, 1}, make([]byte, 8)))}, "FP64"},
		"wrong rank":       {bus.Message{Body: encode(wire.TypeMsgpack, x(tensor.FP32, []int64{1, 1, 1}, floats(1)))}, "expected [batch -1]"},
		"no samples":       {bus.Message{Body: encode(wire.TypeMsgpack, x(tensor.FP32, []int64{0, 1}, nil))}, "expected [batch -1]"},
		"unknown input":    {bus.Message{Body: encode(wire.TypeMsgpack, other)}, `"z"`},
		"unknown output":   {bus.Message{Body: encode(wire.TypeMsgpack, outputs)}, `"nope"`},
		"too many samples": {bus.Message{Body: body(t, 9, make([]float32, 9)...)}, "9 samples: expected at most 8"},
		"NaN in JSON":      {bus.Message{ContentType: wire.TypeJSON, Body: []byte(`{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[NaN]}]}`)}, "request body"},
		"huge dimensions":  {bus.Message{ContentType: wire.TypeJSON, Body: []byte(`{"inputs":[{"name":"x","datatype":"FP32","shape":[1,9223372036854775807],"data":[1]}]}`)}, "request body"},
		"bad timeout":      {bus.Message{Body: good, Header: map[string]string{wire.HeaderTimeout: "soon"}}, wire.HeaderTimeout},
		"bad deadline":     {bus.Message{Body: good, Header: map[string]string{wire.HeaderDeadline: "tomorrow"}}, wire.HeaderDeadline},
	}
	var ids []string
	for name, c := range cases {
		id := strings.ReplaceAll(name, " ", "-")
		ids = append(ids, id)
		c.msg.Model, c.msg.RequestID, c.msg.ReplyTo = "a", id, r.inbox.Address(id)
		r.publish(&c.msg)
	}
	r.send("a", "good", 1)
	for i, rep := range r.wait(ids...) {
		want := cases[strings.ReplaceAll(ids[i], "-", " ")].detail
		if rep.Status != wire.BadRequest || !strings.Contains(rep.Detail, want) {
			t.Errorf("%s: status %s, %q: expected bad_request naming %q", ids[i], rep.Status, rep.Detail, want)
		}
	}
	if rep := r.wait("good")[0]; rep.Status != wire.StatusOK {
		t.Errorf("a good request beside them: %s: %s", rep.Status, rep.Detail)
	}
	r.waitEmpty("a")
	if got := r.report().Models[0].Rejected; got != uint64(len(cases)) {
		t.Errorf("%d requests counted as rejected: expected %d", got, len(cases))
	}
}

func TestSpeaksTheRequestsLanguage(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}})
	r.waitReady(1)
	ask := func(id string, m bus.Message) wire.Reply {
		m.Model, m.RequestID, m.ReplyTo = "a", id, r.inbox.Address(id)
		r.publish(&m)
		rep := r.wait(id)[0]
		if rep.Status != wire.StatusOK {
			t.Fatalf("%s: %s: %s", id, rep.Status, rep.Detail)
		}
		return rep
	}
	rep := ask("json", bus.Message{
		ContentType: wire.TypeJSON,
		Body:        []byte(`{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}],"outputs":[{"name":"y"}]}`),
	})
	if len(rep.Outputs) != 1 || float(rep.Outputs[0], 1) != 4 {
		t.Errorf("outputs %v", rep.Outputs)
	}
	req := wire.Request{Inputs: []tensor.Tensor{{Name: "x", DType: tensor.UINT8, Shape: []int64{2, 1}, Data: []byte{3, 200}}}}
	data, err := wire.EncodeRequest(wire.TypeMsgpack, req)
	if err != nil {
		t.Fatal(err)
	}
	rep = ask("uint8", bus.Message{Body: data})
	if float(rep.Outputs[0], 1) != 400 {
		t.Errorf("outputs %v", rep.Outputs)
	}
}

func TestRunsTogetherOnlyWhatFitsTogether(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, batch: 4})
	r.waitReady(1)
	waiting, open := r.engine.gate.shut()
	r.send("a", "first", 1)
	r.await(waiting)
	for id, n := range map[string]int{"short1": 1, "short2": 1, "long1": 3, "long2": 3} {
		r.publish(&bus.Message{Model: "a", RequestID: id, ReplyTo: r.inbox.Address(id), Body: body(t, 1, make([]float32, n)...)})
	}
	r.waitHeld(4)
	open()
	for _, rep := range r.wait("short1", "short2", "long1", "long2") {
		if rep.Status != wire.StatusOK || rep.Timing.Batch != 2 {
			t.Errorf("%s: %s in a batch of %d: expected 2 of the same shape: %s", rep.RequestID, rep.Status, rep.Timing.Batch, rep.Detail)
		}
	}
}

func TestABadRequestFailsAlone(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, batch: 4})
	r.waitReady(1)
	waiting, open := r.engine.gate.shut()
	r.send("a", "first", 1)
	r.await(waiting)
	r.send("a", "good1", 1)
	r.send("a", "bad", poison)
	r.send("a", "odd", tooMany)
	r.send("a", "good2", 2)
	r.waitHeld(4)
	open()
	for id, want := range map[string]wire.Status{"good1": wire.StatusOK, "bad": wire.Failed, "odd": wire.Failed, "good2": wire.StatusOK} {
		if rep := r.wait(id)[0]; rep.Status != want {
			t.Errorf("%s: %s: expected %s: %s", id, rep.Status, want, rep.Detail)
		}
	}
	if rep := r.wait("bad")[0]; rep.Detail != "poisoned sample" {
		t.Errorf("detail %q: expected the engine's words", rep.Detail)
	}
	r.waitEmpty("a")
}

func TestTellsAtOnceThatARequestIsTooLate(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}})
	r.waitReady(1)
	past := bus.Message{
		Model: "a", RequestID: "past", ReplyTo: r.inbox.Address("past"),
		Body: body(t, 1, 1), Deadline: time.Now().Add(-time.Second),
	}
	r.publish(&past)
	if rep := r.wait("past")[0]; rep.Status != wire.Expired || !strings.Contains(rep.Detail, "its deadline passed") {
		t.Errorf("status %s, %q", rep.Status, rep.Detail)
	}
	// The executor is held up, and the client hears of it before it is free again.
	waiting, open := r.engine.gate.shut()
	defer open()
	r.send("a", "first", 1)
	r.await(waiting)
	soon := bus.Message{
		Model: "a", RequestID: "soon", ReplyTo: r.inbox.Address("soon"),
		Body: body(t, 1, 1), Timeout: 200 * time.Millisecond,
	}
	r.publish(&soon)
	if rep := r.wait("soon")[0]; rep.Status != wire.Expired {
		t.Errorf("status %s: %s", rep.Status, rep.Detail)
	}
	open()
	r.wait("first")
	r.waitEmpty("a")
	if got := r.report().Models[0].Expired; got != 2 {
		t.Errorf("%d requests counted as expired: expected 2", got)
	}
}

func TestWhatCannotFinishInTimeIsNotStarted(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, execMs: 600_000})
	r.waitReady(1)
	r.send("a", "x", 1) // 10s, by the model's timeout; the plan says ten minutes
	rep := r.wait("x")[0]
	if rep.Status != wire.Expired || !strings.Contains(rep.Detail, "cannot finish in time") {
		t.Errorf("status %s, %q", rep.Status, rep.Detail)
	}
}

func TestStoresTheResultNobodyWaitsFor(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}})
	r.waitReady(1)
	r.publish(&bus.Message{Model: "a", RequestID: "job1", Body: body(t, 1, 21)})
	r.publish(&bus.Message{Model: "a", RequestID: "job2", Body: []byte("bad")})
	r.waitEmpty("a")
	for id, want := range map[string]wire.Status{"job1": wire.StatusOK, "job2": wire.BadRequest} {
		got, err := r.client.Result(t.Context(), "a", id)
		if err != nil {
			t.Fatal(err)
		}
		rep, err := wire.DecodeReply(got.Get, got.Body)
		if err != nil || rep.Status != want {
			t.Errorf("%s: %v, status %s: expected %s", id, err, rep.Status, want)
		}
	}
}

func TestAReplyThatIsTooLargeFails(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}})
	r.waitReady(1)
	n := r.client.MaxPayload() / 3 // bytes, of which each makes four in the reply
	big := wire.Request{Inputs: []tensor.Tensor{{Name: "x", DType: tensor.UINT8, Shape: []int64{1, n}, Data: make([]byte, n)}}}
	data, err := wire.EncodeRequest(wire.TypeMsgpack, big)
	if err != nil {
		t.Fatal(err)
	}
	r.publish(&bus.Message{Model: "a", RequestID: "big", ReplyTo: r.inbox.Address("big"), Body: data})
	if rep := r.wait("big")[0]; rep.Status != wire.Failed || !strings.Contains(rep.Detail, "too large") {
		t.Errorf("status %s, %q", rep.Status, rep.Detail)
	}
	r.waitEmpty("a")
}

func TestDrainFinishesWhatWasTakenAndLosesNothing(t *testing.T) {
	for name, end := range map[string]func(*served){
		"command":      func(s *served) { s.commands <- link.Command{Op: link.Drain} },
		"end of stdin": func(s *served) { close(s.commands) },
		"signal":       func(s *served) { s.cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, rigOptions{models: []string{"a"}})
			r.waitReady(1)
			waiting, open := r.engine.gate.shut()
			defer open()
			var ids []string
			for i := range 50 {
				ids = append(ids, fmt.Sprint(i))
				r.send("a", ids[i], float32(i))
			}
			r.await(waiting)
			end(r.gpulets[0])
			r.gpulets[0].waitFor("draining", func(p plan.GpuletReport) bool { return p.State == plan.Draining })
			open()
			if err := r.gpulets[0].ended(); err != nil {
				t.Fatal(err)
			}
			if _, models := r.engine.counts("a"); models != 0 {
				t.Errorf("%d models were left loaded", models)
			}
			r.unstored.Wait()
			lag, err := r.planner.Lag(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			if lag.Pending == 0 {
				t.Error("it took everything although it was told to drain")
			}
			r.start("a") // somebody else does the rest
			for _, rep := range r.wait(ids...) {
				if rep.Status != wire.StatusOK {
					t.Errorf("%s: %s: %s", rep.RequestID, rep.Status, rep.Detail)
				}
			}
			r.waitEmpty("a")
		})
	}
}

func TestGivesUpWhenDrainingTakesTooLong(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, grace: 10 * time.Millisecond})
	r.waitReady(1)
	waiting, open := r.engine.gate.shut()
	r.send("a", "x", 1)
	r.await(waiting)
	if err := r.gpulets[0].stop(); !errors.Is(err, gpulet.ErrAborted) {
		t.Errorf("error %v: expected that it gave up", err)
	}
	open()
	r.start("a") // the request is delivered again
	if rep := r.wait("x")[0]; rep.Status != wire.StatusOK || rep.Timing.Gpulet != "g1" {
		t.Errorf("%s from %s: %s", rep.Status, rep.Timing.Gpulet, rep.Detail)
	}
}

func TestABrokenDeviceAnswersNothing(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}})
	r.waitReady(1)
	r.send("a", "x", lost)
	if err := r.gpulets[0].ended(); !errors.Is(err, gpulet.ErrDevice) || !strings.Contains(err.Error(), "device lost") {
		t.Fatalf("error %v: expected the device's", err)
	}
	lag, err := r.planner.Lag(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if lag.AckPending+lag.Pending != 1 || len(r.replies) != 0 {
		t.Errorf("lag %+v and %d replies: expected the request to be in the queue, unanswered", lag, len(r.replies))
	}
}

// However a gpu-let ends, the server has confirmed that it has what was acknowledged: nothing that was
// answered runs again.
func TestTheServerHasTheAcknowledgementsBeforeTheEnd(t *testing.T) {
	for name, end := range map[string]func(*rig) error{
		"drained": func(r *rig) error { return r.gpulets[0].stop() },
		"device lost": func(r *rig) error {
			r.send("a", "y", lost)
			if err := r.gpulets[0].ended(); !errors.Is(err, gpulet.ErrDevice) {
				return fmt.Errorf("error %w: expected the device's", err)
			}
			return nil
		},
		"gave up": func(r *rig) error {
			waiting, open := r.engine.gate.shut()
			defer open()
			r.send("a", "y", 1)
			r.await(waiting)
			if err := r.gpulets[0].stop(); !errors.Is(err, gpulet.ErrAborted) {
				return fmt.Errorf("error %w: expected that it gave up", err)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			line := &tap{}
			r := newRig(t, rigOptions{models: []string{"a"}, tap: line, grace: 100 * time.Millisecond})
			r.waitReady(1)
			r.send("a", "x", 1)
			r.wait("x")
			if err := end(r); err != nil {
				t.Fatal(err)
			}
			sent := line.sent()
			ack, ping := bytes.LastIndex(sent, []byte("+ACK\r\n")), bytes.LastIndex(sent, []byte("PING\r\n"))
			if ack < 0 || ping < ack {
				t.Errorf("the last acknowledgement is at byte %d, the last question whether all came at %d", ack, ping)
			}
		})
	}
}

func TestRedeliveredRequestsRunAlone(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, grace: 10 * time.Millisecond})
	r.waitReady(1)
	waiting, open := r.engine.gate.shut()
	ids := []string{"0", "1", "2", "3"}
	for _, id := range ids {
		r.send("a", id, 1)
	}
	r.await(waiting)
	_ = r.gpulets[0].stop() // it dies with requests in its hands
	open()
	second := r.start("a")
	again := 0
	for _, rep := range r.wait(ids...) {
		if rep.Status != wire.StatusOK {
			t.Errorf("%s: %s: %s", rep.RequestID, rep.Status, rep.Detail)
		}
		if rep.Timing.Batch == 1 {
			again++
		}
	}
	if again == 0 {
		t.Error("no request ran alone")
	}
	second.waitFor("the redelivered counted", func(p plan.GpuletReport) bool { return p.Models[0].Redelivered == uint64(again) })
}

func TestAModelThatDoesNotLoadHurtsNoOther(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a", "b"}, none: true})
	r.engine.breaks("a", errors.New("a.pt: not an archive"))
	s := r.start("a", "b")
	rep := s.waitFor("ready", func(p plan.GpuletReport) bool { return p.State == plan.Ready && p.Revision == 1 })
	if got := rep.Models[0]; got.Loaded || got.Error != "a.pt: not an archive" {
		t.Errorf("report of a: %+v", got)
	}
	if !strings.Contains(rep.Detail, "not an archive") {
		t.Errorf("detail %q", rep.Detail)
	}
	r.send("b", "b", 1)
	r.send("a", "a", 1)
	if got := r.wait("b")[0]; got.Status != wire.StatusOK {
		t.Errorf("b: %s: %s", got.Status, got.Detail)
	}
	r.engine.breaks("a", nil)
	s.assign(2, "a", "b")
	if got := r.wait("a")[0]; got.Status != wire.StatusOK { // it waited in the queue
		t.Errorf("a: %s: %s", got.Status, got.Detail)
	}
	if got := r.waitReady(2); got.Models[0].Error != "" || !got.Models[0].Loaded {
		t.Errorf("report of a: %+v", got.Models[0])
	}
}

func TestFailsWhenNoModelLoads(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, none: true})
	r.engine.breaks("a", errors.New("out of memory"))
	s := r.start("a")
	s.waitFor("failed", func(p plan.GpuletReport) bool {
		return p.State == plan.Failed && p.Revision == 1 && p.Detail == "out of memory"
	})
	a := r.assignment("a")
	a.Problem = "no such file"
	s.commands <- link.Command{Op: link.Assign, Revision: 2, Models: []link.Assignment{a}}
	s.waitFor("the agent's reason", func(p plan.GpuletReport) bool {
		return p.State == plan.Failed && p.Revision == 2 && p.Detail == "no such file"
	})
	if loads, _ := r.engine.counts("a"); loads != 1 {
		t.Errorf("%d loads: expected none after the agent said that it cannot be", loads)
	}
}

// TestReassignsUnderLoad moves a gpu-let from a and b to b and c while requests for all three come.
func TestReassignsUnderLoad(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a", "b", "c"}, none: true})
	s := r.start("a", "b")
	r.waitReady(1)
	var ids []string
	for i := range 300 {
		id := fmt.Sprint("r", i)
		ids = append(ids, id)
		r.send([]string{"a", "b", "c"}[i%3], id, float32(i))
		if i == 150 {
			s.assign(2, "b", "c")
		}
	}
	rep := r.waitReady(2)
	if len(rep.Models) < 2 || rep.Models[0].Model != "b" || rep.Models[1].Model != "c" {
		t.Errorf("models %+v", rep.Models)
	}
	s.waitFor("a to be unloaded", func(p plan.GpuletReport) bool { return len(p.Models) == 2 })
	r.start("a")
	for _, rep := range r.wait(ids...) {
		if rep.Status != wire.StatusOK {
			t.Errorf("%s: %s: %s", rep.RequestID, rep.Status, rep.Detail)
		}
	}
	if loads, _ := r.engine.counts("b"); loads != 1 {
		t.Errorf("b was loaded %d times: expected it to stay", loads)
	}
	for _, m := range []string{"a", "b", "c"} {
		r.waitEmpty(m)
	}
}

func TestANewVersionReplacesTheOldOneWhenItIsLoaded(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}})
	r.waitReady(1)
	next := r.assignment("a")
	next.Config.Version, next.Config.Hash = 8, "another"
	r.engine.breaks("a", errors.New("corrupt"))
	r.gpulets[0].commands <- link.Command{Op: link.Assign, Revision: 2, Models: []link.Assignment{next}}
	rep := r.waitReady(2)
	if !rep.Models[0].Loaded || rep.Models[0].Error != "corrupt" {
		t.Errorf("report %+v: expected the old version to serve on", rep.Models[0])
	}
	r.send("a", "old", 1)
	r.wait("old")
	r.engine.breaks("a", nil)
	r.gpulets[0].commands <- link.Command{Op: link.Assign, Revision: 3, Models: []link.Assignment{next}}
	r.gpulets[0].waitFor("version 8", func(p plan.GpuletReport) bool { return p.Revision == 3 && p.Models[0].Error == "" })
	r.send("a", "new", 1)
	if rep := r.wait("new")[0]; rep.Version != 8 {
		t.Errorf("version %d: expected 8", rep.Version)
	}
	if err := r.gpulets[0].stop(); err != nil {
		t.Error(err)
	}
	if _, models := r.engine.counts("a"); models != 0 {
		t.Errorf("%d models were left loaded", models)
	}
}

func TestWaitsForAQueueThatIsNotThereYet(t *testing.T) {
	r := newRig(t, rigOptions{none: true})
	s := r.start("a")
	s.waitFor("trouble", func(p plan.GpuletReport) bool { return strings.Contains(p.Detail, "its queue does not exist") })
	r.ensure("a")
	r.send("a", "x", 1)
	if rep := r.wait("x")[0]; rep.Status != wire.StatusOK {
		t.Errorf("%s: %s", rep.Status, rep.Detail)
	}
}

func TestSlowWorkIsNotDeliveredTwice(t *testing.T) {
	r := newRig(t, rigOptions{models: []string{"a"}, ackWait: time.Second})
	r.waitReady(1)
	waiting, open := r.engine.gate.shut()
	defer open()
	r.send("a", "slow", 1)
	r.await(waiting)
	second := r.start("a")
	second.waitFor("ready", func(p plan.GpuletReport) bool { return p.State == plan.Ready })
	deadline := time.After(2500 * time.Millisecond) // two and a half times the AckWait
	select {
	case <-waiting:
		t.Error("the request was delivered again while it ran")
	case <-deadline:
	}
	open()
	r.wait("slow")
}
