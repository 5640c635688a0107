package loadgencmd

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpulet/gpulet/loadgen/internal/drive"
	"github.com/gpulet/gpulet/loadgen/internal/report"
)

// How often progress is shown: redrawn on a terminal, a line each where there is none.
const (
	redraw    = 250 * time.Millisecond
	lineEvery = 5 * time.Second
)

// watch shows how far run is on w until stop is called, which leaves a terminal's line empty.
func watch(w io.Writer, run *drive.Run, total time.Duration) (stop func()) {
	every, start, end := lineEvery, "", "\n"
	terminal := isTerminal(w)
	if terminal {
		every, start, end = redraw, "\r\x1b[K", ""
	}
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				if terminal {
					fmt.Fprint(w, start)
				}
				return
			case <-tick.C:
				fmt.Fprint(w, start, progressLine(run.Progress(), total), end)
			}
		}
	})
	return func() {
		close(quit)
		done.Wait()
	}
}

func progressLine(p drive.Progress, total time.Duration) string {
	line := fmt.Sprintf("%5.1f/%.0f s  sent %d  ok %d  waiting %d  errors %d  p50 %.1f ms  p99 %.1f ms  SLO violations %d",
		min(p.Elapsed, total).Seconds(), total.Seconds(), p.Sent, p.OK, p.Waiting, p.Errors, report.Ms(p.P50), report.Ms(p.P99), p.Violations)
	if p.Elapsed > total {
		line += "  (waiting for the last answers)"
	}
	if p.Late > 0 {
		line += fmt.Sprintf("  late sends %d", p.Late)
	}
	return line
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
