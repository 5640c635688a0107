package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/wire"
)

// figures are the fields of loadgen's JSON that the tests read.
type figures struct {
	Sent       int64            `json:"sent"`
	OK         int64            `json:"ok"`
	Lost       int64            `json:"lost"`
	Duplicates int64            `json:"duplicates"`
	Errors     map[string]int64 `json:"errors"`
	Wrong      int64            `json:"wrong"`
	Accuracy   float64          `json:"accuracy"`
}

type run struct {
	Models map[string]figures `json:"models"`
	Total  figures            `json:"total"`
}

// load runs the load generator and returns what it measured; it must exit with 0.
func load(t *testing.T, s *harness.System, args ...string) run {
	t.Helper()
	file := filepath.Join(t.TempDir(), "run.json")
	code, out := s.Loadgen(t, append(args, "--json", file)...)
	if code != 0 {
		t.Fatalf("loadgen %s: exit %d\n%s", strings.Join(args, " "), code, out)
	}
	return readRun(t, file)
}

func readRun(t *testing.T, file string) run {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return harness.Decode[run](t, string(data))
}

// allRight fails the test unless every request was answered, once, and right.
func allRight(t *testing.T, what string, f figures) {
	t.Helper()
	if f.Sent == 0 || f.OK != f.Sent || f.Lost != 0 || f.Duplicates != 0 || f.Wrong != 0 {
		t.Errorf("%s: %+v: expected every request answered once and right", what, f)
	}
}

func TestDigitsAreReadRightOverEveryDoor(t *testing.T) {
	requireTorch(t)
	s := harness.Up(t, harness.Config{Models: lenetOnly(t), Engine: "torch"})
	s.WaitReady(t, "lenet")
	for _, via := range []string{"nats", "http", "grpc"} {
		f := load(t, s, "--rates", "lenet=80", "--duration", "5s", "--timeout", "30s", "--via", via).Models["lenet"]
		allRight(t, "lenet over "+via, f)
		if f.Accuracy < 0.97 {
			t.Errorf("lenet over %s: %.2f%% of the digits right, expected at least 97%%", via, 100*f.Accuracy)
		}
	}
	t.Run("JSON", func(t *testing.T) { digitsAsJSON(t, s) })
	t.Run("examples", func(t *testing.T) { examplesRun(t, s) })
}

// digits are the shipped samples.
func digits(t *testing.T) wire.Samples {
	t.Helper()
	file := filepath.Join(harness.Root(t), "models", "lenet", "samples.msgpack")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	samples, err := wire.DecodeSamples(file, data)
	if err != nil {
		t.Fatal(err)
	}
	return samples
}

// digitJSON is a request for sample i as JSON.
func digitJSON(t *testing.T, samples wire.Samples, i int) []byte {
	t.Helper()
	body, _, err := wire.EncodeV2Request(wire.V2Request{Request: samples.Request(i, 1), ID: fmt.Sprint(i)}, false)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// examplesRun runs the programs that people start from.
func examplesRun(t *testing.T, s *harness.System) {
	samples := digits(t)
	file := filepath.Join(t.TempDir(), "digit.json")
	if err := os.WriteFile(file, digitJSON(t, samples, 0), 0o644); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s: lenet says %d", file, samples.Labels[0])
	for _, line := range [][]string{
		{"go", "run", "./examples/infer-go", "-url", s.HTTP, file},
		{"scripts/python.sh", "examples/infer.py", "--url", s.HTTP, file},
	} {
		cmd := exec.Command(line[0], line[1:]...)
		cmd.Dir = harness.Root(t)
		if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%v: %v, expected %q:\n%s", line, err, want, out)
		}
	}
}

// digitsAsJSON sends digits as people do with curl.
func digitsAsJSON(t *testing.T, s *harness.System) {
	samples := digits(t)
	for i := range 10 {
		body := digitJSON(t, samples, i)
		code, answer, err := harness.Post(s.HTTP+"/v2/models/lenet/infer", string(body))
		if err != nil || code != http.StatusOK {
			t.Fatalf("HTTP status %d, %v: %s", code, err, answer)
		}
		rep := harness.Decode[struct {
			ID      string `json:"id"`
			Outputs []struct {
				Data []float64 `json:"data"`
			} `json:"outputs"`
		}](t, answer)
		best := 0
		for j, v := range rep.Outputs[0].Data {
			if v > rep.Outputs[0].Data[best] {
				best = j
			}
		}
		if best != samples.Labels[i] || rep.ID != fmt.Sprint(i) {
			t.Errorf("digit %d: read as %d in answer %q, expected %d", i, best, rep.ID, samples.Labels[i])
		}
	}
}

func TestTwoModelsShareAHost(t *testing.T) {
	r := newRepository(t, "double", "twice")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double", "twice")
	got := load(t, s, "--rates", "double=200,twice=100", "--duration", "4s")
	allRight(t, "double", got.Models["double"])
	allRight(t, "twice", got.Models["twice"])
}

func TestKillingGpuletsLosesNothing(t *testing.T) {
	t.Run("ref", func(t *testing.T) {
		killGpulets(t, harness.Config{Models: newRepository(t, "double").dir, Engine: "ref"}, "double", 200)
	})
	t.Run("torch", func(t *testing.T) {
		requireTorch(t)
		killGpulets(t, harness.Config{Models: lenetOnly(t), Engine: "torch"}, "lenet", 100)
	})
}

