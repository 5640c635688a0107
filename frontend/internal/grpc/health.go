package grpc

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/gpulet/gpulet/shared/oip"
)

// watchEvery is the time between looks for those who watch the health.
const watchEvery = time.Second

// health is gRPC's standard health service: serving while the system can take requests, as ServerReady
// says, of the server as a whole and of its one service.
type health struct {
	healthpb.UnimplementedHealthServer
	ready    func() error
	draining <-chan struct{}
}

func (h *health) status() healthpb.HealthCheckResponse_ServingStatus {
	select {
	case <-h.draining:
		return healthpb.HealthCheckResponse_NOT_SERVING
	default:
	}
	if h.ready() != nil {
		return healthpb.HealthCheckResponse_NOT_SERVING
	}
	return healthpb.HealthCheckResponse_SERVING
}

func known(service string) bool {
	return service == "" || service == oip.GRPCInferenceService_ServiceDesc.ServiceName
}

// Check implements healthpb.HealthServer.
func (h *health) Check(_ context.Context, req *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if !known(req.GetService()) {
		return nil, status.Errorf(codes.NotFound, "service %q: expected none or %s", req.GetService(), oip.GRPCInferenceService_ServiceDesc.ServiceName)
	}
	return &healthpb.HealthCheckResponse{Status: h.status()}, nil
}

// Watch implements healthpb.HealthServer: it tells the status, and again whenever it has changed.
func (h *health) Watch(req *healthpb.HealthCheckRequest, stream healthpb.Health_WatchServer) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	told := healthpb.HealthCheckResponse_UNKNOWN
	for {
		now := healthpb.HealthCheckResponse_SERVICE_UNKNOWN // as the standard has it: the service may yet come
		if known(req.GetService()) {
			now = h.status()
		}
		if now != told {
			if err := stream.Send(&healthpb.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			told = now
		}
		select {
		case <-tick.C:
		case <-h.draining:
			_ = stream.Send(&healthpb.HealthCheckResponse{Status: h.status()})
			return status.Error(codes.Unavailable, "the frontend is shutting down")
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}
