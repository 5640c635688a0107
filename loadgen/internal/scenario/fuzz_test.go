package scenario

import (
	"math"
	"testing"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte(rush))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := Parse("f", data); err == nil && s.Duration() <= 0 {
			t.Errorf("a scenario of %v", s.Duration())
		}
	})
}

// FuzzFlags: what is typed as rates, SLOs and a mix makes sense or is refused.
func FuzzFlags(f *testing.F) {
	f.Add("lenet=500,bert=20")
	f.Add("lenet=50ms, bert=1s")
	f.Add("scen1")
	f.Add("a=1e308,b=1e308")
	f.Fuzz(func(t *testing.T, text string) {
		rates, err := ParseRates(text)
		for name, rps := range rates {
			if err == nil && !(rps >= 0 && !math.IsInf(rps, 1)) {
				t.Errorf("rate %s=%v", name, rps)
			}
		}
		slos, err := ParseSLOs(text)
		for name, slo := range slos {
			if err == nil && slo <= 0 {
				t.Errorf("SLO %s=%v", name, slo)
			}
		}
		mix, err := ParseMix(text)
		sum := 0.0
		for _, share := range mix {
			sum += share
		}
		if err == nil && !(math.Abs(sum-1) < 1e-9) {
			t.Errorf("mix %v sums to %v", mix, sum)
		}
	})
}

const rush = `
name: rush hour
arrival: poisson
seed: 7
models:
  lenet: {slo: 20ms, arrival: "mmpp:5,20%,1s"}
  bert: {}
phases:
  - {name: calm, duration: 10s, rates: {lenet: 100, bert: 10}}
  - {name: rise, duration: 20s, ramp: true, rates: {lenet: 400}}
  - {name: rush, duration: 30s}
  - {name: over, duration: 5s, rates: {lenet: 0}}
`
