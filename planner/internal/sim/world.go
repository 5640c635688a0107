package sim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gpulet/gpulet/planner/internal/demand"
	"github.com/gpulet/gpulet/planner/internal/epoch"
	"github.com/gpulet/gpulet/planner/internal/problem"
	"github.com/gpulet/gpulet/shared/batch"
	"github.com/gpulet/gpulet/shared/plan"
)

// world is the state of a running simulation.
type world struct {
	cfg    Config
	now    int64 // ns
	agenda agenda
	err    error // the first; it stops the run

	byName  map[string]int
	sources []*source // nil: no traffic
	queues  []queue
	devices map[string]*device
	gpulets map[string]*gpulet // by id; those that drain are only in their device
	target  plan.Plan
	scratch [][]problem.Load
	turns   int

	planner *planner // nil: the plan stays

	row       Row
	rows      []Row
	gpusSince int64   // when gpuTime was true
	gpuTime   float64 // GPU seconds of the row
	counts    []Counts
	latency   []histogram
	total     Result
}

// planner is the planner's view of the simulated system.
type planner struct {
	Steering
	schedule   epoch.Schedule
	history    epoch.History
	estimators []demand.Estimator
	arrivals   []uint64 // since the last look
	inFlight   []uint64 // arrived and not finished
	quiet      []int64  // when the last request arrived
	problems   []string
}

func newWorld(c Config) (*world, error) {
	w := &world{
		cfg: c, byName: map[string]int{}, devices: map[string]*device{}, gpulets: map[string]*gpulet{},
		sources: make([]*source, len(c.Models)), queues: make([]queue, len(c.Models)),
		counts: make([]Counts, len(c.Models)), latency: make([]histogram, len(c.Models)),
	}
	for i, m := range c.Models {
		w.byName[m.Name] = i
		if t, ok := c.Traffic[m.Name]; ok {
			w.sources[i] = newSource(t, c.Seed, i)
			w.arriveNext(i)
		}
	}
	if s := c.Steering; s != nil {
		w.planner = newPlanner(c)
		w.agenda.add(event{at: int64(s.Observe), kind: look})
	}
	w.agenda.add(event{at: int64(min(w.rowLength(), c.Duration)), kind: rowEnds})
	w.follow(c.Plan, true)
	if w.planner != nil && c.Plan.Revision == 0 {
		w.decide(epoch.First)
	}
	return w, w.err
}

func newPlanner(c Config) *planner {
	p := &planner{
		Steering:   *c.Steering,
		schedule:   epoch.Schedule{Epoch: c.Steering.Epoch, MinGap: c.Steering.MinGap},
		estimators: make([]demand.Estimator, len(c.Models)),
		arrivals:   make([]uint64, len(c.Models)), inFlight: make([]uint64, len(c.Models)), quiet: make([]int64, len(c.Models)),
	}
	for i, m := range c.Models {
		rate := 0.0
		if t, ok := c.Traffic[m.Name]; ok {
			rate = t.At(0)
		}
		p.estimators[i] = demand.Known(demand.Estimate{RateRPS: rate, Window: 2 * p.Decide.Demand.Smooth})
	}
	return p
}

func (w *world) rowLength() time.Duration {
	switch {
	case w.cfg.Row > 0:
		return w.cfg.Row
	case w.planner != nil:
		return w.planner.Epoch
	}
	return w.cfg.Duration
}

// timeout is when a request of the model is given up.
func (w *world) timeout(model int) time.Duration {
	if t := w.cfg.Models[model].Timeout; t > 0 {
		return t
	}
	return 2 * w.cfg.Models[model].SLO
}

// run handles events until nothing is left to happen: arrivals end with Duration, and so do looks.
func (w *world) run() {
	for w.err == nil {
		e, ok := w.agenda.next()
		if !ok {
			break
		}
		w.handle(e)
	}
	w.abandon()
	w.rows[len(w.rows)-1].Add(w.row.Counts) // what was finished after the last arrival
}

