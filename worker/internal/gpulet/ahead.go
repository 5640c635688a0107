package gpulet

import (
	"time"

	"github.com/gpulet/gpulet/shared/batch"
)

// next is a batch that was handed over while another runs, so that its inputs are on the device, and
// the executor has no wait, when that ends.
type next struct {
	*staging
	items []batch.Item
	exec  time.Duration // estimate
}

// launchAhead hands the executor the batch behind the one that runs, once that batch is full: then
// nothing is gained by deciding later. It is decided as if now were the moment when the executor is
// expected to be free.
func (l *loop) launchAhead(now time.Time) {
	if !l.busy || l.next != nil || l.revoked || l.trial != nil {
		return
	}
	free := l.busyUntil
	if free.Before(now) {
		free = now
	}
	n := l.batcher.NextFull(free)
	if len(n.Items) == 0 {
		return
	}
	latest := n.Items[0].Deadline.Add(-n.Exec) // the first is due first
	l.next = &next{newStaging(latest), n.Items, n.Exec}
	l.busyUntil = free.Add(n.Exec)
	l.exec.run(newRuns(l.models[n.Model], n.Items), l.next.staging)
}

// revoke takes the next batch back when it cannot start in time any more, because the one that runs
// takes longer than expected: the batcher decides anew, and those who wait in vain hear of it at
// once. No other is handed over until the executor is free, so its queue stays short.
func (l *loop) revoke(now time.Time) {
	n := l.next
	if n == nil || !now.After(n.latest) || !n.staging.revoke() {
		return
	}
	l.next, l.revoked = nil, true
	l.busyUntil = l.busyUntil.Add(-n.exec)
	for _, it := range n.items {
		req := it.Payload.(*request) //nolint:forcetypeassert // the loop puts nothing else in
		req.pixels = nil             // never used again: they may be on their way to the device right now
		l.hold(req, now)
	}
}

// landed notes that a job is done. The next one starts now, if there is one.
func (l *loop) landed(now time.Time) {
	l.busy, l.revoked = l.next != nil, false
	if l.busy {
		l.busyUntil = now.Add(l.next.exec)
		l.next = nil
	}
}
