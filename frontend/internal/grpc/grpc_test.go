package grpc_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpc "google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/frontend/internal/fleet"
	"github.com/gpulet/gpulet/frontend/internal/frontendtest"
	"github.com/gpulet/gpulet/frontend/internal/grpc"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/oip"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// door is a gRPC server over a system, and a client of it.
type door struct {
	*frontendtest.System
	oip.GRPCInferenceServiceClient
	conn    *rpc.ClientConn
	stop    context.CancelFunc // ends taking requests
	metrics *prometheus.Registry
}

func open(t testing.TB, s *frontendtest.System) *door {
	t.Helper()
	return openWith(t, s, exchange.Options{Version: "1.2.3", MaxBody: 16 << 20, MaxBodies: 1 << 30, MaxPayload: s.Bus.MaxPayload, MaxInFlight: 1000})
}

func openWith(t testing.TB, s *frontendtest.System, opts exchange.Options) *door {
	t.Helper()
	return openOn(t, s, s.Fleet, opts)
}

func openOn(t testing.TB, s *frontendtest.System, f exchange.Fleet, opts exchange.Options) *door {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{System: s, metrics: prometheus.NewRegistry()}
	log := slog.New(slog.DiscardHandler)
	srv := grpc.New(exchange.New(f, s.Inbox, opts, exchange.NewMetrics(d.metrics), log), log)
	ctx, stop := context.WithCancel(context.Background())
	d.stop = stop
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := srv.Serve(ctx, listener, 5*time.Second); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	d.conn, err = rpc.NewClient(listener.Addr().String(), rpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	d.GRPCInferenceServiceClient = oip.NewGRPCInferenceServiceClient(d.conn)
	t.Cleanup(func() {
		_ = d.conn.Close()
		stop()
		serving.Wait()
	})
	return d
}

// toy is a request to the model toy, of two samples where there are four values.
func toy(values ...float32) *oip.ModelInferRequest {
	return &oip.ModelInferRequest{ModelName: "toy", Inputs: []*oip.ModelInferRequest_InferInputTensor{{
		Name: "x", Datatype: "FP32", Shape: []int64{int64(len(values)) / 2, 2}, Contents: &oip.InferTensorContents{Fp32Contents: values},
	}}}
}

// refused fails the test unless err is of this code, with this text and this status in the trailer.
func refused(t *testing.T, err error, trailer metadata.MD, code codes.Code, want string, st wire.Status) {
	t.Helper()
	if got := status.Convert(err); got.Code() != code || !strings.Contains(got.Message(), want) {
		t.Errorf("%v: expected %v with %q", err, code, want)
	}
	if got := strings.Join(trailer.Get(wire.HeaderStatus), ","); got != string(st) {
		t.Errorf("%s is %q: expected %q", wire.HeaderStatus, got, st)
	}
}

func TestServerAndModels(t *testing.T) {
	ctx := t.Context()
	d := open(t, frontendtest.Start(t, frontendtest.Toy(), frontendtest.Vision()))
	if got, err := d.ServerLive(ctx, &oip.ServerLiveRequest{}); err != nil || !got.GetLive() {
		t.Errorf("live: %v, %v", got, err)
	}
	if got, err := d.ServerReady(ctx, &oip.ServerReadyRequest{}); err != nil || got.GetReady() {
		t.Errorf("ready without a plan: %v, %v", got, err)
	}
	health := healthpb.NewHealthClient(d.conn)
	watch, err := health.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_NOT_SERVING, healthpb.HealthCheckResponse_SERVING} {
		if got, err := watch.Recv(); err != nil || got.GetStatus() != want {
			t.Errorf("health: %v, %v: expected %v", got, err, want)
		}
		d.PublishPlan(t, plan.Ready, "toy")
	}
	frontendtest.Eventually(t, "toy is ready", func() bool { return d.Fleet.ModelReady("toy") == nil })
	if got, err := d.ServerReady(ctx, &oip.ServerReadyRequest{}); err != nil || !got.GetReady() {
		t.Errorf("ready: %v, %v", got, err)
	}
	for _, service := range []string{"", "inference.GRPCInferenceService"} {
		if got, err := health.Check(ctx, &healthpb.HealthCheckRequest{Service: service}); err != nil || got.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, got, err)
		}
	}
	if _, err := health.Check(ctx, &healthpb.HealthCheckRequest{Service: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of another service: %v", err)
	}
	for name, want := range map[string]bool{"toy": true, "vision": false} {
		if got, err := d.ModelReady(ctx, &oip.ModelReadyRequest{Name: name, Version: "3"}); err != nil || got.GetReady() != want {
			t.Errorf("%s: %v, %v: expected %v", name, got, err, want)
		}
	}
	md, err := d.ServerMetadata(ctx, &oip.ServerMetadataRequest{})
	if diff := cmp.Diff(&oip.ServerMetadataResponse{Name: "gpulet", Version: "1.2.3", Extensions: []string{"model_repository"}}, md, protocmp.Transform()); diff != "" || err != nil {
		t.Error(err, diff)
	}
	vision, err := d.ModelMetadata(ctx, &oip.ModelMetadataRequest{Name: "vision"})
	want := &oip.ModelMetadataResponse{
		Name: "vision", Versions: []string{"3"}, Platform: "pytorch_libtorch",
		Inputs:  []*oip.ModelMetadataResponse_TensorMetadata{{Name: "x", Datatype: "FP32", Shape: []int64{-1, 1, 2, 2}}},
		Outputs: []*oip.ModelMetadataResponse_TensorMetadata{{Name: "size", Datatype: "INT64", Shape: []int64{-1}}},
		Properties: map[string]string{
			"slo_ms": "10000", "timeout_ms": "20000", "max_batch_size": "8", "accepts.x": "FP32,UINT8", "images": "image/jpeg,image/png",
		},
	}
	if diff := cmp.Diff(want, vision, protocmp.Transform()); diff != "" || err != nil {
		t.Error(err, diff)
	}
	for ready, want := range map[bool]string{
		false: `[{"name":"toy","version":"3","state":"READY"},{"name":"vision","version":"3","state":"UNAVAILABLE","reason":"no gpu-let serves it"}]`,
		true:  `[{"name":"toy","version":"3","state":"READY"}]`,
	} {
		index, err := d.RepositoryIndex(ctx, &oip.RepositoryIndexRequest{Ready: ready})
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := json.Marshal(index.GetModels()); string(got) != want {
			t.Errorf("%s\nexpected %s", got, want)
		}
	}
	for name, version := range map[string]string{"none": "", "toy": "4"} {
		text := map[string]string{"none": `unknown model "none"`, "toy": `model toy has no version "4": expected 3`}[name]
		var trailer metadata.MD
		_, err := d.ModelReady(ctx, &oip.ModelReadyRequest{Name: name, Version: version}, rpc.Trailer(&trailer))
		refused(t, err, trailer, codes.NotFound, text, wire.UnknownModel)
		_, err = d.ModelMetadata(ctx, &oip.ModelMetadataRequest{Name: name, Version: version}, rpc.Trailer(&trailer))
		refused(t, err, trailer, codes.NotFound, text, wire.UnknownModel)
		req := toy(1, 2)
		req.ModelName, req.ModelVersion = name, version
		_, err = d.ModelInfer(ctx, req, rpc.Trailer(&trailer))
		refused(t, err, trailer, codes.NotFound, text, wire.UnknownModel)
	}
}

