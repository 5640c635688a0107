// Package embedded runs a NATS server with JetStream inside the process, so that a small gpulet
// needs no other software. It makes the NKeys of all roles and gives each role its permissions;
// nobody connects without one.
package embedded

import (
	"context"
	"errors"
	"log/slog"
)

// Config is what the server listens on and where it keeps its data. Embed it in a service's Config.
type Config struct {
	// Host is the address to listen on; anything but loopback opens the bus to the network.
	Host string `env:"NATS_HOST" envDefault:"127.0.0.1" usage:"address the embedded NATS listens on"`
	// Port is the client port; -1 picks a free one.
	Port int `env:"NATS_PORT" envDefault:"4222" usage:"port of the embedded NATS (-1: any free one)"`
	// MonitorPort serves the server's own HTTP monitoring; -1 picks a free one, 0 turns it off.
	MonitorPort int `env:"NATS_MONITOR_PORT" envDefault:"8222" usage:"monitoring port of the embedded NATS (-1: any free one, 0: off)"`
	// MaxPayload is the largest message in bytes, headers included; 0 means 8 MiB.
	MaxPayload int `env:"NATS_MAX_PAYLOAD" envDefault:"8388608" usage:"largest message in bytes that the embedded NATS takes"`
	// StateDir holds keys/<role>.nk and jetstream/; the caller takes it from bus.Config.
	StateDir string
}

// Server is a running server.
type Server struct{}

// Start starts the server and returns when it takes connections.
func Start(cfg Config, log *slog.Logger) (*Server, error) { return nil, errors.ErrUnsupported }

// URL is where clients connect.
func (s *Server) URL() string { return "" }

// MonitorURL is where monitoring is served; empty when it is off.
func (s *Server) MonitorURL() string { return "" }

// StateDir is the folder with the keys, to be given to bus.Config.
func (s *Server) StateDir() string { return "" }

// Shutdown stops the server and waits until its data is on disk or ctx ends.
func (s *Server) Shutdown(ctx context.Context) error { return errors.ErrUnsupported }
