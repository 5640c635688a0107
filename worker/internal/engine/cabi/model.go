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

// Model is a loaded model. Its methods may be called from any goroutine and run one at a time;
// after Close they fail.
type Model struct {
	lib *Library

	mu     sync.Mutex // guards everything below: a handle must not be freed while it runs
	handle *C.gle_model
	// Reused by every call, so that a run allocates only its result.
	inputs   []C.gle_input
	segments []C.gle_segment
	pinner   runtime.Pinner
	err      errBuf
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
	if err := m.err.check(C.model_load(l.api, options, &handle, m.err.ptr(), errCap)); err != nil {
		return nil, err
	}
	m.handle = handle
	return m, nil
}

// Close frees the model, waiting for a call that is running. Results stay valid. Closing twice is
// harmless.
func (m *Model) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.handle != nil {
		C.model_unload(m.lib.api, m.handle)
		m.handle = nil
	}
}

// Info tells what the model holds.
func (m *Model) Info() (ModelInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.handle == nil {
		return ModelInfo{}, errClosed()
	}
	info := C.gle_model_info{size: C.sizeof_gle_model_info}
	if err := m.err.check(C.model_info(m.lib.api, m.handle, &info, m.err.ptr(), errCap)); err != nil {
		return ModelInfo{}, err
	}
	return ModelInfo{
		Graphs:       int(info.n_graphs),
		WeightBytes:  int64(info.weight_bytes),
		DeviceBytes:  int64(info.device_bytes),
		CopiesInputs: info.copies_inputs != 0,
	}, nil
}

// Prepare runs a batch of exactly these shapes once, and captures it where the device can.
func (m *Model) Prepare(in []Input) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.handle == nil {
		return errClosed()
	}
	defer m.release()
	if err := m.marshal(in); err != nil {
		return err
	}
	return m.err.check(C.model_prepare(m.lib.api, m.handle, unsafe.SliceData(m.inputs), C.int32_t(len(in)), m.err.ptr(), errCap))
}

// Run executes one batch. The result must be freed.
func (m *Model) Run(in []Input) (*Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.handle == nil {
		return nil, errClosed()
	}
	defer m.release()
	if err := m.marshal(in); err != nil {
		return nil, err
	}
	var r *C.gle_result
	status := C.model_run(m.lib.api, m.handle, unsafe.SliceData(m.inputs), C.int32_t(len(in)), &r, m.err.ptr(), errCap)
	if err := m.err.check(status); err != nil {
		return nil, err
	}
	return newResult(m.lib, r), nil
}

// marshal fills m.inputs and pins all that it points to, until release.
func (m *Model) marshal(in []Input) error {
	total := 0
	for i := range in {
		total += len(in[i].Segments)
		if len(in[i].Shape) > MaxDims {
			return &Error{Status: StatusInvalid, Msg: "more dimensions than the engine takes"}
		}
	}
	m.inputs = resize(m.inputs, len(in))
	m.segments = resize(m.segments, total)
	if total > 0 {
		m.pinner.Pin(&m.segments[0])
	}
	next := m.segments
	for i := range in {
		n := len(in[i].Segments)
		m.fill(&m.inputs[i], &in[i], next[:n])
		next = next[n:]
	}
	return nil
}

func (m *Model) fill(to *C.gle_input, from *Input, segments []C.gle_segment) {
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
			m.pinner.Pin(&s[0])
			segments[j].data = unsafe.Pointer(&s[0])
		}
	}
}

// release forgets the callers' memory, so that a model does not keep a batch's messages alive.
func (m *Model) release() {
	m.pinner.Unpin()
	clear(m.inputs)
	clear(m.segments)
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

// arena is C memory for the length of one call.
type arena struct{ blocks []unsafe.Pointer }

func newArena() *arena { return &arena{} }

func (a *arena) free() {
	for _, b := range a.blocks {
		C.free(b)
	}
}

// alloc returns n zeroed bytes; nil for none.
func (a *arena) alloc(n int) unsafe.Pointer {
	if n == 0 {
		return nil
	}
	p := C.calloc(1, C.size_t(n))
	a.blocks = append(a.blocks, p)
	return p
}

func (a *arena) string(s string) *C.char {
	p := C.CString(s)
	a.blocks = append(a.blocks, unsafe.Pointer(p))
	return p
}

func (a *arena) int32s(values []int) *C.int32_t {
	p := (*C.int32_t)(a.alloc(len(values) * C.sizeof_int32_t))
	for i, v := range values {
		unsafe.Slice(p, len(values))[i] = C.int32_t(v)
	}
	return p
}

func (a *arena) floats(values []float32) *C.float {
	p := (*C.float)(a.alloc(len(values) * C.sizeof_float))
	for i, v := range values {
		unsafe.Slice(p, len(values))[i] = C.float(v)
	}
	return p
}

func (a *arena) inputSpecs(specs []InputSpec) *C.gle_input_spec {
	p := (*C.gle_input_spec)(a.alloc(len(specs) * C.sizeof_gle_input_spec))
	for i, s := range specs {
		to := &unsafe.Slice(p, len(specs))[i]
		to.dtype, to.scale, to.n_channels = C.int32_t(s.DType), C.float(s.Scale), C.int32_t(len(s.Mean))
		to.mean, to.std = a.floats(s.Mean), a.floats(s.Std)
		if s.Preprocess {
			to.preprocess = 1
		}
	}
	return p
}
