package plannercmd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/telemetry"
)

// onlineConfig is what every command that asks a running system needs.
type onlineConfig struct {
	Bus bus.Config
	// Wait bounds the search for the system.
	Wait time.Duration `env:"WAIT" envDefault:"5s" usage:"how long to wait for the system to answer"`
	JSON bool          `env:"JSON" envDefault:"false" usage:"print JSON"`
}

// Validate names the first setting that is out of range.
func (c *onlineConfig) Validate() error {
	if c.Wait <= 0 {
		return fmt.Errorf("wait %v: must be positive", c.Wait)
	}
	return c.Bus.Validate()
}

// asking makes a command that connects, asks and prints.
func asking(cmd *cobra.Command, cfg any, common *onlineConfig, ask func(ctx context.Context, b *bus.Bus, args []string, out io.Writer) error) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := cli.Load(cmd, cfg); err != nil {
			return err
		}
		if err := common.Validate(); err != nil {
			return cli.Usagef("%w", err)
		}
		b, err := connect(cmd.Context(), common, cmd.ErrOrStderr())
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
func connect(ctx context.Context, cfg *onlineConfig, stderr io.Writer) (*bus.Bus, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Wait)
	defer cancel()
	log := telemetry.NewLogger(telemetry.Config{LogLevel: "warn", LogFormat: "text"}, stderr, "planner")
	b, err := bus.Connect(ctx, cfg.Bus, bus.RolePlanner, "planner-cli", log)
	if err != nil {
		return nil, fmt.Errorf("no system to ask: %w (frontend serve starts one; GPULET_NATS_URL names another)", err)
	}
	return b, nil
}

func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// ago shows an age for people.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := now.Sub(t)
	switch {
	case d < 0:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return d.Round(time.Minute).String()
}
