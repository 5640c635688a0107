package exchange

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/frontend/internal/inbox"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// headerTrace names the trace that a request is part of; the bus carries headers as they are
// written, and the standard writes this one in lower case.
const (
	headerTrace = "traceparent"
	maxTrace    = 256
)

// Outgoing is a request that has been read and checked.
type Outgoing struct {
	Model *model.Model
	// ID is what the client calls the request; empty: nothing.
	ID string
	// Header looks up the client's headers: deadline and trace.
	Header func(name string) string
	// Timeout is the request's own parameter; zero: none.
	Timeout time.Duration
	// ContentType is that of an image; empty: the body is msgpack.
	ContentType string
	// Outputs are the names of the outputs wanted of an image, which has no other place for them; empty: all.
	Outputs string
}

// Identify returns what the client calls its request, empty for nothing. Where its queue was full a moment
// ago a request is refused unread, unless it has an id: then it may have its answer already.
func (v *Visit) Identify(m *model.Model, header func(string) string) (id string, err error) {
	id = header(wire.HeaderRequestID)
	if id == "" {
		return "", v.x.full.Check(m, v.start)
	}
	if err := bus.CheckToken("header "+wire.HeaderRequestID, id); err != nil {
		return "", admit.BadRequest(err)
	}
	return id, nil
}

// Tensors checks a request against its model and puts it into body as it is queued.
func (x *Exchange) Tensors(req wire.Request, m *model.Model, body *Body) (err error) {
	if err := admit.Tensors(req, m); err != nil {
		return err
	}
	if *body.Buf, err = wire.AppendRequest(*body.Buf, req); err != nil {
		return admit.BadRequest(err)
	}
	return admit.Message(len(*body.Buf), x.MaxPayload())
}

// Image checks an image, of which outputs are wanted, against its model and puts it into body as it came.
func (x *Exchange) Image(image []byte, outputs string, m *model.Model, body *Body) error {
	if err := admit.Image(m, outputs); err != nil {
		return err
	}
	if err := admit.Message(len(image), x.MaxPayload()); err != nil {
		return err
	}
	*body.Buf = append(*body.Buf, image...)
	return nil
}

// Sent is a request that waits for its answer. Its owner calls Reply exactly once.
type Sent struct {
	RequestID string

	visit    *Visit
	model    *model.Model
	call     *inbox.Call
	deadline time.Time
	message  *Body // may have to be sent again
}

// Send sends a request whose message is in body. It is over at its deadline, or at that of ctx where that
// is sooner. body is kept until the answer is there, and then released; so it is when Send fails.
func (v *Visit) Send(ctx context.Context, out Outgoing, body *Body) (sent *Sent, err error) {
	defer func() {
		if err != nil {
			body.Release()
		}
	}()
	m := out.Model
	sent = &Sent{visit: v, model: m, message: body}
	if sent.deadline, err = v.deadline(ctx, out); err != nil {
		return nil, err
	}
	if out.ID != "" {
		sent.call = v.x.sender.Answered(ctx, m.Name, out.ID)
	}
	if sent.call == nil {
		err = v.publish(ctx, out, sent)
	}
	if err != nil {
		return nil, err
	}
	sent.RequestID = sent.call.RequestID
	return sent, nil
}

func (v *Visit) deadline(ctx context.Context, out Outgoing) (time.Time, error) {
	at, err := admit.Deadline(out.Header, out.Timeout, out.Model, v.start)
	if end, ok := ctx.Deadline(); ok && err == nil && end.Before(at) {
		at = end
	}
	return at, err
}

func (v *Visit) publish(ctx context.Context, out Outgoing, sent *Sent) (err error) {
	x, m := v.x, out.Model
	left := time.Until(sent.deadline) // without a timeout the queue would give the request the model's own
	if left <= 0 {
		return admit.Refusef(wire.Expired, "model %s: the deadline passed while the request was read", m.Name)
	}
	if err := admit.InTime(m, left, x.Backlog(m.Name), time.Now()); err != nil {
		return err
	}
	sent.call, err = x.sender.Send(&bus.Message{
		Model: m.Name, RequestID: out.ID, Timeout: left, ContentType: out.ContentType, Header: out.carried(), Body: sent.message.keep(),
	})
	if err != nil {
		return v.waitError(ctx, m, err)
	}
	return nil
}

