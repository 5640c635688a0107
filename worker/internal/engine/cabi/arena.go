package cabi

/*
#include <stdlib.h>
#include "engine.h"
*/
import "C"

import "unsafe"

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
