package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"time"
)

// Pattern is how arrivals are spaced around their rate.
type Pattern string

// The patterns.
const (
	Poisson Pattern = "poisson" // independent: exponential gaps
	Uniform Pattern = "uniform" // equal gaps
	// MMPP is a Poisson process whose rate switches between Burst times the mean and as much below
	// it, for exponential times of mean Sojourn: a two-state Markov-modulated Poisson process.
	MMPP Pattern = "mmpp"
)

// Traffic is the arrivals of one model.
type Traffic struct {
	Pattern Pattern // empty: Poisson
	// Trace is the mean rate over time, at least one point; linear in between, constant outside.
	Trace []Point
	// Burst is the factor of MMPP's high state, in (1, 2]. Sojourn is the mean stay in a state.
	Burst   float64
	Sojourn time.Duration
}

// Point is a rate at a time.
type Point struct {
	At      time.Duration
	RateRPS float64
}

// Constant is a Poisson stream of one rate.
func Constant(rateRPS float64) Traffic {
	return Traffic{Pattern: Poisson, Trace: []Point{{0, rateRPS}}}
}

// Validate names the first thing that makes no sense.
func (t Traffic) Validate() error {
	switch t.Pattern {
	case "", Poisson, Uniform:
	case MMPP:
		if !(t.Burst > 1 && t.Burst <= 2) || t.Sojourn <= 0 {
			return fmt.Errorf("burst %v, sojourn %v: expected a factor above 1, at most 2, and a positive time", t.Burst, t.Sojourn)
		}
	default:
		return fmt.Errorf("pattern %q: expected poisson, uniform or mmpp", t.Pattern)
	}
	if len(t.Trace) == 0 {
		return fmt.Errorf("trace: no point")
	}
	for i, p := range t.Trace {
		if !(p.RateRPS >= 0) || math.IsInf(p.RateRPS, 0) {
			return fmt.Errorf("trace: rate %v at %v: expected a number of 0 or more", p.RateRPS, p.At)
		}
		if i > 0 && p.At <= t.Trace[i-1].At {
			return fmt.Errorf("trace: %v after %v: expected times to rise", p.At, t.Trace[i-1].At)
		}
	}
	return nil
}

// At is the mean rate at a time.
func (t Traffic) At(at time.Duration) float64 {
	i := sort.Search(len(t.Trace), func(i int) bool { return t.Trace[i].At > at })
	switch {
	case i == 0:
		return t.Trace[0].RateRPS
	case i == len(t.Trace):
		return t.Trace[i-1].RateRPS
	}
	a, b := t.Trace[i-1], t.Trace[i]
	return a.RateRPS + (b.RateRPS-a.RateRPS)*float64(at-a.At)/float64(b.At-a.At)
}

// expected is how many arrivals the mean rate makes until end.
func (t Traffic) expected(end time.Duration) float64 {
	sum, from := 0.0, time.Duration(0)
	for _, p := range append(slices.Clone(t.Trace), Point{At: end}) {
		to := min(p.At, end)
		if to <= from {
			continue
		}
		sum += (t.At(from) + t.At(to)) / 2 * (to - from).Seconds()
		from = to
	}
	return sum
}

// stride is the time for which a changing rate is taken as constant.
const stride = time.Second

// source draws arrivals one after the other.
type source struct {
	traffic Traffic
	rng     *rand.Rand
	now     time.Duration
	high    bool          // MMPP: in the high state
	until   time.Duration // MMPP: end of the state
}

func newSource(t Traffic, seed uint64, index int) *source {
	return &source{traffic: t, rng: rand.New(rand.NewPCG(seed, uint64(index)+1))}
}

// next returns the time of the next arrival; false when none comes before end. It walks through
// stretches of constant rate and spends one unit of the process's own time on the way: of mean 1
// for Poisson, exactly 1 for uniform arrivals.
func (s *source) next(end time.Duration) (time.Duration, bool) {
	left := 1.0
	if s.traffic.Pattern != Uniform {
		left = s.rng.ExpFloat64()
	}
	for s.now < end {
		stop := (s.now/stride + 1) * stride
		rate := s.traffic.At(s.now/stride*stride + stride/2)
		if s.traffic.Pattern == MMPP {
			rate *= s.modulation()
			stop = min(stop, s.until)
		}
		if need := left / rate * float64(time.Second); rate > 0 && s.now+time.Duration(need) < stop {
			s.now += time.Duration(need)
			return s.now, s.now < end
		}
		left -= rate * (stop - s.now).Seconds()
		s.now = stop
	}
	return 0, false
}

// modulation is the factor on the rate now. Both states last equally long on average, so their
// factors average to 1.
func (s *source) modulation() float64 {
	for s.until <= s.now {
		s.high = !s.high
		s.until += 1 + time.Duration(s.rng.ExpFloat64()*float64(s.traffic.Sojourn))
	}
	if s.high {
		return s.traffic.Burst
	}
	return 2 - s.traffic.Burst
}
