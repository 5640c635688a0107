package drive

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/gpulet/gpulet/loadgen/internal/arrival"
	"github.com/gpulet/gpulet/loadgen/internal/payload"
	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/wire"
)

// echoService answers ModelInfer with the request's own input, unless answer takes it over.
type echoService struct {
	oip.UnimplementedGRPCInferenceServiceServer
	answer func(ctx context.Context, n int, req *oip.ModelInferRequest) (*oip.ModelInferResponse, error)

	mu sync.Mutex // guards n
	n  int
}

func (s *echoService) ModelInfer(ctx context.Context, req *oip.ModelInferRequest) (*oip.ModelInferResponse, error) {
	s.mu.Lock()
	s.n++
	n := s.n
	s.mu.Unlock()
	if s.answer != nil {
		if res, err := s.answer(ctx, n, req); res != nil || err != nil {
			return res, err
		}
	}
	in := req.GetInputs()[0]
	return &oip.ModelInferResponse{
		ModelName: req.GetModelName(), RawOutputContents: req.GetRawInputContents(),
		Outputs: []*oip.ModelInferResponse_InferOutputTensor{{Name: "y", Datatype: in.GetDatatype(), Shape: in.GetShape()}},
	}, nil
}

// serveGRPC serves until the test ends and returns the address.
func serveGRPC(t testing.TB, s *echoService) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.WaitForHandlers(true))
	oip.RegisterGRPCInferenceServiceServer(srv, s)
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(listener) })
	t.Cleanup(func() {
		srv.Stop()
		serving.Wait()
	})
	return listener.Addr().String()
}

func overGRPC(o GRPCOptions, streams []Stream) func(Sink) (Sender, error) {
	return func(s Sink) (Sender, error) { return GRPC(o, streams, s) }
}

func TestGRPCAnswersEveryRequestRight(t *testing.T) {
	const d = 300 * time.Millisecond
	var mu sync.Mutex
	timeouts := map[int64]int{}
	addr := serveGRPC(t, &echoService{answer: func(_ context.Context, _ int, req *oip.ModelInferRequest) (*oip.ModelInferResponse, error) {
		mu.Lock()
		defer mu.Unlock()
		timeouts[req.GetParameters()["timeout"].GetInt64Param()]++
		return nil, nil
	}})
	streams := []Stream{echoStream("echo", 500, d)}
	streams[0].Timeout = 10 * time.Second
	_, total := send(t, streams, options(d), overGRPC(GRPCOptions{Addr: addr, Calls: 40, Timeout: 3 * time.Second}, streams))
	if total.OK != total.Sent || total.Sent < 100 || total.Lost+total.Wrong+total.ErrorCount() != 0 || total.Correct != total.Sent {
		t.Errorf("%+v", total)
	}
	if len(timeouts) != 1 || timeouts[3_000_000] == 0 {
		t.Errorf("timeouts %v: expected 3000000 with each", timeouts)
	}
}

func TestGRPCErrorsKeepTheirCodes(t *testing.T) {
	const d = 300 * time.Millisecond
	named := []wire.Status{wire.Poisoned, wire.Expired, wire.Overloaded, wire.Unavailable}
	plain := []codes.Code{codes.InvalidArgument, codes.NotFound, codes.ResourceExhausted, codes.Unavailable, codes.DeadlineExceeded, codes.DataLoss}
	addr := serveGRPC(t, &echoService{answer: func(ctx context.Context, n int, _ *oip.ModelInferRequest) (*oip.ModelInferResponse, error) {
		if i := n % 10; i < len(named) {
			_ = grpc.SetTrailer(ctx, metadata.Pairs(wire.HeaderStatus, string(named[i])))
			return nil, status.Error(codes.Internal, "in words")
		}
		return nil, status.Error(plain[n%10-len(named)], "plainly")
	}})
	streams := []Stream{echoStream("echo", 1000, d)}
	streams[0].Arrivals = arrival.Replay(make([]time.Duration, 100), 0, d)
	streams[0].Timeout = 10 * time.Second
	_, total := send(t, streams, options(d), overGRPC(GRPCOptions{Addr: addr, Calls: 4}, streams))
	for code, want := range map[wire.Status]int64{
		wire.Poisoned: 10, wire.Expired: 20, wire.Overloaded: 20, wire.BadRequest: 10, wire.UnknownModel: 10, wire.Unavailable: 20, wire.Failed: 10,
	} {
		if total.Errors[code] != want {
			t.Errorf("%s: %d, expected %d (%q)", code, total.Errors[code], want, total.Causes[code])
		}
	}
	if total.Causes[wire.Poisoned] != "in words" {
		t.Errorf("words: %v", total.Causes)
	}
}

