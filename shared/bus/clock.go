package bus

import (
	"context"
	"fmt"
	"time"
)

// How the clocks are compared: a few questions a time, and again now and then, since clocks drift
// and are set.
const (
	clockSamples = 5
	clockEvery   = 10 * time.Second
)

// CompareClocks asks the server for the time and notes by how much this host's clock differs, so
// that what the server stamped can be compared with it: a worker whose clock is ahead would else take
// requests for late that are not. A difference that the time of the exchange explains counts as none.
func (b *Bus) CompareClocks(ctx context.Context) error {
	ctx, cancel := apiContext(ctx)
	defer cancel()
	ahead, err := compareClocks(time.Now, func() (time.Time, error) {
		stream, err := b.js.Stream(ctx, kvStream(BucketPlan))
		if err != nil {
			return time.Time{}, jsError(err)
		}
		return stream.CachedInfo().TimeStamp, nil
	})
	if err != nil {
		return fmt.Errorf("compare clocks: %w", err)
	}
	if was := b.ahead.Swap(int64(ahead)); (was == 0) != (ahead == 0) {
		b.log.Warn("this host's clock and the server's differ", "server_ahead", ahead)
	}
	return nil
}

// FollowClock compares the clocks until ctx ends. While the server does not answer, what was found
// last holds.
func (b *Bus) FollowClock(ctx context.Context) {
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := b.CompareClocks(ctx); err != nil {
				b.log.Debug("cannot compare clocks", "error", err)
			}
		}
	}
}

// local is a time of the server's clock by this host's.
func (b *Bus) local(t time.Time) time.Time { return t.Add(-time.Duration(b.ahead.Load())) }

// compareClocks returns how far the server's clock is ahead of now. Each answer says that it is
// between what the clock showed before and after; 0 where that is possible, else the middle.
func compareClocks(now func() time.Time, ask func() (time.Time, error)) (time.Duration, error) {
	var least, most time.Duration
	for i := range clockSamples {
		before := now().Round(0) // wall clocks are compared, not monotonic ones
		at, err := ask()
		if err != nil {
			return 0, err
		}
		lo, hi := at.Sub(now().Round(0)), at.Sub(before)
		if i == 0 || lo > least {
			least = lo
		}
		if i == 0 || hi < most {
			most = hi
		}
	}
	if least <= 0 && most >= 0 {
		return 0, nil
	}
	return (least + most) / 2, nil
}