func TestServicesAreFoundByReflection(t *testing.T) {
	d := open(t, frontendtest.Start(t))
	ask, err := reflectionpb.NewServerReflectionClient(d.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	find := func(req *reflectionpb.ServerReflectionRequest) string {
		if err := ask.Send(req); err != nil {
			t.Fatal(err)
		}
		got, err := ask.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return got.String()
	}
	list := find(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	for _, want := range []string{"inference.GRPCInferenceService", "grpc.health.v1.Health"} {
		if !strings.Contains(list, want) {
			t.Errorf("%s: expected %s", list, want)
		}
	}
	file := find(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "inference.GRPCInferenceService.ModelInfer"}})
	if !strings.Contains(file, "ModelStreamInferResponse") {
		t.Errorf("%.200s: expected the service's file", file)
	}
	_ = ask.CloseSend()
}

func TestInfersWithTypedAndRawContents(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	one := toy(1, 2, 3, -4.5)
	one.Id = "my id"
	var header metadata.MD
	got, err := d.ModelInfer(t.Context(), one, rpc.Header(&header), rpc.UseCompressor(gzip.Name))
	want := &oip.ModelInferResponse{ModelName: "toy", ModelVersion: "3", Id: "my id", Outputs: []*oip.ModelInferResponse_InferOutputTensor{
		{Name: "double", Datatype: "FP32", Shape: []int64{2, 2}, Contents: &oip.InferTensorContents{Fp32Contents: []float32{2, 4, 6, -9}}},
		{Name: "index", Datatype: "INT64", Shape: []int64{2, 1}, Contents: &oip.InferTensorContents{Int64Contents: []int64{0, 1}}},
	}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || err != nil {
		t.Error(err, diff)
	}
	for name, want := range map[string]string{
		"gpulet-queued-us": "120", "gpulet-batched-us": "30", "gpulet-exec-us": "4500", "gpulet-batch": "2", "gpulet-id": "h-0-50", "gpulet-share": "50", "gpulet-plan": "7",
	} {
		if got := strings.Join(header.Get(name), ","); got != want {
			t.Errorf("%s is %q: expected %q", name, got, want)
		}
	}
	if len(header.Get(wire.HeaderRequestID)) != 1 {
		t.Errorf("header %v: expected a request id", header)
	}

	raw := toy(1, 2)
	raw.Inputs[0].Contents, raw.RawInputContents = nil, [][]byte{frontendtest.Floats(1, float32(math.Inf(1)))}
	raw.Outputs = []*oip.ModelInferRequest_InferRequestedOutputTensor{{Name: "index"}, {Name: "double"}}
	got, err = d.ModelInfer(t.Context(), raw)
	want = &oip.ModelInferResponse{
		ModelName: "toy", ModelVersion: "3", Outputs: []*oip.ModelInferResponse_InferOutputTensor{
			{Name: "index", Datatype: "INT64", Shape: []int64{1, 1}}, {Name: "double", Datatype: "FP32", Shape: []int64{1, 2}},
		},
		RawOutputContents: [][]byte{make([]byte, 8), frontendtest.Floats(2, float32(math.Inf(1)))},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || err != nil {
		t.Error(err, diff)
	}
	raw.Outputs = nil
	got, err = d.ModelInfer(metadata.AppendToOutgoingContext(t.Context(), wire.HeaderOutputs, "index"), raw)
	if err != nil || len(got.GetOutputs()) != 1 || got.GetOutputs()[0].GetName() != "index" {
		t.Errorf("outputs chosen by header: %v, %v", got, err)
	}
}

// echo answers with the inputs under the names of the outputs.
func echo(_ *bus.Msg, req wire.Request) wire.Reply {
	rep := wire.Reply{Status: wire.StatusOK, Model: "echo", Version: 3}
	for _, x := range req.Inputs {
		x.Name = "y"
		rep.Outputs = append(rep.Outputs, x)
	}
	return rep
}

func TestEveryTypeReachesTheWorkerAndComesBack(t *testing.T) {
	spec := func(name string) tensor.Spec {
		s := tensor.Spec{Name: name, DType: tensor.FP32, Shape: []int64{2}}
		for d := tensor.FP16; d.Size() > 0; d++ {
			s.Also = append(s.Also, d)
		}
		return s
	}
	m := frontendtest.Model("echo", []tensor.Spec{spec("x")}, []tensor.Spec{spec("y")})
	m.Preprocess = map[string]model.Preprocess{"x": {Accept: spec("x").Also, Scale: 1}}
	d := open(t, frontendtest.Start(t, m))
	d.Work(t, m, echo)
	for _, dtype := range append([]tensor.DType{tensor.FP32}, spec("x").Also...) {
		data := make([]byte, 2*dtype.Size())
		data[0] = 1
		got, err := d.ModelInfer(t.Context(), &oip.ModelInferRequest{
			ModelName: "echo", RawInputContents: [][]byte{data},
			Inputs: []*oip.ModelInferRequest_InferInputTensor{{Name: "x", Datatype: dtype.String(), Shape: []int64{1, 2}}},
		})
		if err != nil || got.GetOutputs()[0].GetDatatype() != dtype.String() || string(got.GetRawOutputContents()[0]) != string(data) {
			t.Errorf("%s: %v, %v", dtype, got, err)
		}
	}
}

func TestImagesAreQueuedAsTheyCame(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Vision(), frontendtest.Toy()))
	type queued struct{ kind, outputs, body string }
	seen := make(chan queued, 1)
	d.Work(t, frontendtest.Vision(), func(m *bus.Msg, req wire.Request) wire.Reply {
		seen <- queued{m.Get(wire.HeaderType), m.Get(wire.HeaderOutputs), string(m.Data)}
		return frontendtest.VisionWorker(m, req)
	})
	const jpeg = "\xff\xd8\xff and so on"
	req := &oip.ModelInferRequest{
		ModelName: "vision", Outputs: []*oip.ModelInferRequest_InferRequestedOutputTensor{{Name: "size"}},
		Inputs: []*oip.ModelInferRequest_InferInputTensor{{
			Name: "x", Datatype: "BYTES", Shape: []int64{1}, Contents: &oip.InferTensorContents{BytesContents: [][]byte{[]byte(jpeg)}},
		}},
	}
	got, err := d.ModelInfer(t.Context(), req)
	if err != nil || got.GetOutputs()[0].GetContents().GetInt64Contents()[0] != int64(len(jpeg)) {
		t.Errorf("%v, %v", got, err)
	}
	if got, want := <-seen, (queued{wire.TypeJPEG, "size", jpeg}); got != want {
		t.Errorf("queued %+v: expected %+v", got, want)
	}
	req.ModelName, req.Outputs = "toy", nil
	var trailer metadata.MD
	_, err = d.ModelInfer(t.Context(), req, rpc.Trailer(&trailer))
	refused(t, err, trailer, codes.InvalidArgument, `model toy: takes no images: input "x" has the shape [2]`, wire.BadRequest)
}

