// Package frontendcmd is the command line of the frontend.
package frontendcmd

import (
	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
)

// Main runs the program and exits.
func Main() { cli.Main(New()) }

// New returns the program's root command.
func New() *cobra.Command {
	root := &cobra.Command{
		Use:   "frontend",
		Short: "The door of gpulet: answers inference requests over HTTP and gRPC",
		Long: `The frontend answers inference requests of the open inference protocol (v2) over HTTP and gRPC. It checks
them, puts them into the queues from which the gpu-lets take them, and gives back their answers.`,
		Version: cli.Version,
	}
	root.AddCommand(newServeCommand(), newDLQCommand())
	return root
}
