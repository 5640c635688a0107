package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/gpulet/gpulet/shared/wire"
)

// Cancellation says that nobody wants a request any more.
type Cancellation struct {
	Model, RequestID string
	// Seq is the request's place in its queue, from its Receipt: with it the planner takes a request
	// that nobody has fetched out of the queue at once. 0: not known; then it ends when its turn comes.
	Seq uint64
}

// Cancel tells everybody who may have the request. Delivery is at most once: a request whose
// cancellation is lost is answered as if there had been none.
func (b *Bus) Cancel(c Cancellation) error {
	if err := checkResult(c.Model, c.RequestID); err != nil {
		return err
	}
	msg := &nats.Msg{Subject: CancelSubject(c.Model, c.RequestID)}
	if c.Seq > 0 {
		msg.Header = nats.Header{HeaderSequence: {strconv.FormatUint(c.Seq, 10)}}
	}
	if !b.nc.IsConnected() {
		return fmt.Errorf("cancel %s of %s: %w: not connected to NATS", c.RequestID, c.Model, ErrUnavailable)
	}
	if err := b.nc.PublishMsg(msg); err != nil {
		return fmt.Errorf("cancel %s of %s: %w", c.RequestID, c.Model, unavailable(err))
	}
	return nil
}

// everyModel is for listening to the cancellations of all models.
const everyModel = "*"

// WatchCancellations calls hear for every cancellation of a model's requests, "" for all models', one
// after the other, until stop is called; hear is not called again once that returns. It must not be
// called from hear.
func (b *Bus) WatchCancellations(model string, hear func(Cancellation)) (stop func(), err error) {
	if model == "" {
		model = everyModel
	} else if err := CheckModel(model); err != nil {
		return nil, err
	}
	sub, err := b.nc.Subscribe(CancelSubject(model, "*"), func(m *nats.Msg) {
		if c, ok := readCancellation(m); ok {
			hear(c)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("watch cancellations: %w", unavailable(err))
	}
	ended := make(chan struct{})
	sub.SetClosedHandler(func(string) { close(ended) })
	return func() {
		if sub.Unsubscribe() == nil {
			<-ended
		}
	}, nil
}

func readCancellation(m *nats.Msg) (Cancellation, bool) {
	parts := strings.Split(m.Subject, ".")
	if len(parts) != 3 {
		return Cancellation{}, false
	}
	c := Cancellation{Model: parts[1], RequestID: parts[2]}
	if s := m.Header.Get(HeaderSequence); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return Cancellation{}, false
		}
		c.Seq = n
	}
	return c, checkResult(c.Model, c.RequestID) == nil
}

// RemoveCancelled takes cancelled requests that no gpu-let has fetched out of their queues, and answers
// them, until ctx ends; removed is called for each. Those that were fetched are left to their gpu-lets.
// More than can be kept up with are left to them, too. Several planners may run it: a client may hear of
// it from each, and removed is called by one. Planner only.
func (b *Bus) RemoveCancelled(ctx context.Context, removed func(model string)) error {
	todo := make(chan Cancellation, 4096)
	stop, err := b.WatchCancellations("", func(c Cancellation) {
		if c.Seq == 0 {
			return
		}
		select {
		case todo <- c:
		default:
			b.log.Debug("too many cancellations", "model", c.Model, "request_id", c.RequestID)
		}
	})
	if err != nil {
		return err
	}
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c := <-todo:
			ok, err := b.takeOut(ctx, c)
			if ok {
				removed(c.Model)
			}
			if err != nil && ctx.Err() == nil && !errors.Is(err, ErrNotFound) {
				b.log.Log(ctx, slog.LevelWarn, "cannot remove a cancelled request", "model", c.Model, "request_id", c.RequestID, "error", err)
			}
		}
	}
}

// takeOut takes a request out of its queue, if it is there, is the one that is meant, and was never
// fetched. Where another planner is faster, that one counts it.
func (b *Bus) takeOut(ctx context.Context, c Cancellation) (bool, error) {
	ctx, cancel := apiContext(ctx)
	defer cancel()
	consumer, err := b.js.Consumer(ctx, StreamName(c.Model), Consumer)
	if err != nil {
		return false, jsError(err)
	}
	if consumer.CachedInfo().Delivered.Stream >= c.Seq {
		return false, nil
	}
	stream, err := b.js.Stream(ctx, StreamName(c.Model))
	if err != nil {
		return false, jsError(err)
	}
	msg, err := stream.GetMsg(ctx, c.Seq)
	if err != nil {
		return false, jsError(err)
	}
	if idOf(msg) != c.RequestID {
		return false, nil
	}
	return b.endStored(ctx, stream, msg, wire.Cancelled, "cancelled in the queue")
}
