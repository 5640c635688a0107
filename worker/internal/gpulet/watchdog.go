package gpulet

import (
	"fmt"
	"time"
)

const (
	// hangFactor is by how much a run must exceed what is expected of it to count as hung.
	hangFactor = 30
	// firstFactor makes the least bound longer while no batch of a model has been measured here: the first
	// ones may choose kernels.
	firstFactor = 3
)

// watchdog recognises runs that do not return from the engine. It counts time in ticks of the loop, so
// that a process which was stopped, and its clock with it, is not taken for one that hangs.
type watchdog struct {
	after   time.Duration // least bound; 0: nothing counts as hung
	threads []watched
}

// watched is a thread that runs or stages batches.
type watched struct {
	*witness
	last *run          // that it was seen at
	ran  time.Duration // since it was first seen at that
}

func newWatchdog(after time.Duration, threads ...*witness) *watchdog {
	d := &watchdog{after: after}
	for _, w := range threads {
		d.threads = append(d.threads, watched{witness: w})
	}
	return d
}

// bound is how long a run may take.
func (d *watchdog) bound(r *run) time.Duration {
	least := d.after
	if !r.measured {
		least *= firstFactor
	}
	return max(least, hangFactor*r.expected)
}

// tick says that another stretch of time has passed. It returns what hangs, in words; empty: nothing.
func (d *watchdog) tick(passed time.Duration) (hung string) {
	for i := range d.threads {
		t := &d.threads[i]
		r := t.current.Load()
		if r == nil || r != t.last {
			t.last, t.ran = r, 0
			continue
		}
		if t.ran += passed; d.after > 0 && t.ran > d.bound(r) {
			hung = fmt.Sprintf("batch of %d of %s has run for %v, expected %v", r.samples, r.name, t.ran, r.expected.Round(time.Microsecond))
		}
	}
	return hung
}

// watch lets the watchdog look at what runs. What hangs is said once; the agent ends the process.
func (l *loop) watch() {
	hung := l.watchdog.tick(reportEvery)
	if hung != "" && l.hung == "" {
		l.log.Error("engine hangs", "detail", hung)
	}
	l.hung = hung
}
