// Package cabi speaks the C ABI of worker/engine/include/engine.h: it opens an engine's shared
// library with dlopen and calls through its table of functions.
//
// It is the only package with cgo. Building it needs a C compiler and engine.h, but neither
// LibTorch nor the library itself. engine.h is a link in this folder, because Go builds a package
// again only when a file of its own folder changes. It knows bytes, shapes and handles; what a model
// is called and what its inputs should look like is the business of package engine.
//
// Memory: the Go memory of inputs is pinned for the length of a call, or until a staged batch is
// freed, and never copied by Go. Outputs are the engine's memory until Result.Free. A closed handle
// is never passed to C.
package cabi

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include "engine.h"

// Opens path and asks it for its table. On failure returns NULL and sets *why, which lives until
// the thread's next dl call: the caller copies it before anything else happens on this thread.
static const gle_api *open_library(const char *path, const char **why) {
	void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (handle == NULL) {
		*why = dlerror();
		return NULL;
	}
	gle_get_api_fn get = (gle_get_api_fn)dlsym(handle, "gle_get_api");
	if (get == NULL) {
		*why = "not an engine: it has no symbol gle_get_api";
		return NULL;
	}
	const gle_api *api = get(GLE_ABI_VERSION);
	// Tables only grow at their end: see can_stage, and the features.
	if (api == NULL || api->size < offsetof(gle_api, stage)) {
		*why = "the engine speaks another ABI version than this worker";
		return NULL;
	}
	return api;
}

static int can_stage(const gle_api *a) { return a->size >= offsetof(gle_api, staged_free) + sizeof(a->staged_free); }

// Go cannot call through a pointer in a struct.
static int api_init(const gle_api *a, const gle_config *c, char *e, size_t n) { return a->init(c, e, n); }
static int api_device_info(const gle_api *a, const char *d, gle_device_info *i, char *e, size_t n) { return a->device_info(d, i, e, n); }
static int api_load_operators(const gle_api *a, const char *p, char *e, size_t n) { return a->load_operators(p, e, n); }
*/
import "C"

import (
	"fmt"
	"runtime"
	"unsafe"
)

// MaxDims is the most dimensions that a tensor may have on its way through the ABI.
const MaxDims = C.GLE_MAX_DIMS

// errCap bounds an error's text. TorchScript's traces are long; their cause comes first.
const errCap = 2048

// Flags of Load.
const (
	Freeze       = uint32(C.GLE_FREEZE)
	Optimize     = uint32(C.GLE_OPTIMIZE)
	ChannelsLast = uint32(C.GLE_CHANNELS_LAST)
	Pad          = uint32(C.GLE_PAD)
	Eager        = uint32(C.GLE_EAGER)
)

// Statuses of Error.
const (
	StatusInvalid     = int(C.GLE_EINVAL)
	StatusLoad        = int(C.GLE_ELOAD)
	StatusRun         = int(C.GLE_ERUN)
	StatusOOM         = int(C.GLE_EOOM)
	StatusDevice      = int(C.GLE_EDEVICE)
	StatusUnsupported = int(C.GLE_EUNSUPPORTED)
)

// Error is a failed call: a gle_status and the engine's own words.
type Error struct {
	Status int
	Msg    string
}

func (e *Error) Error() string { return e.Msg }

type errBuf [errCap]C.char

func (b *errBuf) ptr() *C.char { return &b[0] }

func (b *errBuf) check(status C.int) error {
	if status == C.GLE_OK {
		return nil
	}
	return &Error{Status: int(status), Msg: C.GoString(b.ptr())}
}

// Library is an open engine. It may be used by several goroutines.
type Library struct {
	api  *C.gle_api
	path string
}

// Open loads the engine at path. The library stays mapped for the life of the process.
func Open(path string) (*Library, error) {
	// dlerror's text belongs to the thread that failed.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	var why *C.char
	api := C.open_library(cpath, &why)
	if api == nil {
		return nil, fmt.Errorf("%s: %s", path, C.GoString(why))
	}
	return &Library{api: api, path: path}, nil
}

// Path is where the library was opened from.
func (l *Library) Path() string { return l.path }

// Engine is the engine's name: "torch", "ref".
func (l *Library) Engine() string { return C.GoString(l.api.engine) }

// Version is the engine's version in words: "libtorch 1.13.1".
func (l *Library) Version() string { return C.GoString(l.api.version) }

// HasCUDA reports whether the engine was built for CUDA; a GPU may still be missing.
func (l *Library) HasCUDA() bool { return l.api.features&C.GLE_HAS_CUDA != 0 }

// CanStage reports whether the engine has Stage: one that was built before that was added has not.
func (l *Library) CanStage() bool { return C.can_stage(l.api) != 0 }

// Config are settings of the process, 0 leaving a default.
type Config struct {
	IntraThreads int  // threads of one operator on a CPU
	InterThreads int  // threads for operators side by side
	JITProfiling bool // LibTorch's profiling executor
}

// Init gives the process's settings; call it once, before the first Load.
func (l *Library) Init(c Config) error {
	var e errBuf
	cc := C.gle_config{
		size:          C.sizeof_gle_config,
		intra_threads: C.int32_t(c.IntraThreads),
		inter_threads: C.int32_t(c.InterThreads),
	}
	if c.JITProfiling {
		cc.jit_profiling = 1
	}
	return e.check(C.api_init(l.api, &cc, e.ptr(), errCap))
}

// DeviceInfo is what the engine sees of a device.
type DeviceInfo struct {
	Name              string
	SMs               int
	MemFree, MemTotal int64
}

// DeviceInfo describes "cpu" or "cuda:N".
func (l *Library) DeviceInfo(device string) (DeviceInfo, error) {
	var e errBuf
	name := C.CString(device)
	defer C.free(unsafe.Pointer(name))
	info := C.gle_device_info{size: C.sizeof_gle_device_info}
	if err := e.check(C.api_device_info(l.api, name, &info, e.ptr(), errCap)); err != nil {
		return DeviceInfo{}, err
	}
	return DeviceInfo{
		Name:     C.GoString(&info.name[0]),
		SMs:      int(info.sm_count),
		MemFree:  int64(info.mem_free),
		MemTotal: int64(info.mem_total),
	}, nil
}

// LoadOperators opens a library of custom operators that archives need. Call it before Load.
func (l *Library) LoadOperators(path string) error {
	var e errBuf
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	return e.check(C.api_load_operators(l.api, p, e.ptr(), errCap))
}
