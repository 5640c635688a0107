// Package arrival decides when requests are sent.
//
// A Process yields the intended send times of one stream as offsets from the start of a run. It is
// pure: time is a value, randomness comes from the seed that it was made with, so the same seed
// always sends at the same instants, whatever the system under test does. That is what makes the
// load generator an open loop.
package arrival

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// Process yields intended send times in non-descending order. It is not safe for concurrent use.
type Process interface {
	// Next returns the next send time as an offset from the start; false once there are no more.
	Next() (time.Duration, bool)
}

// Kind names a family of processes.
type Kind string

// The families. Trace needs the recorded times; see Replay.
const (
	KindPoisson Kind = "poisson"
	KindUniform Kind = "uniform"
	KindMMPP    Kind = "mmpp"
	KindTrace   Kind = "trace"
)

// Spec is a parsed --arrival.
type Spec struct {
	Kind  Kind
	MMPP  MMPP   // of KindMMPP
	Trace string // file of KindTrace
}

// ParseSpec reads "poisson", "uniform", "mmpp", "mmpp:RATIO,FRACTION,LENGTH" or "trace:FILE".
func ParseSpec(s string) (Spec, error) {
	kind, arg, hasArg := strings.Cut(s, ":")
	switch k := Kind(kind); k {
	case KindPoisson, KindUniform:
		if hasArg {
			return Spec{}, fmt.Errorf("arrival %q: %s takes no argument", s, kind)
		}
		return Spec{Kind: k}, nil
	case KindMMPP:
		m, err := parseMMPP(arg, hasArg)
		if err != nil {
			return Spec{}, fmt.Errorf("arrival %q: %w", s, err)
		}
		return Spec{Kind: k, MMPP: m}, nil
	case KindTrace:
		if arg == "" {
			return Spec{}, fmt.Errorf("arrival %q: expected trace:FILE", s)
		}
		return Spec{Kind: k, Trace: arg}, nil
	}
	return Spec{}, fmt.Errorf("arrival %q: expected poisson, uniform, mmpp[:RATIO,FRACTION,LENGTH] or trace:FILE", s)
}

func (s Spec) String() string {
	switch s.Kind {
	case KindMMPP:
		return fmt.Sprintf("mmpp:%g,%g%%,%v", s.MMPP.Ratio, 100*s.MMPP.Fraction, s.MMPP.Length)
	case KindTrace:
		return "trace:" + s.Trace
	default:
		return string(s.Kind)
	}
}

// New returns the process that s describes with the given rate over time. KindTrace has recorded
// times instead of a rate: use Replay.
func (s Spec) New(rate Rate, seed uint64, stream string) Process {
	rng := rand.New(rand.NewPCG(seed, hash(stream)))
	switch s.Kind {
	case KindUniform:
		return &renewal{rate: rate, gap: func() float64 { return 1 }, next: rng.Float64()}
	case KindMMPP:
		return newModulated(s.MMPP, rate, rng)
	default:
		return &renewal{rate: rate, gap: rng.ExpFloat64, next: rng.ExpFloat64()}
	}
}

// hash is FNV-1a: streams of one seed are independent of each other and of their order.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// renewal is a unit-rate renewal process in operational time (expected arrivals so far), mapped to
// clock time by the inverse of the rate's integral: exponential gaps give a Poisson process, also
// where the rate varies; constant gaps give evenly spaced arrivals with a random phase.
type renewal struct {
	rate Rate
	gap  func() float64
	next float64
}

func (r *renewal) Next() (time.Duration, bool) {
	at, ok := r.rate.inverse(r.next)
	r.next += r.gap()
	return at, ok
}

// MMPP is a Markov-modulated Poisson process of two states: bursts, at Ratio times the rate of the
// calm between them. Its mean rate is the stream's rate.
type MMPP struct {
	Ratio    float64       // rate in a burst over the rate in a calm, at least 1
	Fraction float64       // share of the time spent in bursts, in (0, 1)
	Length   time.Duration // mean length of a burst
}

// DefaultMMPP bursts to five times the calm rate for a second, a fifth of the time.
var DefaultMMPP = MMPP{Ratio: 5, Fraction: 0.2, Length: time.Second}

