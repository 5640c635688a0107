package cabi

/*
#include <stdlib.h>
#include "engine.h"

// Go cannot call through a pointer in a struct.
static int model_load(const gle_api *a, const gle_load_options *o, gle_model **m, char *e, size_t n) { return a->load(o, m, e, n); }
static void model_unload(const gle_api *a, gle_model *m) { a->unload(m); }
static int model_info(const gle_api *a, gle_model *m, gle_model_info *i, char *e, size_t n) { return a->model_info(m, i, e, n); }
static int model_prepare(const gle_api *a, gle_model *m, const gle_input *i, int32_t k, char *e, size_t n) { return a->prepare(m, i, k, e, n); }
static int model_run(const gle_api *a, gle_model *m, const gle_input *i, int32_t k, gle_result **r, char *e, size_t n) { return a->run(m, i, k, r, e, n); }
static int model_stage(const gle_api *a, gle_model *m, const gle_input *i, int32_t k, gle_staged **s, char *e, size_t n) { return a->stage(m, i, k, s, e, n); }
static int model_run_staged(const gle_api *a, gle_model *m, gle_staged *s, gle_result **r, char *e, size_t n) { return a->run_staged(m, s, r, e, n); }
static void staged_free(const gle_api *a, gle_staged *s) { a->staged_free(s); }
static void result_free(const gle_api *a, gle_result *r) { a->result_free(r); }
*/
import "C"

import (
	"runtime"
	"sync"
	"unsafe"
)

// LoadOptions are what an engine needs to load a model. DTypes are numbers of gle_dtype.
type LoadOptions struct {
	Path         string
	Device       string
	Flags        uint32
	Precision    int // 0: as stored
	Inputs       []InputSpec
	OutputDTypes []int
}

// InputSpec is what the model takes, and how another dtype becomes it.
type InputSpec struct {
	DType      int
	Preprocess bool
	Scale      float32
	Mean, Std  []float32 // of the same length, or empty: 0 and 1
}

// Input is one input of a batch: the concatenation of its segments along the first dimension.
type Input struct {
	DType    int
	Shape    []int64
	Segments [][]byte
}

// Output is one output of a run. Data is engine memory until Result.Free.
type Output struct {
	Name  string
	DType int
	Shape []int64
	Data  []byte
}

// Timing is where a run's time went, in nanoseconds.
type Timing struct{ GatherNs, RunNs, FetchNs uint64 }

// ModelInfo is what a model holds.
type ModelInfo struct {
	Graphs       int
	WeightBytes  int64
	DeviceBytes  int64
	CopiesInputs bool
}

// Model is a loaded model. Its methods may be called from any goroutine: the engine lets those take
// turns that have to. After Close they fail.
type Model struct {
	lib *Library

	// life is held for reading while the handle is used and for writing while it is freed.
	life   sync.RWMutex
	handle *C.gle_model

	mu   sync.Mutex // guards call
	call call       // of Run
}

// errClosed is what a closed model says.
func errClosed() error { return &Error{Status: StatusInvalid, Msg: "the model was closed"} }

// Load loads an archive.
func (l *Library) Load(o LoadOptions) (*Model, error) {
	a := newArena()
	defer a.free()
	options := (*C.gle_load_options)(a.alloc(C.sizeof_gle_load_options))
	options.size = C.sizeof_gle_load_options
	options.flags = C.uint32_t(o.Flags)
	options.path, options.device = a.string(o.Path), a.string(o.Device)
	options.precision = C.int32_t(o.Precision)
	options.n_inputs, options.inputs = C.int32_t(len(o.Inputs)), a.inputSpecs(o.Inputs)
	options.n_outputs, options.output_dtypes = C.int32_t(len(o.OutputDTypes)), a.int32s(o.OutputDTypes)
	m := &Model{lib: l}
	var handle *C.gle_model
	err := &m.call.err
	if err := err.check(C.model_load(l.api, options, &handle, err.ptr(), errCap)); err != nil {
		return nil, err
	}
	m.handle = handle
	return m, nil
}

// Close frees the model, waiting for calls in progress. Results and staged batches stay valid, but
// the latter cannot be run any more. Closing twice is harmless.
func (m *Model) Close() {
	m.life.Lock()
	defer m.life.Unlock()
	if m.handle != nil {
		C.model_unload(m.lib.api, m.handle)
		m.handle = nil
	}
}

// Closed reports whether Close was called.
func (m *Model) Closed() bool {
	m.life.RLock()
	defer m.life.RUnlock()
	return m.handle == nil
}

// use calls f with the handle, which is not freed meanwhile.
func (m *Model) use(f func(handle *C.gle_model) error) error {
	m.life.RLock()
	defer m.life.RUnlock()
	if m.handle == nil {
		return errClosed()
	}
	return f(m.handle)
}

// Info tells what the model holds.
func (m *Model) Info() (ModelInfo, error) {
	info := C.gle_model_info{size: C.sizeof_gle_model_info}
	err := m.use(func(handle *C.gle_model) error {
		var e errBuf
		return e.check(C.model_info(m.lib.api, handle, &info, e.ptr(), errCap))
	})
	if err != nil {
		return ModelInfo{}, err
	}
	return ModelInfo{
		Graphs:       int(info.n_graphs),
		WeightBytes:  int64(info.weight_bytes),
		DeviceBytes:  int64(info.device_bytes),
		CopiesInputs: info.copies_inputs != 0,
	}, nil
}

// Prepare runs a batch of exactly these shapes once, and captures it where the device can. What runs
// meanwhile waits no longer than the engine needs.
func (m *Model) Prepare(in []Input) error {
	return m.use(func(handle *C.gle_model) error {
		c := new(call) // the other one is for those that run
		defer c.release()
		if err := c.marshal(in); err != nil {
			return err
		}
		return c.err.check(C.model_prepare(m.lib.api, handle, c.data(), c.len(), c.err.ptr(), errCap))
	})
}

