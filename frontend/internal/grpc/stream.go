package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	rpc "google.golang.org/grpc"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/wire"
)

// ahead is how many requests of a stream are taken before the first of them is answered.
const ahead = 128

// ModelStreamInfer answers the requests of a stream, each as one of its own, in the order in which they
// came. A request that fails is an answer, too; the stream goes on. It ends when its client has sent
// everything, or leaves, or when the frontend stops.
func (s *Server) ModelStreamInfer(stream rpc.BidiStreamingServer[oip.ModelInferRequest, oip.ModelStreamInferResponse]) error {
	ctx := stream.Context()
	header := headers(ctx)
	if id := header(wire.HeaderRequestID); id != "" {
		return refuse(ctx, admit.Refusef(wire.BadRequest, "metadata %s: found %q: expected none for a stream, which has many requests", wire.HeaderRequestID, id))
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		return refuse(ctx, &admit.Refusal{
			Status: wire.Overloaded, Retry: retry,
			Detail: fmt.Sprintf("%d streams are open: expected at most %d", maxStreams+1, maxStreams),
		})
	}
	done := make(chan struct{})
	defer close(done)
	requests, ended := receiveAll(stream, done)
	answers := make(chan chan *oip.ModelStreamInferResponse, ahead)
	var working, sending sync.WaitGroup
	sending.Go(func() {
		for answer := range answers {
			_ = stream.Send(<-answer) // fails where the client has left, which ends ctx
		}
	})
	finish := func() {
		working.Wait()
		close(answers)
		sending.Wait()
	}
	for {
		select {
		case in := <-requests:
			answer := make(chan *oip.ModelStreamInferResponse, 1)
			answers <- answer
			working.Go(func() { answer <- s.streamed(ctx, in, header) })
		case err := <-ended:
			finish()
			if errors.Is(err, io.EOF) {
				return nil
			}
			var ref *admit.Refusal
			errors.As(receiveError(ctx, err), &ref)
			return refuse(ctx, ref)
		case <-s.draining:
			finish()
			return refuse(ctx, &admit.Refusal{Status: wire.Unavailable, Retry: retry, Detail: "the frontend is shutting down"})
		}
	}
}

// receiveAll hands on what comes over a stream until it ends, and then why, or until done.
func receiveAll(stream rpc.ServerStream, done <-chan struct{}) (<-chan *incoming, <-chan error) {
	requests, ended := make(chan *incoming), make(chan error, 1)
	go func() { // ends with the call at the latest
		for {
			in := new(incoming)
			if err := stream.RecvMsg(in); err != nil {
				ended <- err
				return
			}
			select {
			case requests <- in:
			case <-done:
				return
			}
		}
	}()
	return requests, ended
}

// streamed answers one request of a stream and counts it.
func (s *Server) streamed(ctx context.Context, in *incoming, header func(string) string) *oip.ModelStreamInferResponse {
	v := s.x.Enter()
	name, id := in.req.GetModelName(), in.req.GetId()
	var res *oip.ModelInferResponse
	err := v.Admit()
	if err == nil {
		res, err = s.answer(ctx, v, in, header, func(string, string) {})
	}
	ref := v.Leave(ctx, err)
	if ref != nil {
		res = &oip.ModelInferResponse{ModelName: name, Id: id}
	}
	if res.Parameters == nil {
		res.Parameters = map[string]*oip.InferParameter{}
	}
	// Triton's: the last answer to the request. Here every answer is.
	res.Parameters["triton_final_response"] = &oip.InferParameter{ParameterChoice: &oip.InferParameter_BoolParam{BoolParam: true}}
	if ref == nil {
		return &oip.ModelStreamInferResponse{InferResponse: res}
	}
	res.Parameters["gpulet_status"] = &oip.InferParameter{ParameterChoice: &oip.InferParameter_StringParam{StringParam: string(ref.Status)}}
	return &oip.ModelStreamInferResponse{ErrorMessage: clip(ref.Detail), InferResponse: res}
}
