package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// site is the system under test: frontend with its embedded NATS, planner and worker as processes, on
// ports of their own, so that two can run side by side on two GPUs.
type site struct {
	cfg      *config
	dir      string // logs and state
	profiles string // folder, by GPU type

	frontend, planner, worker *process
	workerFlags               []string
	nats                      string // URL
	bus                       *bus.Bus
	client                    *bus.Bus

	host    string
	device  plan.Device
	current plan.Plan // applied last
	plans   int       // made so far: ids are never used twice
}

// startSite starts the system with no plan of ours yet.
func startSite(ctx context.Context, cfg *config, workerFlags ...string) (*site, error) {
	dir, err := os.MkdirTemp("", "gpulet-evaluate-")
	if err != nil {
		return nil, err
	}
	s := &site{cfg: cfg, dir: dir, profiles: cfg.Profiles}
	if cfg.Device == "cpu" {
		s.profiles = filepath.Join(dir, "profiles")
	}
	err = s.startQueue(ctx)
	if err == nil {
		s.planner, err = startProcess(dir, "planner", cfg.program("planner"), s.onBus("run", "--metrics-addr", "127.0.0.1:0",
			"--models", cfg.Models, "--profiles", s.profiles, "--observe", "200ms", "--epoch", "2s")...)
	}
	if err == nil {
		err = s.startWorker(ctx, workerFlags)
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// startSiteWith starts the system and waits until it knows those of the named models that there are.
func startSiteWith(ctx context.Context, cfg *config, named []string) (s *site, models []string, err error) {
	if models, err = cfg.available(named); err != nil {
		return nil, nil, err
	}
	if s, err = startSite(ctx, cfg); err != nil {
		return nil, nil, err
	}
	if err := s.registered(ctx, models); err != nil {
		s.stop()
		return nil, nil, err
	}
	return s, models, nil
}

// startQueue starts the frontend and connects to its NATS.
func (s *site) startQueue(ctx context.Context) (err error) {
	if s.frontend, err = startProcess(s.dir, "frontend", s.cfg.program("frontend"), "serve", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0",
		"--metrics-addr", "127.0.0.1:0", "--nats-port", "-1", "--nats-monitor-port", "0", "--state-dir", s.dir); err != nil {
		return err
	}
	up, err := s.frontend.await(ctx, "frontend is up")
	if err != nil {
		return err
	}
	s.nats = up.str("nats")
	on, discard := bus.Config{URL: s.nats, StateDir: s.dir}, slog.New(slog.DiscardHandler)
	if s.bus, err = bus.Connect(ctx, on, bus.RolePlanner, "evaluate", discard); err != nil {
		return err
	}
	s.client, err = bus.Connect(ctx, on, bus.RoleClient, "evaluate", discard)
	return err
}

func (s *site) onBus(args ...string) []string {
	return append(args, "--nats-url", s.nats, "--state-dir", s.dir)
}

// startWorker starts the host's agent, and waits until it reports its device.
func (s *site) startWorker(ctx context.Context, flags []string) (err error) {
	device := s.cfg.Device
	if kind, ok := strings.CutPrefix(device, "sim:"); ok {
		device = "sim:" + kind + "x1"
	}
	args := s.onBus("run", "--metrics-addr", "127.0.0.1:0", "--host", "gpu-host", "--device", device, "--models", s.cfg.Models,
		"--profiles", s.profiles, "--profile-cache", filepath.Join(s.dir, "profiles"), "--engine-lib", s.cfg.EngineLib, "--drain-timeout", "5s")
	if s.worker, err = startProcess(s.dir, "worker", s.cfg.program("worker"), append(args, flags...)...); err != nil {
		return err
	}
	s.workerFlags = flags
	return s.poll(ctx, "the worker reports its device", 60*time.Second, func() (bool, error) {
		hosts, err := s.bus.Hosts(ctx)
		if errors.Is(err, bus.ErrNotFound) || err == nil && len(hosts) == 0 {
			return false, nil
		}
		if err == nil && len(hosts[0].Devices) > 0 {
			s.host, s.device = hosts[0].Host, hosts[0].Devices[0]
		}
		return err == nil, err
	})
}

// serveWith restarts the worker where its flags differ. Its gpu-lets go with it.
func (s *site) serveWith(ctx context.Context, flags []string) error {
	if slices.Equal(flags, s.workerFlags) {
		return nil
	}
	say("restarting the worker with %q", flags)
	s.worker.stop()
	s.current = plan.Plan{}
	return s.startWorker(ctx, flags)
}

// poll asks again and again until ok; errors end it.
func (s *site) poll(ctx context.Context, what string, most time.Duration, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("waited %v until %s", most, what))
	defer cancel()
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		for _, p := range []*process{s.frontend, s.planner, s.worker} {
			select {
			case <-p.done:
				return fmt.Errorf("%s has ended: %w: %s", p.name, p.err, p.lastWords())
			default:
			}
		}
		if lifecycle.Sleep(ctx, 10*time.Millisecond) != nil {
			return context.Cause(ctx)
		}
	}
}

