package gpulet

import (
	"testing"
	"time"
)

func TestARunHangsWhenItTakesMuchLongerThanExpected(t *testing.T) {
	for _, c := range []struct {
		what     string
		expected time.Duration
		measured bool
		after    time.Duration
		ticks    int // of a second, until it hangs, the one at which it was first seen included; 0: never
	}{
		{"a short batch", 20 * time.Millisecond, true, 10 * time.Second, 12},
		{"a long batch", time.Second, true, 10 * time.Second, 32},
		{"the first batch", 20 * time.Millisecond, false, 10 * time.Second, 32},
		{"without a watchdog", 20 * time.Millisecond, true, 0, 0},
	} {
		w := newWitness(nil)
		d := newWatchdog(c.after, newWitness(nil), w)
		w.beginRun(&run{name: "m", samples: 8, expected: c.expected, measured: c.measured})
		ticks := 0
		for n := 1; n < 100 && ticks == 0; n++ {
			if d.tick(time.Second) != "" {
				ticks = n
			}
		}
		if ticks != c.ticks {
			t.Errorf("%s: hung at tick %d, expected %d", c.what, ticks, c.ticks)
		}
	}
}

func TestWhatReturnsDoesNotHang(t *testing.T) {
	w := newWitness(nil)
	d := newWatchdog(time.Second, w)
	for n := range 100 { // each run is seen at two ticks
		if n%2 == 0 {
			w.end(nil)
			w.beginRun(&run{name: "m", samples: 8, measured: true})
		}
		if hung := d.tick(time.Second); hung != "" {
			t.Fatalf("tick %d: %s", n, hung)
		}
	}
	d.tick(time.Second)
	if got, want := d.tick(time.Second), "batch of 8 of m has run for 3s, expected 0s"; got != want {
		t.Errorf("%q, expected %q", got, want)
	}
	w.end(nil)
	if hung := d.tick(time.Second); hung != "" {
		t.Errorf("after its end: %s", hung)
	}
}
