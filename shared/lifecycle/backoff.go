package lifecycle

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff spaces out retries: Min, then twice as long each time up to Max, each shortened by a
// random tenth so that many processes that lost the same server do not come back at once.
// The zero value waits 100ms to 5s.
type Backoff struct {
	Min, Max time.Duration
	next     time.Duration
}

// Next returns how long to wait before the next try.
func (b *Backoff) Next() time.Duration {
	least, most := b.Min, b.Max
	if least <= 0 {
		least = 100 * time.Millisecond
	}
	if most <= 0 {
		most = max(5*time.Second, least)
	}
	d := min(max(b.next, least), most)
	b.next = min(d, most/2) * 2
	return d - rand.N(d/10+1) // jitter
}

// Reset makes the next wait Min again; call it after a success.
func (b *Backoff) Reset() { b.next = 0 }

// Sleep waits for d or for the end of ctx, whose error it then returns.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