// What is wrong with a request is said before it costs a place in the queue.
func TestBadRequestsNeverReachTheQueue(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	past := wire.FormatDeadline(time.Now().Add(-time.Minute))
	for _, c := range []struct {
		name   string
		change func(*oip.ModelInferRequest)
		header []string
		code   codes.Code
		want   string
	}{
		{"no inputs", func(r *oip.ModelInferRequest) { r.Inputs = nil }, nil, codes.InvalidArgument, `model toy: input "x" is missing`},
		{"wrong name", func(r *oip.ModelInferRequest) { r.Inputs[0].Name = "z" }, nil, codes.InvalidArgument, `model toy: input "z": the model has no such input: expected "x"`},
		{"wrong shape", func(r *oip.ModelInferRequest) { r.Inputs[0].Shape = []int64{2} }, nil, codes.InvalidArgument, `input "x": shape [2]: expected [batch 2]`},
		{"wrong contents", func(r *oip.ModelInferRequest) { r.Inputs[0].Shape = []int64{2, 2} }, nil, codes.InvalidArgument, "inputs[0].contents.fp32_contents: 2 elements: expected 4"},
		{"too many samples", func(r *oip.ModelInferRequest) { r.Inputs = toy(make([]float32, 18)...).Inputs }, nil, codes.InvalidArgument, "model toy: 9 samples: expected at most 8"},
		{"unknown output", func(r *oip.ModelInferRequest) {
			r.Outputs = []*oip.ModelInferRequest_InferRequestedOutputTensor{{Name: "triple"}}
		}, nil, codes.InvalidArgument, `output "triple": the model has no such output: expected "double", "index"`},
		{"bad timeout", nil, []string{wire.HeaderTimeout, "fast"}, codes.InvalidArgument, `header Gpulet-Timeout: found "fast": expected a positive duration`},
		{"bad id", nil, []string{wire.HeaderRequestID, "two words"}, codes.InvalidArgument, `header Gpulet-Request-Id "two words": expected`},
		{"expired", nil, []string{wire.HeaderDeadline, past}, codes.DeadlineExceeded, "the deadline passed 1m"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := toy(1, 2)
			if c.change != nil {
				c.change(req)
			}
			ctx := metadata.AppendToOutgoingContext(t.Context(), c.header...)
			var trailer metadata.MD
			_, err := d.ModelInfer(ctx, req, rpc.Trailer(&trailer))
			st := wire.BadRequest
			if c.code == codes.DeadlineExceeded {
				st = wire.Expired
			}
			refused(t, err, trailer, c.code, c.want, st)
		})
	}
	lag, err := d.Planner.Lag(t.Context(), "toy")
	if err != nil || lag.LastSeq != 0 {
		t.Errorf("%d requests were stored (%v)", lag.LastSeq, err)
	}
}

