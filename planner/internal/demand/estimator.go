package demand

import (
	"math"
	"time"

	"gonum.org/v1/gonum/mathext"
)

// jumpTail is the probability below which a count is not chance but a jump. At one observation a
// second and 200 models it raises a false alarm about every 80 minutes, which costs a little
// over-provision for an epoch.
const jumpTail = 1e-6

// Estimator follows the arrivals of one model. The zero value has seen nothing. It is a value: a
// copy is a snapshot.
type Estimator struct {
	rate, slope float64 // per second, per second per second
	seen        time.Duration
	recent      []sample // the last Config.Jump of observations, oldest first
}

type sample struct {
	n       float64
	elapsed time.Duration
}

// Observe adds n arrivals counted over the elapsed time. Time that does not move forward is
// ignored together with its arrivals.
func (e *Estimator) Observe(c Config, n uint64, elapsed time.Duration) {
	if elapsed <= 0 {
		return
	}
	e.remember(sample{float64(n), elapsed}, c.Jump)
	if e.seen == 0 {
		e.rate, e.seen = float64(n)/elapsed.Seconds(), elapsed
		return
	}
	e.seen += elapsed
	e.smooth(c, float64(n), elapsed)
	e.catchUp()
}

// smooth is Holt's linear exponential smoothing with weights for uneven intervals. Until the
// window is as long as the time constant, every observation weighs the same.
func (e *Estimator) smooth(c Config, n float64, elapsed time.Duration) {
	dt := elapsed.Seconds()
	alpha := math.Max(weight(elapsed, c.Smooth), dt/e.seen.Seconds())
	before := e.rate
	predicted := e.rate + e.slope*dt
	e.rate = math.Max(0, predicted+alpha*(n/dt-predicted))
	if c.Trend > 0 && e.seen >= c.Smooth {
		e.slope += weight(elapsed, c.Trend) * ((e.rate-before)/dt - e.slope)
	}
}

// catchUp takes a recent rate for the rate when the mean cannot explain so many arrivals: that of
// the shortest stretch, back from now, which is too full for chance.
func (e *Estimator) catchUp() {
	var n, seconds float64
	for i := len(e.recent) - 1; i >= 0; i-- {
		n += e.recent[i].n
		seconds += e.recent[i].elapsed.Seconds()
		if n < 2 || n/seconds <= e.rate || poissonTail(n, e.rate*seconds) >= jumpTail {
			continue
		}
		e.rate, e.slope = n/seconds, 0
		e.seen = time.Duration(seconds * float64(time.Second))
		return
	}
}

func (e *Estimator) remember(s sample, window time.Duration) {
	e.recent = append(e.recent, s)
	var span time.Duration
	for i := len(e.recent) - 1; i >= 0; i-- {
		span += e.recent[i].elapsed
		if span >= window {
			e.recent = append(e.recent[:0:0], e.recent[i:]...)
			return
		}
	}
}

// Estimate is what is known now.
func (e *Estimator) Estimate(c Config) Estimate {
	window := e.seen
	if most := 2 * c.Smooth; window > most { // an exponential average is worth twice its constant
		window = most
	}
	return Estimate{RateRPS: e.rate, SlopeRPS: e.slope, Window: window}
}

// weight is the share of an average of time constant tau that an interval replaces.
func weight(elapsed, tau time.Duration) float64 {
	return 1 - math.Exp(-elapsed.Seconds()/tau.Seconds())
}

// poissonTail is P(N >= n) for N ~ Poisson(mean): the regularised lower incomplete gamma function.
func poissonTail(n, mean float64) float64 {
	if mean <= 0 {
		if n > 0 {
			return 0
		}
		return 1
	}
	return mathext.GammaIncReg(n, mean)
}

// Known returns an estimator that starts from an estimate instead of from nothing.
func Known(e Estimate) Estimator {
	return Estimator{rate: e.RateRPS, slope: e.SlopeRPS, seen: e.Window}
}
