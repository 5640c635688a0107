package drive

import (
	"context"
	"encoding/binary"
	"math"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/loadgen/internal/arrival"
	"github.com/gpulet/gpulet/loadgen/internal/payload"
	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// vector is a batch of one sample.
func vector(name string, values ...float32) tensor.Tensor {
	var data []byte
	for _, v := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return tensor.Tensor{Name: name, DType: tensor.FP32, Shape: []int64{1, int64(len(values))}, Data: data}
}

// echoStream sends n requests at once-per-period whose right answer is their own input.
func echoStream(model string, rps float64, d time.Duration) Stream {
	st := Stream{
		Model: model, SLO: time.Minute, Timeout: 200 * time.Millisecond, Tolerance: 1e-4,
		Arrivals: arrival.Spec{Kind: arrival.KindPoisson}.New(arrival.Constant(rps, d), 1, model),
	}
	for i := range 3 {
		class := []float32{0, 0, 0}
		class[i] = 1
		st.Items = append(st.Items, payload.Item{
			Request:  wire.Request{Inputs: []tensor.Tensor{vector("x", class...)}},
			Expected: []tensor.Tensor{vector("y", class...)},
			Label:    i,
		})
	}
	return st
}

// echo is the right answer to item i of an echoStream.
func echo(st Stream, i int) wire.Reply {
	return wire.Reply{Status: wire.StatusOK, Outputs: st.Items[i].Expected, Timing: wire.Timing{ExecUs: 2000, Batch: 4}}
}

func options(d time.Duration) Options {
	return Options{Duration: d, Grace: 50 * time.Millisecond, Interval: 100 * time.Millisecond}
}

// scripted is a transport inside the process: answer decides what becomes of every request.
type scripted struct {
	sink   Sink
	answer func(s Sink, r Request)
}

func (s *scripted) Send(r Request) {
	s.sink.Left(r.Stream, r.Seq, time.Now())
	s.answer(s.sink, r)
}
func (s *scripted) Close() {}

func do(t *testing.T, streams []Stream, opts Options, answer func(Sink, Request)) (map[string]report.Figures, report.Figures) {
	t.Helper()
	run, err := New(streams, opts)
	if err != nil {
		t.Fatal(err)
	}
	sending := run.Do(t.Context(), context.Background(), &scripted{run, answer})
	return run.Figures(sending)
}
