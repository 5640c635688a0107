package v2

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/frontend/internal/inbox"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// Headers of an answer beside those of shared/wire: where the request's time went, and who ran it.
const (
	headerQueued  = "Gpulet-Queued-Us"
	headerBatched = "Gpulet-Batched-Us"
	headerExec    = "Gpulet-Exec-Us"
	headerBatch   = "Gpulet-Batch"
	headerGpulet  = "Gpulet-Id"
	headerShare   = "Gpulet-Share"
	headerPlan    = "Gpulet-Plan"
)

// headerTrace names the trace that a request is part of; the bus carries headers as they are
// written, and the standard writes this one in lower case.
const (
	headerTrace = "traceparent"
	maxTrace    = 256
)

// infer answers one inference request, with an error where it ends in one, and counts it.
func (s *Server) infer(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	n := s.inFlight.Add(1)
	s.metrics.inFlight.Inc()
	defer func() {
		s.inFlight.Add(-1)
		s.metrics.inFlight.Dec()
	}()

	label := unknownModel
	var err error
	m, refusal := s.lookup(r)
	if refusal != nil {
		err = refusal
	} else {
		label = m.Name
		err = admit.InFlight(n, s.opts.MaxInFlight)
	}
	if err == nil {
		err = s.exchange(w, r, m, start)
	}

	status := wire.StatusOK
	if err != nil {
		drain(w, r) // at its end already where it was read
		status = s.refuse(w, r, label, err)
	}
	s.metrics.observe(label, status, time.Since(start))
}

// exchange takes the request through: read, check, send, wait, answer. An error means that nothing
// has been written yet.
func (s *Server) exchange(w http.ResponseWriter, r *http.Request, m *model.Model, start time.Time) error {
	sent, err := s.submit(w, r, m, start)
	if err != nil {
		return err
	}
	w.Header().Set(wire.HeaderRequestID, sent.call.RequestID)
	msg, err := sent.call.Wait(r.Context(), sent.deadline)
	sent.release()
	if err != nil {
		return s.waitError(r.Context(), m, err, time.Since(start))
	}
	rep, err := wire.DecodeReply(msg.Get, msg.Body)
	if err != nil {
		return fmt.Errorf("model %s: its reply cannot be read: %w", m.Name, err)
	}
	if rep.Status != wire.StatusOK {
		return &admit.Refusal{Status: rep.Status, Detail: replyDetail(m, rep), Retry: retryAfter(rep.Status)}
	}
	return s.answer(w, m, sent.req, rep, start)
}

// sent is a request that waits for its answer: what is needed to answer it, and its message, which may
// have to be sent again.
type sent struct {
	call     *inbox.Call
	req      wire.V2Request
	deadline time.Time
	message  held
}

// release gives back what the message takes. Nobody sends it any more.
func (s *sent) release() { s.message.release() }

// submit reads, checks and sends the request. Of its buffers only the message is kept, until the answer is
// there: the caller releases it.
func (s *Server) submit(w http.ResponseWriter, r *http.Request, m *model.Model, now time.Time) (out *sent, err error) {
	body := held{total: &s.bodies, limit: s.opts.MaxBodies, buf: getBuffer()}
	defer body.release()
	out = &sent{message: held{total: &s.bodies, limit: s.opts.MaxBodies, buf: getBuffer()}}
	defer func() {
		if err != nil {
			out.release()
		}
	}()
	id, err := requestID(r.Header)
	if err == nil && id == "" { // a request with an id may have its answer already
		err = s.full.Check(m, now)
	}
	if err != nil {
		return out, err
	}
	raw, err := readBody(w, r, &body, s.opts.MaxBody)
	if err != nil {
		return out, err
	}
	req, queued, err := s.read(r.Header, raw, m, &out.message)
	if err != nil {
		return out, err
	}
	if out.deadline, err = admit.Deadline(r.Header.Get, req.Timeout, m, now); err != nil {
		return out, err
	}
	req.Inputs = nil
	out.req = req
	if id != "" {
		if out.call = s.sender.Answered(r.Context(), m.Name, id); out.call != nil {
			return out, nil
		}
	}
	left := time.Until(out.deadline) // without a timeout the queue would give the request the model's own
	if left <= 0 {
		return out, admit.Refusef(wire.Expired, "model %s: the deadline passed while the request was read", m.Name)
	}
	if err := admit.InTime(m, left, s.fleet.Backlog(m.Name), time.Now()); err != nil {
		return out, err
	}
	queued.Model, queued.RequestID, queued.Timeout, queued.Header = m.Name, id, left, carried(r.Header, queued.ContentType)
	queued.Body = out.message.keep()
	if out.call, err = s.sender.Send(&queued); err != nil {
		return out, s.waitError(r.Context(), m, err, 0)
	}
	return out, nil
}

