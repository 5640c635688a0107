// Package workercmd is the command line of the worker: the agent of a host (run), one gpu-let
// (gpulet, started by the agent), and tools that measure models on the host (profile, exec).
//
// It reads configuration and wires the packages below worker/internal.
package workercmd

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

// Main runs the worker's command line and ends the process with its exit code.
func Main() { cli.Main(newRootCommand()) }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "worker",
		Short: "Run gpu-lets on a host",
		Long: `The worker runs on every host with GPUs, or with CPU cores to serve on. Its agent finds the
devices, keeps one process per gpu-let as the planner's plan says, and reports what runs.`,
	}
	root.AddCommand(newRunCommand(), newGpuletCommand(), newStandbyCommand(), newProfileCommand(), newExecCommand(), newBenchCommand(), newEngineCommand())
	return root
}

// engineConfig says which engine runs models.
type engineConfig struct {
	Engine    string `env:"ENGINE" envDefault:"torch" usage:"torch (LibTorch) or ref (the reference engine)"`
	EngineLib string `env:"ENGINE_LIB" usage:"the engine's shared library, or its folder (default: beside the program)"`
}

// Validate reports an unknown engine.
func (c engineConfig) Validate() error {
	switch c.Engine {
	case engine.Torch, engine.Reference, engine.Simulated:
		return nil
	}
	return fmt.Errorf("engine %q: expected %s or %s", c.Engine, engine.Torch, engine.Reference)
}

// args are the flags that give another process of this program the same engine.
func (c engineConfig) args() []string {
	args := []string{"--engine", c.Engine}
	if c.EngineLib != "" {
		args = append(args, "--engine-lib", c.EngineLib)
	}
	return args
}

// self is the path of this program, to start it again.
func self() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	return path, nil
}

// joinInts is the value of a flag that takes numbers.
func joinInts(values []int) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = strconv.Itoa(v)
	}
	return strings.Join(words, ",")
}