func (w *world) handle(e event) {
	if e.kind == finished && e.gpulet.version != e.version || e.kind == loaded && e.gpulet.loads != e.version {
		return // overtaken by a newer prediction
	}
	w.now = e.at
	end := int64(w.cfg.Duration)
	switch e.kind {
	case finished:
		w.finish(e.gpulet)
	case loaded:
		w.load(e.gpulet)
	case arrival:
		w.arrive(e.index)
	case look:
		if next := w.now + int64(w.planner.Observe); next < end {
			w.agenda.add(event{at: next, kind: look})
		}
		w.look()
	case rowEnds:
		w.endRow()
		if w.now < end {
			w.agenda.add(event{at: min(w.now+int64(w.rowLength()), end), kind: rowEnds})
		}
	}
}

// arriveNext schedules the model's next request.
func (w *world) arriveNext(model int) {
	if t, ok := w.sources[model].next(w.cfg.Duration); ok {
		w.agenda.add(event{at: int64(t), kind: arrival, index: model})
	}
}

// arrive queues a request and wakes the idle gpu-let that is first in line for it.
func (w *world) arrive(model int) {
	w.arriveNext(model)
	w.queues[model].push(w.now)
	w.row.Arrived++
	w.counts[model].Arrived++
	if p := w.planner; p != nil {
		p.arrivals[model]++
		p.inFlight[model]++
		p.quiet[model] = w.now
	}
	if g := w.firstIdle(model); g != nil {
		w.dispatch(g)
	}
}

// firstIdle is the idle gpu-let of the best rank; among equals the one whose turn is longest ago.
func (w *world) firstIdle(model int) *gpulet {
	var best *gpulet
	var bound *binding
	for _, g := range w.servers(model) {
		if !g.idle {
			continue
		}
		b := g.find(model)
		if best == nil || b.rank < bound.rank || b.rank == bound.rank && b.served < bound.served {
			best, bound = g, b
		}
	}
	return best
}

func (w *world) answer(model int, arrived int64) {
	d := time.Duration(w.now - arrived)
	w.latency[model].add(d)
	c := Counts{OK: 1}
	if d > w.cfg.Models[model].SLO {
		c = Counts{Late: 1}
	}
	w.finishOne(model, c)
}

func (w *world) expire(model int) { w.finishOne(model, Counts{Expired: 1}) }

func (w *world) finishOne(model int, c Counts) {
	w.row.Add(c)
	w.counts[model].Add(c)
	if w.planner != nil {
		w.planner.inFlight[model]--
	}
}

// abandon counts what is still queued at the end as expired: no gpu-let serves it.
func (w *world) abandon() {
	for m := range w.queues {
		for w.queues[m].len() > 0 {
			w.queues[m].pop()
			w.expire(m)
		}
	}
}

// look is one look of the planner at the system, and a decision when it is due.
func (w *world) look() {
	p := w.planner
	for i := range p.estimators {
		p.estimators[i].Observe(p.Decide.Demand, p.arrivals[i], p.Observe)
		p.arrivals[i] = 0
	}
	if cause, _, due := p.schedule.Due(at(w.now), w.state()); due {
		w.decide(cause)
	}
}

// state is what planner run would have observed.
func (w *world) state() epoch.State {
	p := w.planner
	s := epoch.State{
		Now: at(w.now), Hosts: w.cfg.Hosts, Models: w.cfg.Models, Files: w.cfg.Profiles, Interference: p.Interference,
		Loads: make(map[string]epoch.Load, len(w.cfg.Models)), Current: w.target, History: p.history,
	}
	for i, m := range w.cfg.Models {
		s.Loads[m.Name] = epoch.Load{
			Estimate: p.estimators[i].Estimate(p.Decide.Demand), Backlog: p.inFlight[i], Idle: time.Duration(w.now - p.quiet[i]),
		}
	}
	return s
}

