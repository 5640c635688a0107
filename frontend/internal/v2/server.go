// Package v2 speaks the open inference protocol (KServe v2, as Triton's clients speak it) over
// HTTP, with the binary tensor data extension in both directions.
//
// A handler reads and decodes a request, has package exchange take it through, and encodes the answer.
//
// https://github.com/kserve/open-inference-protocol
package v2

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gpulet/gpulet/frontend/internal/exchange"
	"github.com/gpulet/gpulet/shared/wire"
)

// Server answers under /v2.
type Server struct {
	x   *exchange.Exchange
	log *slog.Logger
}

// New returns a server that takes requests through x.
func New(x *exchange.Exchange, log *slog.Logger) *Server { return &Server{x: x, log: log} }

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
func serverTiming(t wire.Timing, took time.Duration) string {
	us := func(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
	var b strings.Builder
	for _, step := range []struct {
		name string
		took time.Duration
	}{{"queue", us(t.QueuedUs)}, {"batch", us(t.BatchedUs)}, {"exec", us(t.ExecUs)}, {"total", took}} {
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		b.WriteString(step.name)
		b.WriteString(";dur=")
		b.WriteString(strconv.FormatFloat(float64(step.took)/float64(time.Millisecond), 'f', 3, 64))
	}
	return b.String()
}
