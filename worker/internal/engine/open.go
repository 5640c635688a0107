package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gpulet/gpulet/worker/internal/engine/cabi"
)

// LibraryEnv names the environment variable that says where an engine's library is.
const LibraryEnv = "GPULET_ENGINE_LIB"

// Names of engines.
const (
	Torch     = "torch"
	Reference = "ref"
	Simulated = "sim"
)

// Open returns the engine called name: "torch" (LibTorch), "ref" (the reference engine) or "sim"
// (needs Options.Sim). It sets OpenMP's environment, so it should be called before anything else
// in the process uses OpenMP. The error of a missing library says what to install.
func Open(name string, o Options) (Engine, error) {
	switch name {
	case Torch, Reference:
		return openNative(name, o)
	case Simulated:
		return NewSim(o.Sim)
	}
	return nil, errorf(EUNSUPPORTED, "engine %q: expected torch, ref or sim", name)
}

func openNative(name string, o Options) (Engine, error) {
	lib, err := openLibrary(name, o)
	if err != nil {
		return nil, err
	}
	if err := lib.Init(cabi.Config{IntraThreads: o.Threads, InterThreads: 1}); err != nil {
		return nil, wrap(err, "engine "+name)
	}
	return &native{lib: lib}, nil
}

// Preload loads an engine's library, which takes most of Open's time, for an Open with the same options
// later on, or with fewer threads. It touches no device.
func Preload(name string, o Options) error {
	if name != Torch && name != Reference {
		return nil
	}
	_, err := openLibrary(name, o)
	return err
}

func openLibrary(name string, o Options) (*cabi.Library, error) {
	path, err := FindLibrary(name, o.Library)
	if err != nil {
		return nil, err
	}
	setOpenMP(o.Threads)
	lib, err := cabi.Open(path)
	if err != nil {
		return nil, errorf(EUNSUPPORTED, "engine %s: %v%s", name, err, remedy(name))
	}
	if lib.Engine() != name {
		return nil, errorf(EUNSUPPORTED, "engine %s: %s is the engine %q", name, path, lib.Engine())
	}
	return lib, nil
}

// setOpenMP sizes OpenMP's teams and lets them sleep between parallel regions instead of spinning
// on cores that the process's own goroutines need. OpenMP reads this when it is loaded.
func setOpenMP(threads int) {
	if threads <= 0 {
		return
	}
	os.Setenv("OMP_NUM_THREADS", strconv.Itoa(threads))
	if os.Getenv("OMP_WAIT_POLICY") == "" {
		os.Setenv("OMP_WAIT_POLICY", "passive")
	}
}

// LibraryFile is the file name of an engine's library.
func LibraryFile(name string) string { return "libgpulet_" + name + ".so" }

// FindLibrary returns the path of an engine's library: given (a file, or a folder that holds it),
// else what GPULET_ENGINE_LIB says, else the first of the usual places beside the executable.
func FindLibrary(name, given string) (string, error) {
	if given == "" {
		given = os.Getenv(LibraryEnv)
	}
	places := []string{given}
	if given == "" {
		places = defaultPlaces()
	}
	for i, p := range places {
		if info, err := os.Stat(p); err == nil && info.IsDir() {
			places[i] = filepath.Join(p, LibraryFile(name))
		}
		if info, err := os.Stat(places[i]); err == nil && !info.IsDir() {
			return filepath.Abs(places[i])
		}
	}
	return "", errorf(EUNSUPPORTED, "engine %s: found no library at %s%s", name, strings.Join(places, ", "), remedy(name))
}

// defaultPlaces are folders, best first: an unpacked release, a source tree, the binary's own
// folder, a system-wide installation.
func defaultPlaces() []string {
	places := []string{"/usr/local/lib/gpulet", "/usr/lib/gpulet"}
	exe, err := os.Executable()
	if err != nil {
		return places
	}
	dir := filepath.Dir(exe)
	return append([]string{filepath.Join(dir, "../lib"), filepath.Join(dir, "../build/lib"), dir}, places...)
}

func remedy(name string) string {
	if name == Reference {
		return "; to build it: make engine-ref; to use one elsewhere: " + LibraryEnv
	}
	return "; to build it: apt-get install libtorch-dev libopenblas0-serial g++ && make engine" +
		" (on a GPU host: scripts/gpu/build_engine.sh); to use one elsewhere: " + LibraryEnv
}

// wrap turns an error of the C ABI into an Error, what in front of it.
func wrap(err error, what string) error {
	var e *cabi.Error
	if errors.As(err, &e) {
		return &Error{Code: Code(e.Status), Msg: what + ": " + e.Msg}
	}
	return fmt.Errorf("%s: %w", what, err)
}

func checkArchive(what, path string) error {
	info, err := os.Stat(path)
	var pe *fs.PathError
	switch {
	case errors.As(err, &pe):
		return errorf(ELOAD, "%s: %s: %v", what, path, pe.Err)
	case err != nil:
		return errorf(ELOAD, "%s: %v", what, err)
	case info.IsDir():
		return errorf(ELOAD, "%s: %s is a folder: expected a model archive", what, path)
	}
	return nil
}
