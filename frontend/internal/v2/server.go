// Package v2 speaks the open inference protocol (KServe v2, as Triton's clients speak it) over
// HTTP, with the binary tensor data extension in both directions.
//
// A handler decodes, asks admit whether the request may enter the queue, sends it, waits and
// encodes the answer. It neither queues nor batches, and it knows of NATS only what the errors of
// shared/bus say.
//
// https://github.com/kserve/open-inference-protocol
package v2

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/admit"
	"github.com/gpulet/gpulet/frontend/internal/inbox"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/model"
)

// Fleet is what the handlers need to know of the system.
type Fleet interface {
	Models() []model.Model
	Model(name string) (*model.Model, bool)
	// Listed reports whether the registered models are known.
	Listed() bool
	Ready() error
	ModelReady(name string) error
	// Backlog is what waits for the model's gpu-lets.
	Backlog(name string) admit.Backlog
}

// Sender puts a request into its model's queue, and takes it out again. *inbox.Inbox is one.
type Sender interface {
	Send(m *bus.Message) (*inbox.Call, error)
	Answered(ctx context.Context, model, requestID string) *inbox.Call
	Cancel(model, requestID string) error
}

// Options bound what the handlers take.
type Options struct {
	Version     string       // of this build, for GET /v2
	MaxBody     int64        // bytes of a request body
	MaxBodies   int64        // bytes of all request bodies held at once
	MaxPayload  func() int64 // bytes of a message on the bus
	MaxInFlight int64        // requests at once
}

// Server answers under /v2.
type Server struct {
	fleet    Fleet
	sender   Sender
	opts     Options
	metrics  *Metrics
	log      *slog.Logger
	inFlight atomic.Int64
	bodies   atomic.Int64 // bytes of bodies that are being read or sent
	full     admit.Full
}

// New returns a server; it counts in metrics.
func New(f Fleet, s Sender, opts Options, m *Metrics, log *slog.Logger) *Server {
	return &Server{fleet: f, sender: s, opts: opts, metrics: m, log: log}
}

// Register adds the protocol's routes to mux. A known path with another method is answered with
// 405, an unknown path under /v2 with 404, both in the protocol's form of an error.
func (s *Server) Register(mux *http.ServeMux) {
	for _, r := range []struct {
		path    string
		method  string
		handler http.HandlerFunc
	}{
		{"/v2", "GET", s.server},
		{"/v2/health/live", "GET", s.live},
		{"/v2/health/ready", "GET", s.ready},
		{"/v2/models", "GET", s.index},
		{"/v2/repository/index", "POST", s.index},
		{"/v2/models/{model}", "GET", s.metadata},
		{"/v2/models/{model}/versions/{version}", "GET", s.metadata},
		{"/v2/models/{model}/ready", "GET", s.modelReady},
		{"/v2/models/{model}/versions/{version}/ready", "GET", s.modelReady},
		{"/v2/models/{model}/config", "GET", s.config},
		{"/v2/models/{model}/versions/{version}/config", "GET", s.config},
		{"/v2/models/{model}/infer", "POST", s.infer},
		{"/v2/models/{model}/versions/{version}/infer", "POST", s.infer},
		{"/v2/models/{model}/infer/{id}", "DELETE", s.cancel},
	} {
		mux.HandleFunc(r.method+" "+r.path, r.handler)
		mux.HandleFunc(r.path, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Allow", r.method)
			writeError(w, http.StatusMethodNotAllowed, "method "+req.Method+": expected "+r.method)
		})
	}
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, req *http.Request) {
		writeError(w, http.StatusNotFound, "no such path: "+req.URL.Path)
	})
}

// writeJSON answers 200 with v.
func writeJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		writeError(w, http.StatusInternalServerError, err.Error())
		return
	}
	writeBody(w, http.StatusOK, body)
}

// writeError answers with the protocol's form of an error.
func writeError(w http.ResponseWriter, code int, text string) {
	body, _ := json.Marshal(struct { // a string always marshals
		Error string `json:"error"`
	}{text})
	writeBody(w, code, body)
}

// writeBody answers with JSON. A client that is gone cannot be told so.
func writeBody(w http.ResponseWriter, code int, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body)
}

// serverTiming is the Server-Timing header: milliseconds by step, which browsers and proxies show.
func serverTiming(steps ...any) string {
	var b strings.Builder
	for i := 0; i < len(steps); i += 2 {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(steps[i].(string))
		b.WriteString(";dur=")
		ms := float64(steps[i+1].(time.Duration)) / float64(time.Millisecond)
		b.WriteString(strconv.FormatFloat(ms, 'f', 3, 64))
	}
	return b.String()
}
