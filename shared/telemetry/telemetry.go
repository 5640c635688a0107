// Package telemetry gives every program the same logger and the same operator's door: /metrics,
// /healthz and pprof. It knows nothing of what is measured.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Config is how a program logs. Embed it in a service's Config.
type Config struct {
	// LogLevel is the least level that is logged: debug, info, warn or error.
	LogLevel string `env:"LOG_LEVEL" envDefault:"info" usage:"least level to log: debug, info, warn or error"`
	// LogFormat is text (for people) or json (for machines).
	LogFormat string `env:"LOG_FORMAT" envDefault:"text" usage:"log format: text or json"`
}

// Validate checks both settings.
func (c Config) Validate() error {
	if _, err := c.level(); err != nil {
		return err
	}
	if c.LogFormat != "" && c.LogFormat != "text" && c.LogFormat != "json" {
		return fmt.Errorf("log format %q: expected text or json", c.LogFormat)
	}
	return nil
}

func (c Config) level() (slog.Level, error) {
	switch strings.ToLower(c.LogLevel) {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("log level %q: expected debug, info, warn or error", c.LogLevel)
}

// NewLogger returns the logger of a program; every line carries service. Settings that Validate
// refuses fall back to info and text.
func NewLogger(cfg Config, w io.Writer, service string) *slog.Logger {
	level, _ := cfg.level()
	opts := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts)).With("service", service)
	}
	return slog.New(slog.NewTextHandler(w, opts)).With("service", service)
}

// NewRegistry returns a registry that already describes the Go runtime and the process.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}
