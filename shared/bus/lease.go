package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gpulet/gpulet/shared/plan"
)

// leaseBucket is on disk: terms must not begin anew because a server did.
func leaseBucket() jetstream.KeyValueConfig {
	return jetstream.KeyValueConfig{Bucket: BucketLease, Description: "which planner leads", History: 1, Storage: jetstream.FileStorage}
}

// EnsureLease makes the bucket of the lease: the only thing that a planner makes which does not lead.
// It is idempotent. Planner only.
func (b *Bus) EnsureLease(ctx context.Context) error {
	cfg := leaseBucket()
	cfg.RePublish = repeated(cfg.Bucket)
	return b.ensureBucket(ctx, cfg)
}

// Lease reads which planner leads, the revision to give to PutLease, and when the lease was written
// last, by the server's clock. Before the first one it returns a zero lease and revision 0; ErrNotFound
// is not among its errors. Planner only.
func (b *Bus) Lease(ctx context.Context) (l plan.Lease, rev uint64, written time.Time, err error) {
	e, err := b.get(ctx, BucketLease, KeyPlanner)
	if errors.Is(err, ErrNotFound) {
		return plan.Lease{}, e.rev, time.Time{}, nil
	}
	if err != nil {
		return plan.Lease{}, 0, time.Time{}, err
	}
	if err := json.Unmarshal(e.value, &l); err != nil {
		return plan.Lease{}, 0, time.Time{}, fmt.Errorf("%s %s, revision %d: %w", BucketLease, KeyPlanner, e.rev, err)
	}
	return l, e.rev, e.created, nil
}

// PutLease writes the lease if it still has revision rev (0: there is none) and returns the new
// revision. ErrConflict means that somebody else wrote it meanwhile. Planner only.
func (b *Bus) PutLease(ctx context.Context, l plan.Lease, rev uint64) (uint64, error) {
	if rev > math.MaxInt64 {
		return 0, fmt.Errorf("lease revision %d: expected one of Lease", rev)
	}
	return b.put(ctx, BucketLease, KeyPlanner, l, int64(rev))
}
