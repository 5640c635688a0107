package drive

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gpulet/gpulet/loadgen/internal/arrival"
	"github.com/gpulet/gpulet/loadgen/internal/echotest"
	"github.com/gpulet/gpulet/loadgen/internal/payload"
	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

// send runs streams over the sender that connect makes.
func send(t testing.TB, streams []Stream, opts Options, connect func(Sink) (Sender, error)) (map[string]report.Figures, report.Figures) {
	t.Helper()
	run, err := New(streams, opts)
	if err != nil {
		t.Fatal(err)
	}
	sender, err := connect(run)
	if err != nil {
		t.Fatal(err)
	}
	return run.Figures(run.Do(context.Background(), context.Background(), sender))
}

func TestNATSAnswersEveryRequestRight(t *testing.T) {
	const d = 500 * time.Millisecond
	sys := echotest.Start(t)
	for _, name := range []string{"a", "b"} {
		sys.Model(t, name, 1<<20)
		sys.Serve(t, name, nil)
	}
	client := embeddedtest.Connect(t, sys.NATS, bus.RoleClient)
	streams := []Stream{echoStream("a", 2000, d), echoStream("b", 500, d)}
	for i := range streams {
		streams[i].Timeout = 10 * time.Second
	}
	models, total := send(t, streams, options(d), func(s Sink) (Sender, error) { return NATS(client, "test", streams, s) })
	if total.OK != total.Sent || total.Lost+total.Duplicates+total.Wrong+total.Unasked+total.ErrorCount() != 0 {
		t.Errorf("%+v", total)
	}
	if models["a"].Sent < 800 || models["b"].Sent < 200 || total.Correct != total.Sent {
		t.Errorf("a %d, b %d, correct %d", models["a"].Sent, models["b"].Sent, total.Correct)
	}
}

func TestNATSRefusalsAreErrors(t *testing.T) {
	const d = 200 * time.Millisecond
	sys := echotest.Start(t)
	sys.Model(t, "full", 5)
	client := embeddedtest.Connect(t, sys.NATS, bus.RoleClient)
	streams := []Stream{echoStream("full", 500, d), echoStream("nobody", 100, d), echoStream("big", 20, d)}
	streams[2].Items[0].Request.Inputs[0] = tensor.Tensor{Name: "x", DType: tensor.UINT8, Shape: []int64{1, 9 << 20}, Data: make([]byte, 9<<20)}
	streams[2].Items = streams[2].Items[:1]
	models, _ := send(t, streams, options(d), func(s Sink) (Sender, error) { return NATS(client, "test", streams, s) })
	full, nobody, big := models["full"], models["nobody"], models["big"]
	if full.Errors[wire.Overloaded] != full.Sent-5 || full.Lost != 5 {
		t.Errorf("a queue of 5 that nobody serves: %d sent, errors %v, lost %d", full.Sent, full.Errors, full.Lost)
	}
	if nobody.Errors[wire.Unavailable]+nobody.Errors[wire.UnknownModel] != nobody.Sent {
		t.Errorf("no queue: %d sent, errors %v", nobody.Sent, nobody.Errors)
	}
	if big.Errors[wire.BadRequest] != big.Sent || big.Sent == 0 {
		t.Errorf("9 MiB: %d sent, errors %v", big.Sent, big.Errors)
	}
}

// chosen notes which outputs the requests that are published ask for by header.
type chosen struct {
	Publisher
	mu      sync.Mutex // guards outputs
	outputs map[string]int
}

func (c *chosen) PublishAsync(m *bus.Message, done func(bus.Receipt, error)) error {
	c.note(m.Header[wire.HeaderOutputs])
	return c.Publisher.PublishAsync(m, done)
}

func (c *chosen) note(outputs string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outputs == nil {
		c.outputs = map[string]int{}
	}
	c.outputs[outputs]++
}

