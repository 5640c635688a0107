// Package cli is the command-line behaviour that all gpulet programs share: one Config struct per
// command whose fields are flags and GPULET_* variables at once, exit codes, signals, and how an
// error is shown.
//
// Exit codes: 0 success, 1 the work failed, 2 wrong usage.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/lifecycle"
)

// Exit codes of every program.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// Main runs root with the process's arguments and exits. The command's context ends at the first
// SIGINT or SIGTERM (see lifecycle.Notify for the second).
func Main(root *cobra.Command) {
	ctx, stop := lifecycle.Notify(context.Background())
	code := Run(ctx, root, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Interruptible marks a command that only computes: SIGINT and SIGTERM end it at once, as there is
// nothing to finish or to give back.
func Interruptible(cmd *cobra.Command) *cobra.Command {
	cmd.PreRun = func(*cobra.Command, []string) { signal.Reset(syscall.SIGINT, syscall.SIGTERM) }
	return cmd
}

// Run runs root with args and returns the exit code; an error is printed to stderr as
// "gpulet <program>: message", followed for wrong usage by where to find help.
func Run(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	prepare(root)
	if root.Version == "" {
		root.Version = Version
	}
	root.SetVersionTemplate("gpulet {{.Name}} {{.Version}}\n")
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	var coded *codedError
	if errors.As(err, &coded) {
		if coded.err != nil {
			fmt.Fprintf(stderr, "gpulet %s: %v\n", root.Name(), err)
		}
		return coded.code
	}
	fmt.Fprintf(stderr, "gpulet %s: %v\n", root.Name(), err)
	if !isUsage(err) {
		return ExitFailed
	}
	fmt.Fprintf(stderr, "Run '%s -h' for usage.\n", cmd.CommandPath())
	return ExitUsage
}

// prepare makes every command of the tree report wrong flags and arguments as usage errors and
// leaves printing to Run.
func prepare(cmd *cobra.Command) {
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	switch {
	case cmd.Args != nil:
		check := cmd.Args
		cmd.Args = func(c *cobra.Command, args []string) error { return asUsage(check(c, args)) }
	case cmd.HasSubCommands():
		cmd.Args = unknownCommand
	default:
		cmd.Args = noArgs
	}
	if cmd.RunE == nil && cmd.Run == nil {
		cmd.RunE = needsCommand
	}
	for _, sub := range cmd.Commands() {
		prepare(sub)
	}
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return Usagef("unknown command %q: expected %s", args[0], commandNames(cmd))
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return Usagef("unexpected argument %q", args[0])
}

func needsCommand(cmd *cobra.Command, _ []string) error {
	return Usagef("missing command: expected %s", commandNames(cmd))
}

func commandNames(cmd *cobra.Command) string {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return strings.Join(names, ", ")
}

type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// Usagef returns an error that makes the program exit with 2.
func Usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// codedError is an error with an exit code of its own.
type codedError struct {
	code int
	err  error // nil: it has been told already
}

func (e *codedError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codedError) Unwrap() error { return e.err }

// WithCode returns an error that makes the program exit with code. A nil err is not printed: what
// went wrong has been told already.
func WithCode(code int, err error) error { return &codedError{code, err} }

func asUsage(err error) error {
	if err == nil || isUsage(err) {
		return err
	}
	return &usageError{err}
}

func isUsage(err error) bool {
	var usage *usageError
	return errors.As(err, &usage)
}
