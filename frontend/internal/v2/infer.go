package v2

import (
	"net/http"
	"strconv"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/wire"
)

// infer answers one inference request, with an error where it ends in one, and counts it.
func (s *Server) infer(w http.ResponseWriter, r *http.Request) {
	v := s.x.Enter()
	m, err := v.Model(r.PathValue("model"), r.PathValue("version"))
	if err == nil {
		err = v.Admit()
	}
	if err == nil {
		err = s.exchange(w, r, v, m)
	}
	if err != nil {
		drain(w, r) // at its end already where it was read
	}
	if ref := v.Leave(r.Context(), err); ref != nil {
		refuse(w, r, ref)
	}
}

// exchange takes the request through: read, check, send, wait, answer. An error means that nothing
// has been written yet.
func (s *Server) exchange(w http.ResponseWriter, r *http.Request, v *exchange.Visit, m *model.Model) error {
	req, sent, err := s.submit(w, r, v, m)
	if err != nil {
		return err
	}
	w.Header().Set(wire.HeaderRequestID, sent.RequestID)
	rep, err := sent.Reply(r.Context(), req.Request)
	if err != nil {
		return err
	}
	return s.answer(w, m, req, rep, v.Took())
}

// submit reads, checks and sends the request. Of its buffers only the message is kept.
func (s *Server) submit(w http.ResponseWriter, r *http.Request, v *exchange.Visit, m *model.Model) (req wire.V2Request, sent *exchange.Sent, err error) {
	id, err := v.Identify(m, r.Header.Get)
	if err != nil {
		return req, nil, err
	}
	body := s.x.Room.NewBody()
	defer body.Release()
	raw, err := readBody(w, r, body, s.x.MaxBody)
	if err != nil {
		return req, nil, err
	}
	message := s.x.Room.NewBody()
	req, imageType, err := s.read(r.Header, raw, m, message)
	if err != nil {
		message.Release()
		return req, nil, err
	}
	req.Inputs = nil // they are in the message
	sent, err = v.Send(r.Context(), exchange.Outgoing{
		Model: m, ID: id, Header: r.Header.Get, Timeout: req.Timeout, ContentType: imageType, Outputs: r.Header.Get(wire.HeaderOutputs),
	}, message)
	return req, sent, err
}

// read checks a body against the model and puts it into message: an image, whose type it returns, as it
// came, tensors as msgpack.
func (s *Server) read(h http.Header, body []byte, m *model.Model, message *exchange.Body) (req wire.V2Request, imageType string, err error) {
	kind, isImage, err := image(h)
	if err != nil {
		return req, "", admit.BadRequest(err)
	}
	if isImage {
		return req, kind, s.x.Image(body, h.Get(wire.HeaderOutputs), m, message)
	}
	req, err = decode(h, body, m, wire.Limits{MaxBytes: int(max(s.x.MaxPayload(), s.x.MaxBody))})
	if err == nil {
		err = req.ChooseOutputs(h.Get(wire.HeaderOutputs))
	}
	if err != nil {
		return req, "", admit.BadRequest(err)
	}
	return req, "", s.x.Tensors(req.Request, m, message)
}

// cancel gives up a request that its client, or another one, waits for. That it is done is told there.
func (s *Server) cancel(w http.ResponseWriter, r *http.Request) {
	m, refusal := s.lookup(r)
	if refusal != nil {
		writeError(w, http.StatusNotFound, refusal.Detail)
		return
	}
	id := r.PathValue("id")
	if err := s.x.Cancel(m, id); err != nil {
		writeError(w, code(err), err.Detail)
		return
	}
	writeBody(w, http.StatusAccepted, []byte(`{"id":"`+id+`"}`))
}

// answer writes the outputs: JSON, and behind it the bytes of those wanted as binary data, straight
// from the reply.
func (s *Server) answer(w http.ResponseWriter, m *model.Model, req wire.V2Request, rep wire.Reply, took time.Duration) error {
	outputs := rep.Outputs
	text, hasBinary, err := wire.EncodeV2Response(wire.V2Response{
		ID: req.ID, Model: m.Name, Version: strconv.Itoa(rep.Version), Outputs: outputs,
	}, req.WantsBinary)
	if err != nil { // the model's numbers, not a fault of this program: the client is told, no log
		return admit.Refusef(wire.Failed, "model %s: %v", m.Name, err)
	}
	h := w.Header()
	exchange.Timing(rep.Timing, h.Set)
	h.Set("Server-Timing", serverTiming(rep.Timing, took))
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

// refuse answers with an error.
func refuse(w http.ResponseWriter, r *http.Request, ref *admit.Refusal) {
	if ref.Status == wire.Cancelled && r.Context().Err() != nil {
		return // nobody is there to read an answer
	}
	w.Header().Set(wire.HeaderStatus, string(ref.Status))
	if ref.Retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((ref.Retry+time.Second-1)/time.Second)))
	}
	writeError(w, code(ref), ref.Detail)
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
