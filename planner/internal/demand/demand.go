// Package demand turns counted arrivals into the rates that a plan has to carry.
//
// Three steps, each a pure function of its arguments; the caller owns the clock:
//
//   - an Estimator follows one model's arrivals: an exponentially weighted mean as in the gpu-lets
//     paper (Choi et al., USENIX ATC 2022, section 4), plus a trend, plus a test that recognises a
//     jump at once instead of after several epochs;
//   - Margin adds what a Poisson stream of that rate needs on top, so that at most a target share
//     of its requests waits longer than its SLO allows during one epoch;
//   - Drain adds what empties a backlog within a stated time.
//
// The rate at which a plan is guaranteed (and simulated) is the estimate; the rate that the packer
// is asked to carry is the estimate with margin and drain, Need.Planned.
package demand

import (
	"fmt"
	"math"
	"time"
)

// Config tunes the estimation; see DefaultConfig for what is usual.
type Config struct {
	// Smooth is the time constant of the moving average: an arrival's weight falls to 1/e after it.
	Smooth time.Duration
	// Trend is the time constant of the slope's average. 0 leaves trends out.
	Trend time.Duration
	// Jump is how many recent seconds are tested for a sudden rise.
	Jump time.Duration
	// Horizon is how far ahead a plan has to hold: the epoch plus the time a plan takes to act.
	Horizon time.Duration
	// Violations is the target share of requests that may miss their SLO, in (0, 0.5).
	Violations float64
	// DrainWithin is the time in which a backlog should be gone.
	DrainWithin time.Duration
}

// DefaultConfig is the configuration for an epoch's length: the average follows within about an
// epoch, the target leaves half of one percent to chance.
func DefaultConfig(epoch time.Duration) Config {
	return Config{
		Smooth:      epoch,
		Trend:       3 * epoch,
		Jump:        3 * time.Second,
		Horizon:     epoch + 2*time.Second,
		Violations:  0.005,
		DrainWithin: epoch,
	}
}

// Validate names the first field that is out of range.
func (c Config) Validate() error {
	switch {
	case c.Smooth <= 0:
		return fmt.Errorf("demand smooth %v: must be positive", c.Smooth)
	case c.Trend < 0:
		return fmt.Errorf("demand trend %v: must not be negative", c.Trend)
	case c.Jump <= 0:
		return fmt.Errorf("demand jump %v: must be positive", c.Jump)
	case c.Horizon <= 0:
		return fmt.Errorf("demand horizon %v: must be positive", c.Horizon)
	case !(c.Violations > 0 && c.Violations < 0.5):
		return fmt.Errorf("demand violations %v: must be between 0 and 0.5", c.Violations)
	case c.DrainWithin <= 0:
		return fmt.Errorf("demand drain within %v: must be positive", c.DrainWithin)
	}
	return nil
}

// Estimate is what is known of one model's arrivals.
type Estimate struct {
	// RateRPS is the mean rate now, per second.
	RateRPS float64
	// SlopeRPS is by how much the rate rises per second; negative when it falls.
	SlopeRPS float64
	// Window is the span of observation behind RateRPS: the shorter, the less it is worth.
	Window time.Duration
}

// AtLeast is the rate that is exceeded with the given probability, as far as the window tells.
func (e Estimate) AtLeast(probability float64) float64 {
	return max(0, e.RateRPS-estimateError(e.RateRPS, e.Window, 1-probability))
}

// Need is what one model asks of a plan.
type Need struct {
	// ExpectedRPS is the rate expected until the horizon, trend included, margin not.
	ExpectedRPS float64
	// MarginRPS is what chance adds: the estimate's own error and the stream's burstiness.
	MarginRPS float64
	// DrainRPS is what the backlog adds.
	DrainRPS float64
}

// PlannedRPS is the rate the packer is asked to carry.
func (n Need) PlannedRPS() float64 { return n.ExpectedRPS + n.MarginRPS + n.DrainRPS }

// Of computes a model's need from its estimate, its SLO and the requests that wait in its queue
// (taken but unanswered ones included).
func (c Config) Of(e Estimate, slo time.Duration, backlog uint64) Need {
	expected := e.RateRPS + c.rise(e)
	if expected < 0 {
		expected = 0
	}
	n := Need{ExpectedRPS: expected, DrainRPS: c.Drain(expected, slo, backlog)}
	if expected > 0 {
		upper := expected + estimateError(expected, e.Window, c.Violations)
		n.MarginRPS = upper + Margin(upper, slo, c.Horizon, c.Violations) - expected
	}
	return n
}

// rise is the expected increase until the horizon. A slope counts only as far as it exceeds its own
// standard error (a least-squares slope over a window W of a Poisson stream has variance 12λ/W³),
// so that noise does not buy GPUs; a falling rate is not extrapolated, since planning too low is
// worse than planning an epoch too late.
func (c Config) rise(e Estimate) float64 {
	if c.Trend <= 0 || e.SlopeRPS <= 0 || e.RateRPS <= 0 {
		return 0
	}
	w := math.Min(2*c.Trend.Seconds(), e.Window.Seconds())
	if w <= 0 {
		return 0
	}
	slope := e.SlopeRPS - math.Sqrt(12*e.RateRPS/(w*w*w))
	return math.Max(0, slope) * c.Horizon.Seconds()
}

// Drain returns the rate that empties the part of a backlog that is not simply in flight (by
// Little's law a stream within its SLO holds at most rate x SLO requests) within DrainWithin.
func (c Config) Drain(rateRPS float64, slo time.Duration, backlog uint64) float64 {
	excess := float64(backlog) - rateRPS*slo.Seconds() - 1
	return math.Max(0, excess) / c.DrainWithin.Seconds()
}
