package frontendcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/gpulet/gpulet/frontend/internal/dash"
	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/frontend/internal/fleet"
	"github.com/gpulet/gpulet/frontend/internal/grpc"
	"github.com/gpulet/gpulet/frontend/internal/inbox"
	"github.com/gpulet/gpulet/frontend/internal/v2"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/lifecycle"
	"github.com/gpulet/gpulet/shared/telemetry"
)

func newServeCommand() *cobra.Command {
	var cfg Config
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve HTTP and gRPC, with a NATS server inside unless GPULET_NATS_URL names one",
		Example: `  frontend serve                                       everything on this host, NATS on 127.0.0.1:4222
  frontend serve --http-addr :9000 --grpc-addr :9001 --state-dir /var/lib/gpulet
  GPULET_NATS_URL=nats://nats:4222 frontend serve      with a NATS server of your own
  curl localhost:8000/v2/health/ready                  is the system ready?
  curl localhost:8000/v2/models/lenet/infer -d '{"inputs":[{"name":"input","shape":[1,1,28,28],"datatype":"UINT8","data":[...]}]}'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, &cfg); err != nil {
				return err
			}
			cli.CollectSeldom()
			return serve(cmd.Context(), cfg, cmd.ErrOrStderr())
		},
	}
	cli.Bind(cmd, &cfg)
	return cmd
}

// doors are where clients come in.
type doors struct{ http, grpc net.Listener }

// serve runs the frontend until ctx ends or a part of it fails. Parts stop in the reverse order of
// their start: intake first, then what waits for answers, the NATS server last.
func serve(ctx context.Context, cfg Config, stderr io.Writer) error {
	log := telemetry.NewLogger(cfg.Log, stderr, "frontend")
	var doors doors
	var err error
	if doors.http, err = listen(ctx, "http-addr", cfg.HTTPAddr); err != nil {
		return err
	}
	defer doors.http.Close() //nolint:errcheck // closed by its server, unless that never ran
	if doors.grpc, err = listen(ctx, "grpc-addr", cfg.GRPCAddr); err != nil {
		return err
	}
	defer doors.grpc.Close() //nolint:errcheck // as above

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g := lifecycle.NewGroup(ctx)
	failed := start(ctx, g, cfg, doors, log)
	if ctx.Err() != nil {
		failed = nil // stopped while it waited for NATS
	}
	if failed != nil {
		cancel()
	}
	return errors.Join(failed, g.Wait())
}

// start starts the parts in g; an error leaves those that were started running.
func start(ctx context.Context, g *lifecycle.Group, cfg Config, doors doors, log *slog.Logger) error {
	if cfg.embeds() {
		if err := startNATS(g, &cfg, log); err != nil {
			return err
		}
	}
	reg := telemetry.NewRegistry()
	metrics, err := startMetrics(g, cfg.MetricsAddr, reg, log)
	if err != nil {
		return err
	}
	b, err := bus.Connect(ctx, cfg.Bus, bus.RoleFrontend, "frontend", log)
	if err != nil {
		return err
	}
	g.Go("bus", func(ctx context.Context) error {
		<-ctx.Done()
		b.Close()
		return nil
	})
	replies, err := inbox.Open(b)
	if err != nil {
		return err
	}
	g.Go("inbox", func(ctx context.Context) error {
		<-ctx.Done()
		replies.Close()
		return nil
	})
	fl := fleet.New(b, cfg.Refresh, log)
	fl.OnLostQueue(replies.QueueLost)
	g.Go("fleet", fl.Run)
	metrics.SetHealth(fl.Ready)
	registerSystem(reg, replies, fl)

	x := exchange.New(fl, replies, exchange.Options{
		Version: cli.Version, MaxBody: cfg.MaxBody, MaxBodies: cfg.MaxBodies, MaxPayload: b.MaxPayload, MaxInFlight: cfg.MaxInFlight,
	}, exchange.NewMetrics(reg), log)
	http, grpc := routes(v2.New(x, log), dash.New(fl)), grpc.New(x, log)
	g.Go("clients", func(ctx context.Context) error {
		both, ctx := errgroup.WithContext(ctx)
		both.Go(func() error { return serveHTTP(ctx, doors.http, http, cfg.Grace, log) })
		both.Go(func() error { return grpc.Serve(ctx, doors.grpc, cfg.Grace) })
		return both.Wait()
	})
	log.Info("frontend is up", "http", doors.http.Addr().String(), "grpc", doors.grpc.Addr().String(), "metrics", metrics.Addr(), "nats", cfg.Bus.URL)
	return nil
}

// startNATS starts the embedded server and points cfg.Bus to it.
func startNATS(g *lifecycle.Group, cfg *Config, log *slog.Logger) error {
	cfg.NATS.StateDir = cfg.Bus.StateDir
	srv, err := embedded.Start(cfg.NATS, log)
	if err != nil {
		return err
	}
	g.Go("embedded NATS", func(ctx context.Context) error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return srv.Shutdown(stop)
	})
	cfg.Bus.URL, cfg.Bus.StateDir = srv.URL(), srv.StateDir()
	return nil
}

func startMetrics(g *lifecycle.Group, addr string, reg *prometheus.Registry, log *slog.Logger) (*telemetry.Server, error) {
	ctx, cancel := context.WithCancel(context.Background())
	srv, err := telemetry.Serve(ctx, addr, reg, log)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("--metrics-addr: %w", err)
	}
	g.Go("metrics", func(ctx context.Context) error {
		<-ctx.Done()
		cancel()
		srv.Wait()
		return nil
	})
	return srv, nil
}

func listen(ctx context.Context, flag, addr string) (net.Listener, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("--%s %s is in use: stop what listens there or choose another address", flag, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("--%s %s: %w", flag, addr, err)
	}
	return ln, nil
}

func routes(server *v2.Server, page *dash.Page) http.Handler {
	mux := http.NewServeMux()
	server.Register(mux)
	page.Register(mux)
	return mux
}

// serveHTTP answers on listener until ctx ends, then stops taking requests and lets those in
// flight finish, for grace at most.
func serveHTTP(ctx context.Context, listener net.Listener, h http.Handler, grace time.Duration, log *slog.Logger) error {
	drain, abort, stop := lifecycle.Context(ctx, grace)
	defer stop()
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		BaseContext:       func(net.Listener) context.Context { return abort },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // clients' broken connections
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-drain.Done():
	}
	log.Info("stopping: no new requests are taken", "grace", grace)
	if err := srv.Shutdown(abort); err != nil {
		log.Warn("requests in flight were given up", "error", err)
		_ = srv.Close()
	}
	<-failed // http.ErrServerClosed
	return nil
}
