// Package frontendtest gives the frontend's tests a small real system: an embedded NATS server
// with queues and documents as the planner makes them, and workers that answer from Go functions.
package frontendtest

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/fleet"
	"github.com/gpulet/gpulet/frontend/internal/inbox"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// System is a bus with models registered and queues made, and the frontend's parts upon it.
type System struct {
	NATS    *embedded.Server
	Planner *bus.Bus
	Bus     *bus.Bus // the frontend's
	Inbox   *inbox.Inbox
	Fleet   *fleet.Fleet
}

// Toy has one input and two outputs of different types: double (2x) and index (the sample's number).
func Toy() model.Model {
	return Model("toy", []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{2}}}, []tensor.Spec{
		{Name: "double", DType: tensor.FP32, Shape: []int64{2}},
		{Name: "index", DType: tensor.INT64, Shape: []int64{1}},
	})
}

// Model returns a registered model with generous limits.
func Model(name string, inputs, outputs []tensor.Spec) model.Model {
	return model.Model{Version: 3, Hash: "0", Config: model.Config{
		Name: name, SLO: 10 * time.Second, Timeout: 20 * time.Second, MaxBatch: 8, Precision: "stored", Weight: 1,
		Class: "interactive", Inputs: inputs, Outputs: outputs,
	}}
}

// Queue is a queue that holds what any test sends.
func Queue(name string) bus.Queue {
	return bus.Queue{Model: name, MaxMsgs: 10000, MaxBytes: 256 << 20, MaxAge: time.Minute, AckWait: 10 * time.Second, MaxAckPending: 1000}
}

// Start starts a system with models registered, each with a queue.
func Start(t testing.TB, models ...model.Model) *System {
	t.Helper()
	return StartOn(t, embeddedtest.StartTest(t), models...)
}

// StartOn is Start on a server that runs already.
func StartOn(t testing.TB, srv *embedded.Server, models ...model.Model) *System {
	t.Helper()
	s := &System{NATS: srv, Planner: embeddedtest.Connect(t, srv, bus.RolePlanner), Bus: embeddedtest.Connect(t, srv, bus.RoleFrontend)}
	check(t, s.Planner.EnsureBase(t.Context()))
	for _, m := range models {
		check(t, s.Planner.EnsureQueue(t.Context(), Queue(m.Name)))
		check(t, s.Planner.PutModel(t.Context(), m))
	}
	var err error
	s.Inbox, err = inbox.Open(s.Bus)
	check(t, err)
	t.Cleanup(s.Inbox.Close)
	s.Fleet = fleet.New(s.Bus, 20*time.Millisecond, slog.New(slog.DiscardHandler))
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Fleet.Run(t.Context()); err != nil {
			t.Errorf("fleet: %v", err)
		}
	})
	t.Cleanup(done.Wait)
	Eventually(t, "the models are known", func() bool { return len(s.Fleet.Models()) == len(models) })
	return s
}

// PublishPlan publishes a plan with one gpu-let that serves the models, and its report as state.
func (s *System) PublishPlan(t testing.TB, state plan.GpuletState, models ...string) {
	t.Helper()
	g := plan.Gpulet{ID: "h-0-50", Host: "h", GPUType: "sim", Share: 50}
	rep := plan.GpuletReport{ID: g.ID, Host: "h", Share: 50, State: state, Revision: 1, Models: []plan.ModelReport{}}
	for _, m := range models {
		g.Models = append(g.Models, plan.Assignment{Model: m, Batch: 8, RateRPS: 100, DutyMs: 10, ExecMs: 5})
		rep.Models = append(rep.Models, plan.ModelReport{Model: m, Loaded: state == plan.Ready})
	}
	_, rev, err := s.Planner.GetPlan(t.Context())
	check(t, err)
	_, err = s.Planner.PutPlan(t.Context(), plan.Plan{
		Revision: rev + 1, GPUsUsed: 1, DesiredGPUs: 1, Gpulets: []plan.Gpulet{g}, Unserved: map[string]float64{},
	}, rev)
	check(t, err)
	worker := embeddedtest.Connect(t, s.NATS, bus.RoleWorker)
	check(t, worker.PutGpulet(t.Context(), rep))
	check(t, worker.PutHost(t.Context(), plan.HostReport{
		Host: "h", Engine: "test", Revision: 1, Devices: []plan.Device{{GPUType: "sim", Name: "GPU", MemBytes: 1 << 30, Sim: true}},
	}))
}

// Vision takes images, one way or the other: grey pictures of 2 x 2, in FP32 or UINT8.
func Vision() model.Model {
	m := Model("vision", []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{1, 2, 2}}}, []tensor.Spec{
		{Name: "size", DType: tensor.INT64, Shape: []int64{}},
	})
	m.Preprocess = map[string]model.Preprocess{"x": {Accept: []tensor.DType{tensor.UINT8}, Scale: 1}}
	return m
}