func TestGRPCAnswersThatCannotBeReadAreFailures(t *testing.T) {
	output := func(datatype string, shape ...int64) []*oip.ModelInferResponse_InferOutputTensor {
		return []*oip.ModelInferResponse_InferOutputTensor{{Name: "y", Datatype: datatype, Shape: shape}}
	}
	for want, res := range map[string]*oip.ModelInferResponse{
		"raw_output_contents: data of 0 outputs: expected 1":       {Outputs: output("FP32", 1)},
		`outputs[0].datatype: dtype "FP8": expected one of`:        {Outputs: output("FP8", 1), RawOutputContents: [][]byte{nil}},
		`outputs[0]: tensor "y": 3 bytes of data: FP32[1] needs 4`: {Outputs: output("FP32", 1), RawOutputContents: [][]byte{{1, 2, 3}}},
	} {
		if rep := decodeMessage(res); rep.Status != wire.Failed || len(rep.Detail) < len(want) || rep.Detail[:len(want)] != want {
			t.Errorf("%+v: expected %q", rep, want)
		}
	}
}

func TestGRPCSendsImages(t *testing.T) {
	const d, image = 100 * time.Millisecond, "a picture"
	var mu sync.Mutex
	bad, n := 0, 0
	addr := serveGRPC(t, &echoService{answer: func(_ context.Context, _ int, req *oip.ModelInferRequest) (*oip.ModelInferResponse, error) {
		mu.Lock()
		defer mu.Unlock()
		n++
		in := req.GetInputs()[0]
		if in.GetName() != "x" || in.GetDatatype() != "BYTES" || string(req.GetRawInputContents()[0]) != "\x09\x00\x00\x00"+image || len(req.GetOutputs()) != 2 {
			bad++
		}
		return &oip.ModelInferResponse{}, nil
	}})
	st := echoStream("vision", 200, d)
	st.Items = []payload.Item{{Image: []byte(image), ContentType: wire.TypeJPEG, ImageInput: "x", Label: -1, Request: wire.Request{Outputs: []string{"y", "z"}}}}
	streams := []Stream{st}
	_, total := send(t, streams, options(d), overGRPC(GRPCOptions{Addr: addr, Calls: 2}, streams))
	if bad > 0 || n == 0 || total.OK != int64(n) {
		t.Errorf("%d of %d are not as they should be: %+v", bad, n, total)
	}
}

func TestGRPCWithoutAFrontend(t *testing.T) {
	const d = 100 * time.Millisecond
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	streams := []Stream{echoStream("echo", 200, d)}
	streams[0].Timeout = 10 * time.Second
	_, total := send(t, streams, options(d), overGRPC(GRPCOptions{Addr: listener.Addr().String(), Calls: 2}, streams))
	if total.Errors[wire.Unavailable] != total.Sent || total.Lost != 0 {
		t.Errorf("%d sent, errors %v, lost %d", total.Sent, total.Errors, total.Lost)
	}
}

// A frontend that never answers must not hold the run up beyond timeout and grace, and what it was sent
// is lost.
func TestGRPCThatHangs(t *testing.T) {
	const d = 50 * time.Millisecond
	addr := serveGRPC(t, &echoService{answer: func(ctx context.Context, _ int, _ *oip.ModelInferRequest) (*oip.ModelInferResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	streams := []Stream{echoStream("echo", 200, d)}
	_, total := send(t, streams, options(d), overGRPC(GRPCOptions{Addr: addr, Calls: 2}, streams))
	if total.Lost != total.Sent || total.Sent == 0 {
		t.Errorf("%d of %d lost, expected all", total.Lost, total.Sent)
	}
}
