package inbox

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/life"
	"github.com/gpulet/gpulet/shared/lifecycle"
)

// A connection that breaks takes acknowledgements and replies with it, and the server that comes back may
// have lost its queues. So after a reconnect whatever waits is published again, under the same message id,
// and so is what waits for a model whose queue was made anew: a queue that has lost the request takes it,
// and one that has it says so. Where it had it and has it no more it was answered, and the answer is lost:
// then the request is published as another attempt, unless its answer is kept as a result.

// atOnce is how many publishes of one model that were made again may be unacknowledged: the queue says how
// fast they go, so that a reconnect is no stampede.
const atOnce = 16

// lookEvery is the time between looks for what a queue had before.
const lookEvery = 100 * time.Millisecond

// line is what is to be sent again of one model. While it is in Inbox.lines, it has a goroutine, which
// takes from it under the Inbox's mutex.
type line struct {
	model string
	again []*Call // to be published
	known []*Call // published before, as their queue says; no answer yet
}

// reconnected doubts everything that waits.
func (i *Inbox) reconnected() {
	i.reconsider(func(*Call) bool { return true })
}

// reconsider doubts those of the calls that wait, oldest first.
func (i *Inbox) reconsider(these func(*Call) bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, l := range i.lines {
		l.known = slices.DeleteFunc(l.known, these)
	}
	var calls []*Call
	for _, c := range i.pending {
		if these(c) {
			calls = append(calls, c)
		}
	}
	slices.SortFunc(calls, func(a, b *Call) int { return cmp.Compare(a.number, b.number) })
	for _, c := range calls {
		i.enqueue(c)
	}
}

// QueueLost doubts what waits for a model: its queue is another one than before.
func (i *Inbox) QueueLost(model string) {
	i.reconsider(func(c *Call) bool { return c.model == model })
}

// doubt publishes a request again, if it still waits: it may not be where it was sent to.
func (i *Inbox) doubt(c *Call) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.enqueue(c)
}

// enqueue is doubt with i.mu held.
func (i *Inbox) enqueue(c *Call) {
	if c.again || i.down || i.fate(c.number) != life.Waiting {
		return
	}
	c.again = true
	l := i.lines[c.model]
	if l == nil {
		l = &line{model: c.model}
		i.lines[c.model] = l
		i.begin(func(ctx context.Context) { i.sendAgain(ctx, l) })
	}
	l.again = append(l.again, c)
}

// notStored takes in that nothing stored a request: its model has no queue, or the server is stopping, and has stopped
// its queues before its connections. Asked for the queue only the former says that there is none.
func (i *Inbox) notStored(c *Call, refusal error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.down {
		return
	}
	if i.lost[c.model] = append(i.lost[c.model], c); len(i.lost[c.model]) > 1 {
		return // it is being asked
	}
	i.begin(func(ctx context.Context) {
		_, err := i.bus.Lag(ctx, c.model)
		i.mu.Lock()
		defer i.mu.Unlock()
		for _, c := range i.lost[c.model] {
			if errors.Is(err, bus.ErrUnknownModel) && !c.again {
				i.hear(c.number, life.Refusal, outcome{err: refusal})
			} else {
				i.enqueue(c)
			}
		}
		delete(i.lost, c.model)
	})
}

// sendAgain serves a line until it is empty, or ctx ends.
func (i *Inbox) sendAgain(ctx context.Context, l *line) {
	retry := lifecycle.Backoff{Min: lookEvery / 2, Max: 5 * lookEvery}
	for ctx.Err() == nil {
		calls, left := i.take(l)
		switch {
		case len(calls) > 0 && i.publishAgain(ctx, l, calls):
			retry.Reset()
		case len(calls) > 0: // the bus is down, or there is no queue yet, or no room in it
			_ = lifecycle.Sleep(ctx, retry.Next())
		case left:
			_ = lifecycle.Sleep(ctx, lookEvery)
			i.lookFor(ctx, l)
		default:
			return
		}
	}
}

// take returns what is to be published next, and whether the line has anything left. An empty line ends.
func (i *Inbox) take(l *line) (calls []*Call, left bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	over := func(c *Call) bool { return i.fate(c.number) != life.Waiting }
	l.again, l.known = slices.DeleteFunc(l.again, over), slices.DeleteFunc(l.known, over)
	n := min(len(l.again), atOnce)
	calls, l.again = slices.Clone(l.again[:n]), l.again[n:]
	if left = n+len(l.again)+len(l.known) > 0; !left {
		delete(i.lines, l.model)
	}
	return calls, left
}

// publishAgain publishes calls and waits for what their queue says. It is false when any of them has to be
// published once more.
func (i *Inbox) publishAgain(ctx context.Context, l *line, calls []*Call) bool {
	type word struct {
		call    *Call
		receipt bus.Receipt
		err     error
	}
	words := make(chan word, len(calls))
	sent := 0
	for _, c := range calls {
		if err := c.publish(func(r bus.Receipt, err error) { words <- word{c, r, err} }); err != nil {
			words <- word{call: c, err: err}
			continue
		}
		sent++
	}
	i.mu.Lock()
	i.stats.Again += uint64(sent)
	i.mu.Unlock()
	ok := true
	for range calls {
		select {
		case <-ctx.Done():
			return false
		case w := <-words:
			ok = i.published(l, w.call, w.receipt, w.err) && ok
		}
	}
	return ok
}

// published takes in what became of a publish that was made again. What is refused now may have been taken
// before, and there is time left: it is tried once more, and then it is false.
func (i *Inbox) published(l *line, c *Call, r bus.Receipt, err error) bool {
	if err == nil {
		i.stored(c, r)
		return true
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if errors.Is(err, bus.ErrUnavailable) || errors.Is(err, bus.ErrOverloaded) {
		l.again = append(l.again, c)
		return false
	}
	c.again = false
	if !errors.Is(err, errOver) {
		i.hear(c.number, life.Refusal, outcome{err: err})
	}
	return true
}

// lookFor looks whether queues still have what they had, and publishes again what was answered without
// anybody hearing it. It takes two looks for that: at the first the answer may be about to come.
func (i *Inbox) lookFor(ctx context.Context, l *line) {
	lag, err := i.bus.Lag(ctx, l.model)
	if err != nil && !errors.Is(err, bus.ErrUnknownModel) {
		return
	}
	for _, c := range i.unheard(l, lag) {
		c.anew()
		i.doubt(c)
	}
}

// unheard takes those out of the line that their queue did not have at two looks.
func (i *Inbox) unheard(l *line, lag bus.Lag) (calls []*Call) {
	i.mu.Lock()
	defer i.mu.Unlock()
	l.known = slices.DeleteFunc(l.known, func(c *Call) bool {
		twice := c.missing
		c.missing = c.seq < lag.FirstSeq || c.seq > lag.LastSeq
		if twice = twice && c.missing; twice {
			calls = append(calls, c)
		}
		return twice
	})
	return calls
}
