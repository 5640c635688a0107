package report

import (
	"encoding/csv"
	"io"
	"strconv"
)

// WriteCSV writes one line per model and one called "total", under a line of column names; errors
// have one column per code.
func (r Run) WriteCSV(w io.Writer) error {
	cw := csv.NewWriter(w)
	header := []string{
		"model", "slo_ms", "sent", "ok", "lost", "duplicates", "slo_violations", "rate_rps", "throughput_rps", "goodput_rps",
		"mean_ms", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "wrong", "labelled", "correct", "send_lag_p99_ms", "send_lag_max_ms", "late",
	}
	for _, code := range ErrorCodes() {
		header = append(header, string(code))
	}
	_ = cw.Write(header) // errors stick until Error
	for _, name := range r.Names() {
		_ = cw.Write(record(name, r.Models[name]))
	}
	_ = cw.Write(record("total", r.Total))
	cw.Flush()
	return cw.Error()
}

func record(name string, f Figures) []string {
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	x := func(v float64) string { return strconv.FormatFloat(v, 'f', 4, 64) }
	rec := []string{
		name, x(f.SLOMs), n(f.Sent), n(f.OK), n(f.Lost), n(f.Duplicates), n(f.SLOViolations), x(f.RateRPS), x(f.ThroughputRPS), x(f.GoodputRPS),
		x(f.MeanMs), x(f.P50Ms), x(f.P90Ms), x(f.P99Ms), x(f.P999Ms), x(f.MaxMs), n(f.Wrong), n(f.Labelled), n(f.Correct), x(f.SendLagP99Ms), x(f.SendLagMaxMs), n(f.Late),
	}
	for _, code := range ErrorCodes() {
		rec = append(rec, n(f.Errors[code]))
	}
	return rec
}
