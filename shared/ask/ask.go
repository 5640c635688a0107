// Package ask makes commands that ask a running system once and print what it says.
package ask

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/telemetry"
)

// Config is what every such command needs.
type Config struct {
	Bus bus.Config
	// Wait bounds the search for the system.
	Wait time.Duration `env:"WAIT" envDefault:"5s" usage:"how long to wait for the system to answer"`
	JSON bool          `env:"JSON" envDefault:"false" usage:"print JSON"`
}

// Validate names the first setting that is out of range.
func (c *Config) Validate() error {
	if c.Wait <= 0 {
		return fmt.Errorf("wait %v: expected more than 0", c.Wait)
	}
	return c.Bus.Validate()
}

// Question asks and prints to out.
type Question func(ctx context.Context, b *bus.Bus, args []string, out io.Writer) error

// Command makes cmd connect as role and ask. cfg is the command's whole configuration, of which common
// is a part.
func Command(cmd *cobra.Command, role bus.Role, cfg any, common *Config, ask Question) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := cli.Load(cmd, cfg); err != nil {
			return err
		}
		if err := common.Validate(); err != nil {
			return cli.Usagef("%w", err)
		}
		b, err := connect(cmd.Context(), role, common, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		defer b.Close()
		return ask(cmd.Context(), b, args, cmd.OutOrStdout())
	}
	cli.Bind(cmd, cfg)
	return cmd
}

// connect gives up after cfg.Wait; what it logs on the way says why.
func connect(ctx context.Context, role bus.Role, cfg *Config, stderr io.Writer) (*bus.Bus, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Wait)
	defer cancel()
	log := telemetry.NewLogger(telemetry.Config{LogLevel: "warn", LogFormat: "text"}, stderr, string(role))
	b, err := bus.Connect(ctx, cfg.Bus, role, string(role)+"-cli", log)
	if err != nil {
		return nil, fmt.Errorf("no system to ask: %w (frontend serve starts one; GPULET_NATS_URL names another)", err)
	}
	return b, nil
}
