package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gpulet/gpulet/shared/plan"
)

// GetPlan reads the current plan and the revision to give to PutPlan. Before the first plan it
// returns a zero plan, and revision 0 unless FencePlan was called.
func (b *Bus) GetPlan(ctx context.Context) (plan.Plan, uint64, error) {
	e, err := b.get(ctx, BucketPlan, KeyPlan)
	if errors.Is(err, ErrNotFound) {
		return plan.Plan{}, e.rev, nil
	}
	if err != nil {
		return plan.Plan{}, 0, err
	}
	p, err := decodePlan(e)
	return p, e.rev, err
}

// FencePlan makes every PutPlan fail that was prepared while there was no plan and the document had
// revision rev; it returns the new revision. ErrConflict means that there is one by now. To fence
// where there is a plan, put it again.
func (b *Bus) FencePlan(ctx context.Context, rev uint64) (uint64, error) {
	return b.write(ctx, BucketPlan, KeyPlan, map[string]string{headerKVOp: "DEL", headerExpectLast: strconv.FormatUint(rev, 10)}, nil)
}

func decodePlan(e entry) (plan.Plan, error) {
	var p plan.Plan
	if err := json.Unmarshal(e.value, &p); err != nil {
		return plan.Plan{}, fmt.Errorf("%s %s, revision %d: %w", BucketPlan, KeyPlan, e.rev, err)
	}
	return p, nil
}

// PutPlan publishes p if the current plan still has revision rev (0: there is none) and returns
// the new revision. ErrConflict means that somebody else published meanwhile: read again.
// rev is the document's revision on the bus; p.Revision is written as it is.
func (b *Bus) PutPlan(ctx context.Context, p plan.Plan, rev uint64) (uint64, error) {
	if rev > math.MaxInt64 {
		return 0, fmt.Errorf("plan revision %d: expected one of GetPlan", rev)
	}
	return b.put(ctx, BucketPlan, KeyPlan, p, int64(rev))
}

// PlanHistory reads the last plans, at most 16, oldest first; the last one is the current one. A plan
// that was only written again, by a new leader, is there once.
func (b *Bus) PlanHistory(ctx context.Context) ([]plan.Plan, error) {
	entries, err := b.walk(ctx, BucketPlan, KeyPlan)
	if err != nil {
		return nil, err
	}
	plans := make([]plan.Plan, 0, len(entries))
	for _, e := range entries {
		p, err := decodePlan(e)
		if err != nil {
			b.log.Error("unreadable plan on the bus", "error", err)
			continue
		}
		if n := len(plans); n > 0 && plans[n-1].Revision == p.Revision {
			plans = plans[:n-1]
		}
		plans = append(plans, p)
	}
	return plans, nil
}

// WatchPlan sends the current plan and then every newer one. A slow reader gets only the newest.
// The plan is also read again every 5 s, and older revisions are ignored. So are plans of a lower
// term than one seen before: a planner wrote them that does not lead any more. It works before there
// is a plan, or a bucket. The channel is closed when ctx ends.
func (b *Bus) WatchPlan(ctx context.Context) (<-chan plan.Plan, error) {
	told := make(chan entry, 1)
	reread := make(chan struct{}, 1)
	unsubscribe, err := b.changed(BucketPlan, KeyPlan, func(m *nats.Msg) {
		if e, ok := toldEntry(m); ok {
			select {
			case told <- e:
				return
			default: // the reader is behind: let it read
			}
		}
		select {
		case reread <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, err
	}
	out := make(chan plan.Plan, 1)
	go func() {
		defer close(out)
		defer unsubscribe()
		b.followPlan(ctx, out, told, reread)
	}()
	return out, nil
}

// toldEntry is the value in a message about a change; not ok for a deletion or no message.
func toldEntry(m *nats.Msg) (entry, bool) {
	if m == nil || m.Header.Get(headerKVOp) != "" {
		return entry{}, false
	}
	e, err := carried(KeyPlan, m)
	return e, err == nil
}

// followPlan sends every newer plan that it is told of or reads.
func (b *Bus) followPlan(ctx context.Context, out chan plan.Plan, told <-chan entry, reread <-chan struct{}) {
	ticker := time.NewTicker(rereadEvery)
	defer ticker.Stop()
	var last entry
	var term uint64
	take := func(e entry) {
		if !e.newer(last) {
			return
		}
		if e.rev < last.rev {
			term = 0 // the bucket was made anew, and terms may begin anew
		}
		last = e
		p, err := decodePlan(e)
		switch {
		case err != nil:
			b.log.Error("unreadable plan on the bus", "error", err)
		case p.Term < term:
			b.log.Error("plan refused: its planner does not lead any more", "plan_rev", p.Revision, "term", p.Term, "expected_term", term)
		default:
			term = p.Term
			offer(out, p)
		}
	}
	for {
		e, err := b.get(ctx, BucketPlan, KeyPlan)
		switch {
		case err == nil:
			take(e)
		case !errors.Is(err, ErrNotFound):
			b.logLoad(ctx, BucketPlan, err)
		}
		for again := false; !again; {
			select {
			case <-ctx.Done():
				return
			case e := <-told:
				take(e)
			case <-reread:
				again = true
			case <-ticker.C:
				again = true
			}
		}
	}
}
