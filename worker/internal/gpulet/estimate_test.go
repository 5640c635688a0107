package gpulet

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const ms = time.Millisecond

func TestEstimateStartsFromThePlan(t *testing.T) {
	e := newEstimate(20*ms, 8, 32)
	for samples, want := range map[int]time.Duration{8: 20 * ms, 16: 40 * ms, 64: 160 * ms} {
		if got := e.exec(samples); got != want {
			t.Errorf("%d samples: %v: expected %v", samples, got, want)
		}
	}
	if got := e.exec(1); got < 10*ms || got > 12*ms {
		t.Errorf("1 sample: %v: expected a little over half of the batch's 20ms", got)
	}
	if got := newEstimate(0, 8, 32).exec(8); got != 0 {
		t.Errorf("without a plan: %v: expected 0", got)
	}
}

func TestEstimateBelievesMeasurements(t *testing.T) {
	e := newEstimate(20*ms, 8, 32)
	e.ran(8, 5*ms)
	if got := e.exec(8); got != 5*ms {
		t.Errorf("after one batch of 5ms: %v", got)
	}
	e.ran(1, 2*ms)
	if got := e.exec(4); got <= 2*ms || got >= 5*ms {
		t.Errorf("between 2ms and 5ms: %v", got)
	}
	for range 50 {
		e.ran(8, 50*ms)
	}
	if got := e.exec(8); got < 45*ms {
		t.Errorf("after many batches of 50ms: %v", got)
	}
}

func TestEstimateShrugsOffAHiccup(t *testing.T) {
	e := newEstimate(0, 8, 8)
	e.ran(8, 5*ms)
	e.ran(8, 5*time.Second)
	if got := e.exec(8); got > 7*ms {
		t.Errorf("after one hiccup: %v: expected about 6ms", got)
	}
}

func TestEstimateDoubtsItselfWhenNothingRuns(t *testing.T) {
	e := newEstimate(time.Minute, 8, 8)
	rounds := 0
	for ; e.exec(1) > 10*ms; rounds++ {
		e.giveUp(1)
		if rounds > 1000 {
			t.Fatalf("still %v after %d requests were given up", e.exec(1), rounds)
		}
	}
	e.ran(1, 3*ms)
	e.giveUp(doubtAfter - 1)
	if got := e.exec(1); got != 3*ms {
		t.Errorf("a measured estimate was doubted too soon: %v", got)
	}
}

func TestEstimateNeverFallsAsSamplesGrow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 2000).Draw(t, "max batch")
		planned := rapid.IntRange(1, most).Draw(t, "batch")
		e := newEstimate(time.Duration(rapid.IntRange(0, 1000).Draw(t, "planned ms"))*ms, planned, most)
		for range rapid.IntRange(0, 20).Draw(t, "batches") {
			e.ran(rapid.IntRange(1, most+10).Draw(t, "samples"), time.Duration(rapid.IntRange(0, 1000).Draw(t, "ms"))*ms)
		}
		last := time.Duration(0)
		for n := 1; n <= most+20; n++ {
			got := e.exec(n)
			if got < last {
				t.Fatalf("%d samples take %v, %d take %v", n-1, last, n, got)
			}
			last = got
		}
	})
}

func BenchmarkEstimate(b *testing.B) {
	e := newEstimate(20*ms, 32, 64)
	rng := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		e.ran(1+rng.IntN(64), 10*ms)
	}
	if e.exec(64) <= 0 {
		b.Fatal("no estimate")
	}
}
