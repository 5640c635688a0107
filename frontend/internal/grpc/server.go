// Package grpc speaks the open inference protocol (KServe v2, as Triton's clients speak it) over gRPC.
//
// A call is received and decoded here, package exchange takes it through, as it does requests over HTTP,
// and its answer is encoded here. The messages are those of shared/oip.
package grpc

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"time"

	rpc "google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // for clients that compress
	"google.golang.org/grpc/encoding/proto"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/reflection"

	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/oip"
)

// Server answers calls. Serve is called once.
type Server struct {
	oip.UnimplementedGRPCInferenceServiceServer
	x        *exchange.Exchange
	log      *slog.Logger
	slow     chan struct{} // one for each message that takes long to come
	streams  chan struct{} // one for each open stream of requests
	draining chan struct{} // closed when no more requests are taken
}

// maxStreams is how many streams of requests may be open at once. Each may hold a message that has come in
// part.
const maxStreams = 1024

// New returns a server that takes requests through x.
func New(x *exchange.Exchange, log *slog.Logger) *Server {
	return &Server{
		x: x, log: log,
		slow:     make(chan struct{}, max(1, x.MaxBodies/max(1, x.MaxBody))),
		streams:  make(chan struct{}, maxStreams),
		draining: make(chan struct{}),
	}
}

// Serve answers on listener until ctx ends, then stops taking requests and lets those in flight finish,
// for grace at most.
func (s *Server) Serve(ctx context.Context, listener net.Listener, grace time.Duration) error {
	drain, abort, stop := lifecycle.Context(ctx, grace)
	defer stop()
	srv := s.registered()
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-drain.Done():
	}
	close(s.draining)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		srv.GracefulStop()
	}()
	select {
	case <-finished:
	case <-abort.Done():
		s.log.Warn("calls in flight were given up")
		srv.Stop()
		<-finished
	}
	<-failed
	return nil
}

// registered returns a gRPC server with all services.
func (s *Server) registered() *rpc.Server {
	srv := rpc.NewServer(
		rpc.MaxRecvMsgSize(int(s.x.MaxBody)),
		rpc.ForceServerCodecV2(codec{encoding.GetCodecV2(proto.Name)}),
		rpc.MaxHeaderListSize(64<<10),
		rpc.ConnectionTimeout(10*time.Second),
		rpc.WaitForHandlers(true),
		rpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute}), // a peer that is gone is noticed
		rpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	srv.RegisterService(description(), s)
	healthpb.RegisterHealthServer(srv, &health{ready: s.x.Ready, draining: s.draining})
	reflection.Register(srv)
	return srv
}

// description is the service's own but for ModelInfer: as a stream of one message a call begins before its
// message is there, and may be refused unread. On the wire it is the same.
func description() *rpc.ServiceDesc {
	d := oip.GRPCInferenceService_ServiceDesc
	d.Methods = slices.DeleteFunc(slices.Clone(d.Methods), func(m rpc.MethodDesc) bool { return m.MethodName == "ModelInfer" })
	d.Streams = append(slices.Clone(d.Streams), rpc.StreamDesc{
		StreamName: "ModelInfer",
		Handler:    func(srv any, stream rpc.ServerStream) error { return srv.(*Server).infer(stream) },
	})
	return &d
}

// incoming is an inference request as it came. Its raw contents are in its buffer, until it is freed.
type incoming struct {
	req  oip.ModelInferRequest
	err  error // why it is none
	size int64 // bytes
	buf  mem.Buffer
}

// free gives the buffer back.
func (in *incoming) free() {
	in.req.Reset()
	in.buf.Free()
}

// codec decodes an incoming so that one which is malformed is told as a bad request, which is what it is,
// and large tensors are not copied.
type codec struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*incoming)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	in.size = int64(data.Len())
	in.buf = data.MaterializeToBuffer(mem.DefaultBufferPool())
	in.err = unmarshal(in.buf.ReadOnlyData(), &in.req)
	return nil
}
