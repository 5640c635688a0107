package drive

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/gpulet/gpulet/loadgen/internal/payload"
	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// callsPerConnection is how many calls share a connection at most: beyond some dozens one connection is
// what slows them.
const callsPerConnection = 16

// GRPCOptions are the settings of a Sender over gRPC.
type GRPCOptions struct {
	// Addr is the frontend: host and port.
	Addr string
	// Calls is how many requests can be in flight; further ones wait in this process, which their send
	// lag shows.
	Calls int
	// Timeout is asked for with every request; zero leaves it to the model.
	Timeout time.Duration
}

// grpcSender calls ModelInfer with raw contents over a fixed set of connections.
type grpcSender struct {
	*callers
	conns   []*grpc.ClientConn
	streams [][]*oip.ModelInferRequest // by stream and item
}

// GRPC returns a Sender to a frontend's gRPC API.
func GRPC(o GRPCOptions, streams []Stream, sink Sink) (Sender, error) {
	s := &grpcSender{}
	for _, st := range streams {
		var messages []*oip.ModelInferRequest
		for _, it := range st.Items {
			messages = append(messages, inferMessage(st.Model, it, o.Timeout))
		}
		s.streams = append(s.streams, messages)
	}
	for range (o.Calls + callsPerConnection - 1) / callsPerConnection {
		conn, err := DialGRPC(o.Addr)
		if err != nil {
			return nil, errors.Join(err, s.hangUp())
		}
		s.conns = append(s.conns, conn)
	}
	s.callers = newCallers(o.Calls, sink, s.infer)
	return s, nil
}

// DialGRPC returns a connection to a frontend's gRPC API, which is made when it is used first.
func DialGRPC(addr string) (*grpc.ClientConn, error) {
	return grpc.NewClient(addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)))
}

// inferMessage is a request as a message, with its tensors as bytes.
func inferMessage(model string, it payload.Item, timeout time.Duration) *oip.ModelInferRequest {
	m := &oip.ModelInferRequest{ModelName: model}
	if timeout > 0 {
		m.Parameters = map[string]*oip.InferParameter{
			"timeout": {ParameterChoice: &oip.InferParameter_Int64Param{Int64Param: timeout.Microseconds()}},
		}
	}
	for _, name := range it.Request.Outputs {
		m.Outputs = append(m.Outputs, &oip.ModelInferRequest_InferRequestedOutputTensor{Name: name})
	}
	add := func(name, datatype string, shape []int64, data []byte) {
		m.Inputs = append(m.Inputs, &oip.ModelInferRequest_InferInputTensor{Name: name, Datatype: datatype, Shape: shape})
		m.RawInputContents = append(m.RawInputContents, data)
	}
	if it.Image != nil { // one element, behind its length
		add(it.ImageInput, "BYTES", []int64{1}, append(binary.LittleEndian.AppendUint32(nil, uint32(len(it.Image))), it.Image...))
		return m
	}
	for _, t := range it.Request.Inputs {
		add(t.Name, t.DType.String(), t.Shape, t.Data)
	}
	return m
}

// Close implements Sender.
func (s *grpcSender) Close() {
	s.callers.Close()
	_ = s.hangUp()
}

func (s *grpcSender) hangUp() (err error) {
	for _, c := range s.conns {
		err = errors.Join(err, c.Close())
	}
	return err
}

// infer sends one request. An error means that no answer can come.
func (s *grpcSender) infer(ctx context.Context, r Request) (wire.Reply, error) {
	conn := s.conns[r.Seq%uint64(len(s.conns))]
	var trailer metadata.MD
	res, err := oip.NewGRPCInferenceServiceClient(conn).ModelInfer(ctx, s.streams[r.Stream][r.Item], grpc.Trailer(&trailer))
	if err == nil {
		return decodeMessage(res), nil
	}
	st := status.Convert(err)
	if ctx.Err() != nil {
		return wire.Reply{}, ctx.Err()
	}
	if named := trailer.Get(wire.HeaderStatus); len(named) > 0 {
		return wire.Reply{Status: wire.Status(named[0]), Detail: st.Message()}, nil
	}
	if st.Code() == codes.Unavailable { // the connection's word
		return wire.Reply{}, errors.New(st.Message())
	}
	return wire.Reply{Status: statusOfCode(st.Code()), Detail: st.Message()}, nil
}

func decodeMessage(res *oip.ModelInferResponse) wire.Reply {
	rep := wire.Reply{Status: wire.StatusOK, Model: res.GetModelName()}
	failed := func(format string, args ...any) wire.Reply {
		return wire.Reply{Status: wire.Failed, Detail: fmt.Sprintf(format, args...)}
	}
	if raw, outputs := len(res.GetRawOutputContents()), len(res.GetOutputs()); raw != outputs {
		return failed("raw_output_contents: data of %d outputs: expected %d", raw, outputs)
	}
	for i, o := range res.GetOutputs() {
		dtype, err := tensor.ParseDType(o.GetDatatype())
		if err != nil {
			return failed("outputs[%d].datatype: %v", i, err)
		}
		t := tensor.Tensor{Name: o.GetName(), DType: dtype, Shape: o.GetShape(), Data: res.GetRawOutputContents()[i]}
		if err := t.Validate(); err != nil {
			return failed("outputs[%d]: %v", i, err)
		}
		rep.Outputs = append(rep.Outputs, t)
	}
	return rep
}

// statusOfCode is the error code that stands for a gRPC code where a frontend names none.
func statusOfCode(c codes.Code) wire.Status {
	switch c {
	case codes.InvalidArgument, codes.OutOfRange, codes.FailedPrecondition, codes.Unimplemented:
		return wire.BadRequest
	case codes.NotFound:
		return wire.UnknownModel
	case codes.ResourceExhausted:
		return wire.Overloaded
	case codes.DeadlineExceeded:
		return wire.Expired
	case codes.Canceled, codes.Aborted:
		return wire.Cancelled
	}
	return wire.Failed
}
