package batch

import (
	"sort"
	"time"
)

// queue is what is held for one model, earliest deadline first.
type queue struct {
	Model
	items   []Item
	samples int     // sum over items
	largest int     // most samples of an item since the queue was last empty
	mean    float64 // moving average of the samples of a request
	jumped  bool    // it ran before its turn, which is thereby used
}

func (q *queue) exec(samples int) time.Duration {
	if q.Exec == nil {
		return 0
	}
	return q.Exec(samples)
}

func (q *queue) add(it Item) {
	i := sort.Search(len(q.items), func(i int) bool { return q.items[i].Deadline.After(it.Deadline) })
	q.items = append(q.items, Item{})
	copy(q.items[i+1:], q.items[i:])
	q.items[i] = it
	q.samples += it.Samples
	q.largest = max(q.largest, it.Samples)
	q.mean += (float64(it.Samples) - q.mean) / 16
}

// keep replaces the items by those for which taken is false.
func (q *queue) keep(kept []Item) {
	clear(q.items[len(kept):]) // let go of the payloads
	q.items = kept
	q.samples = 0
	for i := range kept {
		q.samples += kept[i].Samples
	}
	if len(kept) == 0 {
		q.largest = 0
	}
}

// room is how many more requests fit into the next batches.
func (q *queue) room(batches int) int {
	free := batches*q.Batch - q.samples
	if free <= 0 {
		return 0
	}
	return max(1, int(float64(free)/q.mean))
}

// hopeless reports whether the item is late even if it runs alone and at once.
func (q *queue) hopeless(it *Item, now time.Time) bool {
	return it.Deadline.Before(now.Add(q.exec(it.Samples)))
}

// expire moves what is hopeless to out.
func (q *queue) expire(out []Item, now time.Time) []Item {
	if len(q.items) == 0 {
		return out
	}
	safe := now.Add(q.exec(q.largest)) // nothing that is due later can be hopeless
	kept := q.items[:0]
	for i := range q.items {
		it := q.items[i]
		switch {
		case !it.Deadline.Before(safe):
			kept = append(kept, q.items[i:]...)
			q.keep(kept)
			return out
		case q.hopeless(&it, now):
			out = append(out, it)
		default:
			kept = append(kept, it)
		}
	}
	q.keep(kept)
	return out
}

// wake is the first moment at which an item is hopeless; zero if none is held.
func (q *queue) wake() time.Time {
	var wake time.Time
	if len(q.items) == 0 {
		return wake
	}
	longest := q.exec(q.largest)
	for i := range q.items {
		it := &q.items[i]
		if !wake.IsZero() && !it.Deadline.Add(1-longest).Before(wake) {
			break
		}
		if at := it.Deadline.Add(1 - q.exec(it.Samples)); wake.IsZero() || at.Before(wake) {
			wake = at
		}
	}
	return wake
}

// nextExec estimates the model's next batch.
func (q *queue) nextExec() time.Duration {
	_, samples := q.fill(0)
	return q.exec(samples)
}

// fill returns the items of a batch that starts with the item at from, as a count of the items
// from there on that fit together, and their samples. An item that is too large for any batch is a
// batch of its own.
func (q *queue) fill(from int) (n, samples int) {
	for _, it := range q.items[from:] {
		if n > 0 && samples+it.Samples > q.Batch {
			break
		}
		samples += it.Samples
		n++
	}
	return n, samples
}

// full reports whether the next batch takes nothing more.
func (q *queue) full() bool {
	n, samples := q.fill(0)
	return n > 0 && (samples >= q.Batch || n < len(q.items))
}

// inTime reports whether the next batch, as large as it can be, makes it when it starts at free.
func (q *queue) inTime(free time.Time) bool {
	_, samples := q.fill(0)
	return q.onTime(0, free.Add(q.exec(samples)))
}

// take removes the next batch. It appends to expired what was given up for it. The queue holds
// something, and nothing hopeless.
func (q *queue) take(now time.Time, expired []Item) (Launch, []Item) {
	from, n := q.choose(now)
	expired = append(expired, q.items[:from]...)
	items := append([]Item(nil), q.items[from:from+n]...)
	q.keep(append(q.items[:0], q.items[from+n:]...))
	l := Launch{Model: q.Name, Items: items}
	for i := range items {
		l.Samples += items[i].Samples
	}
	l.Exec = q.exec(l.Samples)
	return l, expired
}

// choose returns the batch to launch: n items, the first of them at from; those before it are
// given up.
func (q *queue) choose(now time.Time) (from, n int) {
	n, done := q.shrink(0, now)
	if full, _ := q.fill(0); n == full {
		return 0, n
	}
	if _, rest := q.fill(n); q.onTime(n, done.Add(q.exec(rest))) {
		return 0, n
	}
	for i := 1; i+n < len(q.items) && n < q.Batch; i++ {
		if more, _ := q.shrink(i, now); more > n {
			from, n = i, more
		}
	}
	return from, n
}

// shrink returns the largest batch that starts with the item at from and does not make it late,
// and when that batch is done. It is never empty.
func (q *queue) shrink(from int, now time.Time) (n int, done time.Time) {
	n, samples := q.fill(from)
	for done = now.Add(q.exec(samples)); n > 1 && !q.onTime(from, done); done = now.Add(q.exec(samples)) {
		n--
		samples -= q.items[from+n].Samples
	}
	return n, done
}

// onTime reports whether a batch that starts with the item at i and is done at done makes it. The
// items after it are due later.
func (q *queue) onTime(i int, done time.Time) bool {
	return i >= len(q.items) || !q.items[i].Deadline.Before(done)
}