func (w *world) decide(cause string) {
	p, s := w.planner, w.state()
	d := epoch.Decide(p.Decide, s)
	p.schedule.Decided(at(w.now), cause, s, d)
	p.history, p.problems = d.History, d.Problems
	if !d.Publish {
		return
	}
	w.total.Plans++
	w.row.Causes = append(w.row.Causes, d.Cause)
	if d.Cause != epoch.First {
		w.row.Moves += d.Moves
		w.total.Moves += d.Moves
	}
	w.follow(d.Plan, w.now == 0)
}

// endRow closes a row now.
func (w *world) endRow() {
	w.countGPUs()
	w.row.End = time.Duration(w.now)
	w.row.GPUs = w.gpuTime / (w.row.End - w.row.Begin).Seconds()
	w.rows = append(w.rows, w.row)
	w.total.GPUSeconds += w.gpuTime
	w.row, w.gpuTime = Row{Begin: w.row.End}, 0
}

// countGPUs integrates the GPUs in use up to now. It is called before every change of them.
func (w *world) countGPUs() {
	inUse := 0
	for _, d := range w.devices {
		if len(d.gpulets) > 0 {
			inUse++
		}
	}
	w.gpuTime += float64(inUse) * time.Duration(w.now-w.gpusSince).Seconds()
	w.gpusSince = w.now
}

func (w *world) result() Result {
	r := w.total
	r.Rows = w.rows
	for i, m := range w.cfg.Models {
		mr := ModelResult{Model: m.Name, Counts: w.counts[i], P50: w.latency[i].quantile(0.5), P99: w.latency[i].quantile(0.99)}
		r.Total.Add(mr.Counts)
		r.Models = append(r.Models, mr)
	}
	slices.SortFunc(r.Models, func(a, b ModelResult) int { return cmp.Compare(a.Model, b.Model) })
	if w.planner != nil {
		r.Problems = w.planner.problems
	}
	return r
}

// servers are the gpu-lets that serve a model now.
func (w *world) servers(model int) []*gpulet { return w.queues[model].servers }

// queue holds the arrival times of requests that nobody has fetched, and who fetches them.
type queue struct {
	times   []int64
	head    int
	servers []*gpulet
}

func (q *queue) len() int     { return len(q.times) - q.head }
func (q *queue) push(t int64) { q.times = append(q.times, t) }

func (q *queue) pop() int64 {
	t := q.times[q.head]
	q.head++
	if q.head >= 1024 && 2*q.head >= len(q.times) {
		q.times = append(q.times[:0], q.times[q.head:]...)
		q.head = 0
	}
	return t
}

// giveBack puts requests back in front, the oldest first.
func (q *queue) giveBack(times []int64) {
	slices.Sort(times)
	q.times = append(times, q.times[q.head:]...)
	q.head = 0
}

// histogram counts durations in buckets that are 2 % wide, from 10 µs to 10 min.
type histogram struct {
	buckets [901]uint64
	n       uint64
}

const (
	histogramLeast = 10 * time.Microsecond
	histogramWidth = 1.02
)

func (h *histogram) add(d time.Duration) {
	i := 0
	if d > histogramLeast {
		i = int(math.Log(float64(d)/float64(histogramLeast)) / math.Log(histogramWidth))
	}
	h.buckets[min(i, len(h.buckets)-1)]++
	h.n++
}

// quantile is the upper end of the bucket that holds the quantile; 0 of nothing.
func (h *histogram) quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	rank, sum := uint64(math.Ceil(q*float64(h.n))), uint64(0)
	for i, n := range h.buckets {
		if sum += n; sum >= rank {
			return time.Duration(float64(histogramLeast) * math.Pow(histogramWidth, float64(i+1)))
		}
	}
	return 0
}

// giveBack returns what gpu-lets fetched for models that they stop serving.
func (w *world) giveBack(items []batch.Item) {
	back := map[int][]int64{}
	for _, it := range items {
		m := w.byName[it.Model]
		back[m] = append(back[m], since(it.Arrived))
	}
	for m, times := range back {
		w.queues[m].giveBack(times)
	}
}

func (w *world) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}
