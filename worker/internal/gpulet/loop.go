package gpulet

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/batch"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/wire"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/images"
	"github.com/gpulet/gpulet/worker/internal/link"
)

// loop is the gpu-let's state. Only the goroutine of run touches it, but for what is said to be
// shared.
type loop struct {
	cfg Config
	log *slog.Logger

	models  map[string]*bound
	order   []*bound // duty order, retiring ones last
	batcher *batch.Batcher
	open    map[*request]struct{} // fetched, and neither acknowledged nor given up
	events  chan bus.PullEvent

	cancellations chan bus.Cancellation
	quit          chan struct{}  // closed when nobody reads cancellations any more
	deafening     sync.WaitGroup // subscriptions to cancellations that end

	decoders  *decoders
	exec      *executor
	busy      bool
	busyUntil time.Time // estimate, next included
	next      *next     // handed over behind what runs; nil: nothing
	revoked   bool      // it was taken back; the executor has yet to notice
	lead      lead
	watchdog  *watchdog
	hung      string         // what does not return from the engine, in words; empty: nothing
	asked     time.Time      // when a model that does not yield last had something to run
	ahead     int            // batches of every model to hold
	storing   sync.WaitGroup // results being stored, shared with their goroutines

	judge    *judge
	suspects []*request // to be tried, one at a time
	trial    *request   // being tried; nil: none
	paused   bool       // for them: nothing is fetched

	loader  *loader
	loading *bound         // being loaded or prepared now; nil: none
	toClose []engine.Model // out of service

	revision uint64 // last assigned
	assigned bool   // at least once
	served   uint64 // revision whose models have all been loaded or have failed
	draining bool
	wake     time.Time // of the batcher
	timer    *time.Timer
	state    plan.GpuletState
}

func newLoop(cfg Config) *loop {
	return &loop{
		cfg:     cfg,
		log:     cfg.Log,
		models:  map[string]*bound{},
		batcher: batch.New(nil),
		open:    map[*request]struct{}{},
		events:  make(chan bus.PullEvent, 1024),

		cancellations: make(chan bus.Cancellation, 1024), quit: make(chan struct{}),

		lead:  newLead(),
		asked: time.Now(),
		ahead: 1,
	}
}

func (l *loop) run(ctx context.Context) error {
	drain, abort, stop := lifecycle.Context(ctx, l.cfg.Grace)
	defer stop()
	loadCtx, stopLoading := context.WithCancel(abort)
	l.exec = startExecutor(l.cfg.Box)
	l.watchdog = newWatchdog(l.cfg.HangAfter, l.exec.running, l.exec.staging)
	l.decoders = startDecoders(images.New(engine.JPEG(l.cfg.Engine)), l.cfg.Decoders, l.cfg.Box)
	l.loader = startLoader(loadCtx, l.cfg.Engine, l.cfg.Box)
	l.judge = startJudge(abort, l.cfg.Bus)
	defer l.judge.stop()
	l.timer = time.NewTimer(time.Hour)
	defer l.timer.Stop()

	err := l.serve(drain, abort)

	close(l.quit)
	for _, m := range l.order {
		l.stopPulling(m)
		l.deaf(m)
	}
	l.deafening.Wait()
	stopLoading()
	if err != nil {
		l.exec.abandon()
		l.decoders.abandon()
		l.loader.abandon()
		// What was answered must not run again elsewhere: a socket that is closed over unread
		// deliveries may take the latest acknowledgements with it.
		if lost := l.cfg.Bus.Flush(); lost != nil {
			l.log.Warn("the latest acknowledgements may be lost", "error", lost)
		}
		return err
	}
	l.exec.jobs <- &job{close: append(l.toClose, l.closing()...)}
	l.loader.stop()
	l.decoders.stop()
	l.exec.stop()
	l.storing.Wait()
	return l.cfg.Bus.Flush()
}

// closing takes all loaded models out of service.
func (l *loop) closing() []engine.Model {
	var models []engine.Model
	for _, m := range l.order {
		if m.loaded != nil {
			models = append(models, m.loaded)
			m.loaded = nil
		}
	}
	return models
}

