package workercmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/telemetry"
	"github.com/gpulet/gpulet/worker/internal/agent"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/profiler"
	"github.com/gpulet/gpulet/worker/internal/reconcile"
)

// runConfig are the settings of `worker run`.
type runConfig struct {
	Bus       bus.Config
	Telemetry telemetry.Config
	Engine    engineConfig
	// Device says what to serve on.
	Device string `env:"DEVICE" envDefault:"auto" usage:"auto, cuda, cpu, or sim:<gpu type>x<count>"`
	// Host names this host in plans and reports; it must differ from all others.
	Host string `env:"HOST" usage:"id of this host, [a-z0-9-]{1,32} (default: its name)"`
	// Models is this host's copy of the model repository.
	Models string `env:"MODELS" envDefault:"models" usage:"folder of the model repository"`
	// Profiles are what simulated GPUs answer from.
	Profiles string `env:"PROFILES" envDefault:"profiles" usage:"folder of shipped profiles, by GPU type"`
	// ProfileCache keeps what this host measured of itself.
	ProfileCache string `env:"PROFILE_CACHE" usage:"folder for this host's own measurements (default <state-dir>/profiles)"`
	MetricsAddr  string `env:"METRICS_ADDR" envDefault:":8003" usage:"address of /metrics, /healthz and pprof"`
	// DrainTimeout is how long a gpu-let may take to finish what it holds before it is killed.
	DrainTimeout time.Duration `env:"DRAIN_TIMEOUT" envDefault:"30s" usage:"time that a gpu-let may take to drain"`
	// ProfileBudget bounds the measuring of one model on a CPU.
	ProfileBudget time.Duration `env:"PROFILE_BUDGET" envDefault:"3s" usage:"time to measure a model in that has not been measured here"`
}

var hostRE = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// Validate reports the first setting that makes no sense.
func (c *runConfig) Validate() error {
	if _, err := device.Parse(c.Device); err != nil {
		return err
	}
	switch {
	case c.Host != "" && !hostRE.MatchString(c.Host):
		return fmt.Errorf("host %q: expected 1 to 32 of a-z, 0-9 and -", c.Host)
	case c.DrainTimeout < time.Second:
		return fmt.Errorf("drain timeout %v: expected at least 1s", c.DrainTimeout)
	case c.ProfileBudget <= 0:
		return fmt.Errorf("profile budget %v: expected more than 0", c.ProfileBudget)
	}
	return errors.Join(c.Telemetry.Validate(), c.Engine.Validate())
}