func parseMMPP(arg string, given bool) (MMPP, error) {
	if !given {
		return DefaultMMPP, nil
	}
	parts := strings.Split(arg, ",")
	if len(parts) != 3 {
		return MMPP{}, fmt.Errorf("%d values: expected RATIO,FRACTION,LENGTH as in 5,20%%,1s", len(parts))
	}
	ratio, err := strconv.ParseFloat(parts[0], 64)
	if err != nil || !(ratio >= 1) || math.IsInf(ratio, 0) {
		return MMPP{}, fmt.Errorf("ratio %q: expected a number of at least 1", parts[0])
	}
	fraction, err := ParseFraction(parts[1])
	if err != nil || fraction <= 0 || fraction >= 1 {
		return MMPP{}, fmt.Errorf("fraction %q: expected something between 0 and 1, such as 20%%", parts[1])
	}
	length, err := time.ParseDuration(parts[2])
	if err != nil || length <= 0 {
		return MMPP{}, fmt.Errorf("length %q: expected a duration above 0, such as 1s", parts[2])
	}
	return MMPP{Ratio: ratio, Fraction: fraction, Length: length}, nil
}

// ParseFraction reads "20%" or "0.2".
func ParseFraction(s string) (float64, error) {
	num, percent := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(num, 64)
	if percent {
		v /= 100
	}
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, fmt.Errorf("%q: expected a fraction such as 1%% or 0.01", s)
	}
	return v, nil
}

// rates returns the factors on the mean rate in a burst and in a calm.
func (m MMPP) rates() (burst, calm float64) {
	calm = 1 / (1 - m.Fraction + m.Fraction*m.Ratio)
	return calm * m.Ratio, calm
}

// Dispersion is the limit of variance over mean of the number of arrivals in a window, as the
// window grows, at a mean rate per second (Heffes and Lucantoni 1986). A Poisson process has 1.
func (m MMPP) Dispersion(meanRate float64) float64 {
	burst, calm := m.rates()
	l1, l2 := burst*meanRate, calm*meanRate
	out1 := 1 / m.Length.Seconds()               // burst → calm
	out2 := out1 * m.Fraction / (1 - m.Fraction) // calm → burst
	return 1 + 2*out1*out2*(l1-l2)*(l1-l2)/((out1+out2)*(out1+out2)*(l1*out2+l2*out1))
}

// modulated runs a Poisson process in operational time whose speed depends on the burst state.
type modulated struct {
	mmpp   MMPP
	rate   Rate
	rng    *rand.Rand
	burst  bool
	end    time.Duration // of the present state
	base   float64       // expected arrivals of the unmodulated rate before the last one or the last change of state
	credit float64       // arrivals still due, in units of the modulated process
}

func newModulated(m MMPP, rate Rate, rng *rand.Rand) *modulated {
	p := &modulated{mmpp: m, rate: rate, rng: rng, burst: rng.Float64() < m.Fraction}
	p.end = p.stay()
	p.credit = rng.ExpFloat64()
	return p
}

func (p *modulated) stay() time.Duration {
	mean := p.mmpp.Length.Seconds()
	if !p.burst {
		mean *= (1 - p.mmpp.Fraction) / p.mmpp.Fraction
	}
	return max(time.Duration(p.rng.ExpFloat64()*mean*float64(time.Second)), time.Nanosecond)
}

func (p *modulated) factor() float64 {
	burst, calm := p.mmpp.rates()
	if p.burst {
		return burst
	}
	return calm
}

func (p *modulated) Next() (time.Duration, bool) {
	for {
		need := p.base + p.credit/p.factor()
		if have := p.rate.integral(p.end); need > have {
			if p.end >= p.rate.End() {
				return 0, false
			}
			p.credit -= (have - p.base) * p.factor()
			p.base, p.burst = have, !p.burst
			p.end += p.stay()
			continue
		}
		at, ok := p.rate.inverse(need)
		p.base, p.credit = need, p.rng.ExpFloat64()
		return at, ok
	}
}
