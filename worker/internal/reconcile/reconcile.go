// Package reconcile decides what an agent does next about its gpu-let processes: which to start,
// what to assign, which to drain, which to kill and when to look again.
//
// It is a pure function of the plan, the children and the time, so that every decision can be
// written down as a test. It starts and signals nothing itself.
//
// Make before break: what the plan no longer wants, be it a gpu-let or a model on one, is kept until
// everything it does want on this host is ready, or has failed. What has failed does not replace what
// serves: an old gpu-let, or an old model on one, stays as long as a gpu-let that the plan wants to serve
// the same model does not come up, here or, by what it reports, on another host. Only when that one lacks
// memory, by the plan or by what it reports, does the old one on the same GPU make room: then there is a
// gap, since otherwise there would be no new one at all.
//
// The GPU is the fault domain: under MPS, a fault in one process breaks the context of every other
// on its GPU, and the GPU takes no new process until all of them have ended. So when a gpu-let ends
// because its device failed, the others that ran beside it are ended too, and none starts before.
package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gpulet/gpulet/shared/plan"
)

// Desired is what the host should run, and what is known of other hosts.
type Desired struct {
	Revision  uint64
	Since     time.Time // when the plan came
	Gpulets   []plan.Gpulet
	Memory    map[int]int64 // of each GPU, in bytes; none: not known
	Elsewhere []plan.Gpulet // of the plan, on other hosts
	// Reports are what those have said since the plan came, by id, as far as it was read: see Unseen.
	Reports map[string]plan.GpuletReport
}

// Limits are the times that decisions depend on.
type Limits struct {
	// BackoffMin and BackoffMax bound the wait before a restart. The first crash is restarted at
	// once, the second waits BackoffMin, then twice as long each time.
	BackoffMin, BackoffMax time.Duration
	// BackoffReady bounds that wait where the gpu-let had come up before it crashed: between two crashes
	// it serves, and what it dies of, if it is a request, dies with it (poison).
	BackoffReady time.Duration
	// Stable is how long a gpu-let must have been ready for its crashes to be forgotten.
	Stable time.Duration
	// Proven is how long a gpu-let that has crashed again and again must have been ready to replace
	// another.
	Proven time.Duration
	// Drain is how long a gpu-let may take to drain before it is killed.
	Drain time.Duration
	// Silence is how long a gpu-let may say nothing before it is killed.
	Silence time.Duration
}

// DefaultLimits suit gpu-lets that report every second and load within seconds.
var DefaultLimits = Limits{
	BackoffMin:   time.Second,
	BackoffMax:   30 * time.Second,
	BackoffReady: 2 * time.Second,
	Stable:       10 * time.Second,
	Proven:       10 * time.Second,
	Drain:        30 * time.Second,
	Silence:      20 * time.Second,
}

// Verb is what to do.
type Verb string

// The verbs.
const (
	Start  Verb = "start"  // a process for Gpulet; a child of that id that exited is replaced
	Assign Verb = "assign" // tell the child to serve Gpulet, which may still hold models of the last plan
	Drain  Verb = "drain"  // tell the child to finish and exit
	Kill   Verb = "kill"   // end the process at once
	Forget Verb = "forget" // the child exited and is not wanted any more
	Wait   Verb = "wait"   // nothing now; look again at Until
)

// Action is one thing to do, with the reason for people.
type Action struct {
	Verb   Verb
	ID     string
	Gpulet plan.Gpulet // of Start and Assign
	Until  time.Time   // of Wait
	Reason string
	// Kept says of Wait that the child serves what the plan wants others to serve, who do not come up.
	Kept bool
	// Hung says of Kill that the engine hangs: the child is to be blamed for it as for a crash.
	Hung bool
}

// Next returns what to do now, by gpu-let id. Doing it and calling Next again leads to the plan.
func Next(now time.Time, want Desired, children []Child, lim Limits) []Action {
	d := decision{now: now, want: want, lim: lim, wanted: map[string]plan.Gpulet{}, byID: map[string]Child{}}
	for _, g := range want.Gpulets {
		d.wanted[g.ID] = g
	}
	for _, c := range children {
		d.byID[c.ID] = c
	}
	d.findFaults(children)
	d.findRoom(children)
	for _, g := range want.Gpulets {
		switch _, known := d.byID[g.ID]; {
		case known:
		case d.unusable[g.GPU]:
			d.do(Action{Verb: Wait, ID: g.ID, Until: now.Add(lim.Silence), Reason: waitsForGPU})
		case d.room.waits[g.ID]:
			d.do(Action{Verb: Wait, ID: g.ID, Until: now.Add(lim.Silence), Reason: waitsForMemory})
		default:
			d.do(Action{Verb: Start, ID: g.ID, Gpulet: g, Reason: "new in the plan"})
		}
	}
	settled := d.settled()
	for _, c := range children {
		d.child(c, settled)
	}
	slices.SortStableFunc(d.actions, func(a, b Action) int { return strings.Compare(a.ID, b.ID) })
	return d.actions
}

