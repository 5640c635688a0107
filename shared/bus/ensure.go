package bus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// ensureStream creates a stream, or updates it where it differs.
func (b *Bus) ensureStream(ctx context.Context, want jetstream.StreamConfig) error {
	want.Replicas = b.copies(want.Replicas)
	have, err := b.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err = b.js.CreateStream(ctx, want)
		if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return named("create stream "+want.Name, err)
		}
		have, err = b.js.Stream(ctx, want.Name) // somebody else was faster
	}
	if err != nil {
		return named("stream "+want.Name, err)
	}
	cfg := have.CachedInfo().Config
	if err := fixedStream(cfg, want); err != nil {
		return err
	}
	next := mergeStream(cfg, want)
	if reflect.DeepEqual(cfg, next) {
		return nil
	}
	_, err = b.js.UpdateStream(ctx, next)
	return named("update stream "+want.Name, err)
}

// replaceStream makes a stream anew, with nothing in it.
func (b *Bus) replaceStream(ctx context.Context, want jetstream.StreamConfig) error {
	if err := b.js.DeleteStream(ctx, want.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return named("delete stream "+want.Name, err)
	}
	return b.ensureStream(ctx, want)
}

// fixedStream refuses what JetStream cannot change in a stream that holds messages.
func fixedStream(have, want jetstream.StreamConfig) error {
	switch {
	case have.Storage != want.Storage:
		return cannotChange("stream "+want.Name, "storage", have.Storage, want.Storage)
	case have.Retention != want.Retention:
		return cannotChange("stream "+want.Name, "retention", have.Retention, want.Retention)
	}
	return nil
}

func cannotChange(what, field string, have, want any) error {
	return fmt.Errorf("%s has %s %v, wanted %v: %w; "+
		"stop its clients, let the workers empty it, delete it, and it is made anew", what, field, have, want, ErrFixed)
}

// mergeStream is have with what we decide taken from want; what an operator set beside that stays.
func mergeStream(have, want jetstream.StreamConfig) jetstream.StreamConfig {
	next := have
	next.Description, next.Subjects, next.Discard = want.Description, want.Subjects, want.Discard
	next.MaxAge, next.MaxBytes, next.MaxMsgs = want.MaxAge, want.MaxBytes, unlimited(want.MaxMsgs)
	next.MaxMsgsPerSubject = unlimited(want.MaxMsgsPerSubject)
	next.AllowDirect = want.AllowDirect
	if want.Duplicates != 0 {
		next.Duplicates = want.Duplicates
	}
	if want.Replicas != 0 {
		next.Replicas = want.Replicas
	}
	return next
}

// unlimited is how JetStream shows a limit that was left out.
func unlimited(n int64) int64 {
	if n == 0 {
		return -1
	}
	return n
}

// ensureConsumer creates a consumer, or updates it where it differs.
func (b *Bus) ensureConsumer(ctx context.Context, stream string, want jetstream.ConsumerConfig) error {
	what := "consumer " + want.Durable + " of " + stream
	have, err := b.js.Consumer(ctx, stream, want.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		_, err = b.js.CreateConsumer(ctx, stream, want)
		if !errors.Is(err, jetstream.ErrConsumerExists) {
			return named("create "+what, err)
		}
		have, err = b.js.Consumer(ctx, stream, want.Durable)
	}
	if err != nil {
		return named(what, err)
	}
	cfg := have.CachedInfo().Config
	switch {
	case cfg.AckPolicy != want.AckPolicy:
		return cannotChange(what, "ack policy", cfg.AckPolicy, want.AckPolicy)
	case cfg.PriorityPolicy != want.PriorityPolicy, !slices.Equal(cfg.PriorityGroups, want.PriorityGroups):
		return cannotChange(what, "priorities", priorities(cfg), priorities(want))
	}
	next := cfg
	next.AckWait, next.MaxAckPending = want.AckWait, want.MaxAckPending
	if want.MaxDeliver != 0 {
		next.MaxDeliver = want.MaxDeliver
	}
	if reflect.DeepEqual(cfg, next) {
		return nil
	}
	_, err = b.js.UpdateConsumer(ctx, stream, next)
	return named("update "+what, err)
}

func priorities(c jetstream.ConsumerConfig) string {
	policy, err := c.PriorityPolicy.MarshalJSON()
	if err != nil {
		return err.Error()
	}
	if c.PriorityPolicy == jetstream.PriorityPolicyNone {
		return "none"
	}
	return fmt.Sprintf("%s%v", strings.Trim(string(policy), `"`), c.PriorityGroups)
}

func (b *Bus) ensureBucket(ctx context.Context, want jetstream.KeyValueConfig) error {
	want.Replicas = b.copies(want.Replicas)
	// A bucket is a stream; comparing that tells whether anything differs.
	stream, err := b.js.Stream(ctx, kvStream(want.Bucket))
	if err == nil && sameBucket(stream.CachedInfo().Config, want) {
		return nil
	}
	if err == nil && stream.CachedInfo().Config.Storage != want.Storage {
		return cannotChange("bucket "+want.Bucket, "storage", stream.CachedInfo().Config.Storage, want.Storage)
	}
	_, err = b.js.CreateOrUpdateKeyValue(ctx, want)
	return named("bucket "+want.Bucket, err)
}

func sameBucket(have jetstream.StreamConfig, want jetstream.KeyValueConfig) bool {
	return have.MaxMsgsPerSubject == int64(want.History) && have.MaxAge == want.TTL && have.Storage == want.Storage &&
		(want.Replicas == 0 || have.Replicas == want.Replicas) &&
		have.MaxBytes == unlimited(want.MaxBytes) && reflect.DeepEqual(have.RePublish, want.RePublish)
}

func named(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, jsError(err))
}
