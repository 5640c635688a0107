// Package loadgencmd is the command line of the load generator: a run at set rates (run), the
// highest rate that a system sustains (search), and the documents of earlier runs (report).
//
// It reads configuration and files, wires the packages below loadgen/internal and prints.
package loadgencmd

import (
	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
)

// Main runs the load generator's command line and ends the process with its exit code.
func Main() {
	cli.CollectSeldom()
	cli.Main(newRootCommand())
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "loadgen",
		Short: "Send requests at set rates and say what came of every one",
		Long: `The load generator is an open loop: it sends when its arrival process says so, however slowly
answers come, and counts latency from the intended send time. It checks answers, keeps account
of every request, and says when it could not keep up itself.`,
	}
	root.AddCommand(newRunCommand(), newSearchCommand(), newReportCommand())
	return root
}
