package batch

import (
	"cmp"
	"math"
	"time"
)

// Standing orders the models of a gpu-let: those below the highest standing there are idle models.
type Standing int

const (
	Promised Standing = iota // interactive, with a planned rate
	Guest                    // interactive and promised nothing: it is better to answer late than not at all
	Offline                  // of that class, whatever was planned
)

// StandingOf is the standing of a model on a gpu-let that is planned to serve rate of it.
func StandingOf(rate float64, offline bool) Standing {
	switch {
	case offline:
		return Offline
	case rate <= 0:
		return Guest
	}
	return Promised
}

// Slack is for how long an idle model's batch may keep the executor from the others. What arrives
// meanwhile is at most a planned batch of each of them, where they get no more than was planned, so the first of
// it is answered after the idle batch and a round of all of them: that has to be within the SLO. Half of
// what is left is given away, since nothing arrives as evenly as planned. Without any other models, or
// SLOs, there is no bound.
func (b *Batcher) Slack() time.Duration {
	round, slo := time.Duration(0), time.Duration(math.MaxInt64)
	for _, q := range b.models {
		round += q.exec(cmp.Or(q.Planned, q.Batch))
		if q.SLO > 0 {
			slo = min(slo, q.SLO)
		}
	}
	if slo == math.MaxInt64 {
		return slo
	}
	return max(0, (slo-round)/2)
}

// Taken reports whether anything is held for models that are not idle ones.
func (b *Batcher) Taken() bool { return length(b.models) > 0 }

// Idle reports whether something is held for idle models and nothing for the others, and how long the
// shortest batch takes that NextIdle could launch.
func (b *Batcher) Idle() (shortest time.Duration, ok bool) {
	if b.Taken() {
		return 0, false
	}
	for _, q := range b.idle {
		if len(q.items) > 0 && (!ok || q.exec(q.largest) < shortest) {
			shortest, ok = q.exec(q.largest), true
		}
	}
	return shortest, ok
}

// NextIdle decides which idle model runs on the executor, which is free now, with a batch that takes no
// longer than within: the one with the earliest deadline. It launches nothing while something is held for
// other models, and for no model of which a request might take longer than that alone.
func (b *Batcher) NextIdle(now time.Time, within time.Duration) Decision {
	d := Decision{Expired: b.expire(nil, now)}
	var first *queue
	for _, q := range b.idle {
		if len(q.items) == 0 || q.exec(q.largest) > within {
			continue
		}
		if first == nil || q.items[0].Deadline.Before(first.items[0].Deadline) {
			first = q
		}
	}
	if first != nil && !b.Taken() {
		planned := first.Batch
		for first.Batch > first.largest && first.exec(first.Batch) > within {
			first.Batch--
		}
		d.Launch, d.Expired = first.take(now, d.Expired)
		first.Batch = planned
	}
	d.Wake = b.wake()
	return d
}

// WantIdle is Want for idle models; it wants nothing for them while something is held for others.
func (b *Batcher) WantIdle() []Want {
	if b.Taken() {
		return nil
	}
	var wants []Want
	for _, q := range b.idle {
		if n := q.room(1); n > 0 {
			wants = append(wants, Want{q.Name, n})
		}
	}
	return wants
}
