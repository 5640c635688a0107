package gpulet

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/worker/internal/blackbox"
	"github.com/gpulet/gpulet/worker/internal/engine"
)

// run is requests that the engine executes together.
type run struct {
	model    *bound // the loop's
	name     string // of the model
	loaded   engine.Model
	inputs   []engine.Input
	requests []*request
	samples  int
	expected time.Duration // estimate
	measured bool          // a batch of the model has run here before
}

// outcome is what became of a run. The result must be freed.
type outcome struct {
	run
	result  engine.Result
	err     error
	started time.Time
	took    time.Duration
	last    bool // of its job
}

// job is one turn of the executor: runs, or models to close.
type job struct {
	runs  []run
	close []engine.Model
	ahead *staging // of a job that waits for another to end
}

// staging brings the first run of a job to the device while another job runs. Three goroutines meet
// in it: the one that stages, the executor, and the loop, which may want the job back.
type staging struct {
	latest  time.Time   // when the job must have started to be in time
	decided atomic.Bool // by who is first: the executor begins it, or the loop revokes it
	claimed atomic.Bool // by who is first: it is staged, or begun without
	done    chan struct{}
	staged  engine.Staged // once done; nil: what cannot be staged is gathered, or fails, when it runs
}

func newStaging(latest time.Time) *staging {
	return &staging{latest: latest, done: make(chan struct{})}
}

// stage is what the staging thread does. It leaves alone what the executor has begun.
func (s *staging) stage(r run, w *witness) {
	if !s.claimed.CompareAndSwap(false, true) {
		return
	}
	defer close(s.done)
	w.beginRun(&r)
	staged, err := r.loaded.Stage(r.inputs)
	w.end(err)
	if err == nil {
		s.staged = staged
	}
}

// take is what the executor does when the job's turn has come: it gets what was staged, waits for
// what is being staged, and does not wait for what is not.
func (s *staging) take() engine.Staged {
	if s.claimed.CompareAndSwap(false, true) {
		return nil
	}
	<-s.done
	return s.staged
}

// begin reports whether the job may run; it may not when it was revoked.
func (s *staging) begin() bool { return s.decided.CompareAndSwap(false, true) }

// revoke takes a job back that has not begun, and reports whether it could.
func (s *staging) revoke() bool { return s.decided.CompareAndSwap(false, true) }

// executor runs jobs one after the other on one OS thread: LibTorch keeps a team of threads for
// every thread that calls it. A second thread stages what runs next.
type executor struct {
	jobs chan *job
	next chan *job // those of jobs that are to be staged
	out  chan outcome
	quit chan struct{} // closed when nobody reads out any more
	done sync.WaitGroup

	running, staging *witness
}

func startExecutor(box *blackbox.Recorder) *executor {
	e := &executor{
		// Two jobs of runs at a time; closing models may queue up behind them.
		jobs: make(chan *job, 64),
		next: make(chan *job, 64),
		out:  make(chan outcome, 64),
		quit: make(chan struct{}),

		running: newWitness(box), staging: newWitness(box),
	}
	e.done.Go(e.loop)
	e.done.Go(e.stage)
	return e
}

// run hands over a job of runs. With a staging, it waits for the job before it and is staged meanwhile.
func (e *executor) run(runs []run, ahead *staging) {
	j := &job{runs: runs, ahead: ahead}
	if ahead != nil {
		e.next <- j
	}
	e.jobs <- j
}

// close hands over models to close after what was handed over before. It does not wait; it
// reports whether the executor took them.
func (e *executor) close(models []engine.Model) bool {
	select {
	case e.jobs <- &job{close: models}:
		return true
	default:
		return false
	}
}

// stop lets the executor close what it was given to close and waits for it. No run may be left.
func (e *executor) stop() {
	e.abandon()
	e.done.Wait()
}

// abandon does not wait: a batch that hangs in the engine cannot be interrupted. Those behind it are
// not run.
func (e *executor) abandon() {
	close(e.quit)
	close(e.next)
	close(e.jobs)
}

func (e *executor) stage() {
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	for j := range e.next {
		j.ahead.stage(j.runs[0], e.staging)
	}
}

func (e *executor) loop() {
	runtime.LockOSThread()
	for j := range e.jobs {
		for _, m := range j.close {
			_ = m.Close() // nothing can be done about a model that does not close
		}
		if len(j.runs) > 0 {
			e.turn(j)
		}
	}
}

// turn executes a job's runs, unless it was revoked or nobody waits for it any more.
func (e *executor) turn(j *job) {
	var staged engine.Staged
	if j.ahead != nil {
		if staged = j.ahead.take(); staged != nil {
			defer staged.Free()
		}
		if !j.ahead.begin() {
			return
		}
	}
	select {
	case <-e.quit:
		return
	default:
	}
	for i, r := range j.runs {
		if i > 0 {
			staged = nil
		}
		e.execute(r, staged, i == len(j.runs)-1)
	}
}

// execute runs r, which may have been staged. A batch of several requests that the engine refuses is
// halved until those that it refuses are alone, so that a bad one does not fail its neighbours.
func (e *executor) execute(r run, staged engine.Staged, last bool) {
	o := e.try(r, staged)
	if o.err == nil || len(r.requests) == 1 || engine.CodeOf(o.err) == engine.EDEVICE {
		o.last = last
		e.send(o)
		return
	}
	half := len(r.requests) / 2
	e.execute(r.part(r.requests[:half]), nil, false)
	e.execute(r.part(r.requests[half:]), nil, last)
}

func (e *executor) try(r run, staged engine.Staged) outcome {
	e.running.beginRun(&r)
	o := outcome{run: r, started: time.Now()}
	if staged != nil {
		o.result, o.err = staged.Run()
	} else {
		o.result, o.err = r.loaded.Run(r.inputs)
	}
	o.took = time.Since(o.started)
	e.running.end(o.err)
	if o.err == nil {
		if o.err = complete(o.result.Outputs(), r.samples); o.err != nil {
			o.result.Free()
			o.result = nil
		}
	}
	return o
}

// complete reports whether every output has a part for every sample: a model's own code decides that,
// and one request of a batch may make it go wrong.
func complete(outputs []tensor.Tensor, samples int) error {
	for _, t := range outputs {
		if len(t.Shape) == 0 || t.Shape[0] != int64(samples) {
			return fmt.Errorf("output %q has the shape %v: expected %d samples in its first dimension", t.Name, t.Shape, samples)
		}
	}
	return nil
}

func (e *executor) send(o outcome) {
	select {
	case e.out <- o:
	case <-e.quit:
		if o.result != nil {
			o.result.Free()
		}
	}
}
