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

// Bounds of queues. The least leaves room for a burst while a model is being loaded; the most keeps
// one model from taking the server's memory.
const (
	leastMsgs       = 1 << 10
	mostMsgs        = 1 << 20
	mostBytes       = 512 << 20
	leastAckPending = 256
)

// QueueFor sizes the queue of a model that is served by p and gets rateRPS requests per second:
// twice what can be answered within the timeout (more would only expire), in powers of two so that
// limits seldom change. maxPayload is the largest message in bytes.
func QueueFor(m model.Model, p plan.Plan, rateRPS float64, maxPayload int64) Queue {
	batches, worst := 0, 0.0
	for _, g := range p.Gpulets {
		for _, a := range g.Models {
			if a.Model == m.Name {
				batches += a.Batch
				worst = max(worst, a.ExecMs, a.DutyMs)
			}
		}
	}
	rate := max(rateRPS, Capacities(p)[m.Name])
	q := Queue{
		MaxMsgs:       powerOfTwo(2*rate*m.Timeout.Seconds(), leastMsgs, mostMsgs),
		MaxAge:        m.MaxWait(),
		AckWait:       max(time.Second, time.Duration(4*worst*float64(time.Millisecond)).Round(time.Second)),
		MaxAckPending: int(powerOfTwo(2*float64(batches), leastAckPending, mostMsgs)),
	}
	q.MaxBytes = min(mostBytes, max(q.MaxMsgs*requestBytes(m), 4*maxPayload))
	return q
}

// Grow returns the larger of both in every limit: queues grow at once and shrink never, since
// shrinking one drops requests.
func (q Queue) Grow(r Queue) Queue {
	return Queue{
		MaxMsgs: max(q.MaxMsgs, r.MaxMsgs), MaxBytes: max(q.MaxBytes, r.MaxBytes),
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
