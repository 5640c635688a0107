package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/life"
	"github.com/gpulet/gpulet/shared/model"
)

// Properties of every queue.
const (
	dedupe     = 10 * time.Second // at least; longer where requests may take longer
	maxWaiting = 2048             // parked pulls: gpu-lets that may serve the same model
)

// Queue is how a model's requests are held.
type Queue struct {
	Model         string
	File          bool          // on disk instead of in memory
	MaxMsgs       int64         // further requests are refused as overloaded
	MaxBytes      int64         // the same, in bytes
	MaxAge        time.Duration // requests are dropped at this age; a little over the model's timeout
	AckWait       time.Duration // a fetched request that is not acknowledged for so long is delivered again
	MaxAckPending int           // requests that may be fetched and not acknowledged at once
	Replicas      int           // default 1
}

// Validate checks every field; the error names it, what was found and what was expected.
func (q Queue) Validate() error {
	if err := CheckModel(q.Model); err != nil {
		return err
	}
	wrong := func(field string, found any, expected string) error {
		return fmt.Errorf("queue %s: %s %v: expected %s", q.Model, field, found, expected)
	}
	switch {
	case q.MaxMsgs < 1:
		return wrong("max messages", q.MaxMsgs, "1 or more")
	case q.MaxBytes < 1:
		return wrong("max bytes", q.MaxBytes, "1 or more")
	case q.MaxAge < 100*time.Millisecond:
		return wrong("max age", q.MaxAge, "100ms or more")
	case q.AckWait < time.Second:
		return wrong("ack wait", q.AckWait, "1s or more")
	case q.MaxAckPending < 1:
		return wrong("max ack pending", q.MaxAckPending, "1 or more")
	case q.Replicas < 0 || q.Replicas > 5:
		return wrong("replicas", q.Replicas, "1 to 5")
	}
	return nil
}

// Lag is how far a queue is behind.
type Lag struct {
	Pending     uint64    // stored and not fetched
	AckPending  uint64    // fetched and not acknowledged
	Redelivered uint64    // of those, delivered more than once
	Waiting     int       // pulls that are parked
	Deliveries  uint64    // ever made; while it stands still nobody fetches
	FirstSeq    uint64    // of the oldest request; those before it have left the queue
	LastSeq     uint64    // requests ever stored; differences of it are the arrival rate
	Bytes       uint64    // stored
	Created     time.Time // when the queue was made: another time is another queue, and what the other held is lost
	Oldest      time.Time // when the oldest request was stored; zero when there is none
}

// EnsureBase creates or updates what all models share: the buckets and the streams of results and
// dead letters. It is idempotent. Planner only.
func (b *Bus) EnsureBase(ctx context.Context) error {
	for _, cfg := range buckets() {
		if err := b.ensureBucket(ctx, cfg); err != nil {
			return err
		}
	}
	for _, cfg := range baseStreams() {
		err := b.ensureStream(ctx, cfg)
		if errors.Is(err, ErrFixed) && cfg.Name == StreamResults {
			err = b.replaceStream(ctx, cfg) // it lived in memory once, and its contents live for minutes
		}
		if err != nil {
			return err
		}
	}
	return b.ensureConsumer(ctx, StreamAdvisories, jetstream.ConsumerConfig{
		Durable: ConsumerBury, AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second, MaxAckPending: 256,
	})
}

func baseStreams() []jetstream.StreamConfig {
	return []jetstream.StreamConfig{
		{
			Name: StreamResults, Description: "results of requests, by model and request id",
			Subjects: []string{"result.>"}, Storage: jetstream.FileStorage, Discard: jetstream.DiscardOld,
			MaxAge: 15 * time.Minute, MaxBytes: 64 << 20, MaxMsgsPerSubject: 1, AllowDirect: true,
		},
		{
			Name: StreamDLQ, Description: "requests that nobody served, with the reason",
			Subjects: []string{"dlq.>"}, Storage: jetstream.FileStorage, Discard: jetstream.DiscardOld,
			MaxAge: 24 * time.Hour, MaxBytes: 1 << 30,
		},
		{
			Name: StreamAdvisories, Description: "requests that JetStream gave up",
			Subjects: advisorySubjects(), Storage: jetstream.FileStorage, Discard: jetstream.DiscardOld,
			Retention: jetstream.WorkQueuePolicy, MaxAge: 24 * time.Hour, MaxBytes: 64 << 20,
		},
	}
}

