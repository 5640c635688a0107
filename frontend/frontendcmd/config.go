package frontendcmd

import (
	"fmt"
	"net"
	"time"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/telemetry"
)

// Config is all settings of `frontend serve`.
type Config struct {
	// HTTPAddr serves the v2 protocol and the status page.
	HTTPAddr string `env:"HTTP_ADDR" envDefault:":8000" usage:"address of the v2 HTTP API and the status page"`
	// GRPCAddr serves the same protocol over gRPC.
	GRPCAddr string `env:"GRPC_ADDR" envDefault:":8001" usage:"address of the v2 gRPC API"`
	// MetricsAddr serves /metrics, /healthz and pprof, which are not for clients.
	MetricsAddr string `env:"METRICS_ADDR" envDefault:":8002" usage:"address of /metrics, /healthz and pprof"`
	// MaxBody bounds a request's body. JSON takes two to four times the bytes of its tensors, which
	// are bounded by the NATS server's max payload.
	MaxBody int64 `env:"MAX_BODY" envDefault:"33554432" usage:"largest request body in bytes, over HTTP or gRPC"`
	// MaxBodies bounds the memory that bodies take while they are read, and messages until they are answered:
	// they may have to be sent again.
	MaxBodies int64 `env:"MAX_BODIES" envDefault:"1073741824" usage:"most bytes of request bodies held at once; more are refused as overloaded"`
	// MaxInFlight bounds the requests that are held at once.
	MaxInFlight int64 `env:"MAX_IN_FLIGHT" envDefault:"16384" usage:"most requests at once; more are refused as overloaded"`
	// Refresh is how often states and lag are read: a model is ready at most so late.
	Refresh time.Duration `env:"REFRESH" envDefault:"1s" usage:"how often states of gpu-lets and lag of queues are read"`
	// Grace is how long requests in flight may take to finish after the first signal.
	Grace time.Duration `env:"GRACE" envDefault:"15s" usage:"time for requests in flight to finish when stopping"`

	Bus  bus.Config
	NATS embedded.Config
	Log  telemetry.Config
}

// Validate checks every setting; the error names its flag, what was found and what was expected.
func (c Config) Validate() error {
	for _, a := range []struct{ flag, addr string }{{"http-addr", c.HTTPAddr}, {"grpc-addr", c.GRPCAddr}, {"metrics-addr", c.MetricsAddr}} {
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			return fmt.Errorf("--%s %q: expected host:port or :port", a.flag, a.addr)
		}
	}
	switch {
	case c.MaxBody < 1<<10 || c.MaxBody > 1<<30:
		return fmt.Errorf("--max-body %d: expected 1024 to %d bytes", c.MaxBody, 1<<30)
	case c.MaxBodies < max(c.MaxBody, 16<<20):
		return fmt.Errorf("--max-bodies %d: expected at least %d and --max-body, %d bytes", c.MaxBodies, 16<<20, c.MaxBody)
	case c.MaxInFlight < 1:
		return fmt.Errorf("--max-in-flight %d: expected 1 or more", c.MaxInFlight)
	case c.Refresh < 10*time.Millisecond:
		return fmt.Errorf("--refresh %v: expected 10ms or more", c.Refresh)
	case c.Grace < 0:
		return fmt.Errorf("--grace %v: expected 0 or more", c.Grace)
	}
	for _, part := range []interface{ Validate() error }{c.Bus, c.NATS, c.Log} {
		if err := part.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// embeds reports whether the frontend runs its own NATS server.
func (c Config) embeds() bool { return c.Bus.URL == "" }
