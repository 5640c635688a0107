package grpc

import (
	"context"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpc "google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/shared/wire"
)

// retry is when it may be worth trying again what is refused here.
const retry = time.Second

// refuse ends a call with a refusal.
func refuse(ctx context.Context, ref *admit.Refusal) error {
	_ = rpc.SetTrailer(ctx, trailer(ref)) // there is always a call here
	return statusOf(ref).Err()
}

// trailer tells the status under the name that it has as a header of HTTP.
func trailer(ref *admit.Refusal) metadata.MD {
	return metadata.Pairs(wire.HeaderStatus, string(ref.Status))
}

// statusOf is the gRPC status of a refusal, with the time to come back where there is one.
func statusOf(ref *admit.Refusal) *status.Status {
	st := status.New(code(ref.Status), clip(ref.Detail))
	if ref.Retry <= 0 {
		return st
	}
	if detailed, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(ref.Retry)}); err == nil {
		st = detailed
	}
	return st
}

// maxMessage bounds the text of a status in bytes: it travels in a header, twice, and clients take 8 KiB
// of headers.
const maxMessage = 1024

func clip(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxMessage)], "?")
}

// code is the gRPC code of a status that is not ok.
func code(s wire.Status) codes.Code {
	switch s {
	case wire.BadRequest:
		return codes.InvalidArgument
	case wire.UnknownModel:
		return codes.NotFound
	case wire.Overloaded:
		return codes.ResourceExhausted
	case wire.Unavailable:
		return codes.Unavailable
	case wire.Expired:
		return codes.DeadlineExceeded
	case wire.Cancelled:
		return codes.Canceled
	}
	return codes.Internal
}
