// Package drive sends requests on their schedule and keeps account of what came of each.
//
// It is an open loop: a request is sent when its arrival process says so, however long the earlier
// ones take, and its latency counts from the intended time, so a system that falls behind cannot
// hide it (no coordinated omission). One goroutine per model keeps the schedule; there is none per
// request. How far a send was behind its intended time is reported too, so that a client which
// cannot keep up is not mistaken for a slow server.
package drive

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/gpulet/gpulet/loadgen/internal/arrival"
	"github.com/gpulet/gpulet/loadgen/internal/hist"
	"github.com/gpulet/gpulet/loadgen/internal/payload"
	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/shared/wire"
)

// Stream is the requests of one model.
type Stream struct {
	Model    string
	Arrivals arrival.Process
	SLO      time.Duration  // latency above which a request counts as a violation
	Timeout  time.Duration  // how long an answer is waited for, from the intended time
	Items    []payload.Item // sent in turn; at least one
	// Tolerance is how far an output may be from the expected one.
	Tolerance float64
}

// Options are a run's settings.
type Options struct {
	Duration time.Duration // how long requests are sent
	Warmup   time.Duration // requests intended before this are sent but not counted
	// Timeout, when above 0, is asked for with every request instead of the model's own.
	Timeout time.Duration
	// Grace is how much longer than its timeout an answer is waited for.
	Grace time.Duration
	// Linger is how long to go on listening once everything is answered, to see late duplicates.
	Linger time.Duration
	// Interval is the width of a step of the timeline.
	Interval time.Duration
}

// Request is one request to send: item Item of stream Stream, with its number and id.
type Request struct {
	Stream  int
	Seq     uint64
	Item    int
	Timeout time.Duration // zero: the model's own
}

// Sender is a transport. Send must not block for longer than the transport needs to take the
// request, and is called from one goroutine per stream. What becomes of the request goes to the
// Sink that the sender was made with.
type Sender interface {
	Send(Request)
	// Close ends everything that Send started and waits for it; the Sink is not called again.
	Close()
}

// Sink is where a Sender says what became of its requests; safe for concurrent use.
type Sink interface {
	// Left says when a request left this process.
	Left(stream int, seq uint64, at time.Time)
	// Answered says that an answer came; every one of them is told, also a second one.
	Answered(stream int, seq uint64, at time.Time, reply wire.Reply)
	// Refused says that the transport could not hand the request over. Where that is not certain
	// (final is false) an answer may still come, and then counts instead.
	Refused(stream int, seq uint64, status wire.Status, detail string, final bool)
}

// Run is one run while it is going on and after.
type Run struct {
	opts    Options
	streams []Stream
	start   time.Time
	ledgers []*ledger
	idle    chan struct{} // told when a ledger has nothing waiting
}

// New prepares a run. It fails on streams that cannot be sent.
func New(streams []Stream, opts Options) (*Run, error) {
	r := &Run{opts: opts, streams: streams, idle: make(chan struct{}, 1)}
	if opts.Duration <= 0 || opts.Warmup < 0 || opts.Warmup >= opts.Duration {
		return nil, fmt.Errorf("duration %v with a warm-up of %v: expected a duration above 0 and a shorter warm-up", opts.Duration, opts.Warmup)
	}
	if opts.Interval <= 0 {
		return nil, fmt.Errorf("interval %v: expected more than 0", opts.Interval)
	}
	for _, s := range streams {
		if len(s.Items) == 0 {
			return nil, fmt.Errorf("model %s: nothing to send", s.Model)
		}
		r.ledgers = append(r.ledgers, newLedger(s, opts, r.settled))
	}
	return r, nil
}

