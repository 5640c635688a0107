package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine/cabi"
)

// native is an engine behind the C ABI.
type native struct{ lib *cabi.Library }

var (
	_ Engine      = (*native)(nil)
	_ JPEGDecoder = (*native)(nil)
)

func (e *native) Info() Info {
	return Info{
		Name:    e.lib.Engine(),
		Version: e.lib.Version(),
		Library: e.lib.Path(),
		CUDA:    e.lib.HasCUDA(),
		JPEG:    e.lib.HasJPEG(),
	}
}

func (e *native) Device(name string) (Device, error) {
	d, err := e.lib.DeviceInfo(name)
	if err != nil {
		return Device{}, wrap(err, "device "+name)
	}
	return Device{Name: d.Name, SMs: d.SMs, MemFree: d.MemFree, MemTotal: d.MemTotal}, nil
}

// DecodeJPEG implements JPEGDecoder.
func (e *native) DecodeJPEG(pixels, data []byte, channels, height, width int) error {
	if err := e.lib.DecodeJPEG(pixels, data, channels, height, width); err != nil {
		return wrap(err, "JPEG")
	}
	return nil
}

func (e *native) Close() error { return nil }

func (e *native) Load(ctx context.Context, spec Spec) (Model, error) {
	spec, err := spec.resolve()
	if err != nil {
		return nil, err
	}
	what := "load " + spec.Model.Name
	if err := checkArchive(what, spec.Model.Path); err != nil {
		return nil, err
	}
	var notes []string
	ways := treatments(spec.Device)
	for i, way := range ways {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		m, err := e.load(ctx, spec, way)
		if err == nil {
			m.notes = append(notes, m.notes...)
			return m, nil
		}
		if CodeOf(err) != ELOAD || i == len(ways)-1 {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		notes = append(notes, fmt.Sprintf("served %s, because %s it fails: %v", ways[i+1].name, way.name, err))
	}
	panic("unreachable: the last way returns")
}

// treatment is what LibTorch does to an archive before it runs.
type treatment struct {
	name  string
	flags uint32
}

// treatments are tried in turn until an archive loads and runs. On a CPU, optimize_for_inference
// fuses and re-orders weights for oneDNN: 3 to 4 times faster than freezing alone on convolutional
// models, the same on transformers. LibTorch calls it a prototype, hence the second way. On CUDA
// the captured graph is what matters.
func treatments(device string) []treatment {
	freeze := treatment{"frozen", cabi.Freeze}
	if device == "cpu" {
		return []treatment{{"optimized", cabi.Optimize}, freeze}
	}
	return []treatment{freeze}
}

func (e *native) load(ctx context.Context, spec Spec, way treatment) (*nativeModel, error) {
	handle, err := e.lib.Load(loadOptions(&spec, way.flags))
	if err != nil {
		return nil, wrap(err, spec.Model.Path)
	}
	m := &nativeModel{spec: spec, handle: handle}
	if err := m.warmUp(ctx); err != nil {
		handle.Close()
		return nil, err
	}
	return m, nil
}

func loadOptions(s *Spec, flags uint32) cabi.LoadOptions {
	o := cabi.LoadOptions{
		Path:      s.Model.Path,
		Device:    s.Device,
		Flags:     flags,
		Precision: int(precisions[s.Precision]),
	}
	if s.FixedBatch {
		o.Flags |= cabi.Pad
	}
	for _, in := range s.Model.Inputs {
		p, ok := s.Model.Preprocess[in.Name]
		o.Inputs = append(o.Inputs, inputSpec(in.DType, p, ok))
	}
	for _, out := range s.Model.Outputs {
		o.OutputDTypes = append(o.OutputDTypes, int(out.DType))
	}
	return o
}

func inputSpec(dtype tensor.DType, p model.Preprocess, preprocess bool) cabi.InputSpec {
	spec := cabi.InputSpec{DType: int(dtype), Preprocess: preprocess, Scale: float32(p.Scale)}
	n := max(len(p.Mean), len(p.Std))
	for c := range n {
		spec.Mean = append(spec.Mean, float32(channel(p.Mean, c, 0)))
		spec.Std = append(spec.Std, float32(channel(p.Std, c, 1)))
	}
	return spec
}

// channel is a channel's value; a single value stands for all channels, none for otherwise.
func channel(values []float64, c int, otherwise float64) float64 {
	switch len(values) {
	case 0:
		return otherwise
	case 1:
		return values[0]
	}
	return values[c]
}

// nativeModel is a model of a native engine.
type nativeModel struct {
	spec     Spec
	handle   *cabi.Model
	memBytes int64
	notes    []string

	mu   sync.Mutex   // guards call
	call []cabi.Input // the inputs of the call in progress, its memory reused by the next
}

var _ Model = (*nativeModel)(nil)

func (m *nativeModel) MemBytes() int64 { return m.memBytes }

func (m *nativeModel) Notes() []string { return slices.Clone(m.notes) }

func (m *nativeModel) Close() error {
	m.handle.Close()
	return nil
}

func (m *nativeModel) Run(in []Input) (Result, error) {
	samples, err := m.spec.check(in)
	if err != nil {
		return nil, err
	}
	r, err := m.run(in)
	if err != nil {
		return nil, wrap(err, m.spec.Model.Name)
	}
	res := &nativeResult{handle: r, outputs: m.outputs(r)}
	if err := m.spec.checkOutputs(res.outputs, samples); err != nil {
		r.Free()
		return nil, errorf(ERUN, "%s: %v", m.spec.Model.Name, err)
	}
	return res, nil
}

func (m *nativeModel) run(in []Input) (*cabi.Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.marshal(in)
	defer clear(m.call)
	return m.handle.Run(m.call)
}

func (m *nativeModel) marshal(in []Input) {
	m.call = m.call[:0]
	for i := range in {
		m.call = append(m.call, cabi.Input{DType: int(in[i].DType), Shape: in[i].Shape, Segments: in[i].Segments})
	}
}

// outputs gives the engine's outputs their declared names, by position.
func (m *nativeModel) outputs(r *cabi.Result) []tensor.Tensor {
	out := make([]tensor.Tensor, len(r.Outputs))
	for i, o := range r.Outputs {
		out[i] = tensor.Tensor{Name: o.Name, DType: tensor.DType(o.DType), Shape: o.Shape, Data: o.Data}
		if i < len(m.spec.Model.Outputs) {
			out[i].Name = m.spec.Model.Outputs[i].Name
		}
	}
	return out
}

// warmUp prepares the batches and checks that the archive does what its model.yaml declares.
func (m *nativeModel) warmUp(ctx context.Context) error {
	if m.spec.varies() {
		m.notes = append(m.notes, "not warmed up: an input has a varying dimension")
		return m.measure()
	}
	for _, batch := range m.spec.Batches {
		if err := m.prepareBatch(ctx, batch); err != nil {
			return err
		}
	}
	if err := m.tryOut(min(m.spec.Batches[len(m.spec.Batches)-1], m.spec.MaxBatch)); err != nil {
		return err
	}
	return m.measure()
}

func (m *nativeModel) prepareBatch(ctx context.Context, batch int) error {
	variants, err := m.zeros(batch)
	if err != nil {
		return err
	}
	for _, in := range variants {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.prepare(batch, in); err != nil {
			return err
		}
	}
	return nil
}

func (m *nativeModel) prepare(batch int, in []Input) error {
	m.mu.Lock()
	m.marshal(in)
	err := m.handle.Prepare(m.call)
	clear(m.call)
	m.mu.Unlock()
	if err == nil {
		return nil
	}
	err = wrap(err, fmt.Sprintf("a batch of %d zeros of the declared shapes (%s)", batch, describe(in)))
	switch CodeOf(err) {
	case EUNSUPPORTED: // it ran, but has no graph
		m.notes = append(m.notes, err.Error())
		return nil
	case ERUN, EINVAL:
		return &Error{Code: ELOAD, Msg: err.Error()}
	}
	return err
}

// tryOut runs one batch, whose outputs are checked by Run.
func (m *nativeModel) tryOut(batch int) error {
	in, err := m.zeros(batch)
	if err != nil {
		return err
	}
	r, err := m.Run(in[0])
	if err != nil {
		var e *Error
		if errors.As(err, &e) && e.Code == ERUN {
			return &Error{Code: ELOAD, Msg: e.Msg}
		}
		return err
	}
	r.Free()
	return nil
}

func (m *nativeModel) measure() error {
	info, err := m.handle.Info()
	if err != nil {
		return wrap(err, m.spec.Model.Name)
	}
	m.memBytes = info.DeviceBytes
	return nil
}

// zeros are batches of zeros: one of the model's own dtypes and, where inputs are preprocessed,
// one of the dtypes that clients are most likely to send.
func (m *nativeModel) zeros(batch int) ([][]Input, error) {
	var own, sent []Input
	differ := false
	for _, s := range m.spec.Model.Inputs {
		dtype := s.DType
		if accept := m.spec.Model.Preprocess[s.Name].Accept; len(accept) > 0 && accept[0] != dtype {
			dtype, differ = accept[0], true
		}
		z, err := zeros(s.DType, batch, s.Shape)
		if err != nil {
			return nil, errorf(ELOAD, "input %q: %v", s.Name, err)
		}
		own = append(own, z)
		if dtype != s.DType {
			z, err = zeros(dtype, batch, s.Shape)
			if err != nil {
				return nil, errorf(ELOAD, "input %q: %v", s.Name, err)
			}
		}
		sent = append(sent, z)
	}
	if !differ {
		return [][]Input{own}, nil
	}
	return [][]Input{own, sent}, nil
}

// maxZeros bounds what a slip in a model.yaml's shape can make a worker allocate.
const maxZeros = 4 << 30

func zeros(d tensor.DType, batch int, shape []int64) (Input, error) {
	full := append([]int64{int64(batch)}, shape...)
	n, err := tensor.Bytes(d, full)
	if err != nil {
		return Input{}, err
	}
	if n > maxZeros {
		return Input{}, fmt.Errorf("%s%v takes %d bytes: expected at most %d", d, full, n, int64(maxZeros))
	}
	return Input{DType: d, Shape: full, Segments: [][]byte{make([]byte, n)}}, nil
}

func describe(in []Input) string {
	parts := make([]string, len(in))
	for i := range in {
		parts[i] = fmt.Sprintf("%s%v", in[i].DType, in[i].Shape)
	}
	return strings.Join(parts, ", ")
}

// nativeResult is a result of a native engine.
type nativeResult struct {
	handle  *cabi.Result
	outputs []tensor.Tensor
}

func (r *nativeResult) Outputs() []tensor.Tensor { return r.outputs }

func (r *nativeResult) Timing() Timing {
	t := r.handle.Timing
	return Timing{
		Gather: time.Duration(t.GatherNs),
		Run:    time.Duration(t.RunNs),
		Fetch:  time.Duration(t.FetchNs),
	}
}

func (r *nativeResult) Free() {
	r.outputs = nil
	r.handle.Free()
}
