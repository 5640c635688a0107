// Package embedded runs a NATS server with JetStream inside the process, so that a small gpulet
// needs no other software. It makes the NKeys of all roles and gives each role its permissions;
// nobody connects without one. What the roles may do is said in package bus.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Config is what the server listens on and where it keeps its data. Embed it in a service's Config.
type Config struct {
	// Host is the address to listen on; anything but loopback opens the bus to the network.
	Host string `env:"NATS_HOST" envDefault:"127.0.0.1" usage:"address the embedded NATS listens on"`
	// Port is the client port; 0 and -1 pick a free one.
	Port int `env:"NATS_PORT" envDefault:"4222" usage:"port of the embedded NATS (-1: any free one)"`
	// MonitorPort serves the server's own HTTP monitoring; -1 picks a free one, 0 turns it off.
	MonitorPort int `env:"NATS_MONITOR_PORT" envDefault:"8222" usage:"monitoring port of the embedded NATS (-1: any free one, 0: off)"`
	// MaxPayload is the largest message in bytes, headers included; 0 means 8 MiB.
	MaxPayload int `env:"NATS_MAX_PAYLOAD" envDefault:"8388608" usage:"largest message in bytes that the embedded NATS takes"`
	// SyncAlways has everything that is stored in files on the disk before it is acknowledged. Without
	// it a crash of the server costs nothing, and a crash of the machine up to two minutes.
	SyncAlways bool `env:"NATS_SYNC_ALWAYS" envDefault:"false" usage:"acknowledge what is stored in files only once it is on the disk: outlives a power cut, costs a sync each"`
	// StateDir holds keys/<role>.nk and jetstream/; the caller takes it from bus.Config.
	StateDir string
}

const (
	defaultMaxPayload = 8 << 20
	// largestPayload keeps a pull of several messages below what the server sends a connection at once.
	largestPayload = 32 << 20
	startTimeout   = 10 * time.Second
)

// Validate checks every field; the error says what was found and what was expected.
func (c Config) Validate() error {
	switch {
	case c.Port < -1 || c.Port > 65535:
		return fmt.Errorf("NATS port %d: expected 1 to 65535, or -1 for any free one", c.Port)
	case c.MonitorPort < -1 || c.MonitorPort > 65535:
		return fmt.Errorf("NATS monitoring port %d: expected 1 to 65535, -1 for any free one, or 0 for none", c.MonitorPort)
	case c.MaxPayload != 0 && (c.MaxPayload < 1<<10 || c.MaxPayload > largestPayload):
		return fmt.Errorf("NATS max payload %d: expected 1024 to %d bytes", c.MaxPayload, largestPayload)
	}
	return nil
}

// Server is a running server.
type Server struct {
	srv      *server.Server
	stateDir string
	lock     *os.File
}

// Start starts the server and returns when it takes connections. It fails when a port is in use,
// when another process uses StateDir, and when a key file cannot be read.
func Start(cfg Config, log *slog.Logger) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.StateDir == "" {
		return nil, errors.New("embedded NATS: no state folder")
	}
	if cfg.Host == "" {
		cfg.Host = "127.0.0.1"
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded NATS: state folder %s: %w", cfg.StateDir, err)
	}
	lock, err := lockDir(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	srv, err := start(cfg, log)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	log.Info("embedded NATS is ready", "url", srv.ClientURL(), "state_dir", cfg.StateDir)
	return &Server{srv: srv, stateDir: cfg.StateDir, lock: lock}, nil
}

func start(cfg Config, log *slog.Logger) (*server.Server, error) {
	opts, err := options(cfg, log)
	if err != nil {
		return nil, err
	}
	for _, port := range []int{cfg.Port, cfg.MonitorPort} {
		if err := free(cfg.Host, port); err != nil {
			return nil, err
		}
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	if err := share(srv); err != nil {
		return nil, err
	}
	words := &logger{log: log.With("component", "nats-server")}
	srv.SetLoggerV2(words, false, false, false)
	srv.Start()
	if !srv.ReadyForConnections(startTimeout) {
		stop(srv)
		return nil, fmt.Errorf("embedded NATS did not start within %v: %s", startTimeout, words.lastFatal())
	}
	// With a further account the server leaves it to us which one has streams. It takes connections
	// once they have been recovered: until then every stream would seem to be gone.
	if err := srv.GlobalAccount().EnableJetStream(nil, nil); err != nil {
		stop(srv)
		return nil, fmt.Errorf("embedded NATS: JetStream: %w", err)
	}
	srv.AcceptLoop(make(chan struct{}))
	if srv.Addr() == nil {
		stop(srv)
		return nil, fmt.Errorf("embedded NATS does not listen on %s: %s", cfg.Host, words.lastFatal())
	}
	return srv, nil
}

func stop(srv *server.Server) {
	srv.Shutdown()
	srv.WaitForShutdown()
}

func options(cfg Config, log *slog.Logger) (*server.Options, error) {
	clients := server.NewAccount(clientsAccount)
	users, err := users(filepath.Join(cfg.StateDir, "keys"), clients, log)
	if err != nil {
		return nil, err
	}
	opts := &server.Options{
		ServerName: "gpulet",
		Host:       cfg.Host,
		Port:       orRandom(cfg.Port),
		Accounts:   []*server.Account{clients},
		Nkeys:      users,
		JetStream:  true,
		StoreDir:   filepath.Join(cfg.StateDir, "jetstream"),
		MaxPayload: defaultMaxPayload,
		SyncAlways: cfg.SyncAlways,
		NoSigs:     true, // the process handles its signals
		DontListen: true, // until start says so
	}
	if cfg.MaxPayload != 0 {
		opts.MaxPayload = int32(cfg.MaxPayload) // validated
	}
	if cfg.MonitorPort != 0 {
		opts.HTTPHost, opts.HTTPPort = cfg.Host, cfg.MonitorPort
	}
	return opts, nil
}

func orRandom(port int) int {
	if port == 0 {
		return server.RANDOM_PORT
	}
	return port
}

// free reports a port that is in use in words that help; the server itself would only log it.
func free(host string, port int) error {
	if port <= 0 {
		return nil
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("embedded NATS: port %d on %s is in use: stop what listens there (another gpulet or "+
			"nats-server?), choose another with GPULET_NATS_PORT or GPULET_NATS_MONITOR_PORT, "+
			"or use that server with GPULET_NATS_URL", port, host)
	}
	if err != nil {
		return fmt.Errorf("embedded NATS: port %d: %w", port, err)
	}
	return ln.Close()
}

// lockDir makes sure that one process at a time writes the state folder. The lock ends with the
// process, however it ends.
func lockDir(dir string) (*os.File, error) {
	name := filepath.Join(dir, "lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: state folder %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(name)
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("embedded NATS: state folder %s is used by process %s: stop it or set another GPULET_STATE_DIR", dir, pid)
		}
		return nil, fmt.Errorf("embedded NATS: lock %s: %w", name, err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0) // for people; the lock is the truth
	}
	return f, nil
}

// URL is where clients connect.
func (s *Server) URL() string { return s.srv.ClientURL() }

// MonitorURL is where monitoring is served; empty when it is off.
func (s *Server) MonitorURL() string {
	addr := s.srv.MonitorAddr()
	if addr == nil {
		return ""
	}
	return "http://" + addr.String()
}

// StateDir is the folder with the keys, to be given to bus.Config.
func (s *Server) StateDir() string { return s.stateDir }

// Shutdown stops the server and waits until its data is on disk or ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop(s.srv)
		_ = s.lock.Close()
	}()
	select {
	case <-stopped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop embedded NATS: %w", ctx.Err())
	}
}