// EnsureQueue creates or updates the queue of a model. It is idempotent: the same queue twice
// changes nothing, changed limits are updated in place, and what cannot be updated is an error
// that says what is there, what was wanted and what to do. Planner only.
func (b *Bus) EnsureQueue(ctx context.Context, q Queue) error {
	if err := q.Validate(); err != nil {
		return err
	}
	if err := b.ensureStream(ctx, q.stream()); err != nil {
		return fmt.Errorf("queue %s: %w", q.Model, err)
	}
	if err := b.ensureConsumer(ctx, StreamName(q.Model), q.consumer()); err != nil {
		return fmt.Errorf("queue %s: %w", q.Model, err)
	}
	return nil
}

func (q Queue) stream() jetstream.StreamConfig {
	storage := jetstream.MemoryStorage
	if q.File {
		storage = jetstream.FileStorage
	}
	return jetstream.StreamConfig{
		Name: StreamName(q.Model), Description: "requests to " + q.Model,
		Subjects: []string{Subject(q.Model)}, Retention: jetstream.WorkQueuePolicy, Storage: storage,
		Discard: jetstream.DiscardNew, MaxMsgs: q.MaxMsgs, MaxBytes: q.MaxBytes, MaxAge: q.MaxAge,
		Duplicates: min(max(dedupe, q.MaxAge-model.QueueGrace), q.MaxAge), Replicas: max(q.Replicas, 1),
	}
}

func (q Queue) consumer() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: Consumer, AckPolicy: jetstream.AckExplicitPolicy, AckWait: q.AckWait,
		MaxDeliver: life.MaxDeliver, MaxAckPending: q.MaxAckPending, MaxWaiting: maxWaiting,
		PriorityPolicy: jetstream.PriorityPolicyPrioritized, PriorityGroups: []string{PriorityGroup},
	}
}

// DeleteQueue deletes the queue of a model with everything in it; none is fine. Planner only.
func (b *Bus) DeleteQueue(ctx context.Context, model string) error {
	if err := CheckModel(model); err != nil {
		return err
	}
	err := b.js.DeleteStream(ctx, StreamName(model))
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("delete queue %s: %w", model, jsError(err))
	}
	return nil
}

// Queues lists the models that have a queue, sorted. Planner only.
func (b *Bus) Queues(ctx context.Context) ([]string, error) {
	ctx, cancel := apiContext(ctx)
	defer cancel()
	var models []string
	names := b.js.StreamNames(ctx)
	for name := range names.Name() {
		if strings.HasPrefix(name, StreamName("")) {
			models = append(models, modelOf(name))
		}
	}
	if err := names.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) {
		return nil, fmt.Errorf("list queues: %w", jsError(err))
	}
	slices.Sort(models)
	return models, nil
}

func modelOf(stream string) string { return strings.TrimPrefix(stream, StreamName("")) }

// Lag reads how far a model's queue is behind; ErrUnknownModel when it has none.
func (b *Bus) Lag(ctx context.Context, model string) (Lag, error) {
	if err := CheckModel(model); err != nil {
		return Lag{}, err
	}
	lag, err := b.lag(ctx, model)
	if err = jsError(err); errors.Is(err, ErrNotFound) {
		return Lag{}, fmt.Errorf("lag of %s: %w: it has no queue", model, ErrUnknownModel)
	}
	if err != nil {
		return Lag{}, fmt.Errorf("lag of %s: %w", model, err)
	}
	return lag, nil
}

func (b *Bus) lag(ctx context.Context, model string) (Lag, error) {
	stream, err := b.js.Stream(ctx, StreamName(model))
	if err != nil {
		return Lag{}, err
	}
	consumer, err := b.js.Consumer(ctx, StreamName(model), Consumer)
	if err != nil {
		return Lag{}, err
	}
	state, info := stream.CachedInfo().State, consumer.CachedInfo()
	lag := Lag{
		Pending: info.NumPending, AckPending: uint64(info.NumAckPending), Redelivered: uint64(info.NumRedelivered),
		Waiting: info.NumWaiting, Deliveries: info.Delivered.Consumer,
		FirstSeq: state.FirstSeq, LastSeq: state.LastSeq, Bytes: state.Bytes, Created: stream.CachedInfo().Created,
	}
	if state.Msgs > 0 {
		lag.Oldest = state.FirstTime
	}
	return lag, nil
}
