package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// Waiting is a request in a queue, and how long it may wait yet, by the server's clock.
type Waiting struct {
	Seq  uint64
	Left time.Duration // until Expire may take it; negative: it is late
}

// backlogBytes bounds what Backlog reads: a message cannot be read without its body.
const backlogBytes = 8 << 20

// Backlog reads how long the requests of a model's queue may wait yet, oldest first, from sequence from
// on: n of them, or fewer when the queue ends or they are large. Planner only.
func (b *Bus) Backlog(ctx context.Context, model string, from uint64, n int) ([]Waiting, error) {
	q, err := b.waitingRoom(ctx, model)
	if err != nil {
		return nil, fmt.Errorf("backlog of %s: %w", model, err)
	}
	var list []Waiting
	for size := 0; len(list) < n && size < backlogBytes; {
		msg, err := q.get(ctx, from, jetstream.WithGetMsgSubject(Subject(model)))
		if errors.Is(err, ErrNotFound) {
			break
		}
		if err != nil {
			return list, fmt.Errorf("backlog of %s: %w", model, err)
		}
		list = append(list, Waiting{msg.Sequence, q.left(msg)})
		size += len(msg.Data)
		from = msg.Sequence + 1
	}
	return list, nil
}

// Expire ends those of a model's requests seqs that may not wait any longer: each client is told first,
// and then the request is deleted. It returns how many it has deleted, and those that may wait yet; what
// has left the queue is neither. A gpu-let that fetches one at this very moment answers the same.
// Several planners may run it. Planner only.
func (b *Bus) Expire(ctx context.Context, model string, seqs []uint64) (expired int, early []Waiting, err error) {
	q, err := b.waitingRoom(ctx, model)
	if err != nil {
		return 0, nil, fmt.Errorf("expire requests of %s: %w", model, err)
	}
	for _, seq := range seqs {
		msg, err := q.get(ctx, seq)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return expired, early, fmt.Errorf("expire requests of %s: %w", model, err)
		}
		if left := q.left(msg); left > 0 {
			early = append(early, Waiting{seq, left})
			continue
		}
		ok, err := b.endStored(ctx, q.stream, msg, wire.Expired, "the deadline passed in the queue: nobody fetched the request")
		if err != nil {
			return expired, early, fmt.Errorf("expire request %d of %s: %w", seq, model, err)
		}
		if ok {
			expired++
		}
	}
	return expired, early, nil
}

// waitingRoom is a queue as its server sees it at one moment.
type waitingRoom struct {
	stream  jetstream.Stream
	fetched uint64        // requests up to here were delivered at least once
	ackWait time.Duration // for which they may be with a gpu-let that is silent
	timeout time.Duration // of requests that name no deadline
	now     time.Time     // by the server's clock, when it was asked
	asked   time.Time     // the same moment by this host's
}

func (b *Bus) waitingRoom(ctx context.Context, name string) (waitingRoom, error) {
	ctx, cancel := apiContext(ctx)
	defer cancel()
	consumer, err := b.js.Consumer(ctx, StreamName(name), Consumer)
	if err != nil {
		return waitingRoom{}, jsError(err)
	}
	stream, err := b.js.Stream(ctx, StreamName(name))
	if err != nil {
		return waitingRoom{}, jsError(err)
	}
	deliveries, queue := consumer.CachedInfo(), stream.CachedInfo()
	return waitingRoom{
		stream: stream, fetched: deliveries.Delivered.Stream, ackWait: deliveries.Config.AckWait,
		timeout: queue.Config.MaxAge - model.QueueGrace, now: queue.TimeStamp, asked: time.Now(),
	}, nil
}

func (q *waitingRoom) get(ctx context.Context, seq uint64, opts ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := apiContext(ctx)
	defer cancel()
	msg, err := q.stream.GetMsg(ctx, seq, opts...)
	return msg, jsError(err)
}

// left is how long a request may wait yet. One that was fetched may be with a gpu-let, which has the first
// word on it for an AckWait longer. A deadline that cannot be read is that of a request without one.
func (q *waitingRoom) left(msg *jetstream.RawStreamMsg) time.Duration {
	at, err := wire.ResolveDeadline(msg.Header.Get, msg.Time, q.timeout)
	if err != nil {
		at = msg.Time.Add(q.timeout)
	}
	if msg.Sequence <= q.fetched {
		at = at.Add(q.ackWait)
	}
	return at.Sub(q.now) - time.Since(q.asked)
}

// endStored answers a request that lies in its queue and then deletes it: whoever dies in between leaves it
// to others. One that nobody can answer, since its address or its id is bad, is deleted, too. It is false
// when somebody else was faster.
func (b *Bus) endStored(ctx context.Context, queue jetstream.Stream, msg *jetstream.RawStreamMsg, status wire.Status, detail string) (bool, error) {
	name := modelOf(queue.CachedInfo().Config.Name)
	switch err := b.answer(msg, status, name, detail); {
	case errors.Is(err, ErrUnavailable):
		return false, err
	case err != nil:
		b.log.Debug("reply not sent", "model", name, "request_id", idOf(msg), "error", err)
	}
	ctx, cancel := apiContext(ctx)
	defer cancel()
	switch err := queue.DeleteMsg(ctx, msg.Sequence); {
	case gone(err):
		return false, nil
	case err != nil:
		return false, jsError(err)
	}
	return true, nil
}
