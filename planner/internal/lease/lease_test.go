package lease

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/plan"
)

const ttl = 5 * time.Second

var zero = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return zero.Add(d) }

func planner(name string) *State {
	return &State{Config: Config{Holder: name, ID: name + "-id", TTL: ttl}}
}

// store is the lease as the bus keeps it.
type store struct{ View }

func (k *store) write(l plan.Lease, over uint64) (rev uint64, ok bool) {
	if over != k.Rev {
		return 0, false
	}
	k.Lease, k.Rev = l, k.Rev+1
	return k.Rev, true
}

// look is one undisturbed look of a planner at the lease.
func look(s *State, now time.Time, k *store) {
	if l, ok := s.Next(now, now, k.View); ok {
		if rev, ok := k.write(l, k.Rev); ok {
			s.Wrote(now, l, rev)
		} else {
			s.Lost()
		}
	}
}

func expect(t *testing.T, what string, s *State, now time.Time, term uint64) {
	t.Helper()
	if got := s.Leads(now); got != term {
		t.Errorf("%s: %s leads term %d, expected %d", what, s.Holder, got, term)
	}
}

func TestFirstPlannerLeadsAndTheSecondWaits(t *testing.T) {
	var k store
	a, b := planner("a"), planner("b")
	look(a, at(0), &k)
	look(b, at(0), &k)
	for d := time.Duration(0); d < time.Hour; d += a.Poll() {
		look(a, at(d), &k)
		look(b, at(d), &k)
		expect(t, "holder", a, at(d), 1)
		expect(t, "other", b, at(d), 0)
	}
}

func TestDeadLeaderIsFollowedWithinTheBound(t *testing.T) {
	for late := time.Duration(0); late < (Config{TTL: ttl}).Poll(); late += 100 * time.Millisecond {
		var k store
		a, b := planner("a"), planner("b")
		look(a, at(0), &k) // and never again
		d := late
		for ; b.Leads(at(d)) == 0 && d < time.Hour; d += b.Poll() {
			look(b, at(d), &k)
		}
		if d -= b.Poll(); d > b.Takeover() {
			t.Errorf("first look after %v: b leads after %v, expected within %v", late, d, b.Takeover())
		}
		expect(t, "successor", b, at(d), 2)
		expect(t, "dead leader", a, at(d), 0)
	}
}

func TestPausedLeaderComesBackAsAStandby(t *testing.T) {
	var k store
	a, b := planner("a"), planner("b")
	look(a, at(0), &k)
	look(b, at(0), &k)
	look(b, at(6*time.Second), &k)
	expect(t, "successor", b, at(6*time.Second), 2)
	expect(t, "on waking, before it has looked", a, at(6*time.Second), 0)
	for d := 6 * time.Second; d < time.Minute; d += a.Poll() {
		look(a, at(d), &k)
		look(b, at(d), &k)
		expect(t, "deposed", a, at(d), 0)
		expect(t, "leader", b, at(d), 2)
	}
}

func TestPausedLeaderThatNobodyReplacedGoesOnWithItsTerm(t *testing.T) {
	var k store
	a := planner("a")
	look(a, at(0), &k)
	expect(t, "after its lease", a, at(time.Hour), 0)
	look(a, at(time.Hour), &k)
	expect(t, "after another look", a, at(time.Hour), 1)
}

func TestLeaderGivesUpBeforeAnybodyMayTakeOver(t *testing.T) {
	var k store
	a, b := planner("a"), planner("b")
	look(a, at(0), &k)
	look(b, at(0), &k)
	expect(t, "just before", a, at(ttl*9/10-1), 1)
	expect(t, "with a tenth to go", a, at(ttl*9/10), 0)
	look(b, at(ttl-1), &k)
	expect(t, "a moment too early", b, at(ttl-1), 0)
}

func TestReleasedLeaseIsTakenAtOnce(t *testing.T) {
	var k store
	a, b := planner("a"), planner("b")
	look(a, at(0), &k)
	look(b, at(0), &k)
	if _, _, ok := b.Release(at(1)); ok {
		t.Error("a standby gave back what it does not hold")
	}
	l, rev, ok := a.Release(at(1))
	if !ok || rev != k.Rev {
		t.Fatalf("release over revision %d, %v; expected %d", rev, ok, k.Rev)
	}
	expect(t, "once it gave the lease back", a, at(1), 0)
	k.write(l, rev)
	look(b, at(2), &k)
	expect(t, "successor", b, at(2), 2)
}

