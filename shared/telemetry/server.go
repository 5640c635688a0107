package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Server answers /metrics, /healthz and /debug/pprof/.
type Server struct {
	addr   string
	done   chan struct{}
	health atomic.Pointer[func() error]
}

// Serve listens on addr (":8002", "127.0.0.1:0") and answers until ctx ends. A port that is in
// use is an error that says so.
func Serve(ctx context.Context, addr string, reg *prometheus.Registry, log *slog.Logger) (*Server, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("metrics address %s is in use: stop what listens there or choose another address", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("metrics address %s: %w", addr, err)
	}
	s := &Server{addr: ln.Addr().String(), done: make(chan struct{})}
	srv := &http.Server{Handler: s.routes(reg), ReadHeaderTimeout: 10 * time.Second}
	go s.stopWith(ctx, srv)
	go func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics server stopped", "addr", s.addr, "error", err)
		}
	}()
	log.Info("serving metrics", "addr", s.addr)
	return s, nil
}

func (s *Server) stopWith(ctx context.Context, srv *http.Server) {
	defer close(s.done)
	<-ctx.Done()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		_ = srv.Close()
	}
}

func (s *Server) routes(reg *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	if check := s.health.Load(); check != nil {
		if err := (*check)(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	_, _ = w.Write([]byte("ok\n"))
}

// SetHealth makes /healthz answer 503 with the error's text whenever check returns one. Without
// it, /healthz is always 200.
func (s *Server) SetHealth(check func() error) { s.health.Store(&check) }

// Addr is the address listened on, with the real port where 0 was asked for.
func (s *Server) Addr() string { return s.addr }

// Wait returns when the server has stopped after the end of its context.
func (s *Server) Wait() { <-s.done }
