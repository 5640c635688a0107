// Package plannercmd is the command line of the planner: the running control loop (run), what is
// asked of a running system (status, history, explain, rollback, apply), and the tools that need no
// system at all (plan, compare, peak, simulate).
//
// It reads configuration, wires the packages below planner/internal and prints. It decides
// nothing about placement.
package plannercmd

import (
	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
)

// Main runs the planner's command line and ends the process with its exit code.
func Main() { cli.Main(newRootCommand()) }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "planner",
		Short: "Decide which gpu-lets exist and what each of them serves",
		Long: `The planner watches hosts, models and queues, and publishes plans: which GPU is cut into
which gpu-lets, and which models each of them serves. Its offline tools answer the same
questions without a running system.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(onlineCommands()...)
	root.AddCommand(offlineCommands()...)
	return root
}

// onlineCommands are those that talk to a running system over the bus.
func onlineCommands() []*cobra.Command {
	return []*cobra.Command{newRunCommand(), newStatusCommand(), newExplainCommand(), newHistoryCommand(), newRollbackCommand(), newApplyCommand()}
}
