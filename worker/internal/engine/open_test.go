package engine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

func TestOpenSaysWhatToInstall(t *testing.T) {
	empty := t.TempDir()
	broken := filepath.Join(t.TempDir(), "broken.so")
	if err := os.WriteFile(broken, []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		engine, path string
		words        []string
	}{
		"missing file":      {engine.Torch, filepath.Join(empty, "x.so"), []string{"x.so", "apt-get install libtorch-dev libopenblas0-serial g++", "make engine"}},
		"empty folder":      {engine.Torch, empty, []string{filepath.Join(empty, "libgpulet_torch.so"), "make engine"}},
		"missing ref":       {engine.Reference, empty, []string{"libgpulet_ref.so", "make engine-ref"}},
		"not a library":     {engine.Torch, broken, []string{"broken.so", "apt-get"}},
		"another engine":    {engine.Torch, enginetest.ReferenceLibrary(t), []string{`"ref"`}},
		"no such engine":    {"onnx", "", []string{`"onnx"`, "torch, ref or sim"}},
		"sim, no latencies": {engine.Simulated, "", []string{"latency"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := engine.Open(c.engine, engine.Options{Library: c.path})
			if code := engine.CodeOf(err); code != engine.EUNSUPPORTED && code != engine.EINVAL {
				t.Fatalf("error %v (%v)", err, code)
			}
			for _, w := range c.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not mention %q", err, w)
				}
			}
		})
	}
}

func TestLibraryIsFoundByEnvironment(t *testing.T) {
	path := enginetest.ReferenceLibrary(t)
	t.Setenv(engine.LibraryEnv, path)
	e, err := engine.Open(engine.Reference, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := e.Info(); got.Library != path || got.Name != engine.Reference {
		t.Errorf("Info() = %+v, want the library %s", got, path)
	}
}

func TestReferenceEngineExplainsBadModels(t *testing.T) {
	target := refTarget(t)
	for text, words := range map[string][]string{
		"":                             {"empty"},
		"gpulet-ref 2\n":               {":1:", `"2"`, "expected 1"},
		"gpulet-ref 1\n":               {"without outputs"},
		"gpulet-ref 1\nfrob x\n":       {":2:", `"frob"`},
		"gpulet-ref 1\ninput x FP31\n": {":2:", `"FP31"`},
		"gpulet-ref 1\ninput x\n":      {":2:", "input NAME DTYPE"},
		"gpulet-ref 1\ncopy y x\n":     {":2:", `"x"`},
		"gpulet-ref 1\ninput x FP16\nlimit x 1\n":                                         {":3:", "FP16"},
		"gpulet-ref 1\ninput x FP32\nlimit x one\n":                                       {":3:", `"one"`},
		"gpulet-ref 1\nbatch 0\n":                                                         {":2:", "batch 0"},
		"gpulet-ref 1\ninput x FP32\naffine y FP32 1 2\n":                                 {":3:", "affine NAME"},
		"gpulet-ref 1\ninput x FP32\naffine y BF16 1 2 x\n":                               {":3:", "BF16"},
		"gpulet-ref 1\ninput " + strings.Repeat("n", 500) + " FP32\n":                     {":2:", "too long"},
		"gpulet-ref 1\n" + strings.Repeat("input x FP32\n", 17):                           {":18:", "more than 16"},
		"gpulet-ref 1\ninput x FP32\naffine y FP32 0" + strings.Repeat(" 1 x", 17) + "\n": {":3:", "more than 36 words"},
		"gpulet-ref 1\n" + strings.Repeat("# a long line ", 100) + "\n":                   {":2:", "longer than"},
		"gpulet-ref 1\ninput x FP32\n" + strings.Repeat("copy y x\n", 17):                 {":19:", "more than 16"},
	} {
		path := filepath.Join(t.TempDir(), "model.txt")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m := target.Model(t, "affine")
		m.Path = path
		_, err := target.Engine.Load(t.Context(), engine.Spec{Model: m})
		if engine.CodeOf(err) != engine.ELOAD {
			t.Errorf("%.40q: error %v (%v), want %v", text, err, engine.CodeOf(err), engine.ELOAD)
			continue
		}
		for _, w := range append(words, path) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%.40q: error %q does not mention %q", text, err, w)
			}
		}
	}
}
