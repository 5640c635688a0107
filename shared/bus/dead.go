package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/wire"
)

// advisory is what JetStream says when it gives a message up.
type advisory struct {
	Type       string `json:"type"`
	Stream     string `json:"stream"`
	Seq        uint64 `json:"stream_seq"`
	Deliveries int    `json:"deliveries"`
	Reason     string `json:"reason"`
}

// BuryDead moves requests that JetStream gave up (too many deliveries) from their queues to the
// dead letters and answers them with "poisoned", until ctx ends. JetStream itself would leave them
// in the queue, counted but never delivered. Several planners may run it. Planner only.
func (b *Bus) BuryDead(ctx context.Context) error {
	retry := lifecycle.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	for ctx.Err() == nil {
		err := b.buryBatch(ctx)
		if err == nil {
			retry.Reset()
			continue
		}
		if ctx.Err() != nil {
			break
		}
		level := slog.LevelWarn
		if errors.Is(err, ErrNotFound) {
			level = slog.LevelDebug // EnsureBase has not run yet
		}
		b.log.Log(ctx, level, "cannot bury dead requests, trying again", "error", err)
		_ = lifecycle.Sleep(ctx, retry.Next())
	}
	return ctx.Err()
}

// buryBatch waits up to some seconds for advisories and handles them.
func (b *Bus) buryBatch(ctx context.Context) error {
	consumer, err := b.js.Consumer(ctx, StreamAdvisories, ConsumerBury)
	if err != nil {
		return jsError(err)
	}
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	batch, err := consumer.Fetch(64, jetstream.FetchContext(wait))
	if err != nil {
		return jsError(err)
	}
	for msg := range batch.Messages() {
		if err := b.buryOne(ctx, msg.Data()); err != nil {
			b.log.Warn("cannot bury a dead request, trying again", "error", err)
			_ = msg.NakWithDelay(time.Second)
			continue
		}
		_ = msg.Ack() // lost: buried again, and de-duplicated
	}
	if err := batch.Error(); err != nil && wait.Err() == nil {
		return jsError(err)
	}
	return nil
}

func (b *Bus) buryOne(ctx context.Context, data []byte) error {
	var adv advisory
	if err := json.Unmarshal(data, &adv); err != nil {
		b.log.Error("unreadable advisory", "error", err)
		return nil
	}
	if !strings.HasPrefix(adv.Stream, StreamName("")) {
		return nil
	}
	stream, err := b.js.Stream(ctx, adv.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return jsError(err)
	}
	msg, err := stream.GetMsg(ctx, adv.Seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil // buried before, or aged out
	}
	if err != nil {
		return jsError(err)
	}
	if err := b.buryStored(ctx, adv, msg); err != nil {
		return err
	}
	if err := stream.DeleteMsg(ctx, adv.Seq); err != nil && !gone(err) {
		return jsError(err)
	}
	return nil
}

func (b *Bus) buryStored(ctx context.Context, adv advisory, msg *jetstream.RawStreamMsg) error {
	model := modelOf(adv.Stream)
	reason := fmt.Sprintf("delivered %d times and never acknowledged", adv.Deliveries)
	if adv.Reason != "" {
		reason = "terminated: " + adv.Reason
	}
	err := b.bury(ctx, letter{
		model: model, subject: msg.Subject, seq: msg.Sequence, delivered: adv.Deliveries, stored: msg.Time,
		header: msg.Header, body: msg.Data, reason: reason,
	})
	if err != nil {
		return err
	}
	b.log.Warn("buried a dead request", "model", model, "seq", msg.Sequence, "reason", reason)
	if err := b.answer(msg, wire.Poisoned, model, reason); err != nil {
		b.log.Warn("cannot answer a dead request", "model", model, "seq", msg.Sequence, "error", err)
	}
	return nil
}

// idOf is how a request is known to its client: by its id or, without one, by its place in the queue,
// as it is to workers.
func idOf(msg *jetstream.RawStreamMsg) string {
	if id := msg.Header.Get(wire.HeaderRequestID); id != "" {
		return id
	}
	return strconv.FormatUint(msg.Sequence, 10)
}

// answer tells a requester that its request ended without an output.
func (b *Bus) answer(msg *jetstream.RawStreamMsg, status wire.Status, model, detail string) error {
	id := idOf(msg)
	header, body, err := wire.EncodeReply(msg.Header.Get(wire.HeaderType), wire.Reply{
		RequestID: id, Status: status, Model: model, Detail: detail,
	})
	if err != nil {
		return err
	}
	if to := msg.Header.Get(wire.HeaderReplyTo); to != "" {
		err := b.Reply(to, header, body)
		if msg.Header.Get(wire.HeaderKeep) == "" || errors.Is(err, ErrUnavailable) {
			return err
		}
	}
	return b.StoreResult(model, id, header, body)
}
