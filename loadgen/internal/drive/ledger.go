package drive

import (
	"sync"
	"time"

	"github.com/gpulet/gpulet/loadgen/internal/hist"
	"github.com/gpulet/gpulet/loadgen/internal/payload"
	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/shared/life"
	"github.com/gpulet/gpulet/shared/wire"
)

// ledger has one entry for every request of a stream, from when it is opened until it is settled,
// so that lost and duplicate answers are counted and not assumed.
//
// Entries are kept in blocks. A block whose entries are all settled is dropped; a later answer to
// one of its numbers is known to be a duplicate just by the block's absence. So memory is bounded by
// what is outstanding.
type ledger struct {
	nItems int
	warmup time.Duration
	idle   func() // called whenever the last waiting entry is settled

	mu      sync.Mutex // guards everything below
	start   time.Time
	next    uint64        // number of the next request
	waiting int           // entries that are not settled
	newest  time.Duration // intended time of the last request
	blocks  map[uint64]*block
	tally   *tally
	closed  bool
}

const blockSize = 1024

type block struct {
	entries [blockSize]entry
	left    int // entries that are not settled, those not opened yet included
}

// entry is one request. It is settled by an answer, or by a refusal that is final.
type entry struct {
	intended time.Duration // since the run's start
	doubt    *refusal      // a refusal that is not certain
	fate     life.Fate
}

type refusal struct {
	status wire.Status
	detail string
}

func newLedger(s Stream, opts Options, idle func()) *ledger {
	return &ledger{
		nItems: len(s.Items),
		warmup: opts.Warmup,
		idle:   idle,
		blocks: map[uint64]*block{},
		tally:  newTally(s, opts),
	}
}

func (l *ledger) begin(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start = at
}

// item is the number of the item that request seq sends.
func (l *ledger) item(seq uint64) int { return int(seq % uint64(l.nItems)) }

// open enters a request that is about to be sent.
func (l *ledger) open(intended time.Duration) (seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seq = l.next
	l.next++
	l.waiting++
	l.newest = intended
	b := l.blocks[seq/blockSize]
	if b == nil {
		b = &block{left: blockSize}
		l.blocks[seq/blockSize] = b
	}
	b.entries[seq%blockSize] = entry{intended: intended, fate: life.Waiting}
	if intended >= l.warmup {
		l.tally.sent(intended)
	}
	return seq
}

// entry is the entry of seq; nil when seq was never opened or its block is settled.
func (l *ledger) entry(seq uint64) *entry {
	if b := l.blocks[seq/blockSize]; b != nil && seq < l.next {
		return &b.entries[seq%blockSize]
	}
	return nil
}

// hear takes a word about e, the entry of seq, in and reports whether that is its outcome. A block
// whose last entry is settled is dropped.
func (l *ledger) hear(seq uint64, e *entry, w life.Word) bool {
	var accepted bool
	if e.fate, accepted = e.fate.Hear(w); !accepted {
		return false
	}
	e.doubt = nil
	b := l.blocks[seq/blockSize]
	if b.left--; b.left == 0 {
		delete(l.blocks, seq/blockSize)
	}
	if l.waiting--; l.waiting == 0 {
		l.idle()
	}
	return true
}

func (l *ledger) left(seq uint64, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.entry(seq); e != nil && e.intended >= l.warmup {
		l.tally.left(at.Sub(l.start) - e.intended)
	}
}

func (l *ledger) answered(seq uint64, at time.Time, reply wire.Reply, v payload.Verdict) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	e := l.entry(seq)
	switch {
	case seq >= l.next:
		l.tally.unasked++
	case e == nil || !l.hear(seq, e, life.Reply):
		l.tally.duplicates++
	case e.intended >= l.warmup:
		l.tally.answered(e.intended, at.Sub(l.start)-e.intended, reply, v)
	}
}

func (l *ledger) refused(seq uint64, status wire.Status, detail string, final bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entry(seq)
	if l.closed || e == nil {
		return
	}
	word := life.Doubt
	if final {
		word = life.Refusal
	}
	switch accepted := l.hear(seq, e, word); {
	case accepted && e.intended >= l.warmup:
		l.tally.failed(e.intended, status, detail)
	case e.fate == life.Waiting:
		e.doubt = &refusal{status, detail}
	}
}

// close settles what is still waiting: refused where the transport said so, else lost.
func (l *ledger) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for number, b := range l.blocks {
		for i := range b.entries {
			e := &b.entries[i]
			if number*blockSize+uint64(i) >= l.next || e.fate != life.Waiting || e.intended < l.warmup {
				continue
			}
			if e.doubt != nil {
				l.tally.failed(e.intended, e.doubt.status, e.doubt.detail)
			} else {
				l.tally.missing(e.intended)
			}
		}
	}
	l.blocks = nil
}

func (l *ledger) outstanding() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting
}

// latest is the intended time of the last request; false when there was none.
func (l *ledger) latest() (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newest, l.next > 0
}

// figures are the stream's figures so far; its counts are also added to sum.
func (l *ledger) figures(seconds float64, sum *tally) report.Figures {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum.merge(l.tally)
	return l.tally.figures(seconds)
}

// Progress is what there is to say while a run goes on; its warm-up is left out.
type Progress struct {
	Elapsed                            time.Duration // since the run's start
	Sent, OK, Errors, Violations, Late int64
	Waiting                            int
	P50, P99                           time.Duration // of the answers since the last call
}

// progress adds the stream's state to p and its latest latencies to recent.
func (l *ledger) progress(p *Progress, recent *hist.Histogram) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.Sent += l.tally.sentN
	p.OK += l.tally.ok
	for _, n := range l.tally.errors {
		p.Errors += n
	}
	p.Violations += l.tally.violations
	p.Late += l.tally.late
	p.Waiting += l.waiting
	recent.Merge(l.tally.recent)
	l.tally.recent = hist.New(hist.Coarse)
}
