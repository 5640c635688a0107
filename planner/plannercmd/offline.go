package plannercmd

import "github.com/spf13/cobra"

// offlineCommands are those that need files only, no running system.
func offlineCommands() []*cobra.Command {
	return []*cobra.Command{
		newPlanCommand(),
		newCompareCommand(),
		newPeakCommand(),
		newFitCommand(),
		newSimulateCommand(),
	}
}