// Run executes one batch. The result must be freed.
func (m *Model) Run(in []Input) (*Result, error) {
	var r *C.gle_result
	err := m.use(func(handle *C.gle_model) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		c := &m.call
		defer c.release()
		if err := c.marshal(in); err != nil {
			return err
		}
		return c.err.check(C.model_run(m.lib.api, handle, c.data(), c.len(), &r, c.err.ptr(), errCap))
	})
	if err != nil {
		return nil, err
	}
	return newResult(m.lib, r), nil
}

// Stage gathers a batch beside what the model runs. It must be freed; until then, or until it was
// run, the memory of the segments must stay as it is. Only for a library that CanStage.
func (m *Model) Stage(in []Input) (*Staged, error) {
	s := &Staged{model: m, call: new(call)}
	err := m.use(func(handle *C.gle_model) error {
		c := s.call
		if err := c.marshal(in); err != nil {
			return err
		}
		return c.err.check(C.model_stage(m.lib.api, handle, c.data(), c.len(), &s.handle, c.err.ptr(), errCap))
	})
	if err != nil {
		s.call.release()
		return nil, err
	}
	return s, nil
}

// Staged is a batch that was gathered and not freed.
type Staged struct {
	model *Model

	mu     sync.Mutex // guards what follows: a handle must not be freed while it runs
	handle *C.gle_staged
	call   *call // keeps the inputs pinned
}

// Run executes the batch; a second time fails. The result must be freed.
func (s *Staged) Run() (*Result, error) {
	var r *C.gle_result
	err := s.model.use(func(handle *C.gle_model) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.handle == nil {
			return &Error{Status: StatusInvalid, Msg: "the staged batch was freed"}
		}
		e := &s.call.err
		return e.check(C.model_run_staged(s.model.lib.api, handle, s.handle, &r, e.ptr(), errCap))
	})
	if err != nil {
		return nil, err
	}
	return newResult(s.model.lib, r), nil
}

// Free gives the batch's memory back, also after its model was closed. Freeing twice is harmless.
func (s *Staged) Free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handle != nil {
		C.staged_free(s.model.lib.api, s.handle)
		s.handle = nil
		s.call.release()
	}
}

// call is a batch in the ABI's words. It is reused, so that a run allocates only its result.
type call struct {
	inputs   []C.gle_input
	segments []C.gle_segment
	pinner   runtime.Pinner
	err      errBuf
}

func (c *call) data() *C.gle_input { return unsafe.SliceData(c.inputs) }
func (c *call) len() C.int32_t     { return C.int32_t(len(c.inputs)) }

// marshal fills c and pins all that it points to, until release.
func (c *call) marshal(in []Input) error {
	total := 0
	for i := range in {
		total += len(in[i].Segments)
		if len(in[i].Shape) > MaxDims {
			return &Error{Status: StatusInvalid, Msg: "more dimensions than the engine takes"}
		}
	}
	c.inputs = resize(c.inputs, len(in))
	c.segments = resize(c.segments, total)
	if total > 0 {
		c.pinner.Pin(&c.segments[0])
	}
	next := c.segments
	for i := range in {
		n := len(in[i].Segments)
		c.fill(&c.inputs[i], &in[i], next[:n])
		next = next[n:]
	}
	return nil
}

func (c *call) fill(to *C.gle_input, from *Input, segments []C.gle_segment) {
	*to = C.gle_input{
		dtype:      C.int32_t(from.DType),
		n_dims:     C.int32_t(len(from.Shape)),
		segments:   unsafe.SliceData(segments),
		n_segments: C.int64_t(len(segments)),
	}
	for d, v := range from.Shape {
		to.shape[d] = C.int64_t(v)
	}
	for j, s := range from.Segments {
		segments[j] = C.gle_segment{n_bytes: C.uint64_t(len(s))}
		if len(s) > 0 {
			c.pinner.Pin(&s[0])
			segments[j].data = unsafe.Pointer(&s[0])
		}
	}
}

// release forgets the callers' memory, so that a model does not keep a batch's messages alive.
func (c *call) release() {
	c.pinner.Unpin()
	clear(c.inputs)
	clear(c.segments)
}

// resize returns s with n elements, reusing its memory where it is large enough.
func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// Result holds the outputs of a run.
type Result struct {
	Outputs []Output
	Timing  Timing

	lib    *Library
	mu     sync.Mutex // guards handle
	handle *C.gle_result
}

func newResult(lib *Library, r *C.gle_result) *Result {
	outputs := unsafe.Slice(r.outputs, int(r.n_outputs))
	res := &Result{
		lib:     lib,
		handle:  r,
		Outputs: make([]Output, len(outputs)),
		Timing: Timing{
			GatherNs: uint64(r.timing.gather_ns),
			RunNs:    uint64(r.timing.run_ns),
			FetchNs:  uint64(r.timing.fetch_ns),
		},
	}
	for i := range outputs {
		res.Outputs[i] = newOutput(&outputs[i])
	}
	return res
}

func newOutput(o *C.gle_output) Output {
	out := Output{
		Name:  C.GoString(&o.name[0]),
		DType: int(o.dtype),
		Shape: make([]int64, int(o.n_dims)),
		Data:  unsafe.Slice((*byte)(o.data), int(o.n_bytes)),
	}
	for d := range out.Shape {
		out.Shape[d] = int64(o.shape[d])
	}
	return out
}

// Free gives the outputs' memory back. Freeing twice is harmless.
func (r *Result) Free() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.handle != nil {
		C.result_free(r.lib.api, r.handle)
		r.handle, r.Outputs = nil, nil
	}
}
