package gpulet

import (
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// cancelled remembers which requests of a model nobody wants any more, for as long as a queue may hold
// them: a request that is cancelled while it waits there ends when it is fetched.
type cancelled struct {
	ids   map[string]time.Time // until when
	order []string             // oldest first
}

// maxCancelled bounds what is remembered of a model; the oldest are forgotten first.
const maxCancelled = 1 << 14

func (c *cancelled) add(id string, now, until time.Time) {
	if c.ids == nil {
		c.ids = map[string]time.Time{}
	}
	if _, known := c.ids[id]; !known {
		c.order = append(c.order, id)
	}
	c.ids[id] = until
	for len(c.order) > maxCancelled || len(c.order) > 0 && c.ids[c.order[0]].Before(now) {
		delete(c.ids, c.order[0])
		c.order = c.order[1:]
	}
}

func (c *cancelled) has(id string, now time.Time) bool {
	until, known := c.ids[id]
	return known && !until.Before(now)
}

// hearCancellations has the model's cancellations come to the loop, until the model goes.
func (l *loop) hearCancellations(m *bound) error {
	if m.stopHearing != nil {
		return nil
	}
	stop, err := l.cfg.Bus.WatchCancellations(m.name(), func(c bus.Cancellation) {
		select {
		case l.cancellations <- c:
		case <-l.quit:
		}
	})
	m.stopHearing = stop
	return err
}

// deaf ends that. Whoever waits to be heard is let go first.
func (l *loop) deaf(m *bound) {
	if m.stopHearing == nil {
		return
	}
	stop := m.stopHearing
	m.stopHearing = nil
	l.deafening.Go(stop)
}

// cancel gives up a request: at once where it has not been launched, with the batch where it runs,
// when it is fetched where it is not here. Then it does not run, or is not answered with its outputs.
// A suspect that waits for its trial is spared it, and kills nobody any more.
func (l *loop) cancel(c bus.Cancellation, now time.Time) {
	m := l.models[c.Model]
	if m == nil {
		return
	}
	m.counts.Cancels++
	m.cancelled.add(c.RequestID, now, now.Add(m.timeout()+model.QueueGrace))
	for req := range l.open {
		if req.model != m || req.id() != c.RequestID {
			continue
		}
		if l.batcher.Remove(m.name(), req) || l.acquit(req) {
			l.giveUp(req)
		} else {
			req.unwanted = true
		}
	}
}

// giveUp answers a request that was cancelled before it was launched.
func (l *loop) giveUp(req *request) {
	req.model.counts.SavedMs += req.model.worth(req.samples)
	l.refuse(req, wire.Cancelled, "cancelled before it ran")
}

// worth is what samples take on the engine, in milliseconds: as those that have run, or by the plan.
func (m *bound) worth(samples int) float64 {
	each := m.ExecMs / float64(m.planned())
	if m.counts.Samples > 0 {
		each = m.counts.BusyMs / float64(m.counts.Samples)
	}
	return each * float64(samples)
}