// plain is a codec that sends what it is given.
type plain struct{}

func (plain) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (plain) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (plain) Name() string                       { return "proto" }

func TestMessagesThatAreNone(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	d := openWith(t, s, exchange.Options{MaxBody: 1 << 20, MaxBodies: 16 << 20, MaxPayload: s.Bus.MaxPayload, MaxInFlight: 10})
	var answer []byte
	var trailer metadata.MD
	err := d.conn.Invoke(t.Context(), oip.GRPCInferenceService_ModelInfer_FullMethodName, []byte("nonsense"), &answer, rpc.ForceCodec(plain{}), rpc.Trailer(&trailer))
	refused(t, err, trailer, codes.InvalidArgument, "request message: ", wire.BadRequest)
	// This is said by the transport, before anything of ours has the message.
	_, err = d.ModelInfer(t.Context(), toy(make([]float32, 1<<19)...))
	if st := status.Convert(err); st.Code() != codes.ResourceExhausted || !strings.Contains(st.Message(), "larger than max") || !strings.Contains(st.Message(), "1048576") {
		t.Errorf("%v: expected ResourceExhausted with both sizes", err)
	}
	frontendtest.Eventually(t, "the end is counted", func() bool { return d.counter(t, "unknown", "bad_request") == 1 })
}