// serve handles one event after the other until everything is drained.
func (l *loop) serve(drain, abort context.Context) error {
	report := time.NewTicker(reportEvery)
	defer report.Stop()
	progress := time.NewTicker(progressEvery)
	defer progress.Stop()
	commands, ended := l.cfg.Commands, drain.Done()
	grace := (<-chan time.Time)(nil)
	l.report()
	for !l.drained() {
		l.step()
		select {
		case e := <-l.events:
			l.pullEvents(e)
		case c := <-l.cancellations:
			l.cancel(c, time.Now())
		case o := <-l.exec.out:
			if err := l.finished(o); err != nil {
				return err
			}
		case p := <-l.decoders.out:
			l.decoded(p)
		case f := <-l.judge.out:
			l.found(f)
		case r := <-l.loader.results:
			if err := l.hasLoaded(r); err != nil {
				return err
			}
		case c, ok := <-commands:
			if !ok {
				commands = nil
			}
			l.command(c, ok)
		case <-ended:
			ended = nil
			l.drain()
		case <-l.timer.C:
		case <-report.C:
			l.watch()
			l.report()
		case <-progress.C:
			l.progress()
		case <-grace:
			return l.aborted()
		case <-abort.Done():
			return l.aborted()
		}
		if l.draining && grace == nil {
			grace = time.After(l.cfg.Grace)
		}
	}
	return nil
}

func (l *loop) aborted() error {
	return fmt.Errorf("%w: %d requests, to be delivered again", ErrAborted, len(l.open))
}

// drained reports whether nothing is left to do before the process may end.
func (l *loop) drained() bool {
	return l.draining && !l.busy && len(l.open) == 0 && len(l.events) == 0
}

// step does whatever can be done now and sets the timer for what cannot.
func (l *loop) step() {
	now := time.Now()
	l.retire()
	l.closeModels()
	l.revoke(now)
	l.try(now)
	l.launch(now)
	l.pull(now)
	l.load(now)
	l.arm(now)
	l.settle()
}

// launch hands the executor its next batch, if it is free, and gives up what is too late.
func (l *loop) launch(now time.Time) {
	d := l.decide(now)
	l.wake = d.Wake
	if n := d.Launch; len(n.Items) > 0 {
		l.busy, l.busyUntil = true, now.Add(n.Exec)
		l.exec.run(newRuns(l.models[n.Model], n.Items), nil)
	}
	l.launchAhead(now)
	for _, it := range d.Expired {
		l.expire(it.Payload.(*request), now) //nolint:forcetypeassert // the loop puts nothing else in
	}
}

// decide is what the executor runs next. Where an idle batch may be launched nothing else could be.
func (l *loop) decide(now time.Time) batch.Decision {
	if l.busy || l.delivering(now) {
		return l.batcher.Expire(now)
	}
	if at := l.idleAt(now); !at.IsZero() && !at.After(now) {
		return l.nextIdle(now)
	}
	return l.batcher.Next(now)
}

func (l *loop) expire(req *request, now time.Time) {
	req.model.counts.Expired++
	req.model.waste += (1 - req.model.waste) * wasteWeight
	if now.Before(req.deadline) {
		req.model.estimate.giveUp(1)
	}
	l.refuse(req, wire.Expired, late(req, now))
}

// finished takes what the executor has done. The next batch is launched, and the pull for the one
// after it made, before the replies are encoded.
func (l *loop) finished(o outcome) error {
	if engine.CodeOf(o.err) == engine.EDEVICE {
		return fmt.Errorf("%w: %w", ErrDevice, o.err)
	}
	o.model.ran(o)
	if o.last {
		now := time.Now()
		l.demanded(o.model, now)
		l.landed(now)
		l.launch(now)
		l.pull(now)
	}
	l.answer(o)
	return nil
}

// admit takes a fetched message. What is too late is not even decoded: under overload there is a
// lot of it, and the sooner it is gone, the fresher is what comes next.
func (l *loop) admit(m *bound, msg *bus.Msg, now time.Time) {
	req := &request{msg: msg, model: m, fetched: now, samples: 1}
	l.open[req] = struct{}{}
	l.demanded(m, now)
	if msg.Delivered > 1 {
		m.counts.Redelivered++
	}
	var err error
	if req.deadline, err = msg.Deadline(m.timeout()); err != nil {
		l.reject(req, err)
		return
	}
	if now.Add(m.estimate.exec(1)).After(req.deadline) {
		l.expire(req, now)
		return
	}
	if m.cancelled.has(req.id(), now) {
		l.giveUp(req)
		return
	}
	if msg.Delivered > 1 {
		l.question(req)
		return
	}
	l.accept(req, now)
}

