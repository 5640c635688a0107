package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/gpulet/gpulet/shared/plan"
)

// PutSuspect remembers for SuspectTTL that a request was near a death. Worker only.
func (b *Bus) PutSuspect(ctx context.Context, s plan.Suspect) error {
	if err := CheckModel(s.Model); err != nil {
		return err
	}
	_, err := b.put(ctx, BucketSuspects, suspectKey(s.Model, s.Seq), s, anyRevision)
	return err
}

// Suspect reads what is held against the request that a model's queue stored as seq at that time, by
// its server's clock (Msg.Stamped); ErrNotFound when there is nothing. Worker only.
func (b *Bus) Suspect(ctx context.Context, model string, seq uint64, stored time.Time) (plan.Suspect, error) {
	if err := CheckModel(model); err != nil {
		return plan.Suspect{}, err
	}
	key := suspectKey(model, seq)
	e, err := b.get(ctx, BucketSuspects, key)
	if err != nil {
		return plan.Suspect{}, err
	}
	var s plan.Suspect
	if err := json.Unmarshal(e.value, &s); err != nil {
		return plan.Suspect{}, fmt.Errorf("%s %s, revision %d: %w", BucketSuspects, key, e.rev, err)
	}
	if !s.Stored.Equal(stored) { // of a queue that was there before
		return plan.Suspect{}, fmt.Errorf("%s %s: %w", BucketSuspects, key, ErrNotFound)
	}
	return s, nil
}