type decision struct {
	now     time.Time
	want    Desired
	lim     Limits
	wanted  map[string]plan.Gpulet
	byID    map[string]Child
	actions []Action

	faults   map[int]time.Time // by GPU: the last one known
	unusable map[int]bool      // by GPU: processes from before the fault have yet to end
	room     room
}

const waitsForMemory = "its GPU has memory for it only when an old gpu-let has gone"

const waitsForGPU = "its GPU failed, and other gpu-lets on it have yet to end"

// findFaults notes which GPUs failed under processes that still run.
func (d *decision) findFaults(children []Child) {
	d.faults, d.unusable = map[int]time.Time{}, map[int]bool{}
	for _, c := range children {
		if c.FaultedAt.After(d.faults[c.GPU]) {
			d.faults[c.GPU] = c.FaultedAt
		}
	}
	for _, c := range children {
		if c.ExitedAt.IsZero() && d.broken(c) {
			d.unusable[c.GPU] = true
		}
	}
}

// broken reports whether the child ran when its GPU failed.
func (d *decision) broken(c Child) bool { return c.StartedAt.Before(d.faults[c.GPU]) }

func (d *decision) do(a Action) { d.actions = append(d.actions, a) }

func (d *decision) wait(c Child, until time.Time, reason string) {
	d.do(Action{Verb: Wait, ID: c.ID, Until: until, Reason: reason})
}

// settled reports whether everything the plan wants is ready or has failed, so that nothing is
// gained by keeping the old gpu-lets.
func (d *decision) settled() bool {
	for _, g := range d.want.Gpulets {
		c, ok := d.byID[g.ID]
		switch {
		case !ok, !c.DrainedAt.IsZero():
			return false // it has yet to start
		case !samePlace(c, g):
			continue // it cannot start before this one has gone
		case c.Crashes > 1:
			continue // it has failed, even if it is being tried again
		case !c.ExitedAt.IsZero():
			return false // it restarts at once
		case c.Revision != d.want.Revision || c.State != plan.Ready && c.State != plan.Failed:
			return false
		}
	}
	return true
}

func samePlace(c Child, g plan.Gpulet) bool {
	return c.GPU == g.GPU && g.SameShares(plan.Gpulet{Share: c.Share, Limit: c.Limit})
}

func (d *decision) child(c Child, settled bool) {
	g, wanted := d.wanted[c.ID]
	wanted = wanted && samePlace(c, g)
	switch {
	case !c.ExitedAt.IsZero():
		d.exited(c)
	case !c.KilledAt.IsZero():
		// It will exit.
	case d.broken(c):
		d.do(Action{Verb: Kill, ID: c.ID, Reason: "its GPU failed"})
	case c.Hung != "":
		d.do(Action{Verb: Kill, ID: c.ID, Reason: "hung: " + c.Hung, Hung: true})
	case !c.DrainedAt.IsZero():
		d.draining(c)
	case d.now.Sub(c.Heard) >= d.lim.Silence:
		d.do(Action{Verb: Kill, ID: c.ID, Reason: "says nothing"})
	case !wanted && d.room.yields[c.ID]:
		d.do(Action{Verb: Drain, ID: c.ID, Reason: "makes room: its GPU has no memory for old and new"})
	case !wanted && !settled:
		d.wait(c, c.Heard.Add(d.lim.Silence), "not in the plan, but the new gpu-lets are not ready")
	case !wanted:
		d.leave(c)
	case c.Assigned != d.want.Revision, len(dropped(g.Models, c.Models)) > 0:
		d.assign(c, g, settled)
	case settled && len(dropped(c.Models, g.Models)) > 0:
		d.drop(c, g)
	default:
		d.wait(c, c.Heard.Add(d.lim.Silence), "as planned")
	}
}

// leave drains a child that the plan does not want, unless it is needed.
func (d *decision) leave(c Child) {
	if needed, why := d.neededOf(c, c.Models); len(needed) > 0 {
		d.keep(c, why)
		return
	}
	d.do(Action{Verb: Drain, ID: c.ID, Reason: "not in the plan"})
}

// drop takes those old models off a child that are not needed there.
func (d *decision) drop(c Child, g plan.Gpulet) {
	old := dropped(c.Models, g.Models)
	kept, why := d.neededOf(c, old)
	if len(kept) == len(old) {
		d.keep(c, why)
		return
	}
	g.Models = append(slices.Clone(g.Models), kept...)
	d.do(Action{Verb: Assign, ID: c.ID, Gpulet: g, Reason: "old models are served elsewhere"})
}