func TestStandbyThatWasBlindGivesTheHolderItsTime(t *testing.T) {
	var k store
	a, b := planner("a"), planner("b")
	look(a, at(0), &k)
	look(b, at(0), &k)
	b.Blind() // the bus is away for a minute, for both
	look(b, at(time.Minute), &k)
	expect(t, "standby", b, at(time.Minute), 0)
	look(a, at(time.Minute+a.Poll()), &k)
	expect(t, "the old leader", a, at(time.Minute+a.Poll()), 1)
}

// A planner that slept while it read knows nothing of the time it slept.
func TestSlowReadDoesNotCountAsWaiting(t *testing.T) {
	var k store
	a, b := planner("a"), planner("b")
	look(a, at(0), &k)
	if _, ok := b.Next(at(-time.Hour), at(0), k.View); ok {
		t.Error("took a lease that it had seen once")
	}
	if _, ok := b.Next(at(time.Second), at(time.Hour), k.View); ok {
		t.Error("took a lease that was unchanged for one second, for all it knows")
	}
}

func TestTermNeverFallsBelowThatOfThePlan(t *testing.T) {
	var k store // of a bucket that was lost
	a := planner("a")
	look(a, at(0), &k)
	expect(t, "anew", a, at(0), 1)
	a.Saw(7)
	expect(t, "below the plan's term", a, at(0), 0)
	look(a, at(0), &k)
	expect(t, "after another look", a, at(0), 8)
	k = store{}
	look(a, at(0), &k)
	expect(t, "when the bucket was lost again", a, at(0), 9)
}

func TestFence(t *testing.T) {
	for _, c := range []struct {
		term, current uint64
		may           bool
	}{{1, 0, true}, {2, 2, true}, {3, 2, true}, {2, 3, false}, {0, 0, false}} {
		if got := Fence(c.term, c.current); got != c.may {
			t.Errorf("term %d over %d: %v, expected %v", c.term, c.current, got, c.may)
		}
	}
}

// actor is a planner process: its loops over the lease and over the plan, each of which may stop for
// any time between any two steps.
type actor struct {
	*State
	speed  float64   // of its clock
	paused time.Time // until then

	// Of the loop over the lease.
	asked   time.Time
	view    View
	writing *plan.Lease
	next    time.Time // look
	phase   int

	// Of the loop over the plan.
	prepared *document
}

// clock is what the actor's clock shows.
func (a *actor) clock(now time.Time) time.Time {
	return zero.Add(time.Duration(float64(now.Sub(zero)) * a.speed))
}

// document is the plan on the bus: who wrote it in which term.
type document struct {
	rev, term uint64
	by        string
}

// universe is several planners and a bus, under one schedule of steps drawn from a seed.
type universe struct {
	rand   *rand.Rand
	now    time.Time // true time
	lease  store
	plan   document
	actors []*actor
	led    uint64 // plans written
}