// requestID is what the client calls its request; empty: nothing.
func requestID(h http.Header) (string, error) {
	id := h.Get(wire.HeaderRequestID)
	if id == "" {
		return "", nil
	}
	if err := bus.CheckToken("header "+wire.HeaderRequestID, id); err != nil {
		return "", admit.BadRequest(err)
	}
	return id, nil
}

// cancel gives up a request that its client, or another one, waits for. That it is done is told there.
func (s *Server) cancel(w http.ResponseWriter, r *http.Request) {
	m, err := s.lookup(r)
	if err != nil {
		writeError(w, http.StatusNotFound, err.Error())
		return
	}
	id := r.PathValue("id")
	if err := bus.CheckToken("request id", id); err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	if err := s.sender.Cancel(m.Name, id); err != nil {
		writeError(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	s.metrics.cancels.WithLabelValues(m.Name).Inc()
	writeBody(w, http.StatusAccepted, []byte(`{"id":"`+id+`"}`))
}

// read checks a body against the model and makes a message of it, whose body it puts into the buffer of
// mem: an image as it came, tensors as msgpack.
func (s *Server) read(h http.Header, body []byte, m *model.Model, mem *held) (wire.V2Request, bus.Message, error) {
	maxPayload := s.opts.MaxPayload()
	kind, isImage, err := image(h)
	if err != nil {
		return wire.V2Request{}, bus.Message{}, admit.BadRequest(err)
	}
	if isImage {
		if err := admit.Image(m, h.Get(wire.HeaderOutputs)); err != nil {
			return wire.V2Request{}, bus.Message{}, err
		}
		if err := admit.Message(len(body), maxPayload); err != nil {
			return wire.V2Request{}, bus.Message{}, err
		}
		*mem.buf = append(*mem.buf, body...)
		return wire.V2Request{}, bus.Message{ContentType: kind}, nil
	}
	req, err := decode(h, body, m, wire.Limits{MaxBytes: int(max(maxPayload, s.opts.MaxBody))})
	if err == nil {
		err = req.ChooseOutputs(h.Get(wire.HeaderOutputs))
	}
	if err != nil {
		return wire.V2Request{}, bus.Message{}, admit.BadRequest(err)
	}
	if err := admit.Tensors(req.Request, m); err != nil {
		return wire.V2Request{}, bus.Message{}, err
	}
	if *mem.buf, err = wire.AppendRequest(*mem.buf, req.Request); err != nil {
		return wire.V2Request{}, bus.Message{}, admit.BadRequest(err)
	}
	return req, bus.Message{}, admit.Message(len(*mem.buf), maxPayload)
}

// carried are the client's headers that travel with the request: its trace (W3C trace context), and
// with an image, which has no other place for it, the choice of outputs.
func carried(h http.Header, contentType string) map[string]string {
	var headers map[string]string // none, nearly always
	carry := func(name, value string) {
		if headers == nil {
			headers = map[string]string{}
		}
		headers[name] = value
	}
	if tp := h.Get(headerTrace); tp != "" && len(tp) <= maxTrace {
		carry(headerTrace, tp)
	}
	if outputs := h.Get(wire.HeaderOutputs); outputs != "" && contentType != "" {
		carry(wire.HeaderOutputs, outputs)
	}
	return headers
}

// errClientGone stands for a request that nobody waits for any more.
var errClientGone = &admit.Refusal{Status: wire.Cancelled, Detail: "the client has left"}

// waitError turns why there is no reply into a Refusal.
func (s *Server) waitError(ctx context.Context, m *model.Model, err error, waited time.Duration) error {
	refuse := func(status wire.Status, text string) error {
		return &admit.Refusal{Status: status, Detail: "model " + m.Name + ": " + text, Retry: retryAfter(status)}
	}
	switch {
	case errors.Is(err, inbox.ErrExpired):
		text := fmt.Sprintf("no answer within %v", waited.Round(time.Microsecond))
		if why := s.fleet.ModelReady(m.Name); why != nil {
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
		s.full.Saw(m, time.Now())
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
		s.metrics.refused.WithLabelValues(m.Name, string(wire.BadRequest)).Inc()
		return &admit.Refusal{Status: wire.BadRequest, TooLarge: true, Detail: err.Error()}
	}
	s.metrics.refused.WithLabelValues(m.Name, string(status)).Inc()
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

// answer writes the outputs: JSON, and behind it the bytes of those wanted as binary data, straight
// from the reply.
func (s *Server) answer(w http.ResponseWriter, m *model.Model, req wire.V2Request, rep wire.Reply, start time.Time) error {
	outputs, err := choose(rep.Outputs, req.Outputs)
	if err != nil {
		return fmt.Errorf("model %s: %w", m.Name, err)
	}
	text, hasBinary, err := wire.EncodeV2Response(wire.V2Response{
		ID: req.ID, Model: m.Name, Version: strconv.Itoa(rep.Version), Outputs: outputs,
	}, req.WantsBinary)
	if err != nil { // the model's numbers, not a fault of this program: the client is told, no log
		return admit.Refusef(wire.Failed, "model %s: %v", m.Name, err)
	}
	h := w.Header()
	setTiming(h, rep.Timing, time.Since(start))
	if !hasBinary {
		writeBody(w, http.StatusOK, text)
		return nil
	}
	size := len(text)
	for _, o := range outputs {
		if req.WantsBinary(o.Name) {
			size += len(o.Data)
		}
	}
	h.Set("Content-Type", wire.TypeRaw)
	h.Set("Content-Length", strconv.Itoa(size))
	h.Set(headerJSONLength, strconv.Itoa(len(text)))
	_, err = w.Write(text)
	for _, o := range outputs {
		if err == nil && req.WantsBinary(o.Name) {
			_, err = w.Write(o.Data)
		}
	}
	if err != nil {
		s.log.Debug("the client left during the answer", "model", m.Name, "error", err)
	}
	return nil
}

func setTiming(h http.Header, t wire.Timing, total time.Duration) {
	us := func(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
	h.Set(headerQueued, strconv.FormatInt(t.QueuedUs, 10))
	h.Set(headerBatched, strconv.FormatInt(t.BatchedUs, 10))
	h.Set(headerExec, strconv.FormatInt(t.ExecUs, 10))
	h.Set(headerBatch, strconv.Itoa(t.Batch))
	h.Set(headerGpulet, t.Gpulet)
	h.Set(headerShare, strconv.Itoa(t.Share))
	h.Set(headerPlan, strconv.FormatUint(t.Plan, 10))
	h.Set("Server-Timing", serverTiming("queue", us(t.QueuedUs), "batch", us(t.BatchedUs), "exec", us(t.ExecUs), "total", total))
}

// refuse answers with an error and returns the status to count it under.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, label string, err error) wire.Status {
	var ref *admit.Refusal
	if !errors.As(err, &ref) {
		s.log.Error("request failed", "model", label, "error", err)
		ref = &admit.Refusal{Status: wire.Failed, Detail: err.Error()}
	}
	s.log.LogAttrs(r.Context(), slog.LevelDebug, "request refused",
		slog.String("model", label), slog.String("status", string(ref.Status)), slog.String("detail", ref.Detail))
	if ref.Status == wire.Cancelled && r.Context().Err() != nil {
		return ref.Status // nobody is there to read an answer
	}
	w.Header().Set(wire.HeaderStatus, string(ref.Status))
	if ref.Retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((ref.Retry+time.Second-1)/time.Second)))
	}
	writeError(w, code(ref), ref.Detail)
	return ref.Status
}

// code is the HTTP status of a refusal.
func code(ref *admit.Refusal) int {
	switch ref.Status {
	case wire.BadRequest:
		if ref.TooLarge {
			return http.StatusRequestEntityTooLarge
		}
		return http.StatusBadRequest
	case wire.UnknownModel:
		return http.StatusNotFound
	case wire.Overloaded:
		return http.StatusTooManyRequests
	case wire.Unavailable:
		return http.StatusServiceUnavailable
	case wire.Expired:
		return http.StatusGatewayTimeout
	case wire.Cancelled:
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}