func TestStatusOfTheReplyDecidesTheCode(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	endings := []struct {
		status wire.Status
		code   codes.Code
		retry  time.Duration
	}{
		{wire.BadRequest, codes.InvalidArgument, 0},
		{wire.UnknownModel, codes.NotFound, 0},
		{wire.Overloaded, codes.ResourceExhausted, time.Second},
		{wire.Unavailable, codes.Unavailable, time.Second},
		{wire.Expired, codes.DeadlineExceeded, 0},
		{wire.Cancelled, codes.Canceled, 0},
		{wire.Failed, codes.Internal, 0},
		{wire.Poisoned, codes.Internal, 0},
		{"melted", codes.Internal, 0}, // a code of a newer worker
	}
	d.Work(t, frontendtest.Toy(), func(_ *bus.Msg, req wire.Request) wire.Reply {
		i := int(req.Inputs[0].Data[0])
		return wire.Reply{Status: endings[i].status, Detail: "because" + strings.Repeat("é", 5000)}
	})
	for i, c := range endings {
		req := toy(1, 2)
		req.Inputs[0].Contents, req.RawInputContents = nil, [][]byte{{byte(i), 0, 0, 0, 0, 0, 0, 0}}
		var trailer metadata.MD
		_, err := d.ModelInfer(t.Context(), req, rpc.Trailer(&trailer))
		refused(t, err, trailer, c.code, fmt.Sprintf("model toy: %s: because", c.status), c.status)
		var retry time.Duration
		for _, detail := range status.Convert(err).Details() {
			if r, ok := detail.(*errdetails.RetryInfo); ok {
				retry = r.GetRetryDelay().AsDuration()
			}
		}
		if retry != c.retry {
			t.Errorf("%s: retry after %v: expected %v", c.status, retry, c.retry)
		}
	}
}

func TestExpiresWithoutAWorker(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	for name, ask := range map[string]func(*oip.ModelInferRequest) context.Context{
		"parameter": func(req *oip.ModelInferRequest) context.Context {
			req.Parameters = map[string]*oip.InferParameter{"timeout": {ParameterChoice: &oip.InferParameter_Int64Param{Int64Param: 20000}}}
			return t.Context()
		},
		"header": func(*oip.ModelInferRequest) context.Context {
			return metadata.AppendToOutgoingContext(t.Context(), wire.HeaderTimeout, "20ms")
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := toy(1, 2)
			var trailer metadata.MD
			_, err := d.ModelInfer(ask(req), req, rpc.Trailer(&trailer))
			refused(t, err, trailer, codes.DeadlineExceeded, "no gpu-let serves it", wire.Expired)
		})
	}
}

