package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine/cabi"
)

// native is an engine behind the C ABI.
type native struct{ lib *cabi.Library }

var _ Engine = (*native)(nil)

func (e *native) Info() Info {
	return Info{
		Name:    e.lib.Engine(),
		Version: e.lib.Version(),
		Library: e.lib.Path(),
		CUDA:    e.lib.HasCUDA(),
	}
}

func (e *native) Device(name string) (Device, error) {
	d, err := e.lib.DeviceInfo(name)
	if err != nil {
		return Device{}, wrap(err, "device "+name)
	}
	return Device{Name: d.Name, SMs: d.SMs, MemFree: d.MemFree, MemTotal: d.MemTotal}, nil
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
	options, err := loadOptions(&spec)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	handle, err := e.lib.Load(options)
	if err != nil {
		return nil, wrap(err, what+": "+spec.Model.Path)
	}
	m := &nativeModel{spec: spec, handle: handle}
	if err := m.warmUp(ctx); err != nil {
		handle.Close()
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return m, nil
}

func loadOptions(s *Spec) (cabi.LoadOptions, error) {
	precision, ok := map[string]tensor.DType{
		"stored": tensor.Invalid, "fp32": tensor.FP32, "fp16": tensor.FP16, "bf16": tensor.BF16,
	}[s.Precision]
	if !ok {
		return cabi.LoadOptions{}, errorf(EINVAL, "%s: precision %q: expected stored, fp32, fp16 or bf16", s.Model.Name, s.Precision)
	}
	o := cabi.LoadOptions{
		Path:      s.Model.Path,
		Device:    s.Device,
		Flags:     cabi.Freeze,
		Precision: int(precision),
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
	return o, nil
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
	call     []cabi.Input // reused by every Run
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
	m.marshal(in)
	r, err := m.handle.Run(m.call)
	clear(m.call)
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
		for _, in := range m.zeros(batch) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := m.prepare(batch, in); err != nil {
				return err
			}
		}
	}
	if err := m.tryOut(m.spec.Batches[len(m.spec.Batches)-1]); err != nil {
		return err
	}
	return m.measure()
}

func (m *nativeModel) prepare(batch int, in []Input) error {
	m.marshal(in)
	err := m.handle.Prepare(m.call)
	clear(m.call)
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
	r, err := m.Run(m.zeros(min(batch, m.spec.MaxBatch))[0])
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
func (m *nativeModel) zeros(batch int) [][]Input {
	own := make([]Input, 0, len(m.spec.Model.Inputs))
	sent := make([]Input, 0, len(m.spec.Model.Inputs))
	differ := false
	for _, s := range m.spec.Model.Inputs {
		own = append(own, zeros(s.DType, batch, s.Shape))
		dtype := s.DType
		if accept := m.spec.Model.Preprocess[s.Name].Accept; len(accept) > 0 && accept[0] != dtype {
			dtype, differ = accept[0], true
		}
		sent = append(sent, zeros(dtype, batch, s.Shape))
	}
	if !differ {
		return [][]Input{own}
	}
	return [][]Input{own, sent}
}

func zeros(d tensor.DType, batch int, shape []int64) Input {
	full := append([]int64{int64(batch)}, shape...)
	n, err := tensor.Bytes(d, full)
	if err != nil { // what the engine then says of it names the shape
		n = 0
	}
	return Input{DType: d, Shape: full, Segments: [][]byte{make([]byte, n)}}
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