func newRunCommand() *cobra.Command {
	cfg := &runConfig{}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent of this host",
		Long: `The agent finds this host's devices, starts one process per gpu-let that the plan puts here,
restarts those that crash, and reports what runs. On a CPU it measures the registered models first,
a few seconds each, and keeps the figures. While the planner or NATS is away, gpu-lets go on with
the last plan.

The first SIGINT or SIGTERM drains all gpu-lets and exits; the second kills them.`,
		Example: `  worker run
  worker run --device cpu --models ./models --nats-url nats://10.0.0.1:4222
  worker run --device sim:h100x4 --profiles ./profiles      GPUs that answer from their profile`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			return runAgent(cmd, cfg)
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

func runAgent(cmd *cobra.Command, cfg *runConfig) error {
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	log := telemetry.NewLogger(cfg.Telemetry, cmd.ErrOrStderr(), "worker")
	host, err := newHost(ctx, cfg, log)
	if err != nil {
		return err
	}
	log.Info("starting", "host", host.Host, "device", host.Inventory.Kind, "gpu_type", host.Inventory.Devices[0].GPUType,
		"devices", len(host.Inventory.Devices), "engine", host.Engine, "models", cfg.Models)
	reg := telemetry.NewRegistry()
	server, err := telemetry.Serve(ctx, cfg.MetricsAddr, reg, log)
	if err != nil {
		return err
	}
	defer server.Wait()
	defer stop()
	b, err := bus.Connect(ctx, cfg.Bus, bus.RoleWorker, "worker "+host.Host, log)
	if cmd.Context().Err() != nil {
		return nil // stopped before there was a bus
	}
	if err != nil {
		return err
	}
	defer b.Close()
	server.SetHealth(func() error {
		if !b.Connected() {
			return errors.New("not connected to NATS")
		}
		return nil
	})
	return agent.New(host, b, reg).Run(cmd.Context())
}

// newHost finds what the host has, and how to start its processes.
func newHost(ctx context.Context, cfg *runConfig, log *slog.Logger) (agent.Config, error) {
	choice, err := device.Parse(cfg.Device)
	if err != nil {
		return agent.Config{}, err
	}
	program, err := self()
	if err != nil {
		return agent.Config{}, err
	}
	var set *profile.Set
	if choice.Kind == device.Sim {
		var problems []error
		set, problems = profile.LoadDir(cfg.Profiles)
		for _, p := range problems {
			log.Warn("profile ignored", "error", p)
		}
	}
	inv, err := device.Discover(choice, set)
	if err != nil {
		return agent.Config{}, err
	}
	if cfg.Host == "" {
		cfg.Host = device.HostID()
	}
	if cfg.ProfileCache == "" {
		cfg.ProfileCache = filepath.Join(cfg.Bus.StateDir, "profiles")
	}
	limits := reconcile.DefaultLimits
	limits.Drain = cfg.DrainTimeout
	c := agent.Config{Host: cfg.Host, Inventory: inv, Repository: cfg.Models, Limits: limits, Log: log}
	if inv.Kind == device.Sim {
		cfg.Engine = engineConfig{Engine: engine.Simulated}
		c.Engine, c.Repository = "simulated", ""
	} else {
		if c.Engine, err = probe(ctx, program, cfg.Engine); err != nil {
			return agent.Config{}, err
		}
		m := &measurement{program: program, cfg: cfg, gpuType: inv.Devices[0].GPUType, log: log}
		c.Profile = m.profile
	}
	c.Command = func(g plan.Gpulet, cores []int) *exec.Cmd {
		cmd := exec.Command(program, gpuletArgs(cfg, inv, g, cores)...)
		cmd.Env = gpuletEnv()
		return cmd
	}
	return c, nil
}

// gpuletArgs are the arguments of a gpu-let's process.
func gpuletArgs(cfg *runConfig, inv device.Inventory, g plan.Gpulet, cores []int) []string {
	args := []string{
		"gpulet", "--gpulet-id", g.ID, "--host", cfg.Host, "--gpu", strconv.Itoa(g.GPU), "--share", strconv.Itoa(g.Share),
		"--gpu-type", inv.Devices[g.GPU].GPUType, "--device", string(inv.Kind),
		"--grace", (cfg.DrainTimeout * 4 / 5).String(),
		"--nats-url", cfg.Bus.URL, "--nats-nkey", cfg.Bus.NKey, "--nats-inbox-prefix", cfg.Bus.InboxPrefix,
		"--state-dir", cfg.Bus.StateDir, "--log-level", cfg.Telemetry.LogLevel, "--log-format", cfg.Telemetry.LogFormat,
	}
	args = append(args, cfg.Engine.args()...)
	if inv.Kind == device.Sim {
		args = append(args, "--profiles", cfg.Profiles)
	}
	if len(cores) > 0 {
		args = append(args, "--cores", joinInts(cores))
	}
	return args
}

// gpuletEnv is the environment of a gpu-let's process: with large messages, collecting garbage less
// often cuts the tail of latencies by a third. What the operator set is kept.
func gpuletEnv() []string {
	env := os.Environ()
	for key, value := range map[string]string{"GOGC": "400", "GOMEMLIMIT": "2GiB"} {
		if os.Getenv(key) == "" {
			env = append(env, key+"="+value)
		}
	}
	return env
}

// probe opens the engine in a process of its own, which shows that gpu-lets can, without the agent
// having to hold the engine's memory. It returns the engine's version.
func probe(ctx context.Context, program string, cfg engineConfig) (string, error) {
	if _, err := engine.FindLibrary(cfg.Engine, cfg.EngineLib); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"engine"}, cfg.args()...)...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("engine %s cannot be used: %s", cfg.Engine, lastLine(words.String(), err))
	}
	var info engine.Info
	if err := json.Unmarshal(out.Bytes(), &info); err != nil {
		return "", fmt.Errorf("engine %s: found %.100q: expected its description", cfg.Engine, out.String())
	}
	return info.Version, nil
}

// lastLine is what a process that failed said last, else how it ended.
func lastLine(words string, err error) string {
	lines := strings.Split(strings.TrimSpace(words), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return last
	}
	return err.Error()
}

func newEngineCommand() *cobra.Command {
	cfg := &engineConfig{}
	cmd := &cobra.Command{
		Use:    "engine",
		Short:  "Describe the engine as JSON",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			eng, err := engine.Open(cfg.Engine, engine.Options{Library: cfg.EngineLib, Threads: 1})
			if err != nil {
				return err
			}
			defer eng.Close()
			return json.NewEncoder(cmd.OutOrStdout()).Encode(eng.Info())
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

// measurement has this host's CPU measure models, each in processes of its own.
type measurement struct {
	program string
	cfg     *runConfig
	gpuType string
	log     *slog.Logger
}

// profile returns what was measured of a model before, or measures it now.
func (m *measurement) profile(ctx context.Context, mdl model.Model) (*profile.Profile, error) {
	p, err := profiler.Cached(m.cfg.ProfileCache, m.gpuType, mdl)
	if err == nil {
		return p, nil
	}
	if !errors.Is(err, profiler.ErrNotCached) {
		m.log.Warn("profile refused, measuring again", "model", mdl.Name, "error", err)
	}
	args := []string{
		"profile", "--quick", "--models", mdl.Name, "--repository", m.cfg.Models, "--out", m.cfg.ProfileCache,
		"--device", "cpu", "--budget", m.cfg.ProfileBudget.String(),
	}
	cmd := exec.CommandContext(ctx, m.program, append(args, m.cfg.Engine.args()...)...)
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Run(); err != nil {
		return nil, errors.New(lastLine(words.String(), err))
	}
	return profiler.Cached(m.cfg.ProfileCache, m.gpuType, mdl)
}
