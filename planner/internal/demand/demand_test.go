package demand

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const second = time.Second

// poisson draws a count of a Poisson distribution.
func poisson(rng *rand.Rand, mean float64) uint64 {
	n, left := uint64(0), mean
	for left -= rng.ExpFloat64(); left > 0; left -= rng.ExpFloat64() {
		n++
	}
	return n
}

// watch lets an estimator look once a second at a Poisson stream whose rate is given by the second.
func watch(e *Estimator, c Config, seed uint64, seconds int, rate func(s int) float64) {
	rng := rand.New(rand.NewPCG(seed, 0))
	for s := range seconds {
		e.Observe(c, poisson(rng, rate(s)), second)
	}
}

func TestEstimateSettlesOnASteadyRate(t *testing.T) {
	c := DefaultConfig(10 * second)
	for _, rate := range []float64{0.5, 10, 300, 5000} {
		var e Estimator
		watch(&e, c, 1, 120, func(int) float64 { return rate })
		got := e.Estimate(c)
		if tolerance := 4 * math.Sqrt(rate/20); math.Abs(got.RateRPS-rate) > tolerance {
			t.Errorf("rate %v: estimated %v, at most %v off expected", rate, got.RateRPS, tolerance)
		}
		if got.Window != 20*second {
			t.Errorf("window %v after two minutes, expected twice the time constant", got.Window)
		}
	}
}

func TestJumpIsBelievedWithinOneLook(t *testing.T) {
	c := DefaultConfig(10 * second)
	var e Estimator
	watch(&e, c, 2, 60, func(int) float64 { return 100 })
	e.Observe(c, 310, second)
	if got := e.Estimate(c); got.RateRPS < 250 || got.Window > 3*second {
		t.Errorf("after a jump from 100 to 310: %+v, expected the new rate and a short window", got)
	}
}

func TestChanceIsNoJump(t *testing.T) {
	c := DefaultConfig(10 * second)
	var e Estimator
	watch(&e, c, 3, 30, func(int) float64 { return 20 })
	rng := rand.New(rand.NewPCG(4, 0))
	short := 0
	for range 20_000 {
		if e.Observe(c, poisson(rng, 20), second); e.seen < c.Smooth {
			short++
		}
	}
	if short > 50 { // a false alarm shortens the window for ten looks
		t.Errorf("%d of 20,000 looks at a steady stream had a short window, expected next to none", short)
	}
}

func TestRampIsPlannedAhead(t *testing.T) {
	c := DefaultConfig(10 * second)
	var e Estimator
	watch(&e, c, 4, 100, func(s int) float64 { return 200 + 5*float64(s) })
	now, then := 200+5*100.0, 200+5*110.0
	got := c.Of(e.Estimate(c), time.Hour, 0).ExpectedRPS // a long SLO leaves the margin out
	if got < now || got > then+60 {
		t.Errorf("expected rate %v on a ramp that is at %v and will be at %v in an epoch", got, now, then)
	}
}

func TestFallingRateIsNotExtrapolated(t *testing.T) {
	c := DefaultConfig(10 * second)
	e := Estimate{RateRPS: 100, SlopeRPS: -5, Window: 20 * second}
	if got := c.Of(e, time.Second, 0).ExpectedRPS; got != 100 {
		t.Errorf("expected rate %v, want the present 100", got)
	}
}

func TestNoiseIsNoTrend(t *testing.T) {
	c := DefaultConfig(10 * second)
	e := Estimate{RateRPS: 100, SlopeRPS: 0.05, Window: 20 * second}
	if got := c.Of(e, time.Second, 0).ExpectedRPS; got != 100 {
		t.Errorf("a slope within its standard error raised the rate to %v", got)
	}
}

func TestTimeThatStandsStillIsIgnored(t *testing.T) {
	c := DefaultConfig(10 * second)
	var e Estimator
	e.Observe(c, 100, second)
	before := e.Estimate(c)
	e.Observe(c, 1000, 0)
	e.Observe(c, 1000, -second)
	if got := e.Estimate(c); got != before {
		t.Errorf("%+v became %+v", before, got)
	}
}

func TestBacklogBeyondWhatIsInFlightIsDrained(t *testing.T) {
	c := DefaultConfig(10 * second)
	for _, tc := range []struct {
		rate    float64
		backlog uint64
		want    float64
	}{{100, 0, 0}, {100, 10, 0}, {100, 511, 50}, {0, 101, 10}} {
		if got := c.Drain(tc.rate, 100*time.Millisecond, tc.backlog); math.Abs(got-tc.want) > 1e-9 {
			t.Errorf("backlog %d at %v/s: drain %v/s, want %v", tc.backlog, tc.rate, got, tc.want)
		}
	}
}

