package gpulet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/life"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// answer replies to every request of a run that is over.
func (l *loop) answer(o outcome) {
	var outputs []tensor.Tensor
	if o.err == nil {
		defer o.result.Free()
		outputs = o.result.Outputs()
	}
	from := 0
	for _, req := range o.requests {
		switch {
		case req.unwanted:
			l.refuse(req, wire.Cancelled, "cancelled while it ran")
		case o.err != nil:
			req.model.counts.Failed++
			l.refuse(req, wire.Failed, o.err.Error())
		default:
			l.reply(o, req, outputs, from)
		}
		from += req.samples
	}
}

// reply answers a request with its part of the batch's outputs, which starts at sample from. The
// outputs are copied once, into the reply.
func (l *loop) reply(o outcome, req *request, outputs []tensor.Tensor, from int) {
	rep := wire.Reply{
		RequestID: req.id(),
		Status:    wire.StatusOK,
		Model:     req.model.name(),
		Version:   req.model.Config.Version,
		Timing: wire.Timing{
			QueuedUs:  max(0, req.fetched.Sub(req.msg.Stored).Microseconds()),
			BatchedUs: o.started.Sub(req.fetched).Microseconds(),
			ExecUs:    o.took.Microseconds(),
			Batch:     o.samples,
			Gpulet:    l.cfg.ID,
			Share:     l.cfg.Share,
			Plan:      l.revision,
		},
	}
	rep.Outputs = slice(outputs, req, from, o.samples)
	l.send(req, rep)
}

// slice cuts a request's samples out of the outputs of a batch.
func slice(outputs []tensor.Tensor, req *request, from, samples int) []tensor.Tensor {
	parts := make([]tensor.Tensor, 0, len(outputs))
	for _, t := range outputs {
		if len(req.outputs) > 0 && !slices.Contains(req.outputs, t.Name) {
			continue
		}
		each := len(t.Data) / samples
		t.Data = t.Data[from*each : (from+req.samples)*each]
		if req.samples != samples {
			t.Shape = slices.Clone(t.Shape)
			t.Shape[0] = int64(req.samples)
		}
		parts = append(parts, t)
	}
	return parts
}

// refuse answers a request with an error and acknowledges it.
func (l *loop) refuse(req *request, status wire.Status, detail string) {
	l.send(req, wire.Reply{RequestID: req.id(), Status: status, Model: req.model.name(), Detail: detail})
}

// send encodes a reply, sends it and acknowledges the request.
func (l *loop) send(req *request, rep wire.Reply) {
	header, body, err := wire.EncodeReply(req.msg.Get(wire.HeaderType), rep)
	if err != nil && rep.Status == wire.StatusOK {
		// The model's output cannot be said in the request's own format: NaN in JSON.
		req.model.counts.Failed++
		l.refuse(req, wire.Failed, err.Error())
		return
	}
	if err != nil {
		l.log.Error("cannot encode a reply", "model", rep.Model, "request_id", rep.RequestID, "error", err)
		l.end(req)
		return
	}
	to := req.msg.Get(wire.HeaderReplyTo)
	if to == "" || l.deliver(req, rep, to, header, body) {
		l.store(req, rep, header, body)
	}
}

// deliver sends a reply to the request's inbox. It reports whether it is left to the caller to keep the
// reply, too, as the request asks, and to end the request.
func (l *loop) deliver(req *request, rep wire.Reply, to string, header map[string]string, body []byte) bool {
	err := l.cfg.Bus.Reply(to, header, body)
	switch {
	case errors.Is(err, bus.ErrTooLarge) && rep.Status == wire.StatusOK:
		req.model.counts.Failed++
		l.refuse(req, wire.Failed, "reply: "+err.Error())
		return false
	case req.msg.Get(wire.HeaderKeep) != "" && sentOf(err).Acknowledge():
		return true
	}
	l.forget(req)
	l.conclude(req, rep, err, l.draining)
	return false
}

// store keeps a reply as a result. It takes a round trip, so it does not happen on the
// loop; how many are under way is bounded by how many requests may be unacknowledged.
func (l *loop) store(req *request, rep wire.Reply, header map[string]string, body []byte) {
	l.forget(req)
	draining := l.draining
	l.storing.Add(1)
	go func() {
		defer l.storing.Done()
		err := l.cfg.Bus.StoreResult(rep.Model, rep.RequestID, header, body)
		if errors.Is(err, bus.ErrTooLarge) && rep.Status == wire.StatusOK {
			rep = wire.Reply{RequestID: rep.RequestID, Status: wire.Failed, Model: rep.Model, Detail: err.Error()}
			if header, body, err = wire.EncodeReply(req.msg.Get(wire.HeaderType), rep); err == nil {
				err = l.cfg.Bus.StoreResult(rep.Model, rep.RequestID, header, body)
			}
		}
		l.conclude(req, rep, err, draining)
	}()
}

// conclude acknowledges a request after a try to answer it, unless another gpu-let has to try again.
// It may run on any goroutine.
func (l *loop) conclude(req *request, rep wire.Reply, err error, wait bool) {
	sent := sentOf(err)
	level := slog.LevelDebug // of an address that is bad: its owner's affair
	if sent == life.Unsent {
		level = slog.LevelWarn
	}
	if err != nil {
		l.log.Log(context.Background(), level, "reply not sent", "model", rep.Model, "request_id", rep.RequestID, "error", err)
	}
	if !sent.Acknowledge() {
		return // delivered again after the AckWait
	}
	req.model.answers.count(rep.Status)
	l.ack(req, wait)
}

// sentOf says what became of a reply.
func sentOf(err error) life.Sent {
	switch {
	case err == nil:
		return life.Handed
	case errors.Is(err, bus.ErrUnavailable):
		return life.Unsent
	}
	return life.Undeliverable
}

// answers counts the requests that were answered, by status.
type answers struct {
	mu sync.Mutex // guards n
	n  map[string]uint64
}

func (a *answers) count(s wire.Status) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n == nil {
		a.n = map[string]uint64{}
	}
	a.n[string(s)]++
}

func (a *answers) counts() map[string]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.n)
}

// end acknowledges a request that was answered.
func (l *loop) end(req *request) {
	l.forget(req)
	l.ack(req, l.draining)
}

// ack does not wait, except while draining, when the process ends next.
func (l *loop) ack(req *request, wait bool) {
	err := error(nil)
	if wait {
		ctx, cancel := context.WithTimeout(context.Background(), ackTimeout)
		defer cancel()
		err = req.msg.DoubleAck(ctx)
	} else {
		err = req.msg.Ack()
	}
	if err != nil {
		l.log.Warn("not acknowledged", "model", req.model.name(), "request_id", req.id(), "error", err)
	}
}

// late says in words why a request is given up.
func late(req *request, now time.Time) string {
	left := req.deadline.Sub(now).Round(time.Microsecond)
	if left <= 0 {
		return fmt.Sprintf("its deadline passed %v ago", -left)
	}
	return fmt.Sprintf("cannot finish in time: %v are left, a batch takes about %v", left,
		req.model.estimate.exec(req.samples).Round(time.Microsecond))
}
