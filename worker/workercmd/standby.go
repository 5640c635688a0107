package workercmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// standbyConfig are the settings of `worker standby`. The agent sets them all.
type standbyConfig struct {
	Engine engineConfig
	Cores  []int `env:"CORES" usage:"cores that the gpu-let will get some of (default: all)"`
}

// Validate reports the first setting that makes no sense.
func (c *standbyConfig) Validate() error { return c.Engine.Validate() }

func newStandbyCommand() *cobra.Command {
	cfg := &standbyConfig{}
	cmd := &cobra.Command{
		Use:    "standby",
		Short:  "Load the engine's library and wait to become a gpu-let (started by the agent)",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			return standBy(cmd, cfg)
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

// standBy becomes the command that the line on its standard input says. CUDA reads a process's share of
// the GPU from its environment when it makes a context, which has not happened until then.
func standBy(cmd *cobra.Command, cfg *standbyConfig) error {
	// What only waits has nothing to drain.
	unhook := context.AfterFunc(cmd.Context(), func() { os.Exit(cli.ExitOK) })
	defer unhook()
	if err := engine.Preload(cfg.Engine.Engine, engine.Options{Library: cfg.Engine.EngineLib, Threads: len(cfg.Cores)}); err != nil {
		return err
	}
	b, err := link.ReadBecome(cmd.InOrStdin())
	if !unhook() {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return nil // the agent has gone
	}
	if err != nil {
		return fmt.Errorf("what to become: %w", err)
	}
	for _, v := range b.Env {
		name, value, _ := strings.Cut(v, "=")
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("environment: %q: %w", v, err)
		}
	}
	root := newRootCommand()
	root.SetIn(cmd.InOrStdin())
	return cli.WithCode(cli.Run(cmd.Context(), root, b.Args, cmd.OutOrStdout(), cmd.ErrOrStderr()), nil)
}
