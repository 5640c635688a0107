package gpulet

import (
	"runtime"
	"time"

	"github.com/gpulet/gpulet/worker/internal/engine"
)

// run is requests that the engine executes together.
type run struct {
	model    *bound
	loaded   engine.Model
	inputs   []engine.Input
	requests []*request
	samples  int
}

// outcome is what became of a run. The result must be freed.
type outcome struct {
	run
	result  engine.Result
	err     error
	started time.Time
	took    time.Duration
	last    bool // of its job: the executor is free
}

// job is one turn of the executor: runs, or models to close.
type job struct {
	runs  []run
	close []engine.Model
}

// executor runs batches one after the other on one OS thread: LibTorch keeps a team of threads for
// every thread that calls it.
type executor struct {
	jobs chan job
	out  chan outcome
	quit chan struct{} // closed when nobody reads out any more
	done chan struct{}
}

func startExecutor() *executor {
	e := &executor{
		// One batch runs at a time; closing models may queue up behind it.
		jobs: make(chan job, 64),
		out:  make(chan outcome, 64),
		quit: make(chan struct{}),
		done: make(chan struct{}),
	}
	go e.loop()
	return e
}

// stop lets the executor finish what it was given and waits for it.
func (e *executor) stop() {
	close(e.quit)
	close(e.jobs)
	<-e.done
}

// abandon does not wait: a batch that hangs in the engine cannot be interrupted.
func (e *executor) abandon() {
	close(e.quit)
	close(e.jobs)
}

func (e *executor) loop() {
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	defer close(e.done)
	for j := range e.jobs {
		for _, m := range j.close {
			_ = m.Close() // nothing can be done about a model that does not close
		}
		for i, r := range j.runs {
			e.execute(r, i == len(j.runs)-1)
		}
	}
}

// execute runs r. When the engine refuses a batch of several requests, each is tried alone, so
// that a bad one does not fail its neighbours.
func (e *executor) execute(r run, last bool) {
	o := e.try(r)
	if o.err == nil || len(r.requests) == 1 || engine.CodeOf(o.err) == engine.EDEVICE {
		o.last = last
		e.send(o)
		return
	}
	for i, req := range r.requests {
		alone := newRun(r.model, r.loaded, []*request{req})
		e.execute(alone, last && i == len(r.requests)-1)
	}
}

func (e *executor) try(r run) outcome {
	o := outcome{run: r, started: time.Now()}
	o.result, o.err = r.loaded.Run(r.inputs)
	o.took = time.Since(o.started)
	return o
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
