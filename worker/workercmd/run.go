package workercmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/shared/telemetry"
	"github.com/gpulet/gpulet/worker/internal/agent"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/profiler"
)

// runConfig are the settings of `worker run`.
type runConfig struct {
	Bus       bus.Config
	Telemetry telemetry.Config
	Engine    engineConfig
	// Device says what to serve on.
	Device string `env:"DEVICE" envDefault:"auto" usage:"auto, cuda, cuda:<index>,..., cpu, or sim:<gpu type>x<count>"`
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
	// HangAfter is the least time after which a gpu-let whose engine does not answer is killed.
	HangAfter time.Duration `env:"HANG_AFTER" envDefault:"10s" usage:"kill a gpu-let when a batch takes longer than this and 30 times what it should; 0: never"`
	// Standby shortens the start of gpu-lets by the loading of libraries.
	Standby string `env:"STANDBY" envDefault:"auto" usage:"keep a process that has the engine's libraries loaded, for the next gpu-let: on, off, or auto, where there are GPUs"`
	// GpuletUser keeps what reads models from what the agent may do.
	GpuletUser string `env:"GPULET_USER" usage:"user to run gpu-lets as, a name or <uid>:<gid>; takes an agent that is root (default: the agent's own)"`
	MPS        mpsConfig
	// AllowUnpartitioned serves on GPUs that cannot be shared.
	AllowUnpartitioned bool `env:"ALLOW_UNPARTITIONED" usage:"serve on a GPU that MPS cannot cut into shares, as a whole"`
	// Uncapped is for comparing: what do shares gain?
	Uncapped bool `env:"UNCAPPED" usage:"for experiments: let every gpu-let use its whole GPU, through MPS without shares"`
	// Streams gives up the duty order in a gpu-let, and with it what a plan promises of several models.
	Streams bool `env:"STREAMS" usage:"serve every model of a gpu-let by an executor of its own, side by side (an experiment's: plans assume turns)"`
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
	case c.HangAfter != 0 && c.HangAfter < time.Second:
		return fmt.Errorf("hang after %v: expected 0, or at least 1s", c.HangAfter)
	case c.Standby != "on" && c.Standby != "off" && c.Standby != "auto":
		return fmt.Errorf("standby %q: expected on, off or auto", c.Standby)
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
restarts those that crash, and reports what runs. On GPUs it runs one MPS daemon each, or adopts one
that is there; GPUs in MIG mode or used by other processes are left alone, unless they are named. On
a CPU it measures the registered models first, a few seconds each, and keeps the figures. While the
planner or NATS is away, gpu-lets go on with the last plan. On GPUs one more process stands by, with
the engine's libraries loaded, and becomes the next gpu-let (--standby).

The first SIGINT or SIGTERM drains all gpu-lets and exits; the second kills them.`,
		Example: `  worker run
  worker run --device cpu --models ./models --nats-url nats://10.0.0.1:4222
  worker run --device cuda:0,2                              only these GPUs
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
	defer host.close()
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
	if host.gpus != nil {
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			host.gpus.watch(ctx)
		}()
		defer func() { stop(); <-watched }()
	}
	return agent.New(host.Config, b, reg).Run(cmd.Context())
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
