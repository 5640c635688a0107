// Package batch decides what a gpu-let runs next: which of its models, with which requests, and
// which requests have to be given up because they cannot finish in time.
//
// It is a pure core. Time enters as a value, nothing is read or written, and the same calls give
// the same answers, so that a gpu-let and the planner's simulator run the same code. It knows
// neither the queue nor the engine: callers put in what they fetched and launch what comes out.
//
// # Rules
//
// Models take turns in duty order. A turn is one batch of at most the model's planned size, so a
// model delays its neighbours by no more than the plan allowed. Whatever is held is launched as
// soon as the executor is free: a batch never waits to become fuller. A full one may be decided on
// before that, so that its inputs are on their way when its turn comes.
//
// When the model whose turn it is would make another one late, and that one can still be on time,
// the one with the earliest deadline goes first. It has then used its turn, which bounds every
// model's wait: between two turns of a model each other model runs at most twice.
//
// Inside a model, the earliest deadline goes first. A request that cannot finish in time even if
// it ran alone and at once is handed back as expired. When the first request of a full batch would
// be late because the batch is full, the batch shrinks if those left behind can still make it;
// otherwise whichever of shrinking and giving up the first request answers more requests in time
// (the early drop of Nexus, SOSP'19, section 6.2: without it an overloaded model falls back to small
// batches just when it needs full ones).
//
// Idle models are not in the duty order. They run only when nothing is held for the others, and for no
// longer than the caller allows: NextIdle.
package batch

import (
	"slices"
	"time"
)

// Model is a model bound to the gpu-let.
type Model struct {
	Name string
	// Batch is the most samples of one launch. A single request that carries more runs alone.
	Batch int
	// Planned is the samples of a launch that others may count on; 0: Batch.
	Planned int
	// Exec estimates how long a batch of so many samples takes. It must not fall as samples grow.
	// Nil means that batches take no time.
	Exec func(samples int) time.Duration
	// SLO is how long a request may take, from its arrival to its answer; 0: as long as it likes.
	SLO time.Duration
	// Idle models get only what the others leave: they have no turn, and wait while anything is held
	// for one that has.
	Idle bool
}

// Item is a request waiting for its batch.
type Item struct {
	Model   string // set by Add
	Payload any    // the caller's; never looked at
	Samples int    // at least 1
	// Deadline is when the answer must be there. Zero means NoDeadline after the arrival.
	Deadline time.Time
	Arrived  time.Time // zero means when it was added
}

// NoDeadline is the time that an item without a deadline gets, so that nothing is held for ever
// and nothing is overtaken for ever.
const NoDeadline = time.Hour

// Launch is a batch to run now.
type Launch struct {
	Model   string
	Items   []Item // earliest deadline first; owned by the caller; empty: nothing to run
	Samples int
	Exec    time.Duration // estimate
}

// Decision is what to do at one moment.
type Decision struct {
	Launch  Launch
	Expired []Item // to be answered as expired; owned by the caller
	// Wake is the first moment at which an item that is still held is too late to run; zero: never.
	Wake time.Time
}

// Want is how many requests the queue should be asked for.
type Want struct {
	Model string
	N     int
}

// Batcher holds what was fetched and not yet launched. It is not safe for concurrent use.
type Batcher struct {
	models []*queue // in duty order
	idle   []*queue // idle models
	byName map[string]*queue
	turn   int // index of the model whose turn is next
}

// New returns an empty batcher over the models in duty order.
func New(models []Model) *Batcher {
	b := &Batcher{}
	b.SetModels(models)
	return b
}

// SetModels replaces the models. What is held for a model that stays is kept; what was held for the
// others is returned, in duty order. The turn starts again with the first model.
func (b *Batcher) SetModels(models []Model) (dropped []Item) {
	old := b.queues()
	kept := b.byName
	b.models, b.idle, b.byName, b.turn = nil, nil, make(map[string]*queue, len(models)), 0
	for _, m := range models {
		if b.byName[m.Name] != nil {
			continue // a model listed twice takes its first place
		}
		q := kept[m.Name]
		if q == nil {
			q = &queue{mean: 1}
		}
		q.Model, q.jumped = m, false
		if m.Idle {
			b.idle = append(b.idle, q)
		} else {
			b.models = append(b.models, q)
		}
		b.byName[m.Name] = q
	}
	for _, q := range old {
		if b.byName[q.Name] == nil {
			dropped = append(dropped, q.items...)
		}
	}
	return dropped
}

// Add takes a fetched item. It reports false, and keeps nothing, if the model is not bound.
func (b *Batcher) Add(model string, it Item, now time.Time) bool {
	q := b.byName[model]
	if q == nil {
		return false
	}
	it.Model = model
	it.Samples = max(it.Samples, 1)
	if it.Arrived.IsZero() {
		it.Arrived = now
	}
	if it.Deadline.IsZero() {
		it.Deadline = it.Arrived.Add(NoDeadline)
	}
	q.add(it)
	return true
}

