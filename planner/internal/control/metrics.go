package control

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/shared/plan"
)

// Metrics are the planner's figures for Prometheus.
type Metrics struct {
	revision, desired, used, problems prometheus.Gauge
	leading, term                     prometheus.Gauge
	changes                           prometheus.Counter
	planSeconds                       prometheus.Histogram
	epochs, decisions                 *prometheus.CounterVec
	moves                             prometheus.Counter
	models                            []modelGauge
	cancelled, saved, expired         *prometheus.CounterVec

	mu     sync.Mutex         // guards sample
	sample map[string]float64 // by model: seconds on the engine, by the plan
}

// modelGauge is a figure of each model.
type modelGauge struct {
	vec *prometheus.GaugeVec
	of  func(plan.ModelDemand) float64
}

// NewMetrics registers the planner's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		reg.MustRegister(g)
		return g
	}
	m := &Metrics{
		leading: gauge("gpulet_planner_leading", "1 while this planner leads, 0 while it stands by."),
		term:    gauge("gpulet_planner_term", "The term that this planner leads or led last; 0: it never has."),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gpulet_planner_leader_changes_total", Help: "How often this planner began to lead or ceased to.",
		}),
		revision: gauge("gpulet_planner_plan_revision", "Revision of the current plan."),
		desired:  gauge("gpulet_planner_desired_gpus", "GPUs that would serve all that is needed now."),
		used:     gauge("gpulet_planner_gpus_used", "GPUs that the current plan uses."),
		problems: gauge("gpulet_planner_problems", "Problems that an operator should see."),
		planSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "gpulet_planner_epoch_seconds", Help: "Time to decide one epoch.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		epochs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gpulet_planner_epochs_total", Help: "Epochs by what started them.",
		}, []string{"reason"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gpulet_planner_decisions_total", Help: "Epochs by what was decided.",
		}, []string{"cause"}),
		moves: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gpulet_planner_moves_total", Help: "Models that plans loaded somewhere.",
		}),
	}
	m.cancelled = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gpulet_planner_cancelled_requests_total", Help: "Cancelled requests taken out of their queues before a gpu-let fetched them.",
	}, []string{"model"})
	m.saved = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gpulet_planner_cancelled_exec_seconds_saved_total", Help: "Time on the engine that these would have taken, by the plan.",
	}, []string{"model"})
	m.expired = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gpulet_planner_expired_requests_total", Help: "Requests answered expired and taken out of queues that nobody fetches from.",
	}, []string{"model"})
	m.models = []modelGauge{
		perModel("gpulet_planner_model_rate_rps", "Smoothed rate of arriving requests.", func(d plan.ModelDemand) float64 { return d.RateRPS }),
		perModel("gpulet_planner_model_need_rps", "Samples per second that a plan is asked to carry.", func(d plan.ModelDemand) float64 { return d.NeedRPS }),
		perModel("gpulet_planner_model_planned_rps", "Samples per second that the current plan carries.", func(d plan.ModelDemand) float64 { return d.PlannedRPS }),
		perModel("gpulet_planner_model_lag_requests", "Requests stored or fetched and not answered.", func(d plan.ModelDemand) float64 { return float64(d.Pending + d.InFlight) }),
		perModel("gpulet_planner_model_oldest_seconds", "Age of the oldest unanswered request.", func(d plan.ModelDemand) float64 { return d.OldestMs / 1000 }),
	}
	reg.MustRegister(m.changes, m.planSeconds, m.epochs, m.decisions, m.moves, m.cancelled, m.saved, m.expired)
	for _, g := range m.models {
		reg.MustRegister(g.vec)
	}
	return m
}

func perModel(name, help string, of func(plan.ModelDemand) float64) modelGauge {
	return modelGauge{prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"model"}), of}
}

// epoch counts one decision.
func (m *Metrics) epoch(cause string, d epoch.Decision, took time.Duration) {
	m.epochs.WithLabelValues(cause).Inc()
	m.decisions.WithLabelValues(d.Cause).Inc()
	m.planSeconds.Observe(took.Seconds())
	m.moves.Add(float64(d.Moves))
}

// Cancelled counts a request that was taken out of its queue. It may be called from any goroutine.
func (m *Metrics) Cancelled(model string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cancelled.WithLabelValues(model).Inc()
	m.saved.WithLabelValues(model).Add(m.sample[model])
}

// costs notes what a sample of each model takes on the engine: in the gpu-let that is fastest with it,
// since what is counted was certainly saved.
func (m *Metrics) costs(p plan.Plan) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sample = map[string]float64{}
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			each := a.ExecMs / 1e3 / float64(max(a.Batch, 1))
			if least, ok := m.sample[a.Model]; !ok || each < least {
				m.sample[a.Model] = each
			}
		}
	}
}

// leads counts the begin of a term, or with 0 its end.
func (m *Metrics) leads(term uint64) {
	m.changes.Inc()
	m.leading.Set(float64(min(term, 1)))
	if term > 0 {
		m.term.Set(float64(term))
	}
}

// follow shows the plan alone: what the leader shows is not to be added up.
func (m *Metrics) follow(current plan.Plan) {
	m.revision.Set(float64(current.Revision))
	for _, g := range []prometheus.Gauge{m.used, m.desired, m.problems} {
		g.Set(0)
	}
	for _, g := range m.models {
		g.vec.Reset()
	}
}

// look shows the state after one look.
func (m *Metrics) look(current plan.Plan, d epoch.Decision, r plan.PlannerReport) {
	m.costs(current)
	m.revision.Set(float64(current.Revision))
	m.used.Set(float64(current.GPUsUsed))
	m.desired.Set(float64(d.DesiredGPUs))
	m.problems.Set(float64(len(r.Problems)))
	for _, g := range m.models {
		g.vec.Reset()
		for _, d := range r.Models {
			g.vec.WithLabelValues(d.Model).Set(g.of(d))
		}
	}
}
