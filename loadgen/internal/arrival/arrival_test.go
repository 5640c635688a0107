package arrival

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func collect(t *testing.T, p Process) []time.Duration {
	t.Helper()
	var all []time.Duration
	for {
		at, ok := p.Next()
		if !ok {
			return all
		}
		if n := len(all); n > 0 && at < all[n-1] {
			t.Fatalf("arrival %d at %v, before its predecessor at %v", n, at, all[n-1])
		}
		all = append(all, at)
	}
}

func moments(xs []float64) (mean, variance float64) {
	for _, x := range xs {
		mean += x
	}
	mean /= float64(len(xs))
	for _, x := range xs {
		variance += (x - mean) * (x - mean)
	}
	return mean, variance / float64(len(xs)-1)
}

func gaps(all []time.Duration) []float64 {
	var out []float64
	for i := 1; i < len(all); i++ {
		out = append(out, (all[i] - all[i-1]).Seconds())
	}
	return out
}

func counts(all []time.Duration, window, end time.Duration) []float64 {
	out := make([]float64, end/window)
	for _, at := range all {
		if i := int(at / window); i < len(out) {
			out[i]++
		}
	}
	return out
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance*math.Abs(want) {
		t.Errorf("%s: %.5g, theory says %.5g", what, got, want)
	}
}

func TestPoissonHasExponentialGapsAndPoissonCounts(t *testing.T) {
	const rate, end = 500.0, 400 * time.Second
	all := collect(t, Spec{Kind: KindPoisson}.New(Constant(rate, end), 7, "lenet"))
	mean, variance := moments(gaps(all))
	near(t, "mean gap", mean, 1/rate, 0.01)
	near(t, "variance of gaps", variance, 1/(rate*rate), 0.02)

	mean, variance = moments(counts(all, 100*time.Millisecond, end))
	near(t, "mean count", mean, rate/10, 0.01)
	near(t, "variance over mean", variance/mean, 1, 0.06)

	beyond := 0
	for _, g := range gaps(all) {
		if g > 3/rate {
			beyond++
		}
	}
	near(t, "share of gaps over three means", float64(beyond)/float64(len(all)), math.Exp(-3), 0.03)
}

func TestUniformIsEvenlySpaced(t *testing.T) {
	all := collect(t, Spec{Kind: KindUniform}.New(Constant(100, 10*time.Second), 7, "lenet"))
	if len(all) != 1000 {
		t.Fatalf("%d arrivals, expected 1000", len(all))
	}
	for i, g := range gaps(all) {
		if math.Abs(g-0.01) > 1e-6 {
			t.Fatalf("gap %d is %v s, expected 0.01", i, g)
		}
	}
}

func TestMMPPHasItsTheoreticalRateAndDispersion(t *testing.T) {
	const rate, end = 200.0, 20000 * time.Second
	for _, m := range []MMPP{DefaultMMPP, {Ratio: 20, Fraction: 0.05, Length: 300 * time.Millisecond}} {
		all := collect(t, Spec{Kind: KindMMPP, MMPP: m}.New(Constant(rate, end), 11, "lenet"))
		mean, variance := moments(counts(all, 50*time.Second, end))
		near(t, "mean rate", mean/50, rate, 0.03)
		near(t, "dispersion", variance/mean, m.Dispersion(rate), 0.2)
		if cv2(gaps(all)) < 1.2 {
			t.Errorf("gaps of %+v vary like Poisson's: squared coefficient of variation %.3f", m, cv2(gaps(all)))
		}
	}
}

func cv2(xs []float64) float64 {
	mean, variance := moments(xs)
	return variance / (mean * mean)
}

func TestMMPPOfRatioOneIsPoisson(t *testing.T) {
	m := MMPP{Ratio: 1, Fraction: 0.5, Length: time.Second}
	if d := m.Dispersion(100); d != 1 {
		t.Errorf("dispersion %v, expected 1", d)
	}
	all := collect(t, Spec{Kind: KindMMPP, MMPP: m}.New(Constant(100, 1000*time.Second), 3, "lenet"))
	near(t, "squared coefficient of variation", cv2(gaps(all)), 1, 0.03)
}

func TestRatesThatVaryAreFollowed(t *testing.T) {
	var r Rate
	r.Append(100, 100, 50*time.Second)
	r.Append(100, 500, 100*time.Second) // a ramp
	r.Append(0, 0, 20*time.Second)
	r.Append(300, 300, 30*time.Second)
	for _, spec := range []Spec{{Kind: KindPoisson}, {Kind: KindUniform}, {Kind: KindMMPP, MMPP: MMPP{Ratio: 2, Fraction: 0.5, Length: 50 * time.Millisecond}}} {
		all := collect(t, spec.New(r, 5, "lenet"))
		per := counts(all, 50*time.Second, 200*time.Second)
		for i, want := range []float64{5000, 10000, 20000, 9000} {
			near(t, spec.String()+" arrivals of a quarter", per[i], want, 0.06)
		}
		for _, at := range all {
			if at > 150*time.Second && at < 170*time.Second {
				t.Fatalf("%s: arrival at %v, where the rate is 0", spec, at)
			}
		}
	}
}

