package plannercmd

import (
	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
)

// offlineCommands are those that need files only, no running system.
func offlineCommands() []*cobra.Command {
	commands := []*cobra.Command{
		newPlanCommand(),
		newPeakCommand(),
		newFitCommand(),
		newSimulateCommand(),
	}
	for _, c := range commands {
		cli.Interruptible(c)
	}
	return append(commands, newCompareCommand()) // which shows what it has when it is interrupted
}