// The sooner of the call's deadline and the request's own is the request's.
func TestTheDeadlineOfTheCallBoundsTheRequest(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	deadlines := make(chan time.Duration, 1)
	d.Work(t, frontendtest.Toy(), func(m *bus.Msg, req wire.Request) wire.Reply {
		at, err := wire.ResolveDeadline(m.Get, m.Stored, 0)
		if err != nil {
			t.Error(err)
		}
		deadlines <- at.Sub(m.Stored)
		return frontendtest.ToyWorker(m, req)
	})
	for _, c := range []struct{ call, header, most time.Duration }{
		{0, 0, 20 * time.Second}, // the model's timeout
		{5 * time.Second, 0, 5 * time.Second},
		{5 * time.Second, 15 * time.Second, 5 * time.Second},
		{15 * time.Second, 5 * time.Second, 5 * time.Second},
		{time.Hour, 0, 20 * time.Second}, // no reason to wait for longer
	} {
		ctx := t.Context()
		if c.call > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.call)
			defer cancel()
		}
		if c.header > 0 {
			ctx = metadata.AppendToOutgoingContext(ctx, wire.HeaderTimeout, c.header.String())
		}
		if _, err := d.ModelInfer(ctx, toy(1, 2)); err != nil {
			t.Fatal(err)
		}
		if got := <-deadlines; got > c.most || got < c.most/2 {
			t.Errorf("%+v: the request may take %v", c, got)
		}
	}
}

func TestACallThatEndsAtItsDeadlineExpires(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.ModelInfer(ctx, toy(1, 2)); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v: expected DeadlineExceeded", err)
	}
	// The client's clock may be the first to tell it.
	frontendtest.Eventually(t, "the end is counted", func() bool { return d.counter(t, "toy", "expired")+d.counter(t, "toy", "cancelled") == 1 })
}

// A client that cancels its call takes its request out of the queue.
func TestAClientThatLeavesTakesItsRequestOutOfTheQueue(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.RemoveCancelled(t, "toy")
	ctx, leave := context.WithCancel(t.Context())
	var client sync.WaitGroup
	client.Go(func() {
		if _, err := d.ModelInfer(ctx, toy(1, 2)); status.Code(err) != codes.Canceled {
			t.Errorf("%v: expected Canceled", err)
		}
	})
	d.WaitQueued(t, "toy", 1)
	leave()
	client.Wait()
	d.WaitQueued(t, "toy", 0)
	frontendtest.Eventually(t, "the end is counted", func() bool { return d.counter(t, "toy", "cancelled") == 1 })
}

func TestARequestIsCancelledByItsID(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.RemoveCancelled(t, "toy")
	ctx := metadata.AppendToOutgoingContext(t.Context(), wire.HeaderRequestID, "order-1")
	type outcome struct {
		err             error
		header, trailer metadata.MD
	}
	answer := make(chan outcome, 1)
	go func() {
		var o outcome
		_, o.err = d.ModelInfer(ctx, toy(1, 2), rpc.Header(&o.header), rpc.Trailer(&o.trailer))
		answer <- o
	}()
	d.WaitQueued(t, "toy", 1)
	if err := d.Inbox.Cancel("toy", "order-1"); err != nil {
		t.Fatal(err)
	}
	got := <-answer
	refused(t, got.err, got.trailer, codes.Canceled, "model toy: cancelled by its id", wire.Cancelled)
	if id := strings.Join(got.header.Get(wire.HeaderRequestID), ","); id != "order-1" {
		t.Errorf("request id %q: expected order-1", id)
	}
	d.WaitQueued(t, "toy", 0)
}