// TestNoScheduleMakesAPlanOfADeposedLeader draws schedules of looks, writes, lost answers and pauses
// of any length at any step. Whatever happens: at no moment do two planners count themselves leaders,
// no plan is accepted whose term is below that of the plan before, and when all is calm and one
// planner dead, another leads within the bound.
func TestNoScheduleMakesAPlanOfADeposedLeader(t *testing.T) {
	plans, terms := uint64(0), uint64(0)
	for seed := range uint64(500) {
		u := newUniverse(seed, 1, 1, 1)
		for step := 0; step < 2000 && !t.Failed(); step++ {
			u.step(t)
			u.atMostOneLeads(t)
		}
		u.calm(t)
		plans, terms = plans+u.led, terms+u.plan.term
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if plans < 30_000 || terms < 1_200 {
		t.Errorf("%d plans in %d terms: the schedules show too little", plans, terms)
	}
}

// TestClocksOfAnySpeedMakeNoPlanOfADeposedLeader has clocks that break what the lease relies on. Two
// planners may count themselves leaders then; the fence of the plans does not care.
func TestClocksOfAnySpeedMakeNoPlanOfADeposedLeader(t *testing.T) {
	both := 0
	for seed := range uint64(500) {
		u := newUniverse(seed, 0.1, 1, 10)
		for step := 0; step < 2000 && !t.Failed(); step++ {
			u.step(t)
			both += max(0, len(u.leaders())-1)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if both == 0 {
		t.Error("no two planners ever led at once: the fence was not tried")
	}
}

func newUniverse(seed uint64, speeds ...float64) *universe {
	u := &universe{rand: rand.New(rand.NewPCG(seed, 1)), now: zero}
	for i, speed := range speeds {
		u.actors = append(u.actors, &actor{State: planner(fmt.Sprint(i)), speed: speed, next: zero})
	}
	return u
}

func (u *universe) step(t *testing.T) {
	u.now = u.now.Add(time.Duration(u.rand.IntN(300)) * time.Millisecond)
	a := u.actors[u.rand.IntN(len(u.actors))]
	switch {
	case u.now.Before(a.paused):
		return
	case u.rand.IntN(60) == 0: // longer and shorter than a lease
		a.paused = u.now.Add(time.Duration(u.rand.IntN(4)) * ttl / 2)
		return
	}
	if u.rand.IntN(2) == 0 {
		u.lookAtLease(a)
	} else {
		u.workOnPlan(t, a)
	}
}

func (u *universe) leaders() (names []string) {
	for _, a := range u.actors {
		if a.Leads(a.clock(u.now)) > 0 {
			names = append(names, a.Holder)
		}
	}
	return names
}

func (u *universe) atMostOneLeads(t *testing.T) {
	if names := u.leaders(); len(names) > 1 {
		t.Errorf("planners %v lead at once", names)
	}
}

// lookAtLease takes one step of a look: ask, read, write, hear.
func (u *universe) lookAtLease(a *actor) {
	lost := u.rand.IntN(20) == 0
	now := a.clock(u.now)
	switch a.phase {
	case 0:
		if now.Before(a.next) {
			return
		}
		a.asked, a.next = now, now.Add(a.Poll())
		if lost {
			a.Blind()
			return
		}
		a.view, a.phase = u.lease.View, 1
	case 1:
		a.phase = 0
		if l, ok := a.Next(a.asked, now, a.view); ok {
			a.writing, a.asked, a.phase = &l, now, 2
		}
	case 2:
		rev, ok := u.lease.write(*a.writing, a.view.Rev)
		switch a.phase = 0; {
		case lost: // stored or not: nobody heard
			a.Blind()
		case ok:
			a.Wrote(a.asked, *a.writing, rev)
		default:
			a.Lost()
		}
	}
}

// workOnPlan takes one step of the loop over the plan: read and prepare, or write what was prepared,
// which looks neither at the clock nor at the lease again.
func (u *universe) workOnPlan(t *testing.T, a *actor) {
	if p := a.prepared; p != nil {
		a.prepared = nil
		if p.rev != u.plan.rev {
			return // compare-and-set
		}
		if p.term < u.plan.term {
			t.Errorf("a plan of term %d was accepted after one of term %d", p.term, u.plan.term)
		}
		u.plan = document{p.rev + 1, p.term, p.by}
		u.led++
		return
	}
	a.Saw(u.plan.term)
	if term := a.Leads(a.clock(u.now)); Fence(term, u.plan.term) {
		a.prepared = &document{u.plan.rev, term, a.Holder}
	}
}

// calm lets the planners run undisturbed, one of them dead.
func (u *universe) calm(t *testing.T) {
	live := u.actors[1:]
	for _, a := range live {
		a.prepared, a.phase = nil, 0
	}
	for begin := u.now; u.now.Sub(begin) <= live[0].Takeover(); u.now = u.now.Add(live[0].Poll() / 4) {
		for _, a := range live {
			a.Saw(u.plan.term)
			look(a.State, u.now, &u.lease)
		}
		u.atMostOneLeads(t)
		if live[0].Leads(u.now)+live[1].Leads(u.now) > 0 {
			return
		}
	}
	t.Errorf("nobody leads after %v of calm", live[0].Takeover())
}