// Remove takes an item that is still held out again, known by its payload. It reports whether it was.
func (b *Batcher) Remove(model string, payload any) bool {
	q := b.byName[model]
	if q == nil {
		return false
	}
	i := slices.IndexFunc(q.items, func(it Item) bool { return it.Payload == payload })
	if i < 0 {
		return false
	}
	q.keep(append(q.items[:i], q.items[i+1:]...))
	return true
}

// Held is how many samples are held for the model.
func (b *Batcher) Held(model string) int {
	if q := b.byName[model]; q != nil {
		return q.samples
	}
	return 0
}

// queues are those of all models, idle ones last.
func (b *Batcher) queues() []*queue { return slices.Concat(b.models, b.idle) }

// Len is how many items are held.
func (b *Batcher) Len() int { return length(b.models) + length(b.idle) }

func length(queues []*queue) int {
	n := 0
	for _, q := range queues {
		n += len(q.items)
	}
	return n
}

// Next decides what the executor, which is free now, runs. It never runs idle models.
func (b *Batcher) Next(now time.Time) Decision {
	var d Decision
	d.Expired = b.expire(nil, now)
	if i := b.pick(now); i >= 0 {
		q := b.models[i]
		d.Launch, d.Expired = q.take(now, d.Expired)
	}
	d.Wake = b.wake()
	return d
}

// NextFull decides ahead of time what an executor that is busy until free runs next, where waiting
// for that moment could not make the batch better: what Next would launch at free, if that is a
// full batch and nothing that is held will be too late by then. Otherwise it launches nothing and
// changes nothing.
func (b *Batcher) NextFull(free time.Time) Launch {
	lost := b.wake()
	if !slices.ContainsFunc(b.models, (*queue).full) || !lost.After(free) {
		return Launch{}
	}
	turn, jumped := b.turn, make([]bool, len(b.models))
	for i, q := range b.models {
		jumped[i] = q.jumped
	}
	q := b.models[b.pick(free)]
	if q.full() && q.inTime(free) {
		l, _ := q.take(free, nil)
		return l
	}
	b.turn = turn
	for i, q := range b.models {
		q.jumped = jumped[i]
	}
	return Launch{}
}

// Expire hands back what can no longer finish in time while the executor is busy, so that its
// clients hear of it at once.
func (b *Batcher) Expire(now time.Time) Decision {
	return Decision{Expired: b.expire(nil, now), Wake: b.wake()}
}

// Want says what to ask the queue for so that every model's next batch is full, in the order in
// which the models will run. It never asks beyond the next batch. Requests that carry several
// samples are allowed for by their moving average.
func (b *Batcher) Want() []Want { return b.WantAhead(1) }

// WantAhead is Want for several batches of every model: for batches that take less time than
// asking for the next one.
func (b *Batcher) WantAhead(batches int) []Want {
	var wants []Want
	for k := range b.models {
		q := b.models[(b.turn+k)%len(b.models)]
		if n := q.room(batches); n > 0 {
			wants = append(wants, Want{q.Name, n})
		}
	}
	return wants
}

// pick returns the index of the model to run, -1 if nothing is held, and notes that it had its turn.
func (b *Batcher) pick(now time.Time) int {
	first := b.inTurn()
	if first < 0 {
		return -1
	}
	if i := b.urgent(first, now); i != first {
		b.models[i].jumped = true
		return i
	}
	b.turn = (first + 1) % len(b.models)
	return first
}

// inTurn moves the turn to the first model that holds something and returns it, -1 if none does.
// A model that ran before its turn is passed over once.
func (b *Batcher) inTurn() int {
	if length(b.models) == 0 {
		return -1
	}
	for {
		q := b.models[b.turn]
		if len(q.items) > 0 && !q.jumped {
			return b.turn
		}
		q.jumped = false
		b.turn = (b.turn + 1) % len(b.models)
	}
}

// urgent returns the model with the earliest deadline among first and those that would be late if
// first ran before them.
func (b *Batcher) urgent(first int, now time.Time) int {
	free := now.Add(b.models[first].nextExec())
	best := first
	for k := 1; k < len(b.models); k++ {
		i := (first + k) % len(b.models)
		q := b.models[i]
		if len(q.items) == 0 || q.jumped {
			continue
		}
		head := q.items[0]
		late := head.Deadline.Before(free.Add(q.exec(head.Samples)))
		if late && head.Deadline.Before(b.models[best].items[0].Deadline) {
			best = i
		}
	}
	return best
}

func (b *Batcher) expire(out []Item, now time.Time) []Item {
	for _, q := range b.models {
		out = q.expire(out, now)
	}
	for _, q := range b.idle {
		out = q.expire(out, now)
	}
	return out
}

func (b *Batcher) wake() time.Time {
	return soonest(b.idle, soonest(b.models, time.Time{}))
}

func soonest(queues []*queue, wake time.Time) time.Time {
	for _, q := range queues {
		if w := q.wake(); !w.IsZero() && (wake.IsZero() || w.Before(wake)) {
			wake = w
		}
	}
	return wake
}