func TestSameSeedSameTimesAndStreamsDiffer(t *testing.T) {
	for _, spec := range []Spec{{Kind: KindPoisson}, {Kind: KindUniform}, {Kind: KindMMPP, MMPP: DefaultMMPP}} {
		draw := func(seed uint64, stream string) []time.Duration {
			return collect(t, spec.New(Constant(50, 10*time.Second), seed, stream))
		}
		if d := cmp.Diff(draw(1, "a"), draw(1, "a")); d != "" {
			t.Errorf("%s: same seed, other times (-first +second):\n%s", spec, d)
		}
		if slices.Equal(draw(1, "a"), draw(1, "b")) || slices.Equal(draw(1, "a"), draw(2, "a")) {
			t.Errorf("%s: another stream or seed gave the same times", spec)
		}
	}
}

func TestInverseUndoesIntegral(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r Rate
		for range rapid.IntRange(1, 5).Draw(t, "pieces") {
			rps := rapid.Float64Range(0.01, 5000)
			r.Append(rps.Draw(t, "from"), rps.Draw(t, "to"), time.Duration(rapid.Int64Range(1e6, 1e11).Draw(t, "length")))
		}
		at := time.Duration(rapid.Float64Range(0, 1).Draw(t, "where") * float64(r.End()))
		got, ok := r.inverse(r.integral(at))
		if !ok && at < r.End()-time.Millisecond || ok && math.Abs((got-at).Seconds()) > 1e-5*max(1, at.Seconds()) {
			t.Fatalf("inverse(integral(%v)) = %v, %v", at, got, ok)
		}
	})
}

func TestNoRateNoArrivals(t *testing.T) {
	for _, r := range []Rate{{}, Constant(0, time.Minute)} {
		for _, spec := range []Spec{{Kind: KindPoisson}, {Kind: KindUniform}, {Kind: KindMMPP, MMPP: DefaultMMPP}} {
			if all := collect(t, spec.New(r, 1, "lenet")); len(all) != 0 {
				t.Errorf("%s: %d arrivals at rate 0", spec, len(all))
			}
		}
	}
}

func TestTraceIsReplayedAndStretched(t *testing.T) {
	tr, err := ParseTrace("t.csv", []byte("time_s,model\n# comment\n0.5,lenet\n1.0,bert\n1.5,lenet\n2.5,lenet\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := Trace{"lenet": {500 * time.Millisecond, 1500 * time.Millisecond, 2500 * time.Millisecond}, "bert": {time.Second}}
	if d := cmp.Diff(want, tr); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"bert", "lenet"}, tr.Models()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want["lenet"][:2], collect(t, Replay(tr["lenet"], 0, 2*time.Second))); d != "" {
		t.Errorf("cut at the end:\n%s", d)
	}
	stretched := collect(t, Replay(tr["lenet"], 2, time.Minute)) // 1/s recorded, 2/s wanted
	if d := cmp.Diff([]time.Duration{250 * time.Millisecond, 750 * time.Millisecond, 1250 * time.Millisecond}, stretched); d != "" {
		t.Errorf("stretched to another rate:\n%s", d)
	}
}

func TestBadTracesNameTheLine(t *testing.T) {
	for data, want := range map[string]string{
		"":                   "t.csv: no arrivals",
		"1\n0.5\n":           "t.csv:2: time",
		"1,lenet\n2\n":       "t.csv:2: 1 fields",
		"1,2,3\n":            "t.csv:1: 3 fields",
		"1\nsoon\n":          "t.csv:2: time",
		"1\nNaN\n":           "t.csv:2: time",
		"-1\n":               "t.csv:1: time",
		"1\n1e300\n":         "t.csv:2: time",
		"seconds\nseconds\n": "t.csv:2: time",
	} {
		if _, err := ParseTrace("t.csv", []byte(data)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: error %v, expected it to start with %q", data, err, want)
		}
	}
}

func TestSpecsParse(t *testing.T) {
	for in, want := range map[string]Spec{
		"poisson":            {Kind: KindPoisson},
		"uniform":            {Kind: KindUniform},
		"mmpp":               {Kind: KindMMPP, MMPP: DefaultMMPP},
		"mmpp:10,5%,200ms":   {Kind: KindMMPP, MMPP: MMPP{Ratio: 10, Fraction: 0.05, Length: 200 * time.Millisecond}},
		"trace:rush.csv":     {Kind: KindTrace, Trace: "rush.csv"},
		"trace:a:b/rush.csv": {Kind: KindTrace, Trace: "a:b/rush.csv"},
	} {
		got, err := ParseSpec(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", in, d)
		}
		if back, err := ParseSpec(got.String()); err != nil || back != got {
			t.Errorf("%s does not parse back from %q: %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "pareto", "poisson:3", "trace", "trace:", "mmpp:", "mmpp:1,2", "mmpp:0.5,20%,1s", "mmpp:5,120%,1s", "mmpp:5,20%,0s", "mmpp:NaN,20%,1s", "mmpp:Inf,20%,1s"} {
		if s, err := ParseSpec(bad); err == nil {
			t.Errorf("%q was taken as %+v", bad, s)
		}
	}
}

func TestRatesThatCannotBe(t *testing.T) {
	for _, rps := range []float64{-1, math.NaN(), math.Inf(1)} {
		if CheckRPS(rps) == nil {
			t.Errorf("%v was taken as a rate", rps)
		}
	}
}
