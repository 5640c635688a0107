package grpc

import (
	"context"
	"errors"
	"io"
	"runtime/debug"
	"strings"
	"time"

	rpc "google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/wire"
)

// A message that takes longer than soon to come is slow: of those only as many are waited for as may be
// held together, and each for messageTimeout at most. So clients that send slowly, or nothing, keep out
// none but each other, and no memory is taken without bound.
const (
	soon           = 250 * time.Millisecond
	messageTimeout = time.Minute
)

// infer answers a call of ModelInfer, with an error where it ends in one, and counts it.
func (s *Server) infer(stream rpc.ServerStream) error {
	v := s.x.Enter()
	header := metadata.MD{}
	res, err := s.call(stream, v, header)
	_ = stream.SetHeader(header) // fails where the client has left, as SendMsg does
	if err == nil {
		if lost := stream.SendMsg(res); lost != nil {
			s.log.Debug("the client left during the answer", "model", res.GetModelName(), "error", lost)
		}
	}
	if ref := v.Leave(stream.Context(), err); ref != nil {
		stream.SetTrailer(trailer(ref))
		return statusOf(ref).Err()
	}
	return nil
}

// call takes one call through. It puts what HTTP tells in headers into header.
func (s *Server) call(stream rpc.ServerStream, v *exchange.Visit, header metadata.MD) (*oip.ModelInferResponse, error) {
	err := v.Admit()
	if err == nil {
		err = s.x.Room.Check()
	}
	if err != nil {
		return nil, err
	}
	in, err := s.receive(stream)
	if err != nil {
		return nil, err
	}
	ctx := stream.Context()
	return s.answer(ctx, v, in, headers(ctx), func(name, value string) { header.Set(name, value) })
}

// receive waits for the message of a call.
func (s *Server) receive(stream rpc.ServerStream) (*incoming, error) {
	in, received := new(incoming), make(chan error, 1)
	go func() { received <- stream.RecvMsg(in) }() // ends with the call at the latest
	timer := time.NewTimer(soon)
	defer timer.Stop()
	select {
	case err := <-received:
		return in, receiveError(stream.Context(), err)
	case <-timer.C:
	}
	select {
	case s.slow <- struct{}{}:
		defer func() { <-s.slow }()
	default:
		return nil, &admit.Refusal{
			Status: wire.Overloaded, Retry: retry,
			Detail: "request message: it is slow to come, and so are too many others: expected it within " + soon.String(),
		}
	}
	timer.Reset(messageTimeout)
	select {
	case err := <-received:
		return in, receiveError(stream.Context(), err)
	case <-timer.C:
		return nil, admit.Refusef(wire.BadRequest, "request message: it did not come within %v", messageTimeout)
	}
}

// receiveError turns why there is no message into a Refusal.
func receiveError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return admit.Refusef(wire.Expired, "the deadline passed while the request was read")
	case ctx.Err() != nil:
		return admit.Refusef(wire.Cancelled, "the client has left")
	case errors.Is(err, io.EOF):
		return admit.Refusef(wire.BadRequest, "request message: none came: expected one")
	}
	return admit.Refusef(wire.BadRequest, "request message: %s", status.Convert(err).Message())
}

// answer takes one request through. tell is told what HTTP tells in headers. A panic ends this request
// alone, as net/http has it: grpc-go would end the process.
func (s *Server) answer(ctx context.Context, v *exchange.Visit, in *incoming, header func(string) string, tell func(name, value string)) (res *oip.ModelInferResponse, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a request has led to a panic", "panic", p, "stack", string(debug.Stack()))
			err = admit.Refusef(wire.Failed, "internal error: %v", p)
		}
	}()
	req, sent, err := s.submit(ctx, v, in, header)
	in.free()
	if err != nil {
		return nil, err
	}
	tell(wire.HeaderRequestID, sent.RequestID)
	rep, err := sent.Reply(ctx, req.Request)
	if err != nil {
		return nil, err
	}
	res, err = encode(req, rep)
	if err != nil {
		return nil, err
	}
	exchange.Timing(rep.Timing, tell)
	return res, nil
}

// submit decodes, checks and sends the request. Nothing of what it came in is needed afterwards.
func (s *Server) submit(ctx context.Context, v *exchange.Visit, in *incoming, header func(string) string) (request, *exchange.Sent, error) {
	if in.err != nil {
		return request{}, nil, admit.Refusef(wire.BadRequest, "request message: %v", in.err)
	}
	m, err := v.Model(in.req.GetModelName(), in.req.GetModelVersion())
	if err != nil {
		return request{}, nil, err
	}
	id, err := v.Identify(m, header)
	if err != nil {
		return request{}, nil, err
	}
	defer s.x.Room.Give(in.size)
	if err := s.x.Room.Take(in.size); err != nil {
		return request{}, nil, err
	}
	message := s.x.Room.NewBody()
	req, err := s.read(in, m, header(wire.HeaderOutputs), message)
	if err != nil {
		message.Release()
		return req, nil, err
	}
	out := exchange.Outgoing{Model: m, ID: id, Header: header, Timeout: req.timeout}
	if req.image != nil {
		out.ContentType, out.Outputs = req.imageType, strings.Join(req.Outputs, ",")
	}
	req.Inputs, req.image = nil, nil // they are in the message
	req.model = m.Name
	sent, err := v.Send(ctx, out, message)
	return req, sent, err
}

// read decodes a request, checks it against the model and puts it into message; outputs are those that
// its headers choose.
func (s *Server) read(in *incoming, m *model.Model, outputs string, message *exchange.Body) (request, error) {
	req, err := decode(&in.req, m.Inputs, max(s.x.MaxPayload(), s.x.MaxBody))
	if err == nil {
		err = req.ChooseOutputs(outputs)
	}
	if err != nil {
		return req, admit.Refusef(wire.BadRequest, "model %s: %v", m.Name, err)
	}
	if req.image != nil {
		return req, s.x.Image(req.image, strings.Join(req.Outputs, ","), m, message)
	}
	return req, s.x.Tensors(req.Request, m, message)
}

// headers looks up the metadata of a call, which stand for HTTP's headers.
func headers(ctx context.Context) func(name string) string {
	md, _ := metadata.FromIncomingContext(ctx)
	return func(name string) string {
		if values := md.Get(name); len(values) > 0 {
			return values[0]
		}
		return ""
	}
}
