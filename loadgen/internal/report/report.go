// Package report is what a run says: its figures as JSON, as tables, CSV and a page of HTML, and
// several runs compared.
//
// The field names of Run are a contract: others read them. The package formats; it measures
// nothing.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/wire"
)

// Run is one run's document.
type Run struct {
	Started   time.Time `json:"started,omitzero"`
	DurationS float64   `json:"duration_s"` // how long requests were counted, warm-up left out
	WarmupS   float64   `json:"warmup_s,omitempty"`
	Via       string    `json:"via,omitempty"`
	Arrival   string    `json:"arrival,omitempty"`
	Seed      uint64    `json:"seed"`
	Scenario  string    `json:"scenario,omitempty"`
	Body      string    `json:"body,omitempty"`    // what requests carried: auto, random or jpeg
	Samples   int       `json:"samples,omitempty"` // of a random request
	// Interrupted: the run was ended before its time.
	Interrupted bool `json:"interrupted,omitempty"`
	// IntervalS is the width of a step of the timelines.
	IntervalS float64            `json:"interval_s,omitempty"`
	Models    map[string]Figures `json:"models"`
	Total     Figures            `json:"total"`
	Phases    []Phase            `json:"phases,omitempty"`
}

// Figures are what was counted and measured for a model, or for all.
//
// Latencies count from when a request was meant to be sent, and only those of requests answered
// "ok". A request violates its SLO when it is not answered "ok" within it, for whatever reason.
type Figures struct {
	Sent int64 `json:"sent"`
	OK   int64 `json:"ok"`
	// Lost requests were sent and never answered in any way.
	Lost int64 `json:"lost"`
	// Duplicates are answers beyond the first to a request.
	Duplicates int64 `json:"duplicates"`
	// Unasked are answers to requests that were never sent.
	Unasked int64 `json:"unasked,omitempty"`
	// Errors counts by error code; every code is there.
	Errors map[wire.Status]int64 `json:"errors"`
	// Causes has one error's words by code.
	Causes map[wire.Status]string `json:"causes,omitempty"`

	SLOMs         float64 `json:"slo_ms,omitempty"`
	SLOViolations int64   `json:"slo_violations"`

	RateRPS       float64 `json:"rate_rps"`       // sent per second
	ThroughputRPS float64 `json:"throughput_rps"` // answered "ok" per second
	GoodputRPS    float64 `json:"goodput_rps"`    // answered "ok" within the SLO per second

	MeanMs float64 `json:"mean_ms"`
	P50Ms  float64 `json:"p50_ms"`
	P90Ms  float64 `json:"p90_ms"`
	P99Ms  float64 `json:"p99_ms"`
	P999Ms float64 `json:"p999_ms"`
	MaxMs  float64 `json:"max_ms"`

	// Wrong answers differ from the expected outputs; WrongWhy is one of them.
	Wrong    int64  `json:"wrong"`
	WrongWhy string `json:"wrong_why,omitempty"`
	// Labelled answers are to inputs whose right class is known, Correct those that have it.
	Labelled int64 `json:"labelled,omitempty"`
	Correct  int64 `json:"correct"`
	// Accuracy is Correct of Labelled; absent where nothing is labelled.
	Accuracy *float64 `json:"accuracy,omitempty"`

	// SendLag is how far sends were behind their intended times: what this client could not keep up
	// with. Late counts sends more than LateAfter behind.
	SendLagP99Ms float64 `json:"send_lag_p99_ms"`
	SendLagMaxMs float64 `json:"send_lag_max_ms"`
	Late         int64   `json:"late"`

	Stages *Stages `json:"stages,omitempty"`
	// CDF is [latency in ms, fraction of the answers within it], ascending.
	CDF      [][2]float64 `json:"cdf,omitempty"`
	Timeline []Step       `json:"timeline,omitempty"`
}

// LateAfter is the send lag from which a send counts as late.
const LateAfter = 5 * time.Millisecond

