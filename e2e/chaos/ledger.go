// Package chaos breaks a running system on purpose and keeps account of every request meanwhile.
//
// A site is the four programs and NATS as processes, with what stands between hosts and NATS under
// the suite's control. Clients send on a schedule through both doors, the bus and HTTP. A ledger has
// one entry per request from before it is sent; what was lost, answered twice, late or wrong is read
// off it and never assumed. Every request has inputs of its own, and its right answer follows from
// them, so that an answer to somebody else's request is wrong too.
package chaos

import (
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/wire"
)

// Disturbed is the latency from which an answered request counts as disturbed by a fault. Without a
// fault answers take single milliseconds; machines that run tests are busy.
const Disturbed = 500 * time.Millisecond

// Ledger is the account of all requests of a site. Times are since its start.
type Ledger struct {
	start time.Time

	mu      sync.Mutex // guards everything below
	entries []Entry
	unasked int // answers to requests that were never sent
	broken  string
}

// Entry is one request.
type Entry struct {
	Model  string
	Sent   time.Duration
	Done   time.Duration // when it was settled; 0: it is not
	Status wire.Status   // of the accepted answer, or why the client was refused; "": nobody said anything
	// Stored: the queue acknowledged it.
	Stored bool
	// Again is how often the client sent it again, for a connection that it lost.
	Again uint8
	// Answers are all terminal answers that came, Accepted those that the client took: the first.
	Answers, Accepted uint8
	Wrong             bool
	// Differs: a later answer said something else than the accepted one.
	Differs bool
}

// NewLedger returns an empty ledger that starts now.
func NewLedger() *Ledger { return &Ledger{start: time.Now()} }

// Now is the ledger's time.
func (l *Ledger) Now() time.Duration { return time.Since(l.start) }

// Open enters a request that is about to be sent and returns its number.
func (l *Ledger) Open(model string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, Entry{Model: model, Sent: l.Now()})
	return uint64(len(l.entries) - 1)
}

// Stored notes that the queue has acknowledged request seq.
func (l *Ledger) Stored(seq uint64) { l.change(seq, func(e *Entry) { e.Stored = true }) }

// SentAgain notes that the client has sent request seq once more.
func (l *Ledger) SentAgain(seq uint64) { l.change(seq, func(e *Entry) { e.Again++ }) }

// Answered enters an answer; the first one is accepted.
func (l *Ledger) Answered(seq uint64, status wire.Status, wrong bool, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seq >= uint64(len(l.entries)) {
		l.unasked++
		return
	}
	e := &l.entries[seq]
	e.Answers++
	if e.Done != 0 {
		e.Differs = e.Differs || status != e.Status || wrong != e.Wrong
		return
	}
	e.Done, e.Status, e.Wrong = l.Now(), status, wrong
	e.Accepted++
	if wrong && l.broken == "" {
		l.broken = why
	}
}

// GivenUp settles request seq at the end of its client's patience: with what the client was last
// told, "" when that is nothing.
func (l *Ledger) GivenUp(seq uint64, last wire.Status) {
	l.change(seq, func(e *Entry) {
		if e.Done == 0 {
			e.Done, e.Status = l.Now(), last
		}
	})
}

func (l *Ledger) change(seq uint64, f func(*Entry)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.entries[seq])
}

// Waiting is how many requests are not settled.
func (l *Ledger) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for i := range l.entries {
		if l.entries[i].Done == 0 {
			n++
		}
	}
	return n
}

// Calm reports whether the service is undisturbed: all that was sent until a moment ago is settled,
// and the latest of it, at least ten requests sent after since, was answered right and soon.
func (l *Ledger) Calm(since time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	const moment, stretch = 300 * time.Millisecond, 700 * time.Millisecond
	until := l.Now() - moment
	good := 0
	for i := len(l.entries) - 1; i >= 0; i-- {
		e := &l.entries[i]
		if e.Sent > until {
			continue
		}
		if e.Done == 0 {
			return false
		}
		if e.Sent >= since && e.Sent > until-stretch {
			if e.disturbed() {
				return false
			}
			good++
		}
	}
	return good >= 10
}

func (e *Entry) disturbed() bool {
	return e.Status != wire.StatusOK || e.Wrong || e.Done-e.Sent > Disturbed
}

// Account is what became of some requests.
type Account struct {
	Requests int `json:"requests"`
	OK       int `json:"ok"`
	// Told requests were answered with an explicit error, Refused were never taken and their client
	// was told so until it gave up.
	Told    map[wire.Status]int `json:"told"`
	Lost    int                 `json:"lost"`    // nobody said anything, until the client gave up
	Twice   int                 `json:"twice"`   // accepted more than once
	Wrong   int                 `json:"wrong"`   // answered with something else than the right outputs
	Late    int                 `json:"late"`    // answered ok after more than Disturbed
	Again   int                 `json:"again"`   // sent again by clients that had lost their connection
	Dropped int                 `json:"dropped"` // second answers, which clients did not accept
	Differs int                 `json:"differs"` // requests whose second answer said something else
}

// Errors is how many requests were told an error.
func (a Account) Errors() int {
	n := 0
	for _, k := range a.Told {
		n += k
	}
	return n
}

// Account sums up the requests that were settled from from to until.
func (l *Ledger) Account(from, until time.Duration) Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := Account{Told: map[wire.Status]int{}}
	for i := range l.entries {
		if e := &l.entries[i]; e.Done != 0 && e.Done >= from && e.Done < until {
			a.add(e)
		}
	}
	return a
}

func (a *Account) add(e *Entry) {
	a.Requests++
	switch {
	case e.Status == wire.StatusOK:
		a.OK++
		if e.Done-e.Sent > Disturbed {
			a.Late++
		}
	case e.Status == "":
		a.Lost++
	default:
		a.Told[e.Status]++
	}
	if e.Accepted > 1 {
		a.Twice++
	}
	if e.Differs {
		a.Differs++
	}
	if e.Wrong {
		a.Wrong++
	}
	if e.Answers > e.Accepted {
		a.Dropped += int(e.Answers - e.Accepted)
	}
	a.Again += int(e.Again)
}

// Merge adds b to a.
func (a *Account) Merge(b Account) {
	if a.Told == nil {
		a.Told = map[wire.Status]int{}
	}
	a.Requests += b.Requests
	a.OK += b.OK
	a.Lost += b.Lost
	a.Twice += b.Twice
	a.Wrong += b.Wrong
	a.Late += b.Late
	a.Again += b.Again
	a.Dropped += b.Dropped
	a.Differs += b.Differs
	for status, n := range b.Told {
		a.Told[status] += n
	}
}

// Recovery is how long after from the last disturbed request was settled, of those settled from from
// to until; 0 when none was disturbed.
func (l *Ledger) Recovery(from, until time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var last time.Duration
	for i := range l.entries {
		e := &l.entries[i]
		if e.Done >= from && e.Done < until && e.disturbed() {
			last = max(last, e.Done-from)
		}
	}
	return last
}

// Strange is what must not happen at any time: answers to requests that were never sent, and the
// words of the first wrong answer.
func (l *Ledger) Strange() (unasked int, wrong string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unasked, l.broken
}
