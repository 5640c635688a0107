package workercmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/worker/internal/affinity"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
)

// execute runs `worker exec args` in this process and returns its exit code and what it printed.
func execute(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return executeReading(t, strings.NewReader(""), args...)
}

// executeReading is execute with a standard input.
func executeReading(t *testing.T, in io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cores, err := affinity.Cores()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { // exec pins the process it runs in
		if err := affinity.Set(cores); err != nil {
			t.Error(err)
		}
	}()
	root := &cobra.Command{Use: "worker"}
	root.SetIn(in)
	root.AddCommand(newExecCommand())
	var out, errOut bytes.Buffer
	code = cli.Run(t.Context(), root, append([]string{"exec"}, args...), &out, &errOut)
	return code, out.String(), errOut.String()
}

// refRepository is a repository with the reference engine's model "affine".
func refRepository(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	write := func(path, content string) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("affine/model.yaml", "name: affine\nslo: 10ms\nmax_batch: 4\ninputs: [{name: x, dtype: FP32, shape: [-1]}]\noutputs: [{name: y, dtype: FP32, shape: [-1]}]\n")
	write("affine/1/model.pt", "gpulet-ref 1\ninput x FP32\naffine y FP32 1 2 x\n")
	return root
}

func TestExecPrintsLatencies(t *testing.T) {
	root, lib := refRepository(t), enginetest.ReferenceLibrary(t)
	flags := []string{"--models", root, "--engine", "ref", "--engine-lib", lib, "--dim", "7"}

	code, out, errOut := execute(t, append(flags, "affine", "20", "4", "0", "50")...)
	if code != cli.ExitOK {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	for _, want := range []string{"affine", "batch 4", "50% of cpu", "runs       20", "p50", "p90", "p99", "samples/s"} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}

	code, out, errOut = execute(t, append(flags, filepath.Join(root, "affine"), "3", "1", "0.001", "--json")...)
	if code != cli.ExitOK {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	var report execReport
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	if report.Model != "affine" || report.Batch != 1 || report.Share != 100 || report.Count != 3 ||
		report.P50Ms <= 0 || report.P99Ms < report.P50Ms || report.SamplesPerSec <= 0 || report.Engine == "" {
		t.Errorf("report %+v", report)
	}
	if report.Together != 1 || report.Eager || strings.Contains(out, `"layout"`) {
		t.Errorf("report %+v: expected one copy, with graphs, in the layout it comes in", report)
	}
	for _, field := range []string{`"model"`, `"batch"`, `"share"`, `"count"`, `"p50_ms"`, `"p99_ms"`, `"samples_per_s"`} {
		if !strings.Contains(out, field) {
			t.Errorf("JSON lacks %s: %s", field, out)
		}
	}
}

func TestExecRunsCopiesTogether(t *testing.T) {
	root, lib := refRepository(t), enginetest.ReferenceLibrary(t)
	args := []string{
		"--models", root, "--engine", "ref", "--engine-lib", lib, "affine", "20", "2", "0",
		"--concurrency", "3", "--eager", "--layout", "channels_last",
	}
	code, out, errOut := execute(t, append(args, "--json")...)
	if code != cli.ExitOK {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	var report execReport
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	if report.Count != 60 || report.Together != 3 || !report.Eager || report.Layout != "channels_last" {
		t.Errorf("report %+v: expected 60 runs of 3 eager copies in NHWC", report)
	}
	if _, out, _ = execute(t, args...); !strings.Contains(out, "channels_last, eager, 3 at a time") {
		t.Errorf("output does not say how it ran:\n%s", out)
	}
}

// TestExecIsHeldUntilTheEndOfItsInput: it has no other way to begin.
func TestExecIsHeldUntilTheEndOfItsInput(t *testing.T) {
	args := []string{"--models", refRepository(t), "--engine", "ref", "--engine-lib", enginetest.ReferenceLibrary(t), "affine", "3", "1", "0", "--json"}
	in := strings.NewReader("words that count for nothing")
	code, out, errOut := executeReading(t, in, append(args, "--hold")...)
	if code != cli.ExitOK || !strings.Contains(out, `"count":3`) || in.Len() > 0 {
		t.Errorf("exit %d, output %q, %d bytes of input unread: %s", code, out, in.Len(), errOut)
	}
	broken := errors.New("input is broken")
	code, out, errOut = executeReading(t, iotest.ErrReader(broken), append(args, "--hold")...)
	if code != cli.ExitFailed || out != "" || !strings.Contains(errOut, broken.Error()) {
		t.Errorf("exit %d, output %q, %q: expected that of the input", code, out, errOut)
	}
	if code, _, errOut = executeReading(t, iotest.ErrReader(broken), args...); code != cli.ExitOK {
		t.Errorf("exit %d without --hold: %s: expected that nothing is read", code, errOut)
	}
	endless, writer := io.Pipe()
	defer writer.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := held(ctx, endless); !errors.Is(err, context.Canceled) {
		t.Errorf("held to the end of its context: %v", err)
	}
}

func TestExecExplainsWrongUsage(t *testing.T) {
	root, lib := refRepository(t), enginetest.ReferenceLibrary(t)
	for name, c := range map[string]struct {
		args  []string
		code  int
		words []string
	}{
		"too few":      {[]string{"affine", "10", "1"}, cli.ExitUsage, []string{"received 3"}},
		"count":        {[]string{"affine", "0", "1", "0"}, cli.ExitUsage, []string{"COUNT", `"0"`, "from 1"}},
		"batch":        {[]string{"affine", "10", "x", "0"}, cli.ExitUsage, []string{"BATCH", `"x"`}},
		"interval":     {[]string{"affine", "10", "1", "NaN"}, cli.ExitUsage, []string{"INTERVAL", `"NaN"`}},
		"share":        {[]string{"affine", "10", "1", "0", "101"}, cli.ExitUsage, []string{"SHARE", `"101"`, "to 100"}},
		"device":       {[]string{"affine", "10", "1", "0", "--device", "tpu"}, cli.ExitUsage, []string{`"tpu"`, "cuda:N"}},
		"engine":       {[]string{"affine", "10", "1", "0", "--engine", "onnx"}, cli.ExitUsage, []string{`"onnx"`, "torch"}},
		"layout":       {[]string{"affine", "10", "1", "0", "--layout", "NHWC"}, cli.ExitUsage, []string{`"NHWC"`, "channels_last"}},
		"concurrency":  {[]string{"affine", "10", "1", "0", "--concurrency", "0"}, cli.ExitUsage, []string{"concurrency 0", "1 to 128"}},
		"precision":    {[]string{"affine", "10", "1", "0", "--precision", "fp8"}, cli.ExitFailed, []string{`"fp8"`, "fp16"}},
		"no model":     {[]string{"nothing", "10", "1", "0"}, cli.ExitFailed, []string{"nothing"}},
		"no library":   {[]string{"affine", "10", "1", "0", "--engine-lib", root}, cli.ExitFailed, []string{"make engine-ref"}},
		"varying size": {[]string{"affine", "10", "1", "0", "--dim", "0"}, cli.ExitFailed, []string{"varying dimension 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"--models", root, "--engine", "ref", "--engine-lib", lib}
			code, out, errOut := execute(t, append(args, c.args...)...)
			if code != c.code || out != "" {
				t.Errorf("exit %d, want %d; stdout %q", code, c.code, out)
			}
			for _, w := range c.words {
				if !strings.Contains(errOut, w) {
					t.Errorf("stderr lacks %q: %s", w, errOut)
				}
			}
		})
	}
}
