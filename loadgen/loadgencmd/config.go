package loadgencmd

import (
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/gpulet/gpulet/loadgen/internal/scenario"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
	"github.com/gpulet/gpulet/shared/telemetry"
)

// Transports (--via).
const (
	viaNATS = "nats"
	viaHTTP = "http"
	viaGRPC = "grpc"
)

// loadConfig is what run and search share: how to send, what, and how answers are judged.
type loadConfig struct {
	Bus bus.Config
	Log telemetry.Config

	// Via is the transport: nats, http or grpc.
	Via string `env:"VIA" envDefault:"nats" usage:"transport: nats, http or grpc"`
	// HTTPURL is the frontend that http sends to.
	HTTPURL string `env:"HTTP_URL" envDefault:"http://127.0.0.1:8000" usage:"frontend to send to with --via http"`
	// GRPCURL is the frontend that grpc sends to.
	GRPCURL string `env:"GRPC_URL" envDefault:"127.0.0.1:8001" usage:"frontend to send to with --via grpc, as host:port"`
	// Connections bounds what is in flight over http and grpc.
	Connections int `env:"CONNECTIONS" envDefault:"128" usage:"connections to use with --via http, calls at once with --via grpc; requests beyond them wait here"`
	// ConnectTimeout is how long to try to reach NATS.
	ConnectTimeout time.Duration `env:"CONNECT_TIMEOUT" envDefault:"15s" usage:"how long to try to reach NATS"`

	// Models is where samples are found.
	Models string `env:"MODELS" envDefault:"models" usage:"folder with <model>/samples.msgpack; models without one get random inputs"`
	// Body is what requests carry.
	Body string `env:"BODY" envDefault:"auto" usage:"what requests carry: auto (samples, else random tensors), random (tensors, as bytes where the model takes them) or jpeg (one JPEG of its size for each model that takes images)"`
	// Samples is how many samples a random request has.
	Samples int `env:"SAMPLES" envDefault:"1" usage:"samples in each request of random tensors"`
	// Outputs are asked for instead of all.
	Outputs string `env:"OUTPUTS" usage:"outputs to ask for instead of all, as in bert=logits,ssd=boxes+scores"`
	// Varying is the length of dimensions that a model leaves open, in random inputs.
	Varying int `env:"VARYING" envDefault:"16" usage:"length of a model's varying dimensions in random inputs"`
	// Seed makes arrivals and random inputs.
	Seed uint64 `env:"SEED" envDefault:"1" usage:"seed of arrival times and random inputs"`
	// Arrival is the default arrival process.
	Arrival string `env:"ARRIVAL" envDefault:"poisson" usage:"poisson, uniform, mmpp[:RATIO,FRACTION,LENGTH] or trace:FILE"`

	// SLO overrides the models' own SLOs.
	SLO string `env:"SLO" usage:"SLOs other than the models' own, as in lenet=50ms,bert=100ms"`
	// Timeout is asked for with every request.
	Timeout time.Duration `env:"TIMEOUT" usage:"timeout to ask for with every request (default each model's own)"`
	// Tolerance is the largest difference from an expected output.
	Tolerance float64 `env:"TOLERANCE" envDefault:"1e-4" usage:"largest absolute difference of an output from the expected one"`
	// Grace is how much longer than its timeout an answer is waited for.
	Grace time.Duration `env:"GRACE" envDefault:"5s" usage:"how much longer than the timeout to wait for an answer"`

	// MetricsAddr answers /metrics while requests are sent.
	MetricsAddr string `env:"METRICS_ADDR" usage:"address of /metrics, /healthz and pprof while it runs (default: none)"`

	slos    map[string]time.Duration // SLO, parsed
	outputs map[string][]string      // Outputs, parsed
}

// Validate checks what can be checked without the system.
func (c *loadConfig) Validate() error {
	if err := c.Log.Validate(); err != nil {
		return err
	}
	switch c.Via {
	case viaNATS, viaHTTP, viaGRPC:
	default:
		return fmt.Errorf("--via %q: expected %s, %s or %s", c.Via, viaNATS, viaHTTP, viaGRPC)
	}
	if u, err := url.Parse(c.HTTPURL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("--http-url %q: expected a URL such as http://127.0.0.1:8000", c.HTTPURL)
	}
	if _, _, err := net.SplitHostPort(c.GRPCURL); err != nil {
		return fmt.Errorf("--grpc-url %q: expected host:port", c.GRPCURL)
	}
	switch {
	case c.Connections < 1 || c.Connections > 10000:
		return fmt.Errorf("--connections %d: expected 1 to 10000", c.Connections)
	case c.ConnectTimeout <= 0:
		return fmt.Errorf("--connect-timeout %v: expected more than 0", c.ConnectTimeout)
	case c.Body != bodyAuto && c.Body != bodyRandom && c.Body != bodyJPEG:
		return fmt.Errorf("--body %q: expected %s, %s or %s", c.Body, bodyAuto, bodyRandom, bodyJPEG)
	case c.Samples < 1 || c.Samples > model.MaxBatch:
		return fmt.Errorf("--samples %d: expected 1 to %d", c.Samples, model.MaxBatch)
	case c.Samples > 1 && c.Body == bodyJPEG:
		return fmt.Errorf("--samples %d: --body %s sends one image per request", c.Samples, bodyJPEG)
	case c.Varying < 1:
		return fmt.Errorf("--varying %d: expected at least 1", c.Varying)
	case c.Timeout < 0 || c.Grace < 0:
		return fmt.Errorf("--timeout %v, --grace %v: expected at least 0", c.Timeout, c.Grace)
	case !(c.Tolerance >= 0):
		return fmt.Errorf("--tolerance %v: expected at least 0", c.Tolerance)
	}
	if c.SLO != "" {
		slos, err := scenario.ParseSLOs(c.SLO)
		if err != nil {
			return fmt.Errorf("--slo: %w", err)
		}
		c.slos = slos
	}
	if c.Outputs != "" {
		outputs, err := scenario.ParseOutputs(c.Outputs)
		if err != nil {
			return fmt.Errorf("--outputs: %w", err)
		}
		c.outputs = outputs
	}
	return nil
}