func TestRefusalsOfTheQueue(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	full := frontendtest.Queue("toy")
	full.MaxMsgs = 1
	if err := s.Planner.EnsureQueue(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	d := open(t, s)
	client := embeddedtest.Connect(t, d.NATS, bus.RoleClient)
	if err := client.Publish(t.Context(), &bus.Message{Model: "toy", Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	var trailer metadata.MD
	_, err := d.ModelInfer(t.Context(), toy(1, 2), rpc.Trailer(&trailer))
	refused(t, err, trailer, codes.ResourceExhausted, "overloaded", wire.Overloaded)
	if err := d.Planner.DeleteQueue(t.Context(), "toy"); err != nil {
		t.Fatal(err)
	}
	frontendtest.Eventually(t, "the queue is found to be gone", func() bool {
		_, err := d.ModelInfer(t.Context(), toy(1, 2))
		return status.Code(err) == codes.Unavailable
	})
}

func TestMoreThanMaxInFlightAreRefused(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	d := openWith(t, s, exchange.Options{MaxBody: 1 << 20, MaxBodies: 1 << 30, MaxPayload: s.Bus.MaxPayload, MaxInFlight: 1})
	var first sync.WaitGroup
	first.Go(func() {
		if _, err := d.ModelInfer(t.Context(), toy(1, 2)); err != nil {
			t.Error(err)
		}
	})
	frontendtest.Eventually(t, "the first request is in flight", func() bool { return d.Inbox.Stats().Pending == 1 })
	var trailer metadata.MD
	_, err := d.ModelInfer(t.Context(), toy(1, 2), rpc.Trailer(&trailer))
	refused(t, err, trailer, codes.ResourceExhausted, "2 requests are in flight: expected at most 1", wire.Overloaded)
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	first.Wait()
}

// Calls whose message does not come keep out each other, and nobody else.
func TestMessagesThatAreSlowToComeKeepOutEachOther(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	d := openWith(t, s, exchange.Options{MaxBody: 8 << 20, MaxBodies: 16 << 20, MaxPayload: s.Bus.MaxPayload, MaxInFlight: 100})
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	ends := make(chan error, 5)
	ctx, leave := context.WithCancel(t.Context())
	for range cap(ends) {
		silent, err := d.conn.NewStream(ctx, &rpc.StreamDesc{ClientStreams: true}, oip.GRPCInferenceService_ModelInfer_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		go func() { ends <- silent.RecvMsg(new(oip.ModelInferResponse)) }()
	}
	for range 3 {
		if err := <-ends; status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "it is slow to come, and so are too many others") {
			t.Errorf("%v: expected a refusal", err)
		}
	}
	if _, err := d.ModelInfer(t.Context(), toy(1, 2)); err != nil {
		t.Errorf("beside those that are waited for: %v", err)
	}
	leave()
	for range 2 {
		if err := <-ends; status.Code(err) != codes.Canceled {
			t.Errorf("%v: expected Canceled", err)
		}
	}
	frontendtest.Eventually(t, "nothing is in flight", func() bool { return d.gauge(t, "gpulet_frontend_requests_in_flight") == 0 })
}

func TestNoModelIsUnknownBeforeTheyWereRead(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	s.Fleet = fleet.New(s.Bus, time.Second, slog.New(slog.DiscardHandler)) // not running: nothing was read
	d := open(t, s)
	var trailer metadata.MD
	_, err := d.ModelInfer(t.Context(), toy(1, 2), rpc.Trailer(&trailer))
	refused(t, err, trailer, codes.Unavailable, "the registered models have not been read yet", wire.Unavailable)
}

// broken is a fleet in which a fault of this program shows.
type broken struct{ exchange.Fleet }

func (broken) Backlog(string) admit.Backlog { panic("a fault") }

func TestAPanicEndsOneRequestAlone(t *testing.T) {
	s := frontendtest.Start(t, frontendtest.Toy())
	d := openOn(t, s, broken{s.Fleet}, exchange.Options{MaxBody: 1 << 20, MaxBodies: 16 << 20, MaxPayload: s.Bus.MaxPayload, MaxInFlight: 10})
	var trailer metadata.MD
	_, err := d.ModelInfer(t.Context(), toy(1, 2), rpc.Trailer(&trailer))
	refused(t, err, trailer, codes.Internal, "internal error: a fault", wire.Failed)
	if _, err := d.ServerLive(t.Context(), &oip.ServerLiveRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	frontendtest.Eventually(t, "nothing is in flight", func() bool { return d.gauge(t, "gpulet_frontend_requests_in_flight") == 0 })
}

func TestCountsByModelAndStatus(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	other := toy(1, 2)
	other.ModelName = "a"
	for _, req := range []*oip.ModelInferRequest{toy(1, 2), toy(1, 2), {ModelName: "toy"}, other} {
		_, _ = d.ModelInfer(t.Context(), req)
	}
	for _, c := range []struct {
		model, status string
		want          float64
	}{{"toy", "ok", 2}, {"toy", "bad_request", 1}, {"unknown", "unknown_model", 1}, {"a", "unknown_model", 0}} {
		frontendtest.Eventually(t, fmt.Sprintf("%+v", c), func() bool { return d.counter(t, c.model, c.status) == c.want })
	}
}

// The first signal ends intake; a call in flight is answered before the server ends.
func TestCallsInFlightAreAnsweredWhenStopping(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	fetched, release := make(chan struct{}, 2), make(chan struct{})
	d.Work(t, frontendtest.Toy(), func(m *bus.Msg, req wire.Request) wire.Reply {
		fetched <- struct{}{}
		<-release
		return frontendtest.ToyWorker(m, req)
	})
	stream, err := d.ModelStreamInfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(toy(3, 4)); err != nil {
		t.Fatal(err)
	}
	<-fetched
	var client sync.WaitGroup
	client.Go(func() {
		if _, err := d.ModelInfer(t.Context(), toy(1, 2)); err != nil {
			t.Errorf("a call in flight: %v", err)
		}
	})
	frontendtest.Eventually(t, "both are in flight", func() bool { return d.Inbox.Stats().Pending == 2 })
	d.stop()
	frontendtest.Eventually(t, "new calls are refused", func() bool {
		_, err := d.ServerLive(t.Context(), &oip.ServerLiveRequest{})
		return status.Code(err) == codes.Unavailable
	})
	close(release)
	client.Wait()
	if got, err := stream.Recv(); err != nil || got.GetErrorMessage() != "" {
		t.Errorf("a request of a stream in flight: %v, %v", got, err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("the stream ended with %v: expected Unavailable", err)
	}
}

func TestAStreamAnswersInOrderAndErrorsAreAnswers(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.Work(t, frontendtest.Toy(), frontendtest.ToyWorker)
	stream, err := d.ModelStreamInfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const n = 300
	var sending sync.WaitGroup
	sending.Go(func() {
		for i := range n {
			req := toy(float32(i), 0)
			if i%10 == 7 {
				req.Inputs[0].Name = "z"
			}
			req.Id = fmt.Sprint(i)
			if err := stream.Send(req); err != nil {
				t.Error(err)
				return
			}
		}
		_ = stream.CloseSend()
	})
	for i := range n {
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		res := got.GetInferResponse()
		if res.GetId() != fmt.Sprint(i) || res.GetModelName() != "toy" || !res.GetParameters()["triton_final_response"].GetBoolParam() {
			t.Fatalf("answer %d: %v", i, got)
		}
		if i%10 == 7 {
			if !strings.Contains(got.GetErrorMessage(), `input "z": the model has no such input`) || res.GetParameters()["gpulet_status"].GetStringParam() != "bad_request" {
				t.Errorf("answer %d: %v: expected an error", i, got)
			}
			continue
		}
		if v := res.GetOutputs()[0].GetContents().GetFp32Contents()[0]; got.GetErrorMessage() != "" || v != float32(2*i) {
			t.Errorf("answer %d: %v", i, got)
		}
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("%v: expected the end of the stream", err)
	}
	sending.Wait()
	if ok, bad := d.counter(t, "toy", "ok"), d.counter(t, "toy", "bad_request"); ok != n-n/10 || bad != n/10 {
		t.Errorf("%v are counted as ok and %v as bad_request", ok, bad)
	}
}

func TestAStreamThatIsLeftTakesItsRequestsOutOfTheQueue(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	d.RemoveCancelled(t, "toy")
	ctx, leave := context.WithCancel(t.Context())
	stream, err := d.ModelStreamInfer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := stream.Send(toy(1, 2)); err != nil {
			t.Fatal(err)
		}
	}
	d.WaitQueued(t, "toy", 3)
	leave()
	d.WaitQueued(t, "toy", 0)
	frontendtest.Eventually(t, "the ends are counted", func() bool { return d.counter(t, "toy", "cancelled") == 3 })
}

func TestAStreamHasNoRequestID(t *testing.T) {
	d := open(t, frontendtest.Start(t, frontendtest.Toy()))
	stream, err := d.ModelStreamInfer(metadata.AppendToOutgoingContext(t.Context(), wire.HeaderRequestID, "a"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	refused(t, err, stream.Trailer(), codes.InvalidArgument, `metadata Gpulet-Request-Id: found "a": expected none for a stream`, wire.BadRequest)
}

func (d *door) counter(t testing.TB, model, status string) float64 {
	t.Helper()
	return d.series(t, "gpulet_frontend_requests_total", map[string]string{"model": model, "status": status})
}

func (d *door) gauge(t testing.TB, name string) float64 {
	t.Helper()
	return d.series(t, name, map[string]string{})
}

// series reads a metric; it is zero before it is counted.
func (d *door) series(t testing.TB, name string, want map[string]string) float64 {
	t.Helper()
	families, err := d.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if f.GetName() == name && cmp.Equal(labels, want) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}