// An image has no place for a choice of outputs: a header makes it, over both ways.
func TestImagesAskForOutputsByHeader(t *testing.T) {
	const d = 100 * time.Millisecond
	sys := echotest.Start(t)
	sys.Vision(t, "vision")
	sys.Serve(t, "vision", nil)
	pictures := func() []Stream {
		s := echoStream("vision", 200, d)
		s.Items = []payload.Item{{Image: []byte("a picture"), ContentType: wire.TypeJPEG, Label: -1, Request: wire.Request{Outputs: []string{"y", "z"}}}}
		return []Stream{s}
	}
	c := &chosen{Publisher: embeddedtest.Connect(t, sys.NATS, bus.RoleClient)}
	streams := pictures()
	_, total := send(t, streams, options(d), func(s Sink) (Sender, error) { return NATS(c, "test", streams, s) })
	if total.Sent == 0 || total.OK != total.Sent || c.outputs["y,z"] != int(total.Sent) {
		t.Errorf("NATS: %+v, asked for %v", total, c.outputs)
	}
	c = &chosen{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.note(r.Header.Get(wire.HeaderOutputs))
		http.Error(w, "no", http.StatusTeapot)
	}))
	defer srv.Close()
	streams = pictures()
	_, total = send(t, streams, options(d), func(s Sink) (Sender, error) {
		return HTTP(HTTPOptions{URL: srv.URL, Connections: 2}, streams, s)
	})
	if total.Sent == 0 || c.outputs["y,z"] != int(total.Sent) {
		t.Errorf("HTTP: %+v, asked for %v", total, c.outputs)
	}
}

func TestTokensNameRequests(t *testing.T) {
	for _, c := range []struct {
		stream int
		seq    uint64
	}{{0, 0}, {3, 12345678}, {35, 1 << 60}} {
		stream, seq, ok := parseToken(token(c.stream, c.seq), c.stream+1)
		if !ok || stream != c.stream || seq != c.seq {
			t.Errorf("%d/%d: %s gives %d/%d, %v", c.stream, c.seq, token(c.stream, c.seq), stream, seq, ok)
		}
	}
	for _, bad := range []string{"", "0", "0-", "-0", "z-0", "0-!", "0-0-0"} {
		if _, _, ok := parseToken(bad, 3); ok {
			t.Errorf("%q was taken as a token", bad)
		}
	}
}

// v2 serves echo models over the v2 protocol; answer may take a request over.
func v2(t testing.TB, answer func(w http.ResponseWriter, n int) bool) *httptest.Server {
	var mu sync.Mutex
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n++
		this := n
		mu.Unlock()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if answer(w, this) {
			return
		}
		jsonLen, err := strconv.Atoi(r.Header.Get(jsonLength))
		if err != nil {
			t.Errorf("%s: %v", jsonLength, err)
		}
		req, err := wire.DecodeV2Request(body, jsonLen, nil, wire.Limits{})
		if err != nil || !req.BinaryOutputs {
			t.Errorf("request %+v: %v", req, err)
			return
		}
		out := req.Inputs[0]
		out.Name = "y"
		text, _, err := wire.EncodeV2Response(wire.V2Response{Model: "echo", Version: "1", Outputs: []tensor.Tensor{out}}, req.WantsBinary)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set(jsonLength, strconv.Itoa(len(text)))
		_, _ = w.Write(append(text, out.Data...))
	}))
	t.Cleanup(srv.Close)
	return srv
}

func overHTTP(url string, connections int, streams []Stream) func(Sink) (Sender, error) {
	return func(s Sink) (Sender, error) {
		return HTTP(HTTPOptions{URL: url, Connections: connections}, streams, s)
	}
}

func TestHTTPAnswersEveryRequestRight(t *testing.T) {
	const d = 300 * time.Millisecond
	srv := v2(t, func(http.ResponseWriter, int) bool { return false })
	streams := []Stream{echoStream("echo", 500, d)}
	streams[0].Timeout = 10 * time.Second
	_, total := send(t, streams, options(d), overHTTP(srv.URL, 8, streams))
	if total.OK != total.Sent || total.Sent < 100 || total.Lost+total.Wrong+total.ErrorCount() != 0 || total.Correct != total.Sent {
		t.Errorf("%+v", total)
	}
}

