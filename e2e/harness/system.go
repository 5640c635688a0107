// Package harness runs gpulet's programs as processes for the whole-system tests: on free ports,
// with their state in the test's folder, and with waits that end on signals of the programs
// themselves (log lines, readiness, states on the bus) and never after a fixed time.
package harness

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
)

// Config is what a system is made of.
type Config struct {
	// Models is the model repository.
	Models string
	// NATS is the URL of a server; empty: the frontend runs one.
	NATS string
	// Engine is torch, ref or sim; empty: no worker is started.
	Engine string
	// Device is the worker's; empty: cpu.
	Device string
	// Profiles is the planner's folder of profiles; empty: an empty one.
	Profiles string
	// Env is added to the environment of every program.
	Env []string
	// PlannerArgs and WorkerArgs are further flags.
	PlannerArgs, WorkerArgs []string
}

// System is frontend (with embedded NATS), planner and worker.
type System struct {
	Frontend, Planner, Worker *Process
	HTTP                      string // base URL of the frontend
	GRPC                      string // its address for gRPC
	NATS                      string // URL
	StateDir                  string // with the keys

	cfg    Config
	marker string
}

// markerVariable marks the environment of every process of a system, so that those that are left
// behind are found whatever their parents and groups became.
const markerVariable = "E2E_SYSTEM"

// Up starts a system. It returns when the programs run; models may not be ready yet, see WaitReady.
func Up(t testing.TB, cfg Config) *System {
	t.Helper()
	s := &System{cfg: cfg, StateDir: t.TempDir(), marker: markerVariable + "=" + filepath.Base(t.TempDir()) + "-" + fmt.Sprint(os.Getpid()) + "-" + t.Name()}
	t.Cleanup(func() {
		for _, pid := range s.Processes(t) { // last of all: nothing may outlive a test
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
	})
	s.Frontend = s.StartFrontend(t)
	up := s.Frontend.WaitEvent(t, "frontend is up")
	s.HTTP, s.GRPC, s.NATS = "http://"+up.Text("http"), up.Text("grpc"), up.Text("nats")
	if cfg.NATS != "" {
		s.NATS = cfg.NATS
	}
	s.Planner = s.StartPlanner(t)
	if cfg.Engine != "" {
		s.Worker = s.StartWorker(t)
	}
	return s
}

// Models is the system's model repository.
func (s *System) Models() string { return s.cfg.Models }

// Profiles is the folder of profiles that the system was given, "" for none.
func (s *System) Profiles() string { return s.cfg.Profiles }

// StartFrontend starts a frontend, with an embedded NATS unless the configuration names a server.
func (s *System) StartFrontend(t testing.TB, args ...string) *Process {
	first := []string{"serve", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--state-dir", s.StateDir, "--refresh", "100ms"}
	if s.cfg.NATS != "" {
		first = append(first, "--nats-url", s.cfg.NATS)
	} else {
		first = append(first, "--nats-port", "-1", "--nats-monitor-port", "0")
	}
	return s.Start(t, "frontend", append(first, args...)...)
}

// StartPlanner starts the planner on the system's bus.
func (s *System) StartPlanner(t testing.TB) *Process {
	profiles := s.cfg.Profiles
	if profiles == "" {
		profiles = t.TempDir()
	}
	return s.Start(t, "planner", append(s.onBus("run", "--metrics-addr", "127.0.0.1:0",
		"--models", s.cfg.Models, "--profiles", profiles, "--epoch", "2s", "--min-gap", "500ms"), s.cfg.PlannerArgs...)...)
}

// StartWorker starts a host's agent on the system's bus.
func (s *System) StartWorker(t testing.TB) *Process {
	device := s.cfg.Device
	if device == "" {
		device = "cpu"
	}
	return s.Start(t, "worker", append(s.onBus("run", "--metrics-addr", "127.0.0.1:0",
		"--models", s.cfg.Models, "--device", device, "--engine", s.cfg.Engine), s.cfg.WorkerArgs...)...)
}

func (s *System) onBus(args ...string) []string {
	return append(args, "--nats-url", s.NATS, "--state-dir", s.StateDir)
}

// Start starts a program as part of the system.
func (s *System) Start(t testing.TB, program string, args ...string) *Process {
	t.Helper()
	return s.StartWith(t, nil, program, args...)
}

// StartWith is Start with more in the program's environment.
func (s *System) StartWith(t testing.TB, more []string, program string, args ...string) *Process {
	t.Helper()
	env := append([]string{s.marker, "GPULET_LOG_FORMAT=json", "GPULET_ENGINE_LIB=" + filepath.Join(Root(t), "build", "lib")}, s.cfg.Env...)
	return Start(t, program, append(env, more...), args...)
}

// Loadgen runs the load generator on the system's bus to its end.
func (s *System) Loadgen(t testing.TB, args ...string) (code int, output string) {
	t.Helper()
	p := s.StartLoadgen(t, args...)
	return p.Wait(t), p.Tail(1 << 20)
}

// StartLoadgen starts the load generator on the system's bus.
func (s *System) StartLoadgen(t testing.TB, args ...string) *Process {
	t.Helper()
	return s.Start(t, "loadgen", append(s.onBus("run", "--models", s.cfg.Models, "--http-url", s.HTTP, "--grpc-url", s.GRPC), args...)...)
}

// WaitReady waits until every model is served.
func (s *System) WaitReady(t testing.TB, models ...string) {
	t.Helper()
	for _, m := range models {
		Eventually(t, "model "+m+" is ready", func() error {
			code, body, err := Get(s.HTTP + "/v2/models/" + m + "/ready")
			if err == nil && code != http.StatusOK {
				err = fmt.Errorf("HTTP status %d: %s", code, body)
			}
			return err
		})
	}
}

// Bus connects to the system's bus as role until the test ends.
func (s *System) Bus(t testing.TB, role bus.Role) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(t.Context(), bus.Config{URL: s.NATS, StateDir: s.StateDir}, role, "e2e", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// Gpulets are the gpu-lets that report themselves ready and that serve model.
func (s *System) Gpulets(t testing.TB, b *bus.Bus, model string) []plan.GpuletReport {
	t.Helper()
	all, err := b.Gpulets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ready []plan.GpuletReport
	for _, g := range all {
		for _, m := range g.Models {
			if m.Model == model && m.Loaded && g.State == plan.Ready {
				ready = append(ready, g)
			}
		}
	}
	return ready
}

// Processes lists the processes of the system that run, found by the mark in their environment.
func (s *System) Processes(t testing.TB) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, dir := range dirs {
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil {
			continue // ended meanwhile, or not ours to read
		}
		for kv := range strings.SplitSeq(string(env), "\x00") {
			if kv == s.marker {
				var pid int
				if _, err := fmt.Sscan(filepath.Base(dir), &pid); err == nil {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}

// Get makes an HTTP GET.
func Get(url string) (code int, body string, err error) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, "", err
	}
	return read(resp)
}

// Post makes an HTTP POST with the given headers, as key, value, key, value.
func Post(url, body string, headers ...string) (code int, answer string, err error) {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	return read(resp)
}

func read(resp *http.Response) (int, string, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// Decode decodes JSON or fails the test.
func Decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}
