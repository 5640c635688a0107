package drive

import (
	"maps"
	"time"

	"github.com/gpulet/gpulet/loadgen/internal/hist"
	"github.com/gpulet/gpulet/loadgen/internal/payload"
	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/shared/wire"
)

// tally adds up what came of a stream's requests. Its ledger guards it.
type tally struct {
	slo      time.Duration
	warmup   time.Duration
	interval time.Duration

	sentN, ok, lost, duplicates, unasked int64
	violations, late                     int64
	wrong, labelled, correct             int64
	wrongWhy                             string
	errors                               map[wire.Status]int64
	causes                               map[wire.Status]string
	latency, lag                         *hist.Histogram
	recent                               *hist.Histogram // latencies since progress last asked
	timed                                int64           // answers that carried stages
	queuedUs, batchedUs, execUs, batch   float64
	steps                                []step
}

// step is one interval of the timeline.
type step struct {
	sent, ok, violations int64
	latency              *hist.Histogram
}

func newTally(s Stream, opts Options) *tally {
	t := &tally{
		slo: s.SLO, warmup: opts.Warmup, interval: opts.Interval,
		errors: map[wire.Status]int64{}, causes: map[wire.Status]string{},
		latency: hist.New(hist.Fine), lag: hist.New(hist.Fine), recent: hist.New(hist.Coarse),
	}
	for _, code := range report.ErrorCodes() {
		t.errors[code] = 0
	}
	return t
}

func (t *tally) step(intended time.Duration) *step {
	i := int((intended - t.warmup) / t.interval)
	for i >= len(t.steps) {
		t.steps = append(t.steps, step{latency: hist.New(hist.Coarse)})
	}
	return &t.steps[i]
}

func (t *tally) sent(intended time.Duration) {
	t.sentN++
	t.step(intended).sent++
}

func (t *tally) left(lag time.Duration) {
	t.lag.Add(lag)
	if lag > report.LateAfter {
		t.late++
	}
}

func (t *tally) answered(intended, latency time.Duration, reply wire.Reply, v payload.Verdict) {
	if reply.Status != wire.StatusOK {
		t.failed(intended, reply.Status, reply.Detail)
		return
	}
	t.ok++
	t.latency.Add(latency)
	t.recent.Add(latency)
	s := t.step(intended)
	s.ok++
	s.latency.Add(latency)
	if t.slo > 0 && latency > t.slo {
		t.violated(intended)
	}
	t.judged(v)
	t.timing(reply.Timing)
}

func (t *tally) judged(v payload.Verdict) {
	if v.Wrong {
		if t.wrong++; t.wrong == 1 {
			t.wrongWhy = v.Why
		}
	}
	if v.Labelled {
		t.labelled++
	}
	if v.Correct {
		t.correct++
	}
}

func (t *tally) timing(w wire.Timing) {
	if w.Batch == 0 {
		return
	}
	t.timed++
	t.queuedUs += float64(w.QueuedUs)
	t.batchedUs += float64(w.BatchedUs)
	t.execUs += float64(w.ExecUs)
	t.batch += float64(w.Batch)
}

func (t *tally) failed(intended time.Duration, status wire.Status, detail string) {
	t.errors[status]++
	if _, known := t.causes[status]; !known && detail != "" {
		t.causes[status] = detail
	}
	t.violated(intended)
}

func (t *tally) missing(intended time.Duration) {
	t.lost++
	t.violated(intended)
}

func (t *tally) violated(intended time.Duration) {
	t.violations++
	t.step(intended).violations++
}

// cdfPoints is how many points of the latency distribution a report carries at most.
const cdfPoints = 120

// figures are t's counts and quantiles over the seconds that were counted.
func (t *tally) figures(seconds float64) report.Figures {
	f := report.Figures{
		Sent: t.sentN, OK: t.ok, Lost: t.lost, Duplicates: t.duplicates, Unasked: t.unasked,
		Errors: maps.Clone(t.errors), Causes: maps.Clone(t.causes),
		SLOMs: report.Ms(t.slo), SLOViolations: t.violations,
		RateRPS:       float64(t.sentN) / seconds,
		ThroughputRPS: float64(t.ok) / seconds,
		GoodputRPS:    float64(t.sentN-t.violations) / seconds,
		MeanMs:        report.Ms(t.latency.Mean()),
		P50Ms:         report.Ms(t.latency.Quantile(0.5)),
		P90Ms:         report.Ms(t.latency.Quantile(0.9)),
		P99Ms:         report.Ms(t.latency.Quantile(0.99)),
		P999Ms:        report.Ms(t.latency.Quantile(0.999)),
		MaxMs:         report.Ms(t.latency.Max()),
		Wrong:         t.wrong, WrongWhy: t.wrongWhy,
		Labelled: t.labelled, Correct: t.correct,
		SendLagP99Ms: report.Ms(t.lag.Quantile(0.99)),
		SendLagMaxMs: report.Ms(t.lag.Max()),
		Late:         t.late,
		Stages:       t.stages(),
	}
	if t.labelled > 0 {
		accuracy := float64(t.correct) / float64(t.labelled)
		f.Accuracy = &accuracy
	}
	for _, p := range t.latency.CDF(cdfPoints) {
		f.CDF = append(f.CDF, [2]float64{report.Ms(p.Value), p.Fraction})
	}
	for i, s := range t.steps {
		f.Timeline = append(f.Timeline, report.Step{
			AtS:  (time.Duration(i) * t.interval).Seconds(),
			Sent: s.sent, OK: s.ok, Violations: s.violations,
			P50Ms: report.Ms(s.latency.Quantile(0.5)),
			P99Ms: report.Ms(s.latency.Quantile(0.99)),
		})
	}
	return f
}

func (t *tally) stages() *report.Stages {
	if t.timed == 0 {
		return nil
	}
	ms := 1e-3 / float64(t.timed)
	return &report.Stages{
		QueuedMs: t.queuedUs * ms, BatchedMs: t.batchedUs * ms, ExecMs: t.execUs * ms,
		Batch: t.batch / float64(t.timed),
	}
}

// merge adds o's counts to t's.
func (t *tally) merge(o *tally) {
	t.sentN += o.sentN
	t.ok += o.ok
	t.lost += o.lost
	t.duplicates += o.duplicates
	t.unasked += o.unasked
	t.violations += o.violations
	t.late += o.late
	t.wrong += o.wrong
	t.labelled += o.labelled
	t.correct += o.correct
	if t.wrongWhy == "" {
		t.wrongWhy = o.wrongWhy
	}
	for code, n := range o.errors {
		t.errors[code] += n
	}
	for code, why := range o.causes {
		if t.causes[code] == "" {
			t.causes[code] = why
		}
	}
	t.latency.Merge(o.latency)
	t.lag.Merge(o.lag)
	t.timed += o.timed
	t.queuedUs += o.queuedUs
	t.batchedUs += o.batchedUs
	t.execUs += o.execUs
	t.batch += o.batch
	for i, s := range o.steps {
		into := t.step(t.warmup + time.Duration(i)*t.interval)
		into.sent += s.sent
		into.ok += s.ok
		into.violations += s.violations
		into.latency.Merge(s.latency)
	}
}
