package cli_test

import (
	"bufio"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
)

const endlessEnv = "GPULET_TEST_ENDLESS"

// TestInterruptibleEndsAtTheFirstSignal runs itself as a program whose command computes for ever.
func TestInterruptibleEndsAtTheFirstSignal(t *testing.T) {
	if os.Getenv(endlessEnv) != "" {
		endless := func(cmd *cobra.Command, _ []string) {
			cmd.PrintErrln("computing")
			select {}
		}
		os.Args = os.Args[:1]
		cli.Main(cli.Interruptible(&cobra.Command{Use: "endless", Run: endless}))
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$")
	child.Env = append(os.Environ(), endlessEnv+"=1")
	stderr, err := child.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stderr).ReadString('\n'); err != nil || line != "computing\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	if err := child.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	status, ok := child.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGTERM {
		t.Fatalf("the child ended with %v: expected by SIGTERM", child.ProcessState)
	}
}
