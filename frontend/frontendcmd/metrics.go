package frontendcmd

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/frontend/internal/fleet"
	"github.com/gpulet/gpulet/frontend/internal/inbox"
)

// system shows what the inbox and the fleet know, read when /metrics is.
type system struct {
	inbox *inbox.Inbox
	fleet *fleet.Fleet
}

var (
	unclaimedDesc = prometheus.NewDesc("gpulet_frontend_replies_unclaimed_total",
		"Replies nobody waited for: late (the waiter had left), duplicate (already answered) or stray.", []string{"kind"}, nil)
	waitingDesc = prometheus.NewDesc("gpulet_frontend_requests_waiting",
		"Requests sent to a queue and not answered yet.", nil, nil)
	againDesc = prometheus.NewDesc("gpulet_frontend_publishes_again_total",
		"Publishes made again, after a lost acknowledgement or a reconnect, of requests that wait for an answer.", nil, nil)
	planDesc = prometheus.NewDesc("gpulet_frontend_plan_revision",
		"Revision of the plan that the frontend has seen.", nil, nil)
	readyDesc = prometheus.NewDesc("gpulet_frontend_model_ready",
		"1 while a gpu-let serves the model, else 0.", []string{"model"}, nil)
	deadDesc = prometheus.NewDesc("gpulet_frontend_dead_letters",
		"Dead letters kept, by model: requests answered poisoned in the last 24 hours and neither replayed nor purged.", []string{"model"}, nil)
)

func registerSystem(reg prometheus.Registerer, i *inbox.Inbox, f *fleet.Fleet) {
	reg.MustRegister(&system{i, f})
}

// Describe implements prometheus.Collector.
func (s *system) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{unclaimedDesc, waitingDesc, againDesc, planDesc, readyDesc, deadDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *system) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	st := s.inbox.Stats()
	counter(unclaimedDesc, st.Late, "late")
	counter(unclaimedDesc, st.Duplicates, "duplicate")
	counter(unclaimedDesc, st.Strays, "stray")
	gauge(waitingDesc, float64(st.Pending))
	counter(againDesc, st.Again)
	gauge(planDesc, float64(s.fleet.Plan().Revision))
	for _, m := range s.fleet.Models() {
		ready := 0.0
		if s.fleet.ModelReady(m.Name) == nil {
			ready = 1
		}
		gauge(readyDesc, ready, m.Name)
		gauge(deadDesc, float64(s.fleet.State().Dead[m.Name]), m.Name)
	}
}
