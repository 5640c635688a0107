package chaos

import (
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/wire"
)

// Service is how a model was served over a stretch of time.
type Service struct {
	Model string  `json:"model"`
	Sent  int     `json:"sent"`
	RPS   float64 `json:"sent_rps"`
	// Good requests were answered ok within the SLO.
	Good    int     `json:"good"`
	Goodput float64 `json:"goodput_rps"`
	Missed  float64 `json:"violations"` // share of the requests that were not
	// Refused requests were told overloaded or expired; RefusedP99Ms is how long that took.
	Refused      int     `json:"refused"`
	RefusedP99Ms float64 `json:"refused_p99_ms"`
	P50Ms        float64 `json:"p50_ms"` // of answers that are ok
	P99Ms        float64 `json:"p99_ms"`
	// GapMs is the longest time between one answer and the next, GapP99Ms what 99 % of them do not
	// exceed.
	GapMs    float64 `json:"longest_gap_ms"`
	GapP99Ms float64 `json:"gap_p99_ms"`
	Failed   int     `json:"failed"` // neither ok nor refused
}

// Service sums up the requests to a model that were sent from from to until.
func (l *Ledger) Service(model string, slo, from, until time.Duration) Service {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Service{Model: model}
	var answered, refused, at []time.Duration
	for i := range l.entries {
		e := &l.entries[i]
		if e.Model != model || e.Sent < from || e.Sent >= until {
			continue
		}
		s.Sent++
		took := e.Done - e.Sent
		switch e.Status {
		case wire.StatusOK:
			answered, at = append(answered, took), append(at, e.Done)
			if took <= slo {
				s.Good++
			}
		case wire.Overloaded, wire.Expired:
			refused = append(refused, took)
		default:
			s.Failed++
		}
	}
	seconds := (until - from).Seconds()
	s.RPS, s.Goodput = float64(s.Sent)/seconds, float64(s.Good)/seconds
	s.Missed = float64(s.Sent-s.Good) / float64(max(s.Sent, 1))
	s.Refused, s.RefusedP99Ms = len(refused), quantileMs(refused, 0.99)
	s.P50Ms, s.P99Ms = quantileMs(answered, 0.5), quantileMs(answered, 0.99)
	slices.Sort(at)
	var gaps []time.Duration
	for i := 1; i < len(at); i++ {
		gaps = append(gaps, at[i]-at[i-1])
	}
	s.GapMs, s.GapP99Ms = quantileMs(gaps, 1), quantileMs(gaps, 0.99)
	return s
}

// quantileMs is a quantile in milliseconds; 0 of nothing. It sorts list.
func quantileMs(list []time.Duration, q float64) float64 {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return 1e3 * list[min(int(q*float64(len(list))), len(list)-1)].Seconds()
}