// accept decodes a request and puts it where the next batches are made of. What was cancelled while it
// was asked about is not even decoded: that may be what kills.
func (l *loop) accept(req *request, now time.Time) {
	if req.unwanted {
		l.giveUp(req)
		return
	}
	if kind, ok := wire.ImageType(req.msg.Get(wire.HeaderType)); ok {
		if err := l.decodeImage(req, kind); err != nil {
			l.reject(req, err)
		}
		return
	}
	if err := req.decode(); err != nil {
		l.reject(req, err)
		return
	}
	l.hold(req, now)
}

// reject answers a request that cannot be run as it is.
func (l *loop) reject(req *request, err error) {
	req.model.counts.Rejected++
	l.refuse(req, wire.BadRequest, err.Error())
}

// hold puts a decoded request where the next batches are made of.
func (l *loop) hold(req *request, now time.Time) {
	if req.unwanted {
		l.giveUp(req)
		return
	}
	it := batch.Item{Payload: req, Samples: req.samples, Deadline: req.deadline, Arrived: req.msg.Stored}
	if !l.batcher.Add(req.model.name(), it, now) {
		l.forget(req)
		_ = req.msg.Nak(0) // a model without a batch is one that was unbound; others serve it
	}
}

// forget lets go of a request that was answered or given back. Nothing reads its inputs any more.
func (l *loop) forget(req *request) {
	delete(l.open, req)
	if l.trial == req {
		l.trial = nil
	}
	req.model.givePixels(req.pixels)
	req.pixels, req.inputs = nil, nil
}

// progress keeps the queue from delivering again what is only slow.
func (l *loop) progress() {
	old := time.Now().Add(-progressEvery / 2)
	for req := range l.open {
		if req.fetched.Before(old) {
			_ = req.msg.InProgress() // if it is lost, the request is delivered again
		}
	}
}

// command does what the agent asks for; the end of commands means that the agent is gone.
func (l *loop) command(c link.Command, ok bool) {
	switch {
	case !ok || c.Op == link.Drain:
		l.drain()
	case c.Op == link.Assign && !l.draining:
		l.assign(c)
	case c.Op != link.Assign:
		l.log.Error("unknown command", "op", c.Op, "expected", link.Assign+" or "+link.Drain)
	}
}

// drain stops taking requests. Those that were taken are finished.
func (l *loop) drain() {
	if l.draining {
		return
	}
	l.log.Info("draining", "open", len(l.open))
	l.draining = true
	for _, m := range l.order {
		l.stopPulling(m)
	}
	l.report()
}

// arm sets the timer to the next moment at which step has something to do.
func (l *loop) arm(now time.Time) {
	at := earlier(earlier(l.wake, l.suspectTime()), l.idleAt(now))
	for _, m := range l.order {
		at = earlier(at, m.loadAt)
		at = earlier(at, l.pullTime(m))
		if m.delivering(now) {
			at = earlier(at, m.first.Add(endGrace))
		}
	}
	if l.next != nil {
		at = earlier(at, l.next.latest)
	}
	wait := time.Hour
	if !at.IsZero() {
		wait = max(0, at.Sub(now))
	}
	l.timer.Reset(wait)
}

// earlier returns the earlier of two moments, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// settle notes when everything assigned is served or has failed, and reports a change of state.
func (l *loop) settle() {
	settled, failed, active := l.assigned, 0, 0
	for _, m := range l.order {
		if m.retiring {
			continue
		}
		active++
		settled = settled && m.settled()
		if m.problem != "" && m.loaded == nil {
			failed++
		}
	}
	state := l.state
	switch {
	case l.draining:
		state = plan.Draining
	case !settled && (l.state == "" || l.state == plan.Starting):
		state = plan.Starting
	case settled && active > 0 && failed == active:
		state = plan.Failed
	case settled:
		state = plan.Ready
	}
	changed := state != l.state || settled && l.served != l.revision
	if settled {
		l.served = l.revision
	}
	if l.state = state; changed {
		l.report()
	}
}

func (l *loop) report() {
	r := plan.GpuletReport{
		ID: l.cfg.ID, Host: l.cfg.Host, GPU: l.cfg.GPU, Share: l.cfg.Share, PID: l.cfg.PID,
		State: l.state, Revision: l.served, Time: time.Now(), Hung: l.hung, Models: make([]plan.ModelReport, 0, len(l.order)),
	}
	if r.State == "" {
		r.State = plan.Starting
	}
	if l.draining {
		r.State = plan.Draining
	}
	for _, m := range l.order {
		r.Models = append(r.Models, m.report())
		if m.trouble != "" {
			r.Detail = m.trouble
		}
		if m.problem != "" {
			r.Detail = m.problem
		}
	}
	l.cfg.Report(r)
}
