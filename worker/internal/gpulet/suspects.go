package gpulet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/wire"
)

// A request that comes again may have killed the process that had it. What is held against it is
// asked of the bus, off the loop. Nothing: it is taken like any other, and runs alone in its run. A
// suspect waits until the gpu-let holds nothing else and everything before it has been answered;
// meanwhile nothing is fetched. If it kills again, it takes nobody with it, and there is no doubt
// whose fault it was. A convict is never run again.

// finding is what became of the question.
type finding struct {
	req     *request
	suspect bool         // or not known: the bus did not answer
	buried  plan.Suspect // convicted, and a dead letter now; zero: it is not
	err     error        // convicted, but the dead letter could not be written
	cleared bool         // everything before the trial has been answered
}

// judge asks the bus. It owns no requests: they are the loop's.
type judge struct {
	bus     *bus.Bus
	out     chan finding
	working sync.WaitGroup
	ctx     context.Context //nolint:containedctx // ends what is asked when nobody reads out any more
	cancel  context.CancelFunc
}

func startJudge(ctx context.Context, b *bus.Bus) *judge {
	j := &judge{bus: b, out: make(chan finding, 64)}
	j.ctx, j.cancel = context.WithCancel(ctx)
	return j
}

// stop waits for what is being asked, whose answers are dropped.
func (j *judge) stop() {
	j.cancel()
	j.working.Wait()
}

func (j *judge) do(f func() finding) {
	j.working.Go(func() {
		found := f()
		select {
		case j.out <- found:
		case <-j.ctx.Done():
		}
	})
}

// ask finds out what is held against a request of model.
func (j *judge) ask(model string, req *request) {
	j.do(func() finding {
		s, err := j.bus.Suspect(j.ctx, model, req.msg.Seq, req.msg.Stamped)
		switch {
		case errors.Is(err, bus.ErrNotFound):
			return finding{req: req}
		case err != nil, !s.Convicted():
			return finding{req: req, suspect: true}
		}
		extra := map[string]string{bus.HeaderLastWords: s.LastWords, bus.HeaderGpulet: s.Gpulet}
		return finding{req: req, buried: s, err: j.bus.DeadLetter(j.ctx, model, req.msg, sentence(s), extra)}
	})
}

// clear waits until the server has every answer and acknowledgement that was sent before.
func (j *judge) clear(req *request) {
	j.do(func() finding {
		_ = j.bus.Flush() // while the bus is away, nothing that is lost was known to be sent
		return finding{req: req, cleared: true}
	})
}

// sentence says why a request is not run again.
func sentence(s plan.Suspect) string {
	alone := "beside others"
	if s.Alone {
		alone = "alone"
	}
	return fmt.Sprintf("%d processes died over it, the last one, of gpu-let %s, while it was %s there: %s", s.Deaths, s.Gpulet, alone, s.Reason)
}

// question holds a redelivered request until it is known what is held against it.
func (l *loop) question(req *request) {
	req.model.judging++
	l.judge.ask(req.model.name(), req)
}

// found goes on with a request that was asked about.
func (l *loop) found(f finding) {
	req := f.req
	switch {
	case f.suspect && !req.unwanted:
		l.suspects = append(l.suspects, req)
		l.log.Warn("a request came again that a process died over", "model", req.model.name(), "request_id", req.id())
		return
	case f.err != nil:
		l.log.Warn("cannot bury a request that kills", "model", req.model.name(), "request_id", req.id(), "error", f.err)
		l.forget(req) // it is delivered again, and convicted again
	case f.buried.Deaths > 0:
		req.model.counts.Poisoned++
		l.log.Error("buried a request that kills", "model", req.model.name(), "request_id", req.id(), "reason", sentence(f.buried))
		l.refuse(req, wire.Poisoned, sentence(f.buried))
	default:
		l.accept(req, time.Now())
	}
	req.model.judging--
}

// acquit takes a request from those that wait for their trial, and reports whether it was among them.
func (l *loop) acquit(req *request) bool {
	i := slices.Index(l.suspects, req)
	if i < 0 {
		return false
	}
	l.suspects = slices.Delete(l.suspects, i, i+1)
	req.model.judging--
	return true
}

// suspicious reports whether a request that may kill is here: then nothing else is fetched.
func (l *loop) suspicious() bool { return l.trial != nil || len(l.suspects) > 0 }

// try begins the trial of the next suspect once nothing else is held, and gives up those that
// became too late while they waited. Pulls that are parked are taken back meanwhile.
func (l *loop) try(now time.Time) {
	l.expireSuspects(now)
	switch {
	case l.suspicious() && !l.paused:
		l.paused = true
		for _, m := range l.order {
			l.stopPulling(m)
		}
	case !l.suspicious() && l.paused:
		l.paused = false
		for _, m := range l.order {
			if m.loaded != nil && !m.retiring {
				l.startPulling(m)
			}
		}
	}
	if l.trial == nil && len(l.suspects) > 0 && len(l.open) == len(l.suspects) {
		l.trial, l.suspects = l.suspects[0], l.suspects[1:]
		l.judge.clear(l.trial)
	}
}

func (l *loop) expireSuspects(now time.Time) {
	for _, req := range slices.Clone(l.suspects) {
		if now.Add(req.model.estimate.exec(1)).After(req.deadline) {
			l.acquit(req)
			l.expire(req, now)
		}
	}
}

// suspectTime is when try has something to do by itself: the first deadline of those that wait.
func (l *loop) suspectTime() (at time.Time) {
	for _, req := range l.suspects {
		at = earlier(at, req.deadline.Add(-req.model.estimate.exec(1)))
	}
	return at
}
