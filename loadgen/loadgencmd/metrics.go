package loadgencmd

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/loadgen/internal/drive"
	"github.com/gpulet/gpulet/shared/telemetry"
)

// latencyBounds are the metrics' buckets; the run's own figures are finer.
var latencyBounds = []time.Duration{
	500 * time.Microsecond, time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond, 5 * time.Millisecond,
	7500 * time.Microsecond, 10 * time.Millisecond, 15 * time.Millisecond, 20 * time.Millisecond, 30 * time.Millisecond,
	50 * time.Millisecond, 75 * time.Millisecond, 100 * time.Millisecond, 150 * time.Millisecond, 200 * time.Millisecond,
	300 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second,
}

// meter shows the counts of the run that goes on, read when /metrics is. With the next run of a
// search they begin at 0 again, as Prometheus expects of a restart.
type meter struct {
	sent, requests, seconds *prometheus.Desc

	run atomic.Pointer[drive.Run]
}

func newMeter(reg prometheus.Registerer) *meter {
	m := &meter{
		sent: prometheus.NewDesc("gpulet_loadgen_sent_requests_total",
			"Requests sent; like all counts here, without the warm-up.", []string{"model"}, nil),
		requests: prometheus.NewDesc("gpulet_loadgen_requests_total",
			"Requests by how they ended: ok, the error that came, or lost.", []string{"model", "status"}, nil),
		seconds: prometheus.NewDesc("gpulet_loadgen_request_duration_seconds",
			"Time of requests that were answered ok, from the intended time of sending.", []string{"model"}, nil),
	}
	reg.MustRegister(m)
	return m
}

// show makes run the one whose counts are shown.
func (m *meter) show(run *drive.Run) { m.run.Store(run) }

// Describe implements prometheus.Collector.
func (m *meter) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.sent
	ch <- m.requests
	ch <- m.seconds
}

// Collect implements prometheus.Collector.
func (m *meter) Collect(ch chan<- prometheus.Metric) {
	run := m.run.Load()
	if run == nil {
		return
	}
	counter := func(d *prometheus.Desc, n int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for _, c := range run.Counts(latencyBounds) {
		counter(m.sent, c.Sent, c.Model)
		counter(m.requests, c.OK, c.Model, "ok")
		counter(m.requests, c.Lost, c.Model, "lost")
		for status, n := range c.Errors {
			counter(m.requests, n, c.Model, string(status))
		}
		buckets := map[float64]uint64{}
		for i, n := range c.AtMost {
			buckets[latencyBounds[i].Seconds()] = n
		}
		ch <- prometheus.MustNewConstHistogram(m.seconds, uint64(c.OK), c.Seconds, buckets, c.Model)
	}
}

// serveMetrics answers on addr until stop is called.
func serveMetrics(addr string, log *slog.Logger) (m *meter, stop func(), err error) {
	reg := telemetry.NewRegistry()
	m = newMeter(reg)
	ctx, cancel := context.WithCancel(context.Background())
	server, err := telemetry.Serve(ctx, addr, reg, log)
	if err != nil {
		cancel()
		return nil, nil, fmt.Errorf("--metrics-addr: %w", err)
	}
	return m, func() {
		cancel()
		server.Wait()
	}, nil
}
