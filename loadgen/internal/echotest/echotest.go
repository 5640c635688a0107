// Package echotest gives the load generator's tests a small real system: an embedded NATS server
// with queues, and workers that answer every request with its own input.
package echotest

import (
	"sync"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// System is a bus that a planner has set up.
type System struct {
	NATS    *embedded.Server
	Planner *bus.Bus
}

// Start starts a system without models; it is stopped when the test ends.
func Start(t testing.TB) System {
	t.Helper()
	srv := embeddedtest.StartTest(t)
	s := System{srv, embeddedtest.Connect(t, srv, bus.RolePlanner)}
	check(t, s.Planner.EnsureBase(t.Context()))
	return s
}

// Model registers a model with one input "x" and one output "y" of three numbers, and a queue of
// maxMsgs requests. Nobody serves it yet.
func (s System) Model(t testing.TB, name string, maxMsgs int64) {
	t.Helper()
	s.register(t, Config(name), maxMsgs)
}

// Vision registers a model of images, 3 x 16 x 16 in FP32 or UINT8, or as images.
func (s System) Vision(t testing.TB, name string) {
	t.Helper()
	c := Config(name)
	c.Inputs[0].Shape = []int64{3, 16, 16}
	c.Preprocess = map[string]model.Preprocess{"x": {Accept: []tensor.DType{tensor.UINT8}, Scale: 1}}
	s.register(t, c, 1<<20)
}

// Config is what Model registers.
func Config(name string) model.Config {
	io := func(name string) []tensor.Spec {
		return []tensor.Spec{{Name: name, DType: tensor.FP32, Shape: []int64{3}}}
	}
	return model.Config{
		Name: name, SLO: 5 * time.Second, Timeout: 10 * time.Second, MaxBatch: 8, Precision: "stored", Weight: 1,
		Class: "interactive", Inputs: io("x"), Outputs: io("y"),
	}
}

func (s System) register(t testing.TB, c model.Config, maxMsgs int64) {
	t.Helper()
	check(t, s.Planner.PutModel(t.Context(), model.Model{Version: 1, Hash: "0", Config: c}))
	check(t, s.Planner.EnsureQueue(t.Context(), bus.Queue{
		Model: c.Name, MaxMsgs: maxMsgs, MaxBytes: 256 << 20, MaxAge: time.Minute, AckWait: 30 * time.Second, MaxAckPending: 1 << 16,
	}))
}

// Serve answers a model's requests until the test ends: output y is input x, or the bytes of the
// image that came, and then what change makes of the reply; nil leaves it.
func (s System) Serve(t testing.TB, name string, change func(*wire.Reply)) {
	t.Helper()
	b := embeddedtest.Connect(t, s.NATS, bus.RoleWorker)
	events := make(chan bus.PullEvent, 1024)
	p, err := b.NewPuller(name, bus.PullerOptions{Events: events})
	check(t, err)
	pull := func() {
		if err := p.Pull(512, true, time.Minute); err != nil {
			t.Errorf("pull: %v", err)
		}
	}
	pull()
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case <-quit:
				return
			case e := <-events:
				if e.Ended {
					pull()
				} else if err := answer(b, e.Msg, change); err != nil {
					t.Error(err)
				}
			}
		}
	})
	t.Cleanup(func() {
		close(quit)
		done.Wait()
		p.Close()
	})
}

func answer(b *bus.Bus, m *bus.Msg, change func(*wire.Reply)) error {
	out, err := input(m)
	if err != nil {
		return err
	}
	out.Name = "y"
	reply := wire.Reply{RequestID: m.Get(wire.HeaderRequestID), Status: wire.StatusOK, Outputs: []tensor.Tensor{out}}
	if change != nil {
		change(&reply)
	}
	header, body, err := wire.EncodeReply("", reply)
	if err != nil {
		return err
	}
	if err := b.Reply(m.Get(wire.HeaderReplyTo), header, body); err != nil {
		return err
	}
	return m.Ack()
}

// input is what a request carries.
func input(m *bus.Msg) (tensor.Tensor, error) {
	if kind, ok := wire.ImageType(m.Get(wire.HeaderType)); ok {
		return tensor.Tensor{Name: kind, DType: tensor.UINT8, Shape: []int64{1, int64(len(m.Data))}, Data: m.Data}, nil
	}
	req, err := wire.DecodeRequest(m.Get(wire.HeaderType), m.Data, nil, wire.Limits{})
	if err != nil {
		return tensor.Tensor{}, err
	}
	return req.Inputs[0], nil
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