// registered waits until the planner has registered the models, and on a CPU until the worker has
// measured them.
func (s *site) registered(ctx context.Context, names []string) error {
	err := s.poll(ctx, fmt.Sprintf("%v are registered", names), 60*time.Second, func() (bool, error) {
		models, err := s.bus.Models(ctx)
		found := map[string]bool{}
		for _, m := range models {
			found[m.Name] = true
		}
		return !slices.ContainsFunc(names, func(name string) bool { return !found[name] }), err
	})
	if err != nil || s.cfg.Device != "cpu" {
		return err
	}
	return s.poll(ctx, fmt.Sprintf("%v are measured", names), 3*time.Minute, func() (bool, error) {
		set, _ := profile.LoadDir(s.profiles)
		return !slices.ContainsFunc(names, func(name string) bool {
			_, ok := set.Get(s.device.GPUType, name)
			return !ok
		}), nil
	})
}

// apply publishes a plan for this site's GPU, pinned, and returns what the checker has against it.
func (s *site) apply(ctx context.Context, p plan.Plan) (problems []string, err error) {
	file := filepath.Join(s.dir, "plan.json")
	if err := profile.WriteJSON(file, p); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, _, err := output(ctx, nil, s.cfg.program("planner"), s.onBus("apply", file, "--profiles", s.profiles, "--reserve", s.cfg.Reserve.String(), "--force", "--json")...)
	if err != nil {
		return nil, err
	}
	var applied struct {
		Plan     plan.Plan
		Problems []string
	}
	if err := json.Unmarshal(out, &applied); err != nil {
		return nil, fmt.Errorf("planner apply: %w", err)
	}
	s.current = applied.Plan
	return applied.Problems, nil
}

// ready waits until exactly the gpu-lets of the current plan are there, and serve it.
func (s *site) ready(ctx context.Context, most time.Duration) ([]plan.GpuletReport, error) {
	var reports []plan.GpuletReport
	state := ""
	err := s.poll(ctx, "the gpu-lets of the plan are ready", most, func() (done bool, err error) {
		if reports, err = s.bus.Gpulets(ctx); err != nil {
			return false, err
		}
		state, err = s.serves(reports)
		return err == nil && state == "", err
	})
	if err != nil && state != "" {
		err = fmt.Errorf("%w: %s", err, state)
	}
	return reports, err
}

// serves says what of the current plan is not served yet, "" when nothing is. A model that cannot be
// loaded is an error.
func (s *site) serves(reports []plan.GpuletReport) (string, error) {
	for _, r := range reports {
		planned := slices.ContainsFunc(s.current.Gpulets, func(g plan.Gpulet) bool { return g.ID == r.ID })
		switch {
		case !planned:
			return r.ID + " has not gone", nil
		case r.State != plan.Ready || r.Revision != s.current.Revision:
			return fmt.Sprintf("%s is %s at revision %d of %d: %s", r.ID, r.State, r.Revision, s.current.Revision, r.Detail), nil
		}
		for _, m := range r.Models {
			if m.Error != "" {
				return "", fmt.Errorf("gpu-let %s: model %s: %s", r.ID, m.Model, m.Error)
			}
		}
	}
	if len(reports) < len(s.current.Gpulets) {
		return fmt.Sprintf("%d of %d gpu-lets report", len(reports), len(s.current.Gpulets)), nil
	}
	return "", nil
}

// serve applies a plan and waits until it is served, and the planner has made room in the queues.
func (s *site) serve(ctx context.Context, p plan.Plan) (problems []string, took time.Duration, err error) {
	begin := time.Now()
	if problems, err = s.apply(ctx, s.place(p)); err != nil {
		return nil, 0, err
	}
	if _, err = s.ready(ctx, 60*time.Second); err != nil {
		return problems, 0, err
	}
	took = time.Since(begin)
	err = s.poll(ctx, "the planner follows the plan", 10*time.Second, func() (bool, error) {
		r, err := s.bus.Planner(ctx)
		if errors.Is(err, bus.ErrNotFound) {
			return false, nil
		}
		return r.Revision == s.current.Revision, err
	})
	return problems, took, err
}

// stop ends the system. Logs stay where they can help.
func (s *site) stop() {
	for _, b := range []*bus.Bus{s.bus, s.client} {
		if b != nil {
			b.Close()
		}
	}
	for _, p := range []*process{s.worker, s.planner, s.frontend} {
		p.stop()
	}
	if os.Getenv(keepLogs) == "" {
		_ = os.RemoveAll(s.dir)
	}
}

// keepLogs is the variable that, set to anything, keeps logs and load reports in the temporary folder.
const keepLogs = "KEEP_LOGS"