// VisionWorker answers with how many bytes came to it, of an image or a tensor.
func VisionWorker(msg *bus.Msg, req wire.Request) wire.Reply {
	n := len(msg.Data)
	if _, ok := wire.ImageType(msg.Get(wire.HeaderType)); !ok {
		n = len(req.Inputs[0].Data)
	}
	return wire.Reply{
		Status: wire.StatusOK, Model: "vision", Version: 3,
		Outputs: []tensor.Tensor{{Name: "size", DType: tensor.INT64, Shape: []int64{1}, Data: binary.LittleEndian.AppendUint64(nil, uint64(n))}},
	}
}

// Handler answers one request of a model; req is empty where the body is an image.
type Handler func(m *bus.Msg, req wire.Request) wire.Reply

// Work serves a model until the test ends: it pulls batches as a gpu-let does, answers each request
// as handle says and acknowledges it.
func (s *System) Work(t testing.TB, m model.Model, handle Handler) {
	t.Helper()
	b := embeddedtest.Connect(t, s.NATS, bus.RoleWorker)
	events := make(chan bus.PullEvent, 64)
	p, err := b.NewPuller(m.Name, bus.PullerOptions{Events: events})
	check(t, err)
	check(t, p.Pull(16, true, 5*time.Second))
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case <-t.Context().Done():
				return
			case e := <-events:
				switch {
				case e.Msg != nil:
					s.answer(t, b, m, e.Msg, handle)
				case e.Ended && e.Err == nil && t.Context().Err() == nil:
					if err := p.Pull(16, true, 5*time.Second); err != nil {
						t.Errorf("pull: %v", err)
					}
				}
			}
		}
	})
	t.Cleanup(func() {
		done.Wait()
		p.Close()
	})
}

func (s *System) answer(t testing.TB, b *bus.Bus, m model.Model, msg *bus.Msg, handle Handler) {
	rep := wire.Reply{Status: wire.BadRequest}
	var req wire.Request
	var err error
	if _, image := wire.ImageType(msg.Get(wire.HeaderType)); !image {
		req, err = wire.DecodeRequest(msg.Get(wire.HeaderType), msg.Data, m.Inputs, wire.Limits{})
	}
	if err != nil {
		rep.Detail = err.Error()
	} else {
		rep = handle(msg, req)
	}
	rep.RequestID = msg.Get(wire.HeaderRequestID)
	h, body, err := wire.EncodeReply(msg.Get(wire.HeaderType), rep)
	if err == nil {
		err = b.Reply(msg.Get(wire.HeaderReplyTo), h, body)
	}
	if err == nil {
		err = msg.Ack()
	}
	if err != nil {
		t.Errorf("worker of %s: %v", m.Name, err)
	}
}

// WaitQueued waits until n requests are in the queue of a model.
func (s *System) WaitQueued(t testing.TB, model string, n uint64) {
	t.Helper()
	Eventually(t, "the queue is as long as it should be", func() bool {
		lag, err := s.Planner.Lag(t.Context(), model)
		return err == nil && lag.Pending == n
	})
}

// RemoveCancelled runs the planner's part of cancelling until the test ends. It sends requests to the
// model, which nobody may serve yet.
func (s *System) RemoveCancelled(t testing.TB, model string) {
	t.Helper()
	var done sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	done.Go(func() { _ = s.Planner.RemoveCancelled(ctx, func(string) {}) })
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	probe := make(chan uint64, 1)
	check(t, s.Bus.PublishAsync(&bus.Message{Model: model, RequestID: "probe"}, func(r bus.Receipt, _ error) { probe <- r.Seq }))
	n := bus.Cancellation{Model: model, RequestID: "probe", Seq: <-probe}
	Eventually(t, "the planner listens", func() bool {
		lag, err := s.Planner.Lag(t.Context(), model)
		return s.Bus.Cancel(n) == nil && err == nil && lag.LastSeq == n.Seq && lag.Pending == 0
	})
}

// ToyWorker is what the model Toy computes.
func ToyWorker(_ *bus.Msg, req wire.Request) wire.Reply {
	x := req.Inputs[0]
	n := x.Shape[0]
	var double, index []byte
	for off := 0; off < len(x.Data); off += 4 {
		v := math.Float32frombits(binary.LittleEndian.Uint32(x.Data[off:]))
		double = binary.LittleEndian.AppendUint32(double, math.Float32bits(2*v))
	}
	for i := range n {
		index = binary.LittleEndian.AppendUint64(index, uint64(i))
	}
	return wire.Reply{
		Status: wire.StatusOK, Model: "toy", Version: 3,
		Outputs: []tensor.Tensor{
			{Name: "double", DType: tensor.FP32, Shape: []int64{n, 2}, Data: double},
			{Name: "index", DType: tensor.INT64, Shape: []int64{n, 1}, Data: index},
		},
		Timing: wire.Timing{QueuedUs: 120, BatchedUs: 30, ExecUs: 4500, Batch: int(n), Gpulet: "h-0-50", Share: 50, Plan: 7},
	}
}

// Floats returns the bytes of FP32 values.
func Floats(vs ...float32) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

// Eventually waits until cond holds; the test fails when it does not within ten seconds.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(10 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
