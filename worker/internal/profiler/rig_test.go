package profiler

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a device in a bubble of fake time: its processes are goroutines with simulated engines.
type rig struct {
	t *testing.T
	// latency is how long a batch takes alone on a share.
	latency func(name string, share, batch int) time.Duration
	// slowdown is by how much a model on a share is slowed down by what runs on others; nil: not.
	slowdown func(name string, share int, others []busy) float64
	// load may refuse to load a model; nil accepts all.
	load func(spec engine.Spec, share int) error
	// crash ends the process that is about to run a batch; nil: never.
	crash func(name string, share, batch int) bool

	mu      sync.Mutex // guards what follows
	running map[int]busy
	started []Place
	loads   []engine.Spec
	next    int
}

// busy is what a process runs.
type busy struct {
	model string
	share int
	until time.Time
}

func newRig(t *testing.T, latency func(name string, share, batch int) time.Duration) *rig {
	return &rig{t: t, latency: latency, running: map[int]busy{}}
}

// start is a Starter.
func (r *rig) start(ctx context.Context, at Place) (*Process, error) {
	r.mu.Lock()
	id := r.next
	r.next++
	r.started = append(r.started, at)
	r.mu.Unlock()
	time.Sleep(time.Second) // processes do not start at once
	requests, toBench := io.Pipe()
	fromBench, answers := io.Pipe()
	crashed := errors.New("killed")
	died := make(chan struct{})
	var once sync.Once
	die := func() {
		once.Do(func() {
			close(died)
			_ = answers.CloseWithError(io.EOF)
			_ = requests.CloseWithError(io.ErrClosedPipe)
		})
	}
	e := &rigEngine{rig: r, id: id, share: at.Share, die: die}
	ended := make(chan error, 1)
	go func() {
		err := (&Bench{Engine: e, Device: "cuda:0", Share: at.Share}).Serve(ctx, requests, answers)
		_ = answers.Close()
		_ = requests.Close()
		select {
		case <-died:
			err = crashed
		default:
		}
		ended <- err
	}()
	return Attach(toBench, fromBench, func() error {
		_ = toBench.Close()
		_ = fromBench.Close()
		return <-ended
	})
}

// rigEngine is the engine of one process.
type rigEngine struct {
	rig   *rig
	id    int
	share int
	die   func()
}

func (e *rigEngine) Info() engine.Info { return engine.Info{Name: "sim", Version: "rig 1", CUDA: true} }
func (e *rigEngine) Close() error      { return nil }

func (e *rigEngine) Device(string) (engine.Device, error) {
	return engine.Device{Name: "rig", SMs: e.share}, nil
}

// Load makes a simulated model of 10 MB, and 1 MB for each sample of its largest batch.
func (e *rigEngine) Load(ctx context.Context, spec engine.Spec) (engine.Model, error) {
	r := e.rig
	r.mu.Lock()
	r.loads = append(r.loads, spec)
	r.mu.Unlock()
	if r.load != nil {
		if err := r.load(spec, e.share); err != nil {
			return nil, err
		}
	}
	most := 0
	for _, b := range spec.Batches {
		most = max(most, b)
	}
	name, layout := spec.Model.Name, ""
	if spec.ChannelsLast {
		layout = "/nhwc"
	}
	sim, err := engine.NewSim(engine.SimOptions{
		Latency: func(_ string, n int) (time.Duration, error) { return r.latency(name+layout, e.share, n), nil },
		Interference: func(string) float64 {
			if r.slowdown == nil {
				return 1
			}
			return r.slowdown(name, e.share, r.others(e.id))
		},
		MemBytes: func(string) int64 { return int64(10+most) << 20 },
		Sleep: func(d time.Duration) {
			r.run(e.id, busy{name, e.share, time.Now().Add(d)})
			time.Sleep(d)
		},
	})
	if err != nil {
		return nil, err
	}
	m, err := sim.Load(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &rigModel{m, e, name}, nil
}

type rigModel struct {
	engine.Model
	engine *rigEngine
	name   string
}

func (m *rigModel) Run(in []engine.Input) (engine.Result, error) {
	if crash := m.engine.rig.crash; crash != nil && crash(m.name, m.engine.share, int(in[0].Shape[0])) {
		m.engine.die()
		return nil, &engine.Error{Code: engine.EDEVICE, Msg: "gone"}
	}
	return m.Model.Run(in)
}

// run notes what a process runs now.
func (r *rig) run(id int, b busy) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running[id] = b
}

// others are what the other processes run now. A run counts to its very end: in a bubble, the next
// one of a loop begins at the same moment, and which goroutine comes first then is chance.
func (r *rig) others(id int) []busy {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []busy
	for other, b := range r.running {
		if other != id && !time.Now().After(b.until) {
			out = append(out, b)
		}
	}
	return out
}

// rigModelOf is a model that takes images.
func rigModelOf(name string, maxBatch int) model.Model {
	return model.Model{Hash: "hash of " + name, Config: model.Config{
		Name: name, MaxBatch: maxBatch, Precision: "fp16",
		Inputs:     []tensor.Spec{{Name: "x", DType: tensor.FP32, Shape: []int64{3, 2, 2}}},
		Outputs:    []tensor.Spec{{Name: "y", DType: tensor.FP32}},
		Preprocess: map[string]model.Preprocess{"x": {Accept: []tensor.DType{tensor.UINT8}, Scale: 1}},
	}}
}

func fresh(models ...model.Model) []*profile.Profile {
	var out []*profile.Profile
	for _, m := range models {
		out = append(out, &profile.Profile{Model: m.Name, GPUType: "g"})
	}
	return out
}
