package scenario

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/loadgen/internal/arrival"
)

func TestFilesParse(t *testing.T) {
	s, err := Parse("rush.yaml", []byte(rush))
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(7)
	want := Scenario{
		Name: "rush hour", Arrival: &arrival.Spec{Kind: arrival.KindPoisson}, Seed: &seed,
		Models: map[string]Model{
			"lenet": {SLO: 20 * time.Millisecond, Arrival: &arrival.Spec{Kind: arrival.KindMMPP, MMPP: arrival.DefaultMMPP}},
			"bert":  {},
		},
		Phases: []Phase{
			{Name: "calm", Duration: 10 * time.Second, Rates: map[string]float64{"lenet": 100, "bert": 10}},
			{Name: "rise", Duration: 20 * time.Second, Ramp: true, Rates: map[string]float64{"lenet": 400}},
			{Name: "rush", Duration: 30 * time.Second},
			{Name: "over", Duration: 5 * time.Second, Rates: map[string]float64{"lenet": 0}},
		},
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"bert", "lenet"}, s.Names()); d != "" {
		t.Error(d)
	}
	if s.Duration() != 65*time.Second {
		t.Errorf("duration %v", s.Duration())
	}
}

func TestRatesFollowThePhases(t *testing.T) {
	s, err := Parse("rush.yaml", []byte(rush))
	if err != nil {
		t.Fatal(err)
	}
	lenet, bert := s.Rate("lenet"), s.Rate("bert")
	for at, want := range map[time.Duration][2]float64{
		5 * time.Second:  {100, 10},
		20 * time.Second: {250, 10}, // half way up the ramp
		45 * time.Second: {400, 10},
		62 * time.Second: {0, 10},
		70 * time.Second: {0, 0},
	} {
		if got := [2]float64{lenet.At(at), bert.At(at)}; got != want {
			t.Errorf("at %v: rates %v, expected %v", at, got, want)
		}
	}
	if got := lenet.Expected(); math.Abs(got-(1000+5000+12000)) > 1e-6 {
		t.Errorf("%v requests to lenet expected, want 18000", got)
	}
}

func TestBadFilesNameTheKey(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "s.yaml: phases: none",
		"phase: []":                  `unknown field "phase"`,
		"phases: [{rates: {a: 1}}]":  `phases[0].duration: found ""`,
		"phases: [{duration: soon}]": `phases[0].duration: found "soon"`,
		"phases: [{duration: -1s}]":  `phases[0].duration: found "-1s"`,
		"phases: [{duration: 1s, rates: {a: -1}}]":                      "phases[0].rates.a: rate -1",
		"phases: [{duration: 1s, rates: {a: .nan}}]":                    "phases[0].rates.a: rate NaN",
		"{phases: [{duration: 1s}], models: {a: {slo: fast}}}":          `models.a.slo: found "fast"`,
		"{phases: [{duration: 1s}], models: {a: {arrival: sometimes}}}": `models.a.arrival "sometimes"`,
		"{phases: [{duration: 1s}], arrival: sometimes}":                `s.yaml: arrival "sometimes"`,
		"{phases: [{duration: 1s, weight: 2}]}":                         `unknown field "weight"`,
		"a: [":                                                          "s.yaml: ",
	} {
		if _, err := Parse("s.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, expected %q in it", text, err, want)
		}
	}
}

func TestFlagsParse(t *testing.T) {
	rates, err := ParseRates("lenet=500, bert=2.5")
	if d := cmp.Diff(map[string]float64{"lenet": 500, "bert": 2.5}, rates); err != nil || d != "" {
		t.Error(err, d)
	}
	slos, err := ParseSLOs("lenet=50ms")
	if d := cmp.Diff(map[string]time.Duration{"lenet": 50 * time.Millisecond}, slos); err != nil || d != "" {
		t.Error(err, d)
	}
	for _, bad := range []string{"", "lenet", "lenet=", "=5", "lenet=-1", "lenet=NaN", "lenet=Inf", "lenet=1,lenet=2", "lenet=1,"} {
		if got, err := ParseRates(bad); err == nil {
			t.Errorf("%q was taken as %v", bad, got)
		}
	}
	for _, bad := range []string{"lenet=5", "lenet=0s", "lenet=-5ms"} {
		if got, err := ParseSLOs(bad); err == nil {
			t.Errorf("%q was taken as %v", bad, got)
		}
	}
}

func TestMixesAreShares(t *testing.T) {
	for text, want := range map[string]map[string]float64{
		"game":             {"lenet": 6.0 / 7, "resnet50": 1.0 / 7},
		"a=3,b=1,unused=0": {"a": 0.75, "b": 0.25},
	} {
		got, err := ParseMix(text)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%s: %v %s", text, err, d)
		}
	}
	for _, bad := range []string{"scen9", "a=0", ""} {
		if got, err := ParseMix(bad); err == nil {
			t.Errorf("%q was taken as %v", bad, got)
		}
	}
}