// carried are the client's headers that travel with the request: its trace (W3C trace context), and
// with an image the choice of outputs.
func (o *Outgoing) carried() map[string]string {
	var headers map[string]string // none, nearly always
	carry := func(name, value string) {
		if headers == nil {
			headers = map[string]string{}
		}
		headers[name] = value
	}
	if tp := o.Header(headerTrace); tp != "" && len(tp) <= maxTrace {
		carry(headerTrace, tp)
	}
	if o.Outputs != "" && o.ContentType != "" {
		carry(wire.HeaderOutputs, o.Outputs)
	}
	return headers
}

// Reply waits for the answer to req; its outputs are those that req asks for. An error is a Refusal, or
// says what is wrong with the answer. When ctx ends the client has left.
func (s *Sent) Reply(ctx context.Context, req wire.Request) (wire.Reply, error) {
	m := s.model
	msg, err := s.call.Wait(ctx, s.deadline)
	s.message.Release()
	if err != nil {
		return wire.Reply{}, s.visit.waitError(ctx, m, err)
	}
	rep, err := wire.DecodeReply(msg.Get, msg.Body)
	if err != nil {
		return wire.Reply{}, fmt.Errorf("model %s: its reply cannot be read: %w", m.Name, err)
	}
	if rep.Status != wire.StatusOK {
		return wire.Reply{}, &admit.Refusal{Status: rep.Status, Detail: replyDetail(m, rep), Retry: retryAfter(rep.Status)}
	}
	if rep.Outputs, err = req.Choose(rep.Outputs); err != nil {
		return wire.Reply{}, fmt.Errorf("model %s: %w", m.Name, err)
	}
	return rep, nil
}

// errClientGone stands for a request that nobody waits for any more.
var errClientGone = &admit.Refusal{Status: wire.Cancelled, Detail: "the client has left"}

// waitError turns why there is no reply into a Refusal.
func (v *Visit) waitError(ctx context.Context, m *model.Model, err error) error {
	x := v.x
	refuse := func(status wire.Status, text string) error {
		return &admit.Refusal{Status: status, Detail: "model " + m.Name + ": " + text, Retry: retryAfter(status)}
	}
	switch {
	case errors.Is(err, inbox.ErrExpired), errors.Is(err, context.DeadlineExceeded):
		text := fmt.Sprintf("no answer within %v", v.Took().Round(time.Microsecond))
		if why := x.ModelReady(m.Name); why != nil {
			text += ": " + why.Error()
		}
		return refuse(wire.Expired, text)
	case errors.Is(err, inbox.ErrCancelled):
		return refuse(wire.Cancelled, "cancelled by its id")
	case errors.Is(err, inbox.ErrClosed):
		return refuse(wire.Unavailable, err.Error())
	case ctx.Err() != nil:
		return errClientGone
	}
	if errors.Is(err, bus.ErrFull) {
		x.full.Saw(m, time.Now())
	}
	status := wire.Failed
	switch {
	case errors.Is(err, bus.ErrOverloaded):
		status = wire.Overloaded
	case errors.Is(err, bus.ErrUnavailable), errors.Is(err, bus.ErrClosed):
		status = wire.Unavailable
	case errors.Is(err, bus.ErrUnknownModel):
		status = wire.UnknownModel
	case errors.Is(err, bus.ErrTooLarge):
		x.metrics.refused.WithLabelValues(m.Name, string(wire.BadRequest)).Inc()
		return &admit.Refusal{Status: wire.BadRequest, TooLarge: true, Detail: err.Error()}
	}
	x.metrics.refused.WithLabelValues(m.Name, string(status)).Inc()
	return refuse(status, err.Error())
}

func replyDetail(m *model.Model, rep wire.Reply) string {
	if rep.Detail == "" {
		return fmt.Sprintf("model %s: %s", m.Name, rep.Status)
	}
	return fmt.Sprintf("model %s: %s: %s", m.Name, rep.Status, rep.Detail)
}

func retryAfter(status wire.Status) time.Duration {
	if status == wire.Overloaded || status == wire.Unavailable {
		return time.Second
	}
	return 0
}

// Timing tells, as headers of an answer, where the request's time went, and who ran it.
func Timing(t wire.Timing, set func(name, value string)) {
	set("Gpulet-Queued-Us", strconv.FormatInt(t.QueuedUs, 10))
	set("Gpulet-Batched-Us", strconv.FormatInt(t.BatchedUs, 10))
	set("Gpulet-Exec-Us", strconv.FormatInt(t.ExecUs, 10))
	set("Gpulet-Batch", strconv.Itoa(t.Batch))
	set("Gpulet-Id", t.Gpulet)
	set("Gpulet-Share", strconv.Itoa(t.Share))
	set("Gpulet-Plan", strconv.FormatUint(t.Plan, 10))
}
