package demand

import (
	"math"
	"time"
)

// patience is the part of an SLO that a backlog may take without breaking it. A sound plan has duty
// cycle + batch time <= SLO with batch time <= duty cycle, so the duty cycle, within which everything
// that a batch can hold is served, may be as short as half of the SLO; on average half of that is
// already used by a request's wait for its turn.
const patience = 0.25

// Margin returns by how much the capacity of a plan has to exceed the mean rate of a Poisson stream,
// in requests per second, for at most the share epsilon of its requests to miss the SLO by the end
// of an epoch that begins without a backlog.
//
// The backlog of a Poisson stream of rate λ at a server of capacity μ = λ+θ is close to a Brownian
// motion with drift -θ and variance λ per second, reflected at zero (Kingman 1961). Beginning empty,
// its distribution after t seconds is known (Harrison, Brownian Motion and Stochastic Flow Systems,
// 1985, section 1.9):
//
//	P(Q > x) = Φ(-(x+θt)/√(λt)) + exp(-2θx/λ) Φ((-x+θt)/√(λt))
//
// and rises with t towards exp(-2θx/λ). A backlog of x costs a wait of x/μ; with x = μ·patience·SLO
// the smallest θ for which P(Q > x) <= epsilon is the margin. For short SLOs the epoch is an
// eternity and the margin tends to ln(1/ε)/(2·patience·SLO); for long SLOs at high rates the epoch
// ends before the backlog can build up, and the margin shrinks.
func Margin(rateRPS float64, slo, epoch time.Duration, epsilon float64) float64 {
	if rateRPS <= 0 || slo <= 0 || epoch <= 0 {
		return 0
	}
	wait, t := patience*slo.Seconds(), epoch.Seconds()
	late := func(theta float64) float64 {
		return overflow((rateRPS+theta)*wait, theta, rateRPS, t)
	}
	if late(0) <= epsilon {
		return 0
	}
	low, high := 0.0, 1.0
	for late(high) > epsilon {
		low, high = high, 2*high
	}
	for high-low > 1e-6*(rateRPS+high) {
		if mid := (low + high) / 2; late(mid) > epsilon {
			low = mid
		} else {
			high = mid
		}
	}
	return high
}

// Carries is the inverse: the largest rate that a capacity carries with its margin.
func Carries(capacityRPS float64, slo, epoch time.Duration, epsilon float64) float64 {
	low, high := 0.0, capacityRPS
	for range 60 {
		if mid := (low + high) / 2; mid+Margin(mid, slo, epoch, epsilon) > capacityRPS {
			high = mid
		} else {
			low = mid
		}
	}
	return low
}

// overflow is P(Q(t) > x) of a Brownian motion from 0 with drift -theta and the given variance per
// second, reflected at zero.
func overflow(x, theta, variance, t float64) float64 {
	sd := math.Sqrt(variance * t)
	return normal(-(x+theta*t)/sd) + math.Exp(-2*theta*x/variance)*normal((-x+theta*t)/sd)
}

// estimateError is the upper one-sided error of a rate counted over a window: the standard error of
// a Poisson mean times the normal quantile of epsilon.
func estimateError(rateRPS float64, window time.Duration, epsilon float64) float64 {
	if window <= 0 {
		return 0
	}
	return quantile(1-epsilon) * math.Sqrt(rateRPS/window.Seconds())
}

// normal is the standard normal distribution function.
func normal(z float64) float64 { return math.Erfc(-z/math.Sqrt2) / 2 }

// quantile inverts normal.
func quantile(p float64) float64 { return -math.Sqrt2 * math.Erfcinv(2*p) }
