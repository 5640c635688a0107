package epoch

import (
	"math"
	"math/bits"
	"time"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/plan"
)

// Queue is how large a model's queue may become and how long its parts may wait.
type Queue struct {
	MaxMsgs, MaxBytes int64
	MaxAge, AckWait   time.Duration
	MaxAckPending     int
}

// Bounds of queues. The least leaves room for a burst while a model is being loaded, or for the chance
// that many requests come at once; the most keeps one model from taking the server's memory.
const (
	leastLoading    = 1 << 10
	leastMsgs       = 32
	mostMsgs        = 1 << 20
	mostBytes       = 512 << 20
	leastAckPending = 256
)

// room is the part of what can be answered within the timeout that may wait. Whoever is let in then
// gets an answer in time, and everybody else is told at once: a longer queue holds only requests that
// expire, and those that are answered are the ones that have waited for nearly all of their time.
const room = 0.7

// QueueFor sizes the queue of a model that is served by p and gets what load says. What may wait follows
// from what p can answer, which counts samples, and from how many of them a request has, to whole ones; of
// a model that nothing serves yet, twice what comes within the timeout, in powers of two so that limits
// seldom change. maxPayload is the largest message in bytes.
func QueueFor(m model.Model, p plan.Plan, load Load, maxPayload int64) Queue {
	each := max(1, math.Round(load.SamplesPerRequest))
	batches, worst := 0, 0.0
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			if a.Model == m.Name {
				batches += a.MaxBatch()
				worst = max(worst, a.ExecMs, a.DutyMs)
			}
		}
	}
	q := Queue{
		MaxMsgs:       powerOfTwo(2*load.Estimate.RateRPS*m.Timeout.Seconds(), leastLoading, mostMsgs),
		MaxAge:        m.MaxWait(),
		AckWait:       max(time.Second, time.Duration(4*worst*float64(time.Millisecond)).Round(time.Second)),
		MaxAckPending: int(powerOfTwo(2*float64(batches), leastAckPending, mostMsgs)),
	}
	if batches > 0 {
		least := int64(leastMsgs)
		if load.Full { // no burst: a flood, of which more would only wait in vain
			least = 1
		}
		if m.Offline() { // it collects a backlog for idle times
			least = q.MaxMsgs
		}
		q.MaxMsgs = min(mostMsgs, max(least, int64(float64(2*batches)/each), int64(room*p.Capacities()[m.Name]/each*m.Timeout.Seconds())))
	}
	q.MaxBytes = min(mostBytes, max(q.MaxMsgs*int64(each)*requestBytes(m), 4*maxPayload))
	return q
}

// Grow returns r with limits that are no smaller than q's, but for the number of requests: a queue
// that holds more than it may takes no further ones and drops none.
func (q Queue) Grow(r Queue) Queue {
	return Queue{
		MaxMsgs: r.MaxMsgs, MaxBytes: max(q.MaxBytes, r.MaxBytes),
		MaxAge: max(q.MaxAge, r.MaxAge), AckWait: max(q.AckWait, r.AckWait),
		MaxAckPending: max(q.MaxAckPending, r.MaxAckPending),
	}
}

// requestBytes estimates a request of one sample with its headers. Dimensions that vary count 512.
func requestBytes(m model.Model) int64 {
	total := int64(1 << 10)
	for _, spec := range m.Inputs {
		n := int64(spec.DType.Size())
		for _, d := range spec.Shape {
			if d < 0 {
				d = 512
			}
			n *= int64(d)
		}
		total += n
	}
	return total
}

// powerOfTwo rounds up to a power of two within bounds that are powers of two.
func powerOfTwo(v float64, least, most int64) int64 {
	switch {
	case v <= float64(least):
		return least
	case v >= float64(most):
		return most
	}
	return 1 << bits.Len64(uint64(math.Ceil(v))-1)
}
