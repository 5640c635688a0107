package drive

import (
	"context"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/wire"
)

// callers are the part of a Sender whose transport has a call for each request: a fixed number of calls at
// once. Further requests wait here, which their send lag shows.
type callers struct {
	sink    Sink
	call    func(ctx context.Context, r Request) (wire.Reply, error)
	queue   chan Request
	ctx     context.Context
	cancel  context.CancelFunc
	workers sync.WaitGroup
}

// newCallers starts n callers. An error of call means that no answer can come.
func newCallers(n int, sink Sink, call func(context.Context, Request) (wire.Reply, error)) *callers {
	c := &callers{sink: sink, call: call, queue: make(chan Request, 8*n)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for range n {
		c.workers.Go(c.work)
	}
	return c
}

// Send implements Sender. It blocks while all callers are busy and the queue is full.
func (c *callers) Send(r Request) {
	select {
	case c.queue <- r:
	case <-c.ctx.Done():
	}
}

// Close implements Sender.
func (c *callers) Close() {
	c.cancel()
	c.workers.Wait()
}

func (c *callers) work() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case r := <-c.queue:
			c.sink.Left(r.Stream, r.Seq, time.Now())
			reply, err := c.call(c.ctx, r)
			switch {
			case err == nil:
				c.sink.Answered(r.Stream, r.Seq, time.Now(), reply)
			case c.ctx.Err() == nil: // else the run gave up on it
				c.sink.Refused(r.Stream, r.Seq, wire.Unavailable, err.Error(), true)
			}
		}
	}
}
