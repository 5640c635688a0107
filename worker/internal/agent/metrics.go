package agent

import (
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/shared/plan"
)

// metrics shows what the agent last knew of its gpu-lets. Counters of a gpu-let start again at 0
// when its process does, as Prometheus expects of a restart.
type metrics struct {
	revision *prometheus.Desc
	state    *prometheus.Desc
	restarts *prometheus.Desc
	loaded   *prometheus.Desc
	requests *prometheus.Desc
	answers  *prometheus.Desc
	saved    *prometheus.Desc
	again    *prometheus.Desc
	samples  *prometheus.Desc
	batches  *prometheus.Desc
	fill     *prometheus.Desc
	busy     *prometheus.Desc
	exec     *prometheus.Desc
	memory   *prometheus.Desc
	faults   *prometheus.Desc

	hangs      *prometheus.Desc
	accused    *prometheus.Desc
	rollbacks  *prometheus.Desc
	kept       *prometheus.Desc
	quarantine *prometheus.Desc

	mu   sync.Mutex // guards last
	last snapshot
}

// snapshot is what the metrics show.
type snapshot struct {
	revision uint64
	gpulets  []plan.GpuletReport
	planned  map[string]map[string]int // gpu-let → model → planned batch
	faults   map[int]int               // by device

	hangs, accused, rollbacks int
	quarantine                []string // models
}

func newMetrics(host string) *metrics {
	labels := prometheus.Labels{"host": host}
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("gpulet_worker_"+name, help, variable, labels)
	}
	return &metrics{
		revision: desc("plan_revision", "Revision of the plan the agent works towards."),
		state:    desc("gpulet_state", "1 for the state that a gpu-let is in.", "gpulet", "state"),
		restarts: desc("gpulet_restarts_total", "Processes started in place of one that exited.", "gpulet"),
		loaded:   desc("model_loaded", "1 when a gpu-let serves a model, 0 when it should and cannot.", "gpulet", "model"),
		requests: desc("requests_total", "Requests by what became of them: run, failed (of those), expired, rejected or poisoned.", "gpulet", "model", "status"),
		answers:  desc("answers_total", "Requests answered and acknowledged, by the status that they were answered with.", "gpulet", "model", "status"),
		saved:    desc("cancelled_exec_seconds_saved_total", "Time on the engine that requests would have taken that were cancelled before they ran.", "gpulet", "model"),
		again:    desc("redelivered_requests_total", "Requests fetched that were delivered before, to a gpu-let that has not answered them.", "gpulet", "model"),
		samples:  desc("samples_total", "Samples run.", "gpulet", "model"),
		batches:  desc("batches_total", "Batches run.", "gpulet", "model"),
		fill:     desc("batch_fill_ratio", "Samples per batch over the planned batch, since the gpu-let started; over 1 where bursts run.", "gpulet", "model"),
		busy:     desc("exec_seconds_total", "Time on the engine.", "gpulet", "model"),
		exec:     desc("batch_exec_seconds", "Moving average of a batch's time on the engine.", "gpulet", "model"),
		memory:   desc("model_memory_bytes", "Device memory that a loaded model holds.", "gpulet", "model"),
		faults:   desc("device_faults_total", "Gpu-lets that ended because their device failed.", "gpu"),

		hangs:      desc("hangs_total", "Gpu-lets killed because a batch did not return from the engine."),
		accused:    desc("suspect_requests_total", "Requests that were being worked on when a gpu-let died; each death counts."),
		rollbacks:  desc("rollbacks_total", "Gpu-lets kept beyond their plan because what should replace them did not come up."),
		kept:       desc("gpulet_kept", "1 while a gpu-let is kept because what should replace it does not come up, else 0.", "gpulet"),
		quarantine: desc("model_quarantined", "1 while a model has a gpu-let of its own because those that it shared kept dying.", "model"),
	}
}

func (m *metrics) set(s snapshot) {
	m.mu.Lock()
	m.last = s
	m.mu.Unlock()
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.revision, m.state, m.restarts, m.loaded, m.requests, m.answers, m.saved, m.again, m.samples, m.batches, m.fill, m.busy, m.exec, m.memory, m.faults, m.hangs, m.accused, m.rollbacks, m.kept, m.quarantine} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	s := m.last
	m.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge(m.revision, float64(s.revision))
	for gpu, n := range s.faults {
		counter(m.faults, float64(n), strconv.Itoa(gpu))
	}
	counter(m.hangs, float64(s.hangs))
	counter(m.accused, float64(s.accused))
	counter(m.rollbacks, float64(s.rollbacks))
	for _, model := range s.quarantine {
		gauge(m.quarantine, 1, model)
	}
	for _, g := range s.gpulets {
		gauge(m.kept, one(isKept(g.Note)), g.ID)
		for _, state := range []plan.GpuletState{plan.Starting, plan.Ready, plan.Draining, plan.Failed} {
			gauge(m.state, one(g.State == state), g.ID, string(state))
		}
		counter(m.restarts, float64(g.Restarts), g.ID)
		for _, r := range g.Models {
			gauge(m.loaded, one(r.Loaded), g.ID, r.Model)
			counter(m.requests, float64(r.Requests), g.ID, r.Model, "run")
			counter(m.requests, float64(r.Failed), g.ID, r.Model, "failed")
			counter(m.requests, float64(r.Expired), g.ID, r.Model, "expired")
			counter(m.requests, float64(r.Rejected), g.ID, r.Model, "rejected")
			counter(m.requests, float64(r.Poisoned), g.ID, r.Model, "poisoned")
			for status, n := range r.Answers {
				counter(m.answers, float64(n), g.ID, r.Model, status)
			}
			counter(m.saved, r.SavedMs/1e3, g.ID, r.Model)
			counter(m.again, float64(r.Redelivered), g.ID, r.Model)
			counter(m.samples, float64(r.Samples), g.ID, r.Model)
			counter(m.batches, float64(r.Batches), g.ID, r.Model)
			counter(m.busy, r.BusyMs/1e3, g.ID, r.Model)
			gauge(m.exec, r.ExecMs/1e3, g.ID, r.Model)
			gauge(m.memory, float64(r.MemBytes), g.ID, r.Model)
			if planned := s.planned[g.ID][r.Model]; planned > 0 && r.Batches > 0 {
				gauge(m.fill, float64(r.Samples)/float64(r.Batches)/float64(planned), g.ID, r.Model)
			}
		}
	}
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// snapshot copies what the metrics need.
func (a *Agent) snapshot() snapshot {
	s := snapshot{revision: a.plan.Revision, planned: map[string]map[string]int{}, faults: map[int]int{}}
	for _, d := range a.cfg.Inventory.Devices {
		s.faults[d.Index] = a.faults[d.Index]
	}
	s.hangs, s.accused, s.rollbacks, s.quarantine = a.hangs, a.accused, a.rollbacks, slices.Sorted(maps.Keys(a.quarantine))
	now := time.Now()
	for id, c := range a.children {
		s.gpulets = append(s.gpulets, a.describe(c, now))
		s.planned[id] = map[string]int{}
		for _, as := range c.gpulet.Models {
			s.planned[id][as.Model] = as.Batch
		}
	}
	return s
}
