package engine

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpulet/gpulet/shared/tensor"
)

// sim answers after a profiled latency and computes nothing: outputs are zeros. It refuses what
// the other engines refuse, so that a plan can be tried out on GPUs that are not there.
type sim struct{ o SimOptions }

var _ Engine = (*sim)(nil)

// NewSim returns a simulated engine.
func NewSim(o SimOptions) (Engine, error) {
	if o.Latency == nil {
		return nil, errorf(EINVAL, "engine sim: it needs a latency for every model and batch")
	}
	if o.Interference == nil {
		o.Interference = func(string) float64 { return 1 }
	}
	if o.MemBytes == nil {
		o.MemBytes = func(string) int64 { return 0 }
	}
	if o.Sleep == nil {
		o.Sleep = time.Sleep
	}
	return &sim{o: o}, nil
}

func (e *sim) Info() Info { return Info{Name: Simulated, Version: "simulated"} }

// Device accepts every name: a simulated device exists by being named.
func (e *sim) Device(name string) (Device, error) { return Device{Name: "sim:" + name}, nil }

func (e *sim) Close() error { return nil }

// Load needs no archive. It fails where the latencies of the batches that may come are not known.
func (e *sim) Load(ctx context.Context, spec Spec) (Model, error) {
	spec, err := spec.resolve()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("load %s: %w", spec.Model.Name, err)
	}
	for _, samples := range []int{1, spec.MaxBatch} {
		if _, err := e.o.Latency(spec.Model.Name, samples); err != nil {
			return nil, errorf(ELOAD, "load %s: latency of a batch of %d: %v", spec.Model.Name, samples, err)
		}
	}
	return &simModel{engine: e, spec: spec}, nil
}

type simModel struct {
	engine *sim
	spec   Spec

	closed atomic.Bool

	mu sync.Mutex // guards what follows, and makes runs of one model take turns
	// zeros is as large as the largest output so far. It is shared by all results: nobody writes.
	zeros []byte
}

var _ Model = (*simModel)(nil)

func (m *simModel) MemBytes() int64 { return m.engine.o.MemBytes(m.spec.Model.Name) }

func (m *simModel) Notes() []string { return nil }

// Stage checks the batch, and that is all.
func (m *simModel) Stage(in []Input) (Staged, error) {
	if err := m.usable(); err != nil {
		return nil, err
	}
	if _, err := m.spec.check(in); err != nil {
		return nil, err
	}
	return &heldBack{model: m, name: m.spec.Model.Name, in: in}, nil
}

// Prepare has nothing to do but to refuse what the other engines refuse.
func (m *simModel) Prepare(ctx context.Context, batches []int) error {
	if err := m.usable(); err != nil {
		return err
	}
	if _, err := descending(m.spec.Model.Name, batches); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("prepare %s: %w", m.spec.Model.Name, err)
	}
	return nil
}

// usable fails once the model was closed.
func (m *simModel) usable() error {
	if m.closed.Load() {
		return errorf(EINVAL, "%s: the model was closed", m.spec.Model.Name)
	}
	return nil
}

func (m *simModel) Close() error {
	m.mu.Lock() // waits for a run in progress
	defer m.mu.Unlock()
	m.closed.Store(true)
	return nil
}

func (m *simModel) Run(in []Input) (Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.usable(); err != nil {
		return nil, err
	}
	samples, err := m.spec.check(in)
	if err != nil {
		return nil, err
	}
	out, err := m.outputs(in, samples)
	if err != nil {
		return nil, err
	}
	took, err := m.latency(samples)
	if err != nil {
		return nil, err
	}
	m.engine.o.Sleep(took)
	return &simResult{outputs: out, timing: Timing{Run: took}}, nil
}

func (m *simModel) latency(samples int64) (time.Duration, error) {
	name := m.spec.Model.Name
	alone, err := m.engine.o.Latency(name, int(samples))
	if err != nil {
		return 0, errorf(ERUN, "%s: latency of a batch of %d: %v", name, samples, err)
	}
	factor := m.engine.o.Interference(name)
	if !(factor >= 1) || math.IsInf(factor, 0) {
		return 0, errorf(ERUN, "%s: interference %v: expected 1 or more", name, factor)
	}
	return time.Duration(float64(alone) * factor), nil
}

func (m *simModel) outputs(in []Input, samples int64) ([]tensor.Tensor, error) {
	varying := varyingDim(m.spec.Model.Inputs, in)
	out := make([]tensor.Tensor, len(m.spec.Model.Outputs))
	for i, s := range m.spec.Model.Outputs {
		shape := make([]int64, 0, len(s.Shape)+1)
		shape = append(shape, samples)
		for _, v := range s.Shape {
			if v == -1 {
				v = varying
			}
			shape = append(shape, v)
		}
		n, err := tensor.Bytes(s.DType, shape)
		if err == nil && n > maxZeros {
			err = fmt.Errorf("%s%v takes %d bytes: expected at most %d", s.DType, shape, n, int64(maxZeros))
		}
		if err != nil {
			return nil, errorf(ERUN, "%s: output %q: %v", m.spec.Model.Name, s.Name, err)
		}
		if int64(len(m.zeros)) < n {
			m.zeros = make([]byte, n)
		}
		out[i] = tensor.Tensor{Name: s.Name, DType: s.DType, Shape: shape, Data: m.zeros[:n:n]}
	}
	return out, nil
}

// varyingDim is the size of the first dimension that varies, 1 when none does: a sequence's
// length, most often, which outputs share.
func varyingDim(specs []tensor.Spec, in []Input) int64 {
	for i, s := range specs {
		for d, v := range s.Shape {
			if v == -1 {
				return in[i].Shape[d+1]
			}
		}
	}
	return 1
}

type simResult struct {
	outputs []tensor.Tensor
	timing  Timing
}

func (r *simResult) Outputs() []tensor.Tensor { return r.outputs }
func (r *simResult) Timing() Timing           { return r.timing }
func (r *simResult) Free()                    { r.outputs = nil }