// Do sends everything through sender and returns when all is answered or given up. When ctx ends
// it stops sending and still waits for the answers; when abort ends it waits no longer.
// It returns how long requests were sent.
func (r *Run) Do(ctx, abort context.Context, sender Sender) time.Duration {
	r.start = time.Now()
	for _, l := range r.ledgers {
		l.begin(r.start)
	}
	var sending sync.WaitGroup
	for i := range r.streams {
		sending.Go(func() { r.schedule(ctx, i, sender) })
	}
	sending.Wait()
	sent := min(time.Since(r.start), r.opts.Duration)
	if ctx.Err() == nil {
		sent = r.opts.Duration
	}
	r.await(abort)
	sender.Close()
	for _, l := range r.ledgers {
		l.close()
	}
	return sent
}

// schedule sends one stream. Everything that is due is sent before it sleeps again.
func (r *Run) schedule(ctx context.Context, stream int, sender Sender) {
	s, l := r.streams[stream], r.ledgers[stream]
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		at, ok := s.Arrivals.Next()
		if !ok || at >= r.opts.Duration {
			return
		}
		if wait := at - time.Since(r.start); wait > 0 {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		} else if ctx.Err() != nil {
			return
		}
		seq := l.open(at)
		sender.Send(Request{Stream: stream, Seq: seq, Item: l.item(seq), Timeout: r.opts.Timeout})
	}
}

// await waits until nothing is outstanding, and then for Linger; at most until every outstanding
// request is past its timeout and the grace.
func (r *Run) await(abort context.Context) {
	var last time.Duration
	for i, l := range r.ledgers {
		if intended, any := l.latest(); any {
			last = max(last, intended+r.streams[i].Timeout+r.opts.Grace)
		}
	}
	limit := time.NewTimer(time.Until(r.start.Add(last)))
	defer limit.Stop()
	for r.Outstanding() > 0 {
		select {
		case <-r.idle:
		case <-limit.C:
			return
		case <-abort.Done():
			return
		}
	}
	linger := time.NewTimer(r.opts.Linger)
	defer linger.Stop()
	select {
	case <-linger.C:
	case <-abort.Done():
	}
}

// settled is called by a ledger whenever it has nothing outstanding.
func (r *Run) settled() {
	select {
	case r.idle <- struct{}{}:
	default:
	}
}

// Outstanding is the number of requests that were sent and not answered yet.
func (r *Run) Outstanding() int {
	n := 0
	for _, l := range r.ledgers {
		n += l.outstanding()
	}
	return n
}

// Progress says how far the run is. It is for one caller only: latencies are told once.
func (r *Run) Progress() Progress {
	p := Progress{Elapsed: time.Since(r.start)}
	recent := hist.New(hist.Coarse)
	for _, l := range r.ledgers {
		l.progress(&p, recent)
	}
	p.P50, p.P99 = recent.Quantile(0.5), recent.Quantile(0.99)
	return p
}

// Figures returns each model's figures and those of all together; sending is how long requests were
// sent, as Do returned it. It may be called while the run goes on.
func (r *Run) Figures(sending time.Duration) (models map[string]report.Figures, total report.Figures) {
	seconds := max(sending-r.opts.Warmup, time.Millisecond).Seconds()
	sum := newTally(Stream{}, r.opts)
	models = map[string]report.Figures{}
	for i, l := range r.ledgers {
		models[r.streams[i].Model] = l.figures(seconds, sum)
	}
	return models, sum.figures(seconds)
}

// Left implements Sink.
func (r *Run) Left(stream int, seq uint64, at time.Time) { r.ledgers[stream].left(seq, at) }

// Answered implements Sink. The outputs are judged here, outside of any lock.
func (r *Run) Answered(stream int, seq uint64, at time.Time, reply wire.Reply) {
	s, l := r.streams[stream], r.ledgers[stream]
	var v payload.Verdict
	if reply.Status == wire.StatusOK {
		v = s.Items[l.item(seq)].Judge(reply.Outputs, s.Tolerance)
	}
	l.answered(seq, at, reply, v)
}

// Refused implements Sink.
func (r *Run) Refused(stream int, seq uint64, status wire.Status, detail string, final bool) {
	r.ledgers[stream].refused(seq, status, detail, final)
}
