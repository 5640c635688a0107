package gpulet

import (
	"math"
	"reflect"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/batch"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// bound is a model that the gpu-let was told to serve.
type bound struct {
	link.Assignment
	estimate *estimate
	counts   plan.ModelReport
	answers  answers

	cancelled   cancelled
	stopHearing func() // of cancellations; nil: none are heard

	loaded  engine.Model // nil: not (yet)
	spec    engine.Spec  // that loaded was loaded with, and all batches that it was prepared for
	problem string       // why it is not loaded
	short   bool         // of memory: that is why
	needs   bool         // something has to be loaded or prepared for the assignment
	loadAt  time.Time    // when to do that; zero: it is being done, or cannot be
	again   lifecycle.Backoff

	judging    int           // redelivered requests of which it is not known yet whether they kill
	decoding   int           // images on their way to the batcher
	decodeLead time.Duration // how long that takes them
	pixels     [][]byte      // for pictures, all of one size

	// yields: the executor is its only while nobody else wants it.
	yields bool
	// retiring models take no more requests and go when those they hold are done.
	retiring bool

	puller  *bus.Puller // nil while nothing may be fetched
	rank    int         // of the puller
	pulling bool        // the puller has an outstanding pull
	asked   int         // of that pull
	got     int         // messages of that pull so far
	pulled  time.Time   // when it was made
	first   time.Time   // when its first message came
	pullAt  time.Time   // not before
	pace    lifecycle.Backoff
	trouble string  // why the last pull failed
	waste   float64 // moving average of the part of requests that came too late
}

func newBound(a link.Assignment) *bound {
	m := &bound{
		Assignment: a,
		counts:     plan.ModelReport{Model: a.Model},
		again:      lifecycle.Backoff{Min: 2 * time.Second, Max: time.Minute},
		pace:       lifecycle.Backoff{Min: 50 * time.Millisecond, Max: 2 * time.Second},
	}
	m.reset()
	return m
}

// reset starts the estimate again from the plan's figure. It is that of a planned batch, taken for the largest
// one: too high a figure would keep larger batches from ever being tried, one too low is corrected by the first.
func (m *bound) reset() {
	planned := time.Duration(0)
	if ms := m.ExecMs; ms > 0 && !math.IsInf(ms, 0) {
		planned = time.Duration(ms * float64(time.Millisecond))
	}
	m.estimate = newEstimate(planned, m.most(), m.Config.MaxBatch)
}

func (m *bound) name() string { return m.Model }

// planned is a batch by the plan, in samples.
func (m *bound) planned() int { return max(1, min(m.Batch, m.Config.MaxBatch)) }

// most is the most samples of a batch by the plan.
func (m *bound) most() int { return max(1, min(m.MaxBatch(), m.Config.MaxBatch)) }

// batch is the most samples of a batch now: no more than the loaded model is prepared for. A larger
// one would run without a graph, for longer than the plan thinks.
func (m *bound) batch() int {
	if m.loaded == nil {
		return m.most()
	}
	return min(m.most(), slices.Max(m.spec.Batches))
}

// batched is what the batcher knows of the model.
func (m *bound) batched() batch.Model {
	return batch.Model{
		Name: m.name(), Batch: m.batch(), Planned: min(m.planned(), m.batch()),
		Exec: m.estimate.exec, SLO: m.patience(), Idle: m.yields,
	}
}

// timeout is how long a request may take that does not say itself.
func (m *bound) timeout() time.Duration {
	if m.Config.Timeout > 0 {
		return m.Config.Timeout
	}
	return 2 * m.Config.SLO
}

// patience is how long a request may take at most by the plan.
func (m *bound) patience() time.Duration {
	if m.Config.SLO > 0 {
		return min(m.Config.SLO, m.timeout())
	}
	return m.timeout()
}

// settled reports whether loading has ended, one way or the other.
func (m *bound) settled() bool { return !m.needs || m.problem != "" }

// wanted is what has to be loaded for the assignment.
func (m *bound) wanted(device string) engine.Spec {
	cfg := m.Config
	cfg.Path = m.Archive
	return engine.Spec{
		Model: cfg, Device: device, Precision: cfg.Precision, MaxBatch: cfg.MaxBatch, Batches: buckets(m.planned(), m.most()),
		ChannelsLast: m.Layout == engine.ChannelsLast,
	}
}

// serves reports whether the loaded model is the one that is wanted, whatever it is prepared for.
func (m *bound) serves(want engine.Spec) bool { return m.loaded != nil && sameModel(m.spec, want) }

// buckets are the batch sizes to prepare for batches of up to most samples, of which planned ones are frequent.
func buckets(planned, most int) []int {
	sizes := []int{planned, most}
	for b := 1; b < most; b *= 2 {
		sizes = append(sizes, b)
	}
	slices.Sort(sizes)
	return slices.Compact(sizes)
}

// prepared reports whether a model with the batches of have needs nothing to run those of want.
func prepared(have, want engine.Spec) bool {
	return !slices.ContainsFunc(want.Batches, func(b int) bool { return !slices.Contains(have.Batches, b) })
}

// sameModel reports whether b may serve what was asked for with a: then nothing has to be loaded.
// Batches can be prepared without loading.
func sameModel(a, b engine.Spec) bool {
	key := func(s engine.Spec) engine.Spec {
		s.Batches = nil
		s.Model.SLO, s.Model.Timeout, s.Model.Weight, s.Model.Pin = 0, 0, 0, 0
		s.Model.Class, s.Model.Storage = "", ""
		return s
	}
	return reflect.DeepEqual(key(a), key(b))
}

// report is what is told of the model.
func (m *bound) report() plan.ModelReport {
	r := m.counts
	r.Answers = m.answers.counts()
	r.Loaded = m.loaded != nil
	r.Error = m.problem
	r.OutOfMemory = m.short
	if m.loaded != nil {
		r.MemBytes = m.loaded.MemBytes()
	}
	return r
}

// ran counts a run that is over.
func (m *bound) ran(o outcome) {
	m.counts.Batches++
	m.counts.Samples += uint64(o.samples)
	m.counts.Requests += uint64(len(o.requests))
	for range o.requests {
		m.waste -= m.waste * wasteWeight
	}
	ms := float64(o.took) / float64(time.Millisecond)
	m.counts.BusyMs += ms
	if m.counts.ExecMs == 0 {
		m.counts.ExecMs = ms
	}
	m.counts.ExecMs += newWeight * (ms - m.counts.ExecMs)
	if o.err == nil {
		m.estimate.ran(o.samples, o.took)
	}
}
