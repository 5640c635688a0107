package report

import (
	"encoding/json"
	"io"
	"math"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/wire"
)

// sample is a run with one of everything.
func sample() Run {
	accuracy := 0.98
	errors := map[wire.Status]int64{}
	for _, code := range ErrorCodes() {
		errors[code] = 0
	}
	lenet := Figures{
		Sent: 3000, OK: 2990, Errors: map[wire.Status]int64{wire.Expired: 7, wire.Overloaded: 2}, Lost: 1, Duplicates: 3,
		Causes: map[wire.Status]string{wire.Expired: "could not finish in time"},
		SLOMs:  20, SLOViolations: 42, RateRPS: 300, ThroughputRPS: 299, GoodputRPS: 295.8,
		MeanMs: 2.2, P50Ms: 1.81, P90Ms: 3.4, P99Ms: 9.05, P999Ms: 24.2, MaxMs: 31,
		Labelled: 2990, Correct: 2930, Accuracy: &accuracy, Wrong: 1, WrongWhy: `output "y": missing`,
		SendLagP99Ms: 0.4, SendLagMaxMs: 2.5,
		Stages: &Stages{QueuedMs: 0.4, BatchedMs: 0.1, ExecMs: 0.6, Batch: 2.5},
	}
	bert := Figures{Sent: 100, OK: 100, Errors: errors, RateRPS: 10, ThroughputRPS: 10, GoodputRPS: 10, MeanMs: 50, P50Ms: 48, P90Ms: 60, P99Ms: 75, P999Ms: 80, MaxMs: 80}
	for i := range 10 {
		at, x := float64(i), float64(i)
		lenet.Timeline = append(lenet.Timeline, Step{AtS: at, Sent: 300, OK: 299, Violations: int64(i), P50Ms: 1.8 + math.Sin(x)/2, P99Ms: 9 + 4*math.Sin(x)})
		bert.Timeline = append(bert.Timeline, Step{AtS: at, Sent: 10, OK: 10, P50Ms: 48 + math.Cos(x), P99Ms: 70 + 5*math.Cos(x)})
	}
	for i := range 60 {
		q := 1 - math.Pow(10, -4*float64(i)/59)
		lenet.CDF = append(lenet.CDF, [2]float64{1.2 * math.Pow(25, float64(i)/59), q})
		bert.CDF = append(bert.CDF, [2]float64{35 * math.Pow(2.3, float64(i)/59), q})
	}
	total := lenet
	total.Sent, total.OK, total.CDF, total.Timeline = 3100, 3090, nil, nil
	sums := func(n int64) map[string]PhaseSums {
		return map[string]PhaseSums{"lenet": {Sent: n, OK: n - 5, Violations: 5}, "bert": {Sent: 50, OK: 50}}
	}
	return Run{
		Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), DurationS: 10, Via: "nats", Arrival: "poisson", Seed: 1, Scenario: "rush",
		IntervalS: 1, Models: map[string]Figures{"lenet": lenet, "bert": bert}, Total: total,
		Phases: []Phase{{Name: "calm", ToS: 5, Models: sums(1000)}, {Name: "rush", FromS: 5, ToS: 10, Models: sums(2000)}},
	}
}

// FuzzParse: of whatever is accepted, everything that reports are made of can be written.
func FuzzParse(f *testing.F) {
	doc, err := json.Marshal(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add([]byte(`{"models":{"a":{}},"duration_s":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		run, err := Parse("f", data)
		if err != nil {
			return
		}
		_ = run.Failure()
		for _, write := range []func(io.Writer) error{run.WriteJSON, run.WriteCSV} {
			if err := write(io.Discard); err != nil {
				t.Error(err)
			}
		}
	})
}