// TestOverflowAgreesWithASimulatedQueue compares the formula with a counted queue: Poisson arrivals,
// a server that takes work at a constant speed, many epochs that begin empty.
func TestOverflowAgreesWithASimulatedQueue(t *testing.T) {
	const rate, theta, epoch, runs = 100.0, 8.0, 2.0, 20_000
	rng := rand.New(rand.NewPCG(5, 0))
	over := map[float64]int{4: 0, 8: 0, 16: 0}
	for range runs {
		backlog, now := 0.0, 0.0
		for {
			gap := rng.ExpFloat64() / rate
			if now+gap > epoch {
				backlog = math.Max(0, backlog-(epoch-now)*(rate+theta))
				break
			}
			backlog = math.Max(0, backlog-gap*(rate+theta)) + 1
			now += gap
		}
		for x := range over {
			if backlog > x {
				over[x]++
			}
		}
	}
	for x, n := range over {
		got, want := overflow(x, theta, rate, epoch), float64(n)/runs
		if math.Abs(got-want) > 0.25*want+0.005 {
			t.Errorf("P(backlog > %v) = %.4f by the formula, %.4f counted", x, got, want)
		}
	}
}

func TestMarginTendsToItsLimits(t *testing.T) {
	const eps = 0.005
	slo := 20 * time.Millisecond
	// The exact stationary solution of exp(-2θ(λ+θ)w/λ) = ε for a wait w.
	w, rate := patience*slo.Seconds(), 1000.0
	theta := (-rate + math.Sqrt(rate*rate+2*rate*math.Log(1/eps)/w)) / 2
	if got := Margin(rate, slo, time.Hour, eps); math.Abs(got-theta) > 0.01*theta {
		t.Errorf("margin %v at a short SLO, want %v as for a stationary queue", got, theta)
	}
	short, long := Margin(5000, second, 2*second, eps), Margin(5000, second, time.Hour, eps)
	if !(short < 0.7*long) {
		t.Errorf("margin %v for an epoch of 2 s, %v for an hour: a backlog has no time to build up in a short epoch", short, long)
	}
}

func TestMarginProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(0.01, 20_000).Draw(t, "rate")
		slo := time.Duration(rapid.IntRange(2, 2000).Draw(t, "slo_ms")) * time.Millisecond
		epoch := time.Duration(rapid.IntRange(1, 600).Draw(t, "epoch_s")) * second
		eps := rapid.Float64Range(0.0005, 0.1).Draw(t, "eps")
		m := Margin(rate, slo, epoch, eps)
		switch {
		case !(m >= 0) || math.IsInf(m, 0):
			t.Fatalf("margin %v", m)
		case Margin(rate, 2*slo, epoch, eps) > m*(1+1e-4)+1e-6:
			t.Fatalf("margin %v grows with the SLO", m)
		case Margin(rate, slo, epoch, eps/2) < m*(1-1e-4)-1e-6:
			t.Fatalf("margin %v shrinks with the target", m)
		case rate+m > 1.001*(1.01*rate+Margin(1.01*rate, slo, epoch, eps)):
			t.Fatalf("a higher rate needs less: %v + %v", rate, m)
		}
		capacity := rate + m
		if back := Carries(capacity, slo, epoch, eps); math.Abs(back-rate) > 0.01*rate+0.01 {
			t.Fatalf("capacity %v carries %v, made for %v", capacity, back, rate)
		}
	})
}

func TestNeedIsItsParts(t *testing.T) {
	c := DefaultConfig(10 * second)
	n := c.Of(Estimate{RateRPS: 100, Window: 20 * second}, 100*time.Millisecond, 200)
	if n.ExpectedRPS != 100 || n.MarginRPS <= 0 || n.DrainRPS != 18.9 {
		t.Errorf("need %+v", n)
	}
	if none := c.Of(Estimate{}, 100*time.Millisecond, 0); none.PlannedRPS() != 0 {
		t.Errorf("a model without traffic needs %+v", none)
	}
}

func TestAtLeastIsBelowTheEstimate(t *testing.T) {
	e := Estimate{RateRPS: 100, Window: second}
	if got := e.AtLeast(0.999); got > 75 || got < 60 {
		t.Errorf("a rate of 100 seen for a second is at least %v for sure, expected about 69", got)
	}
}

func TestConfigIsValidated(t *testing.T) {
	if err := DefaultConfig(10 * second).Validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Config){
		"smooth": func(c *Config) { c.Smooth = 0 }, "trend": func(c *Config) { c.Trend = -1 },
		"jump": func(c *Config) { c.Jump = 0 }, "horizon": func(c *Config) { c.Horizon = 0 },
		"violations": func(c *Config) { c.Violations = math.NaN() }, "drain": func(c *Config) { c.DrainWithin = 0 },
	} {
		c := DefaultConfig(10 * second)
		if spoil(&c); c.Validate() == nil {
			t.Errorf("bad %s was accepted", name)
		}
	}
}
