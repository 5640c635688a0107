// Package e2e tests gpulet as its users run it: the four programs as processes, on free ports.
//
// `make e2e` builds what it needs. Tests that need LibTorch or the exported models are skipped where
// those are missing, unless GPULET_REQUIRE_TORCH=1 or GPULET_REQUIRE_ZOO=1 ask for them.
package e2e

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// requireTorch skips the test where the LibTorch engine was not built.
func requireTorch(t *testing.T) {
	t.Helper()
	lib := filepath.Join(harness.Root(t), "build", "lib", "libgpulet_torch.so")
	if _, err := os.Stat(lib); err != nil {
		if os.Getenv("GPULET_REQUIRE_TORCH") == "1" {
			t.Fatalf("GPULET_REQUIRE_TORCH=1, and %v: run make engine", err)
		}
		t.Skipf("no LibTorch engine: %v (make engine)", err)
	}
}

// lenetOnly is a repository with the shipped model alone, whatever else was exported beside it.
func lenetOnly(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(harness.Root(t), "models", "lenet"), filepath.Join(dir, "lenet")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// repository is a model repository under test.
type repository struct{ dir string }

func newRepository(t *testing.T, models ...string) repository {
	t.Helper()
	r := repository{t.TempDir()}
	for _, m := range models {
		r.doubling(t, m)
	}
	return r
}

// doubling adds a model of the reference engine: y = 2x over four numbers. Its timeout is long, so
// that a request is only given up for a reason.
func (r repository) doubling(t *testing.T, name string) {
	t.Helper()
	r.write(t, name+"/model.yaml", doublingYAML(name))
	r.write(t, name+"/1/model.pt", "gpulet-ref 1\ninput x FP32\naffine y FP32 0 2 x\n")
	const n = 8
	in := tensor.Tensor{Name: "x", DType: tensor.FP32, Shape: []int64{n, 4}}
	out := tensor.Tensor{Name: "y", DType: tensor.FP32, Shape: []int64{n, 4}}
	var labels []int
	for i := range n {
		for j := range 4 {
			v := float32(i + 1)
			if j == i%4 {
				v *= 10
			}
			in.Data = appendFloat(in.Data, v)
			out.Data = appendFloat(out.Data, 2*v)
		}
		labels = append(labels, i%4)
	}
	samples := wire.Samples{N: n, Inputs: []tensor.Tensor{in}, Outputs: []tensor.Tensor{out}, Labels: labels}
	r.write(t, name+"/samples.msgpack", string(wire.EncodeSamples(samples)))
}

func doublingYAML(name string) string {
	return fmt.Sprintf(`name: %s
slo: 200ms
timeout: 60s
max_batch: 8
inputs: [{name: x, dtype: FP32, shape: [4]}]
outputs: [{name: y, dtype: FP32, shape: [4]}]
`, name)
}

func (r repository) write(t *testing.T, file, text string) {
	t.Helper()
	path := filepath.Join(r.dir, file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func appendFloat(b []byte, v float32) []byte {
	return binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
}

// vector is one sample of input x.
func vector(values ...float32) tensor.Tensor {
	var data []byte
	for _, v := range values {
		data = appendFloat(data, v)
	}
	return tensor.Tensor{Name: "x", DType: tensor.FP32, Shape: []int64{1, int64(len(values))}, Data: data}
}
