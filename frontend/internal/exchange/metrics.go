package exchange

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/shared/wire"
)

// Metrics counts requests. Names that are no registered model are counted together under
// unknownModel, so that clients cannot make series.
type Metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	refused  *prometheus.CounterVec
	cancels  *prometheus.CounterVec
	inFlight prometheus.Gauge
}

const unknownModel = "unknown"

// NewMetrics registers the metrics with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gpulet_frontend_requests_total", Help: "Inference requests by how they ended.",
		}, []string{"model", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gpulet_frontend_request_duration_seconds",
			Help: "Time of answered requests, from the first byte of the body to the last of the answer.",
			Buckets: []float64{
				.0005, .001, .002, .003, .005, .0075, .01, .015, .02, .03, .05, .075, .1, .15, .2, .3, .5, 1, 2, 5,
			},
		}, []string{"model"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gpulet_frontend_publish_refused_total", Help: "Requests that the queue did not take.",
		}, []string{"model", "status"}),
		cancels: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gpulet_frontend_cancels_total", Help: "Requests to cancel a request by its id.",
		}, []string{"model"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gpulet_frontend_requests_in_flight", Help: "Requests being read, waited for or answered.",
		}),
	}
	reg.MustRegister(m.requests, m.seconds, m.refused, m.cancels, m.inFlight)
	return m
}

func (m *Metrics) observe(model string, status wire.Status, took time.Duration) {
	m.requests.WithLabelValues(model, string(status)).Inc()
	if status == wire.StatusOK {
		m.seconds.WithLabelValues(model).Observe(took.Seconds())
	}
}
