//fuzz:with catalog.go offlineproblem.go

package plannercmd

import (
	"strings"
	"testing"

	"github.com/gpulet/gpulet/shared/profile"
)

func FuzzParseRates(f *testing.F) {
	f.Add("model,rate\nresnet50,3\n# x\nvgg16, 4\n")
	f.Fuzz(func(t *testing.T, text string) {
		rates, err := parseRates("f", strings.NewReader(text))
		for name, rate := range rates {
			if err == nil && !(rate >= 0 && rate <= 1e9) {
				t.Errorf("%q=%v", name, rate)
			}
		}
	})
}

// FuzzFlags: assignments and GPUs that are typed make sense or are refused.
func FuzzFlags(f *testing.F) {
	for _, text := range []string{"a=100ms, b=1s", "a=3,b=4", "8", "g:2", "gpulet,elastic"} {
		f.Add(text)
	}
	set := &profile.Set{}
	set.Add(&profile.Profile{Model: "m", GPUType: "g", Points: []profile.Point{{Share: 100, Batch: 1, P50Ms: 1}}})
	f.Fuzz(func(t *testing.T, text string) {
		slos, _ := parseAssignments("slos", text, parseSLO)
		for name, slo := range slos {
			if name == "" || slo <= 0 {
				t.Errorf("SLO %q=%v", name, slo)
			}
		}
		rates, _ := parseAssignments("rates", text, parseRate)
		for name, rate := range rates {
			if name == "" || !(rate >= 0 && rate <= maxRate) {
				t.Errorf("rate %q=%v", name, rate)
			}
		}
		samples, _ := parsePoisson(text)
		for name, n := range samples {
			if n < 1 {
				t.Errorf("%q: %d samples", name, n)
			}
		}
		if names, err := parseAlgorithms(text); err == nil && len(names) == 0 {
			t.Error("no algorithm")
		}
		if gpus, _, err := parseFleet(text, "dir", set); err == nil && (len(gpus) < 1 || len(gpus) > maxFleet) {
			t.Errorf("%d GPUs", len(gpus))
		}
	})
}
