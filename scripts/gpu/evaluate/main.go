// Command evaluate measures the whole system on one GPU: the highest goodput of several ways to share
// it, and how the system starts, survives and predicts. It runs the programs as an operator would and
// writes what it finds as JSON, one file per part, so that a run that was cut short is taken up where
// it ended.
//
// It works the same on a simulated GPU (--device sim:h100) and on a CPU, whose figures mean nothing and
// say so: they show that the experiment itself works.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
)

func main() { cli.Main(newRootCommand()) }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "evaluate",
		Short: "Measure the system on one GPU",
		Long: `Measures the system on one GPU, or, to try the experiments out, on a simulated one or a CPU. What is
in the output folder already is not measured again.`,
	}
	root.AddCommand(newGoodputCommand(), newPredictCommand(), newStartCommand(), newKillCommand(), newFaultCommand(),
		newSharesCommand(), newGraphsCommand(), newSplitsCommand(), newCorunCommand(), newBurstsCommand())
	return root
}

// config is what all experiments are told.
type config struct {
	// Device is what is measured.
	Device string `env:"DEVICE" envDefault:"cuda:0" usage:"cuda:N, sim:<gpu type> or cpu"`
	// Models is a repository whose model.yaml hold the SLOs of the experiment.
	Models   string `env:"MODELS" envDefault:"build/gpu/models" usage:"folder of the model repository (scripts/gpu/prepare.sh)"`
	Profiles string `env:"PROFILES" envDefault:"profiles" usage:"folder of profiles, by GPU type; on a CPU what the worker measures is used"`
	Out      string `env:"OUT" envDefault:"build/gpu/results" usage:"folder for what is found, a JSON file per part"`
	Bin      string `env:"BIN" usage:"folder of the programs (default: that of this one)"`
	// EngineLib is passed to the worker.
	EngineLib string `env:"ENGINE_LIB" envDefault:"build/lib" usage:"folder of the engine's shared library"`
	// Reserve is that of planner run: what is planned keeps it.
	Reserve time.Duration `env:"RESERVE" envDefault:"1ms" usage:"part of every SLO that plans keep for what happens outside the engine"`
	// Outputs leaves the detector's 700 KB of raw boxes and scores where they are.
	Outputs string        `env:"OUTPUTS" envDefault:"ssd-mobilenetv1=best" usage:"outputs that clients ask for instead of all, as for loadgen"`
	Budget  time.Duration `env:"BUDGET" envDefault:"8m" usage:"time for everything; what does not fit is left for another run"`
	Seed    uint64        `env:"SEED" envDefault:"1" usage:"seed of arrivals"`

	deadline time.Time
}

// begin checks the settings, finds the programs and starts the clock.
func (c *config) begin() error {
	kind, _, _ := strings.Cut(c.Device, ":")
	switch {
	case kind != "cuda" && kind != "sim" && kind != "cpu":
		return cli.Usagef("device %q: expected cuda:N, sim:<gpu type> or cpu", c.Device)
	case c.Budget <= 0:
		return cli.Usagef("budget %v: expected more than 0", c.Budget)
	}
	if c.Bin == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		c.Bin = filepath.Dir(self)
	}
	c.deadline = time.Now().Add(c.Budget)
	return nil
}

// onGPU reports whether what is measured is a GPU.
func (c *config) onGPU() bool { return strings.HasPrefix(c.Device, "cuda") }

// left is what remains of the budget.
func (c *config) left() time.Duration { return time.Until(c.deadline) }

// program is the path of one of gpulet's programs.
func (c *config) program(name string) string { return filepath.Join(c.Bin, name) }

// experiment makes a command that runs do with its settings loaded.
func experiment(cmd *cobra.Command, cfg any, common *config, do func(ctx context.Context) error) *cobra.Command {
	cli.Bind(cmd, cfg)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := cli.Load(cmd, cfg); err != nil {
			return err
		}
		if err := common.begin(); err != nil {
			return err
		}
		return do(cmd.Context())
	}
	return cmd
}

// errBudget ends an experiment whose time is up: what was found is written, the rest is left.
var errBudget = errors.New("the budget is used up: run it again to go on")

// say tells a line of progress.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().UTC().Format("15:04:05 ")+format+"\n", args...)
}