// killGpulets kills, twice and under load, all gpu-lets of a model while they hold requests: those
// are delivered again, and every request is answered right.
func killGpulets(t *testing.T, cfg harness.Config, model string, rps int) {
	s := harness.Up(t, cfg)
	s.WaitReady(t, model)
	b := s.Bus(t, bus.RoleFrontend)

	file := filepath.Join(t.TempDir(), "run.json")
	loadgen := s.StartLoadgen(t, "--rates", fmt.Sprintf("%s=%d", model, rps), "--duration", "12s", "--timeout", "60s", "--json", file)
	killed := map[int]bool{}
	for range 2 {
		holding(t, s, b, model, killed)
	}
	if code := loadgen.Wait(t); code != 0 {
		t.Errorf("loadgen: exit %d", code)
	}
	f := readRun(t, file).Total
	if f.Sent < int64(10*rps) || f.OK != f.Sent || f.Lost != 0 || f.Wrong != 0 || f.Accuracy < 0.97 {
		t.Errorf("%+v: expected every request answered, and right", f)
	}
	harness.Eventually(t, "redelivered requests and restarts are counted", func() error {
		m := metrics(t, s.Worker)
		again, restarts := m.sum("gpulet_worker_redelivered_requests_total", "model", model), m.sum("gpulet_worker_gpulet_restarts_total")
		if again == 0 || restarts < 2 {
			return fmt.Errorf("%v redelivered, %v restarts", again, restarts)
		}
		return nil
	})
}

// holding kills the gpu-lets of model once they have answered some requests and hold others: they
// are stopped first, so what the queue then waits for is in their hands. It adds them to killed.
func holding(t *testing.T, s *harness.System, b *bus.Bus, model string, killed map[int]bool) {
	t.Helper()
	var pids []int
	harness.Eventually(t, "gpu-lets that work", func() error {
		pids = nil
		busy := false
		for _, g := range s.Gpulets(t, b, model) {
			if !killed[g.PID] {
				pids = append(pids, g.PID)
				busy = busy || g.Models[0].Requests > 50
			}
		}
		if !busy {
			return fmt.Errorf("none has answered 50 requests (%d killed before)", len(killed))
		}
		return nil
	})
	signal := func(sig syscall.Signal) {
		for _, pid := range pids {
			if err := syscall.Kill(pid, sig); err != nil {
				t.Fatalf("%v to process %d: %v", sig, pid, err)
			}
			killed[pid] = true
		}
	}
	signal(syscall.SIGSTOP)
	harness.Eventually(t, "they hold requests", func() error {
		lag, err := b.Lag(t.Context(), model)
		if err == nil && lag.AckPending == 0 {
			err = fmt.Errorf("lag %+v", lag)
		}
		return err
	})
	signal(syscall.SIGKILL)
}

func TestPlannerStatusShowsTheSystem(t *testing.T) {
	r := newRepository(t, "double")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double")
	code, out := harness.Run(t, "planner", nil, "status", "--nats-url", s.NATS, "--state-dir", s.StateDir)
	if code != 0 || !strings.Contains(out, "double") || !strings.Contains(out, "cpu-") {
		t.Errorf("planner status: exit %d\n%s", code, out)
	}
	code, out = harness.Run(t, "planner", nil, "status", "--json", "--nats-url", s.NATS, "--state-dir", s.StateDir)
	var doc map[string]any
	if err := json.Unmarshal([]byte(out), &doc); err != nil || code != 0 {
		t.Errorf("planner status --json: exit %d, %v\n%s", code, err, out)
	}
}

// TestMetricsCountRequests sends over HTTP and compares what every program counts.
func TestMetricsCountRequests(t *testing.T) {
	r := newRepository(t, "double", "twice")
	s := harness.Up(t, harness.Config{Models: r.dir, Engine: "ref"})
	s.WaitReady(t, "double", "twice")
	got := load(t, s, "--rates", "double=50,twice=20", "--duration", "2s", "--via", "http")
	for _, model := range []string{"double", "twice"} {
		n := float64(got.Models[model].Sent)
		allRight(t, model, got.Models[model])
		m := metrics(t, s.Frontend)
		if ok, all := m.sum("gpulet_frontend_requests_total", "model", model, "status", "ok"), m.sum("gpulet_frontend_requests_total", "model", model); ok != n || all != n {
			t.Errorf("frontend, %s: %v requests, %v of them ok, expected %v", model, all, ok, n)
		}
		if timed := m.sum("gpulet_frontend_request_duration_seconds_count", "model", model); timed != n {
			t.Errorf("frontend, %s: %v latencies, expected %v", model, timed, n)
		}
		harness.Eventually(t, "the worker's counts of "+model, func() error {
			m := metrics(t, s.Worker)
			run, samples, all := m.sum("gpulet_worker_requests_total", "model", model, "status", "run"), m.sum("gpulet_worker_samples_total", "model", model), m.sum("gpulet_worker_requests_total", "model", model)
			if run != n || samples != n || all != n {
				return fmt.Errorf("%v requests, %v of them run, %v samples, expected %v", all, run, samples, n)
			}
			return nil
		})
	}
	harness.Eventually(t, "one plan revision everywhere", func() error {
		code, out := harness.Run(t, "planner", nil, "status", "--json", "--nats-url", s.NATS, "--state-dir", s.StateDir)
		if code != 0 {
			return fmt.Errorf("planner status: exit %d: %s", code, out)
		}
		want := harness.Decode[struct {
			Plan struct {
				Revision float64 `json:"revision"`
			} `json:"plan"`
		}](t, out).Plan.Revision
		planner, frontend, worker := metrics(t, s.Planner).sum("gpulet_planner_plan_revision"), metrics(t, s.Frontend).sum("gpulet_frontend_plan_revision"), metrics(t, s.Worker).sum("gpulet_worker_plan_revision")
		if want == 0 || planner != want || frontend != want || worker != want {
			return fmt.Errorf("planner status has revision %v, the planner %v, the frontend %v, the worker %v", want, planner, frontend, worker)
		}
		return nil
	})
}
