package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/engine/cabi"
)

// nativeModel is a model of a native engine.
type nativeModel struct {
	spec     Spec
	handle   *cabi.Model
	canStage bool

	running sync.Mutex   // guards call
	call    []cabi.Input // the inputs of the call in progress, its memory reused by the next

	mu       sync.Mutex // guards what follows
	ready    []int      // batches that were prepared
	memBytes int64
	notes    []string
}

var _ Model = (*nativeModel)(nil)

func (m *nativeModel) MemBytes() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.memBytes
}

func (m *nativeModel) Notes() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.notes)
}

func (m *nativeModel) note(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.notes = append(m.notes, text)
}

func (m *nativeModel) Close() error {
	m.handle.Close()
	return nil
}

func (m *nativeModel) Run(in []Input) (Result, error) {
	samples, err := m.spec.check(in)
	if err != nil {
		return nil, err
	}
	return m.result(samples, func() (*cabi.Result, error) {
		m.running.Lock()
		defer m.running.Unlock()
		m.call = marshal(m.call[:0], in)
		defer clear(m.call)
		return m.handle.Run(m.call)
	})
}

// result runs a batch of so many samples and checks what came out.
func (m *nativeModel) result(samples int64, run func() (*cabi.Result, error)) (Result, error) {
	r, err := run()
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

func (m *nativeModel) Stage(in []Input) (Staged, error) {
	samples, err := m.spec.check(in)
	if err != nil {
		return nil, err
	}
	if m.handle.Closed() {
		return nil, errorf(EINVAL, "%s: the model was closed", m.spec.Model.Name)
	}
	if !m.canStage {
		return &heldBack{model: m, name: m.spec.Model.Name, in: in}, nil
	}
	s, err := m.handle.Stage(marshal(nil, in))
	if err != nil {
		return nil, wrap(err, m.spec.Model.Name)
	}
	return &nativeStaged{model: m, samples: samples, handle: s}, nil
}

// nativeStaged is a batch that was gathered by a native engine.
type nativeStaged struct {
	model   *nativeModel
	samples int64
	handle  *cabi.Staged
}

func (s *nativeStaged) Run() (Result, error) { return s.model.result(s.samples, s.handle.Run) }
func (s *nativeStaged) Free()                { s.handle.Free() }

// marshal appends inputs in the ABI's words.
func marshal(to []cabi.Input, in []Input) []cabi.Input {
	for i := range in {
		to = append(to, cabi.Input{DType: int(in[i].DType), Shape: in[i].Shape, Segments: in[i].Segments})
	}
	return to
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
		m.note("not warmed up: an input has a varying dimension")
		return m.measure()
	}
	if err := m.prepareBatches(ctx, m.spec.Batches); err != nil {
		return err
	}
	if err := m.tryOut(min(m.spec.Batches[len(m.spec.Batches)-1], m.spec.MaxBatch)); err != nil {
		return err
	}
	return m.measure()
}

func (m *nativeModel) Prepare(ctx context.Context, batches []int) error {
	what := "prepare " + m.spec.Model.Name
	batches, err := descending(m.spec.Model.Name, batches)
	if err != nil {
		return err
	}
	if m.spec.varies() {
		batches = nil
	}
	err = m.prepareBatches(ctx, batches)
	if measured := m.measure(); err == nil {
		err = measured
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// prepareBatches prepares what is not ready yet, in the order given.
func (m *nativeModel) prepareBatches(ctx context.Context, batches []int) error {
	for _, batch := range batches {
		m.mu.Lock()
		ready := slices.Contains(m.ready, batch)
		m.mu.Unlock()
		if ready {
			continue
		}
		if err := m.prepareBatch(ctx, batch); err != nil {
			return err
		}
		m.mu.Lock()
		m.ready = append(m.ready, batch)
		m.mu.Unlock()
	}
	return nil
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
	err := m.handle.Prepare(marshal(nil, in))
	if err == nil {
		return nil
	}
	err = wrap(err, fmt.Sprintf("a batch of %d zeros of the declared shapes (%s)", batch, describe(in)))
	switch CodeOf(err) {
	case EUNSUPPORTED: // it ran, but has no graph
		m.note(err.Error())
		return nil
	case ERUN:
		return &Error{Code: ELOAD, Msg: err.Error()}
	case EINVAL: // of a model that was closed meanwhile, nothing can be said
		if !m.handle.Closed() {
			return &Error{Code: ELOAD, Msg: err.Error()}
		}
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
	m.mu.Lock()
	defer m.mu.Unlock()
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
