package drive

import (
	"maps"
	"time"

	"github.com/gpulet/gpulet/shared/wire"
)

// Counts are what there is to say of a stream at any time, for metrics; the warm-up is left out.
type Counts struct {
	Model          string
	Sent, OK, Lost int64
	Errors         map[wire.Status]int64
	// AtMost is, per bound that was asked for, how many latencies of ok answers do not exceed it;
	// within the width of a histogram's bucket, 0.1 %.
	AtMost []uint64
	// Seconds is the sum of those latencies.
	Seconds float64
}

// Counts returns the counts of every stream so far, in the order of the streams, with latencies
// counted up to each of bounds, which ascend. Any number of callers may ask while the run goes on.
func (r *Run) Counts(bounds []time.Duration) []Counts {
	out := make([]Counts, len(r.ledgers))
	for i, l := range r.ledgers {
		out[i] = l.counts(bounds)
		out[i].Model = r.streams[i].Model
	}
	return out
}

func (l *ledger) counts(bounds []time.Duration) Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tally
	return Counts{
		Sent: t.sentN, OK: t.ok, Lost: t.lost, Errors: maps.Clone(t.errors),
		AtMost: t.latency.AtMost(bounds), Seconds: t.latency.Mean().Seconds() * float64(t.latency.Count()),
	}
}
