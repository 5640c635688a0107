package plannercmd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/planner/internal/control"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/telemetry"
)

// runConfig is the configuration of planner run.
type runConfig struct {
	Bus       bus.Config
	Telemetry telemetry.Config
	Steer     steerConfig
	Way       wayConfig
	// Models is the repository of models to serve.
	Models string `env:"MODELS" envDefault:"models" usage:"folder of the model repository"`
	// Profiles holds shipped profiles; what agents measure comes over the bus.
	Profiles string `env:"PROFILES" envDefault:"profiles" usage:"folder of shipped profiles, by GPU type"`
	// Replicas is how many servers of a NATS cluster keep every queue and document. With 3 the loss of
	// one loses nothing; 1 is right for a server that stands alone, and for speed.
	Replicas int `env:"REPLICAS" envDefault:"1" usage:"servers of a NATS cluster that keep every queue and document: 1, 3 or 5"`
	// MetricsAddr answers /metrics and /healthz.
	MetricsAddr string `env:"METRICS_ADDR" envDefault:":8004" usage:"address of /metrics, /healthz and pprof"`
	// Observe is how often lag and rates are read.
	Observe time.Duration `env:"OBSERVE" envDefault:"1s" usage:"time between looks at rates and queues"`
	// MinGap keeps epochs that cannot wait from following each other at once.
	MinGap time.Duration `env:"MIN_GAP" envDefault:"2s" usage:"least time between an epoch and one that cannot wait"`
	// Lease is how long a leader may be silent. A standby leads at the latest 1.4 of it after the
	// leader's death; a leader that is paused for longer comes back as a standby.
	Lease time.Duration `env:"LEASE" envDefault:"5s" usage:"of several planners another leads when the one that led was silent for so long"`
}

// Validate names the first setting that is out of range.
func (c *runConfig) Validate() error {
	if err := errors.Join(c.Bus.Validate(), c.Telemetry.Validate(), c.Steer.Validate(), c.Way.validate()); err != nil {
		return err
	}
	switch {
	case c.Observe < 10*time.Millisecond || c.Observe > c.Steer.Epoch:
		return fmt.Errorf("observe %v: must be between 10ms and the epoch, %v", c.Observe, c.Steer.Epoch)
	case c.Replicas != 1 && c.Replicas != 3 && c.Replicas != 5:
		return fmt.Errorf("replicas %d: must be 1, 3 or 5", c.Replicas)
	case c.MinGap < 0:
		return fmt.Errorf("min-gap %v: must not be negative", c.MinGap)
	case c.Lease < 500*time.Millisecond || c.Lease > 10*time.Minute:
		return fmt.Errorf("lease %v: must be between 500ms and 10m", c.Lease)
	}
	return nil
}

func newRunCommand() *cobra.Command {
	cfg := &runConfig{}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Plan a running system, epoch by epoch",
		Long: `Watches hosts, models and queues, and publishes a new plan when the one that runs is broken,
falls short, or takes more GPUs than are needed. Registers the models of the repository and keeps
their queues.

Several may run, on one model repository: one leads, the others stand by and take over when it is
silent for as long as --lease. planner status shows which one leads.`,
		Example: `  planner run
  planner run --models /srv/models --profiles /srv/profiles --epoch 5s
  GPULET_NATS_URL=nats://nats:4222 planner run --idle-after 10m`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			return run(cmd, cfg)
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

func run(cmd *cobra.Command, cfg *runConfig) error {
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	log := telemetry.NewLogger(cfg.Telemetry, cmd.ErrOrStderr(), "planner")
	s := cfg.Steer
	log.Info("starting", "models", cfg.Models, "profiles", cfg.Profiles, "epoch", s.Epoch, "algorithm", s.Algorithm,
		"interference", s.Interference, "warm_rps", s.WarmRPS, "idle_after", s.IdleAfter, "hold", s.Hold, "violations", s.Violations, "reserve", cfg.Way.Reserve)
	reg := telemetry.NewRegistry()
	metrics := control.NewMetrics(reg)
	server, err := telemetry.Serve(ctx, cfg.MetricsAddr, reg, log)
	if err != nil {
		return err
	}
	defer server.Wait()
	defer stop()
	b, err := bus.Connect(ctx, cfg.Bus, bus.RolePlanner, "planner", log)
	if ctx.Err() != nil {
		return nil // stopped before there was a bus
	}
	if err != nil {
		return err
	}
	defer b.Close()
	b.Replicate(cfg.Replicas)
	server.SetHealth(func() error {
		if !b.Connected() {
			return errors.New("not connected to NATS")
		}
		return nil
	})
	planner := control.New(control.Config{
		Name: control.DefaultName(), Epoch: s.Epoch, Observe: cfg.Observe, MinGap: cfg.MinGap, Lease: cfg.Lease,
		Decide: cfg.Way.reserve(s.decide()), Models: cfg.Models, Profiles: cfg.Profiles, Interference: s.Interference,
	}, b, metrics, log)
	g := lifecycle.NewGroup(ctx)
	g.Go("dead letters", b.BuryDead)
	g.Go("cancellations", func(ctx context.Context) error { return b.RemoveCancelled(ctx, metrics.Cancelled) })
	g.Go("planner", planner.Run)
	return g.Wait()
}