// assign keeps the models that go until the others are in place.
func (d *decision) assign(c Child, g plan.Gpulet, settled bool) {
	a := Action{Verb: Assign, ID: c.ID, Gpulet: g, Reason: "new revision"}
	old := dropped(c.Models, g.Models)
	if settled {
		old, _ = d.neededOf(c, old)
	}
	if len(old) > 0 {
		a.Gpulet.Models = append(slices.Clone(g.Models), old...)
		a.Reason = "new revision, old models kept until others serve them"
	}
	d.do(a)
}

// need is why a child has to go on serving a model.
type need struct {
	reason string    // empty: it has not
	failed bool      // what should replace it fails to come up, and does not only take its time
	until  time.Time // when that may change by itself; zero: it does not
}

func (d *decision) keep(c Child, n need) {
	until := c.Heard.Add(d.lim.Silence)
	if !n.until.IsZero() && n.until.Before(until) {
		until = n.until
	}
	d.do(Action{Verb: Wait, ID: c.ID, Until: until, Reason: n.reason, Kept: n.failed})
}

// neededOf returns those of models that are needed on c, and why: of several reasons a failure.
func (d *decision) neededOf(c Child, models []plan.Assignment) (needed []plan.Assignment, why need) {
	for _, a := range models {
		n := d.needed(c, a.Model)
		if n.reason == "" {
			continue
		}
		if needed = append(needed, a); len(needed) == 1 || n.failed && !why.failed {
			why = n
		}
	}
	return needed, why
}

// needed returns why c has to go on serving a model: a gpu-let that the plan wants to serve it does not.
func (d *decision) needed(c Child, model string) need {
	if !slices.Contains(c.Loaded, model) {
		return need{}
	}
	for _, g := range d.want.Gpulets {
		if g.ID == c.ID || !serves(g.Models, model) {
			continue
		}
		n, known := d.byID[g.ID]
		if known && !samePlace(n, g) {
			continue // it cannot start before that one has gone, which may wait for c in turn
		}
		ok, at := d.replaces(n, model)
		if ok || n.Short && n.GPU == c.GPU {
			continue // or it has to make room
		}
		return need{fmt.Sprintf("kept: %s, which is to serve %s, does not come up", g.ID, model), true, at}
	}
	return d.neededElsewhere(c, model)
}

// replaces reports whether a child serves a model and may be relied upon, and else when that may
// change by itself.
func (d *decision) replaces(n Child, model string) (ok bool, at time.Time) {
	if !slices.Contains(n.Loaded, model) || n.ReadyAt.IsZero() || !n.ExitedAt.IsZero() || !n.KilledAt.IsZero() || !n.DrainedAt.IsZero() {
		return false, time.Time{}
	}
	if proven := n.ReadyAt.Add(d.lim.Proven); n.Crashes > 1 && d.now.Before(proven) {
		return false, proven
	}
	return true, time.Time{}
}

func serves(models []plan.Assignment, model string) bool {
	return slices.ContainsFunc(models, func(a plan.Assignment) bool { return a.Model == model })
}

// dropped returns the assignments of models that are in old and not in new.
func dropped(old, new []plan.Assignment) (gone []plan.Assignment) {
	for _, a := range old {
		if !serves(new, a.Model) {
			gone = append(gone, a)
		}
	}
	return gone
}

// exited restarts a child that the plan still wants, be it at another place.
func (d *decision) exited(c Child) {
	g, wanted := d.wanted[c.ID]
	if !wanted {
		d.do(Action{Verb: Forget, ID: c.ID, Reason: "not in the plan"})
		return
	}
	if again := c.ExitedAt.Add(d.lim.backoff(c)); d.now.Before(again) {
		d.wait(c, again, "backing off after a crash")
		return
	}
	if d.unusable[g.GPU] {
		d.wait(c, d.now.Add(d.lim.Silence), waitsForGPU)
		return
	}
	if d.room.waits[c.ID] {
		d.wait(c, d.now.Add(d.lim.Silence), waitsForMemory)
		return
	}
	d.do(Action{Verb: Start, ID: c.ID, Gpulet: g, Reason: "exited"})
}

func (d *decision) draining(c Child) {
	if end := c.DrainedAt.Add(d.lim.Drain); d.now.Before(end) {
		d.wait(c, end, "draining")
		return
	}
	d.do(Action{Verb: Kill, ID: c.ID, Reason: "did not drain in time"})
}

func (l Limits) backoff(c Child) time.Duration {
	if c.Crashes <= 1 {
		return 0
	}
	most := l.BackoffMax
	if c.CameUp {
		most = l.BackoffReady
	}
	wait := l.BackoffMin
	for range c.Crashes - 2 {
		if wait >= most {
			break
		}
		wait *= 2
	}
	return min(wait, most)
}

// Wake is when Next should be called again if nothing happens before; zero: never.
func Wake(actions []Action) time.Time {
	var wake time.Time
	for _, a := range actions {
		if a.Verb == Wait && (wake.IsZero() || a.Until.Before(wake)) {
			wake = a.Until
		}
	}
	return wake
}
