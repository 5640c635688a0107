package enginetest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gpulet/gpulet/worker/internal/engine"
)

// RequireTorchEnv set to 1 makes a missing LibTorch engine a failure instead of a skipped test.
const RequireTorchEnv = "GPULET_REQUIRE_TORCH"

// DeviceEnv names the device that LibTorch is tested on; "cpu" when it is not set.
const DeviceEnv = "GPULET_TEST_DEVICE"

// referenceEnv names a reference engine built in a special way: with sanitizers, say.
const referenceEnv = "GPULET_TEST_REF_LIB"

// Device is the device that LibTorch is tested on.
func Device() string {
	if d := os.Getenv(DeviceEnv); d != "" {
		return d
	}
	return "cpu"
}

// TorchLibrary returns the path of the LibTorch engine: GPULET_ENGINE_LIB, else what `make engine`
// built. Without one the test is skipped, or fails where RequireTorchEnv says so.
func TorchLibrary(t testing.TB) string {
	t.Helper()
	path := filepath.Join(Root(t), "build/lib", engine.LibraryFile(engine.Torch))
	if _, err := os.Stat(path); err == nil && os.Getenv(engine.LibraryEnv) == "" {
		return path
	}
	path, err := engine.FindLibrary(engine.Torch, "")
	if err == nil {
		return path
	}
	if os.Getenv(RequireTorchEnv) == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
	return ""
}

var reference struct {
	once sync.Once
	path string
	err  error
}

// ReferenceLibrary returns the path of the reference engine, compiling it (a second) unless
// `make engine` or `make engine-ref` built it from the present source.
func ReferenceLibrary(t testing.TB) string {
	t.Helper()
	root := Root(t)
	reference.once.Do(func() { reference.path, reference.err = referenceLibrary(root) })
	if reference.err != nil {
		t.Fatal(reference.err)
	}
	return reference.path
}

func referenceLibrary(root string) (string, error) {
	if path := os.Getenv(referenceEnv); path != "" {
		return path, nil
	}
	built := filepath.Join(root, "build/lib", engine.LibraryFile(engine.Reference))
	source := filepath.Join(root, "worker/engine/ref/ref.c")
	if newer(built, source) {
		return built, nil
	}
	// Next to where it belongs, under the name of its content's age: parallel test processes that
	// compile it at the same time all rename the same thing into place.
	info, err := os.Stat(source)
	if err != nil {
		return "", err
	}
	path := filepath.Join(os.TempDir(), fmt.Sprintf("gpulet-ref-%d-%d.so", os.Getuid(), info.ModTime().UnixNano()))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, compile(root, source, path)
}

// CompileReference compiles the reference engine with extra flags into the test's folder. Loading it
// gives an engine with a state of its own.
func CompileReference(t testing.TB, flags ...string) string {
	t.Helper()
	root := Root(t)
	path := filepath.Join(t.TempDir(), engine.LibraryFile(engine.Reference))
	if err := compile(root, filepath.Join(root, "worker/engine/ref/ref.c"), path, flags...); err != nil {
		t.Fatal(err)
	}
	return path
}

func compile(root, source, path string, flags ...string) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "gpulet-ref-*.so")
	if err != nil {
		return err
	}
	tmp.Close()
	defer os.Remove(tmp.Name())
	args := append([]string{"-std=gnu11", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"}, flags...)
	cc := exec.Command("cc", append(args, "-I", filepath.Join(root, "worker/engine/include"), "-o", tmp.Name(), source, "-lm")...)
	if out, err := cc.CombinedOutput(); err != nil {
		return fmt.Errorf("compile the reference engine: %w\n%s", err, out)
	}
	return os.Rename(tmp.Name(), path)
}

func newer(path, than string) bool {
	a, errA := os.Stat(path)
	b, errB := os.Stat(than)
	return errA == nil && errB == nil && a.ModTime().After(b.ModTime())
}

// Root is the folder of go.mod.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		_, statErr := os.Stat(filepath.Join(dir, "go.mod"))
		if statErr == nil {
			return dir
		}
		if !errors.Is(statErr, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			err = fmt.Errorf("no go.mod above the test's folder: %w", statErr)
		}
	}
	t.Fatal(err)
	return ""
}