// Stages are means over the answers that say where their time went.
type Stages struct {
	QueuedMs  float64 `json:"queued_ms"`
	BatchedMs float64 `json:"batched_ms"`
	ExecMs    float64 `json:"exec_ms"`
	Batch     float64 `json:"batch"` // samples that ran together
}

// Step is one interval of a timeline; requests count where they were meant to be sent.
type Step struct {
	AtS        float64 `json:"at_s"`
	Sent       int64   `json:"sent"`
	OK         int64   `json:"ok"`
	Violations int64   `json:"violations"`
	P50Ms      float64 `json:"p50_ms"`
	P99Ms      float64 `json:"p99_ms"`
}

// Phase is a part of a scenario, with the sums of the timeline over it.
type Phase struct {
	Name   string               `json:"name"`
	FromS  float64              `json:"from_s"`
	ToS    float64              `json:"to_s"`
	Models map[string]PhaseSums `json:"models"`
}

// PhaseSums are a model's counts in a phase.
type PhaseSums struct {
	Sent       int64 `json:"sent"`
	OK         int64 `json:"ok"`
	Violations int64 `json:"violations"`
}

// ErrorCodes lists every error code, in the order of the tables.
func ErrorCodes() []wire.Status { return wire.Statuses()[1:] }

// Names lists the run's models, sorted.
func (r Run) Names() []string {
	names := make([]string, 0, len(r.Models))
	for name := range r.Models {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// ErrorCount is the number of answers that were errors.
func (f Figures) ErrorCount() int64 {
	var n int64
	for _, c := range f.Errors {
		n += c
	}
	return n
}

// ViolationShare is the fraction of the sent requests that violated their SLO; 0 when none was sent.
func (f Figures) ViolationShare() float64 {
	if f.Sent == 0 {
		return 0
	}
	return float64(f.SLOViolations) / float64(f.Sent)
}

// KeptUp reports whether the client kept its schedule: at most one send in twenty was late. A stall
// of the client's machine delays some sends; a client that is too slow delays nearly all.
func (f Figures) KeptUp() bool { return f.Late*20 <= f.Sent }

// Failure says what of the run must not happen at all: lost, wrong or unasked answers, or a model
// that answered nothing "ok". It is empty when nothing did.
func (r Run) Failure() string {
	t := r.Total
	switch {
	case t.Lost > 0:
		return fmt.Sprintf("%d of %d requests were lost: sent and never answered", t.Lost, t.Sent)
	case t.Wrong > 0:
		return fmt.Sprintf("%d of %d answers were wrong: %s", t.Wrong, t.OK, t.WrongWhy)
	case t.Unasked > 0:
		return fmt.Sprintf("%d answers came to requests that were never sent", t.Unasked)
	}
	for _, name := range r.Names() {
		if f := r.Models[name]; f.Sent > 0 && f.OK == 0 {
			return fmt.Sprintf("%s: none of %d requests was answered ok%s", name, f.Sent, f.cause())
		}
	}
	return ""
}

// cause is the words of the most frequent error, to follow a sentence; empty where nothing is said.
func (f Figures) cause() string {
	var most wire.Status
	for _, s := range ErrorCodes() {
		if f.Errors[s] > f.Errors[most] {
			most = s
		}
	}
	switch {
	case most == "":
		return ""
	case f.Causes[most] == "":
		return ": " + string(most)
	}
	return fmt.Sprintf(": %s: %s", most, f.Causes[most])
}

// Parse reads a document that Run was written as.
func Parse(file string, data []byte) (Run, error) {
	var r Run
	if err := json.Unmarshal(data, &r); err != nil {
		return Run{}, fmt.Errorf("%s: %w: expected the JSON of loadgen run", file, err)
	}
	if len(r.Models) == 0 {
		return Run{}, fmt.Errorf("%s: no models: expected the JSON of loadgen run", file)
	}
	return r, nil
}

// Ms is a duration in milliseconds.
func Ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// WriteJSON writes the run's document.
func (r Run) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
