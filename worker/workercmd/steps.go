package workercmd

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// steps shows how far long work is: on a terminal one line, rewritten, elsewhere a line a step. What
// is said stays in either case.
type steps struct {
	w        io.Writer
	terminal bool
	start    time.Time
}

// newSteps shows on standard output, or on standard error where the output is for a program.
func newSteps(cmd *cobra.Command, asJSON bool) *steps {
	w := cmd.OutOrStdout()
	if asJSON {
		w = cmd.ErrOrStderr()
	}
	return &steps{w: w, terminal: isTerminal(w), start: time.Now()}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// say prints a line that stays.
func (s *steps) say(format string, args ...any) {
	s.clear()
	fmt.Fprintf(s.w, format+"\n", args...)
}

// step shows that done steps were made and that at most left are to come, which take as long.
func (s *steps) step(what string, done, left int) {
	each := time.Since(s.start) / time.Duration(max(done, 1))
	s.timed(what, done, each*time.Duration(left))
}

// timed shows that done steps were made, and how long the rest takes.
func (s *steps) timed(what string, done int, left time.Duration) {
	words := "the last"
	if left > 0 {
		words = "at most " + max(left, time.Second).Round(time.Second).String() + " left"
	}
	end := "\n"
	if s.terminal {
		s.clear()
		end = ""
	}
	fmt.Fprintf(s.w, "%s  [%d, %s]%s", what, done, words, end)
}

// clear removes the line that is rewritten.
func (s *steps) clear() {
	if s.terminal {
		fmt.Fprint(s.w, "\r\x1b[K")
	}
}