func TestHTTPErrorsKeepTheirCodes(t *testing.T) {
	const d = 300 * time.Millisecond
	named := []wire.Status{wire.Poisoned, wire.Expired, wire.Overloaded}
	plain := []int{http.StatusBadRequest, http.StatusNotFound, http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTeapot}
	srv := v2(t, func(w http.ResponseWriter, n int) bool {
		switch i := n % 10; {
		case i < len(named):
			w.Header().Set(wire.HeaderStatus, string(named[i]))
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": "in words"})
		case i < len(named)+len(plain):
			w.WriteHeader(plain[i-len(named)])
		default:
			_, _ = io.WriteString(w, "no response at all")
		}
		return true
	})
	streams := []Stream{echoStream("echo", 1000, d)}
	streams[0].Arrivals = arrival.Replay(make([]time.Duration, 100), 0, d)
	streams[0].Timeout = 10 * time.Second
	_, total := send(t, streams, options(d), overHTTP(srv.URL, 4, streams))
	for code, want := range map[wire.Status]int64{
		wire.Poisoned: 10, wire.Expired: 20, wire.Overloaded: 20, wire.BadRequest: 10, wire.UnknownModel: 10, wire.Unavailable: 10, wire.Failed: 20,
	} {
		if total.Errors[code] != want {
			t.Errorf("%s: %d, expected %d (%q)", code, total.Errors[code], want, total.Causes[code])
		}
	}
	if total.Causes[wire.Poisoned] != "in words" {
		t.Errorf("words: %v", total.Causes)
	}
}

func TestHTTPWithoutAFrontend(t *testing.T) {
	const d = 100 * time.Millisecond
	srv := v2(t, func(http.ResponseWriter, int) bool { return false })
	srv.Close()
	streams := []Stream{echoStream("echo", 200, d)}
	_, total := send(t, streams, options(d), overHTTP(srv.URL, 2, streams))
	if total.Errors[wire.Unavailable] != total.Sent || total.Lost != 0 {
		t.Errorf("%d sent, errors %v, lost %d", total.Sent, total.Errors, total.Lost)
	}
}

// A frontend that never answers must not hold the run up beyond timeout and grace, and what it
// was sent is lost.
func TestHTTPThatHangs(t *testing.T) {
	const d = 50 * time.Millisecond
	release := make(chan struct{})
	srv := v2(t, func(http.ResponseWriter, int) bool { <-release; return true })
	defer close(release)
	streams := []Stream{echoStream("echo", 200, d)}
	_, total := send(t, streams, options(d), overHTTP(srv.URL, 2, streams))
	if total.Lost != total.Sent || total.Sent == 0 {
		t.Errorf("%d of %d lost, expected all", total.Lost, total.Sent)
	}
}

// BenchmarkNATSSend is what this client can send in a second with a server and a worker beside it.
func BenchmarkNATSSend(b *testing.B) {
	sys := echotest.Start(b)
	sys.Model(b, "echo", 1<<22)
	sys.Serve(b, "echo", nil)
	client := embeddedtest.Connect(b, sys.NATS, bus.RoleClient)
	st := echoStream("echo", 1, time.Second)
	st.Arrivals = arrival.Replay(make([]time.Duration, b.N), 0, time.Hour)
	st.Timeout = time.Minute
	b.ReportAllocs()
	b.ResetTimer()
	streams := []Stream{st}
	_, total := send(b, streams, options(time.Hour), func(s Sink) (Sender, error) { return NATS(client, "bench", streams, s) })
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
	if total.OK != int64(b.N) {
		b.Fatalf("%d of %d ok: %v", total.OK, b.N, total.Errors)
	}
}
