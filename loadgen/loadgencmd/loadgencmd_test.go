package loadgencmd

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/loadgen/internal/echotest"
	"github.com/gpulet/gpulet/loadgen/internal/report"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/tensor"
	"github.com/gpulet/gpulet/shared/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The default HTTP client keeps idle connections of the catalog's look-ups.
		goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"), goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"))
}

type result struct {
	code           int
	stdout, stderr string
}

// loadgen runs a command line against sys, where there is one.
func loadgen(t *testing.T, sys *echotest.System, args ...string) result {
	t.Helper()
	if sys != nil {
		args = append(args, "--nats-url", sys.NATS.URL(), "--state-dir", sys.NATS.StateDir(), "--models", modelDir(t))
	}
	var stdout, stderr bytes.Buffer
	code := cli.Run(t.Context(), newRootCommand(), args, &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// modelDir is a repository with samples for the model "digits", whose right answers are its inputs.
func modelDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var data []byte
	for _, v := range []float32{1, 0, 0, 0, 1, 0} {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	two := func(name string) []tensor.Tensor {
		return []tensor.Tensor{{Name: name, DType: tensor.FP32, Shape: []int64{2, 3}, Data: data}}
	}
	samples := wire.EncodeSamples(wire.Samples{N: 2, Inputs: two("x"), Outputs: two("y"), Labels: []int{0, 1}})
	if err := os.Mkdir(filepath.Join(dir, "digits"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "digits", "samples.msgpack"), samples, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// system serves "digits" (from samples) and "other" (random inputs).
func system(t *testing.T, change func(*wire.Reply)) *echotest.System {
	t.Helper()
	sys := echotest.Start(t)
	for _, name := range []string{"digits", "other"} {
		sys.Model(t, name, 1<<20)
		sys.Serve(t, name, change)
	}
	return &sys
}

func TestRunChecksAnswersAndWritesReports(t *testing.T) {
	sys := system(t, nil)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	r := loadgen(t, sys, "run", "--rates", "digits=300,other=100", "--duration", "500ms",
		"--json", file("run.json"), "--csv", file("run.csv"), "--html", file("run.html"))
	if r.code != 0 || !strings.Contains(r.stdout, "digits") || !strings.Contains(r.stdout, "100.00%") {
		t.Fatalf("%+v", r)
	}
	data, err := os.ReadFile(file("run.json"))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := report.Parse("run.json", data)
	if err != nil {
		t.Fatal(err)
	}
	digits, other := doc.Models["digits"], doc.Models["other"]
	if digits.OK != digits.Sent || digits.Correct != digits.Sent || digits.Wrong != 0 || digits.Sent == 0 || digits.SLOMs != 5000 {
		t.Errorf("digits: %+v", digits)
	}
	if other.OK != other.Sent || other.Labelled != 0 || other.Accuracy != nil || doc.DurationS != 0.5 {
		t.Errorf("other: %+v in %v s", other, doc.DurationS)
	}
	for _, name := range []string{"run.csv", "run.html"} {
		if st, err := os.Stat(file(name)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r := loadgen(t, nil, "report", file("run.json")); r.code != 0 || !strings.Contains(r.stdout, "digits") {
		t.Errorf("report: %+v", r)
	}
	if r := loadgen(t, nil, "report", file("run.json"), file("run.json"), "--html", file("two.html")); r.code != 0 || !strings.Contains(r.stdout, "+0.0%") {
		t.Errorf("comparison: %+v", r)
	}
}

func TestRunFailsOnWrongAnswers(t *testing.T) {
	sys := system(t, func(rep *wire.Reply) { rep.Outputs[0].Name = "z" })
	r := loadgen(t, sys, "run", "--rates", "digits=100", "--duration", "200ms")
	if r.code != 1 || !strings.Contains(r.stderr, `answers were wrong: output "y": missing`) {
		t.Errorf("%+v", r)
	}
}

func TestRunFailsOnLostRequests(t *testing.T) {
	sys := echotest.Start(t)
	sys.Model(t, "digits", 1<<20) // served by nobody
	r := loadgen(t, &sys, "run", "--rates", "digits=100", "--duration", "100ms", "--timeout", "100ms", "--grace", "0s")
	if r.code != 1 || !strings.Contains(r.stderr, "were lost") {
		t.Errorf("%+v", r)
	}
}

func TestErrorsOfTheSystemAreNoFailureOfTheRun(t *testing.T) {
	var first atomic.Bool
	sys := system(t, func(rep *wire.Reply) {
		if first.Swap(true) {
			*rep = wire.Reply{Status: wire.Expired, Detail: "too late"}
		}
	})
	r := loadgen(t, sys, "run", "--rates", "digits=100", "--duration", "200ms", "--arrival", "uniform", "--json", "-")
	var doc report.Run
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil || r.code != 0 {
		t.Fatalf("%v: %+v", err, r)
	}
	if f := doc.Total; f.Errors[wire.Expired] != f.Sent-1 || f.Sent < 2 || f.SLOViolations != f.Sent-1 {
		t.Errorf("%+v", f)
	}
}

func TestRunFailsWhenAModelAnswersNothingOK(t *testing.T) {
	sys := system(t, func(rep *wire.Reply) { *rep = wire.Reply{Status: wire.Failed, Detail: "index out of range"} })
	r := loadgen(t, sys, "run", "--rates", "digits=100", "--duration", "200ms")
	if r.code != 1 || !strings.Contains(r.stderr, "digits: none of ") || !strings.Contains(r.stderr, "answered ok: failed: index out of range") {
		t.Errorf("%+v", r)
	}
}

func TestRandomInputsAreWarnedOf(t *testing.T) {
	sys := system(t, nil)
	for model, want := range map[string]bool{"digits": false, "other": true} {
		r := loadgen(t, sys, "run", "--rates", model+"=100", "--duration", "100ms")
		if got := strings.Contains(r.stderr, "random inputs"); got != want || r.code != 0 {
			t.Errorf("%s: warned %v: expected %v: %+v", model, got, want, r)
		}
	}
}

// Wrong usage is said before anything is waited for: there is no server here.
func TestNothingToSendNeedsNoServer(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace.csv")
	if err := os.WriteFile(trace, []byte("0.01\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"run"}, {"run", "--arrival", "trace:" + trace}} {
		r := loadgen(t, nil, append(args, "--nats-url", "nats://127.0.0.1:1", "--connect-timeout", "10m")...)
		if r.code != 2 || !strings.Contains(r.stderr, "nothing to send") {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

func TestStrictRunsFailOnErrorsAndOnFewRightAnswers(t *testing.T) {
	var first atomic.Bool
	expired := system(t, func(rep *wire.Reply) {
		if first.Swap(true) {
			*rep = wire.Reply{Status: wire.Expired}
		}
	})
	r := loadgen(t, expired, "run", "--rates", "digits=100", "--duration", "200ms", "--arrival", "uniform", "--strict")
	if r.code != 1 || !strings.Contains(r.stderr, "answered with an error") {
		t.Errorf("%+v", r)
	}
	// All answers say class 0, within a tolerance that lets them pass: half of the labels are 0.
	zero := system(t, func(rep *wire.Reply) { rep.Outputs[0].Data = make([]byte, 12) })
	r = loadgen(t, zero, "run", "--rates", "digits=100", "--duration", "300ms", "--arrival", "uniform", "--tolerance", "2", "--min-accuracy", "97%")
	if r.code != 1 || !strings.Contains(r.stderr, "digits: 50.00% of the labelled answers are right") {
		t.Errorf("%+v", r)
	}
	r = loadgen(t, zero, "run", "--rates", "digits=100", "--duration", "300ms", "--arrival", "uniform", "--tolerance", "2", "--min-accuracy", "50%", "--strict")
	if r.code != 0 {
		t.Errorf("%+v", r)
	}
}

func TestScenariosAndTracesRun(t *testing.T) {
	sys := system(t, nil)
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	rush := write("rush.yaml", "models: {digits: {slo: 1s}}\nphases: [{name: calm, duration: 200ms, rates: {digits: 50}}, {name: rush, duration: 200ms, rates: {digits: 400, other: 100}}]")
	trace := write("trace.csv", "0.01,digits\n0.02,other\n0.03,digits\n")
	for name, c := range map[string]struct {
		args       []string
		digits     [2]int64 // at least, at most
		phases     int
		digitsSLOs float64
	}{
		"scenario": {[]string{"--scenario", rush}, [2]int64{60, 140}, 2, 1000},
		"trace":    {[]string{"--arrival", "trace:" + trace}, [2]int64{2, 2}, 1, 5000},
		"uniform":  {[]string{"--rates", "digits=100", "--duration", "300ms", "--arrival", "uniform", "--slo", "digits=7s"}, [2]int64{30, 30}, 1, 7000},
		"mmpp":     {[]string{"--rates", "digits=200", "--duration", "300ms", "--arrival", "mmpp:3,50%,10ms"}, [2]int64{20, 120}, 1, 5000},
	} {
		t.Run(name, func(t *testing.T) {
			r := loadgen(t, sys, append([]string{"run", "--json", "-"}, c.args...)...)
			var doc report.Run
			if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil || r.code != 0 {
				t.Fatalf("%v: %+v", err, r)
			}
			f := doc.Models["digits"]
			if f.Sent < c.digits[0] || f.Sent > c.digits[1] || f.OK != f.Sent || len(doc.Phases) != c.phases || f.SLOMs != c.digitsSLOs {
				t.Errorf("sent %d of %v, ok %d, %d phases, SLO %v", f.Sent, c.digits, f.OK, len(doc.Phases), f.SLOMs)
			}
		})
	}
}

func TestInterruptedRunsReport(t *testing.T) {
	sys := system(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code := cli.Run(ctx, newRootCommand(), []string{
		"run", "--rates", "digits=200", "--duration", "1h", "--json", "-",
		"--nats-url", sys.NATS.URL(), "--state-dir", sys.NATS.StateDir(),
	}, &stdout, &stderr)
	var doc report.Run
	if err := json.Unmarshal(stdout.Bytes(), &doc); err != nil || code != 0 {
		t.Fatalf("exit %d, %v: %s", code, err, &stderr)
	}
	if !doc.Interrupted || doc.DurationS > 60 || doc.Total.OK != doc.Total.Sent {
		t.Errorf("interrupted %v after %v s, %d of %d ok", doc.Interrupted, doc.DurationS, doc.Total.OK, doc.Total.Sent)
	}
}

func TestSearchStepsUntilItKnows(t *testing.T) {
	sys := system(t, nil)
	r := loadgen(t, sys, "search", "--mix", "digits=3,other=1", "--from", "200", "--most", "400", "--step", "200ms", "--settle", "0s", "--json", "-")
	var p peak
	if err := json.Unmarshal([]byte(r.stdout), &p); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	// How far it gets depends on this machine; that steps and answer agree does not.
	best := 0.0
	for _, s := range p.Steps {
		if s.Good {
			best = max(best, s.TotalRPS)
		}
	}
	if p.Mix["digits"] != 0.75 || len(p.Steps) == 0 || p.TotalRPS != best || (r.code == 0) != (best > 0) {
		t.Errorf("exit %d, mix %v, %d steps, best %v, answer %v", r.code, p.Mix, len(p.Steps), best, p.TotalRPS)
	}
}

func TestSearchSaysWhenNothingIsGood(t *testing.T) {
	sys := system(t, func(rep *wire.Reply) { *rep = wire.Reply{Status: wire.Overloaded} })
	r := loadgen(t, sys, "search", "--mix", "digits=1", "--from", "6400", "--step", "50ms", "--settle", "0s")
	if r.code != 1 || !strings.Contains(r.stderr, "no rate was good") {
		t.Errorf("%+v", r)
	}
	r = loadgen(t, sys, "search", "--mix", "digits=1", "--from", "0.001", "--step", "1ms", "--settle", "0s")
	if r.code != 1 || !strings.Contains(r.stderr, "no request to digits came in 1ms") {
		t.Errorf("%+v", r)
	}
}

func TestStepsAreJudgedByTheirWorstModel(t *testing.T) {
	figures := func(sent, violations, late int64) report.Figures {
		return report.Figures{Sent: sent, SLOViolations: violations, Late: late}
	}
	for name, c := range map[string]struct {
		a, b report.Figures
		good bool
	}{
		"both good":       {figures(1000, 10, 0), figures(100, 1, 0), true},
		"one bad":         {figures(1000, 0, 0), figures(100, 2, 0), false},
		"client too slow": {figures(1000, 0, 900), figures(100, 0, 0), false},
	} {
		step := peakStep{Run: report.Run{
			Models: map[string]report.Figures{"a": c.a, "b": c.b},
			Total:  figures(c.a.Sent+c.b.Sent, c.a.SLOViolations+c.b.SLOViolations, c.a.Late+c.b.Late),
		}}
		if step.judge(0.01); step.Good != c.good {
			t.Errorf("%s: good %v: %s", name, step.Good, step.Why)
		}
	}
}

// frontend is a v2 server that echoes "digits".
func frontend(t *testing.T) string {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/models", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`[{"name":"digits"}]`)) })
	mux.HandleFunc("GET /v2/models/digits", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"name":"digits","inputs":[{"name":"x","datatype":"FP32","shape":[-1,3]}],"parameters":{"slo_ms":1000,"timeout_ms":2000}}`))
	})
	mux.HandleFunc("POST /v2/models/digits/infer", func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		n, _ := strconv.Atoi(r.Header.Get("Inference-Header-Content-Length"))
		req, err := wire.DecodeV2Request(body.Bytes(), n, nil, wire.Limits{})
		if err != nil {
			t.Error(err)
			return
		}
		out := req.Inputs[0]
		out.Name = "y"
		text, _, err := wire.EncodeV2Response(wire.V2Response{Model: "digits", Version: "1", Outputs: []tensor.Tensor{out}}, func(string) bool { return false })
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(text)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestRunOverHTTP(t *testing.T) {
	url := frontend(t)
	r := loadgen(t, nil, "run", "--via", "http", "--http-url", url, "--rates", "digits=100", "--duration", "200ms", "--models", modelDir(t), "--json", "-")
	var doc report.Run
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil || r.code != 0 {
		t.Fatalf("%v: %+v", err, r)
	}
	if f := doc.Total; f.OK != f.Sent || f.Correct != f.Sent || f.Sent == 0 || doc.Models["digits"].SLOMs != 1000 {
		t.Errorf("%+v", f)
	}
	r = loadgen(t, nil, "run", "--via", "http", "--http-url", url, "--rates", "nets=100")
	if r.code != 2 || !strings.Contains(r.stderr, "model nets is not registered: expected one of digits") {
		t.Errorf("%+v", r)
	}
}

func TestWrongUsage(t *testing.T) {
	sys := system(t, nil)
	missing := filepath.Join(t.TempDir(), "none")
	for want, args := range map[string][]string{
		"model nets is not registered: expected one of digits, other": {"run", "--rates", "nets=1"},
		"--rates: found \"digits\": expected lenet=500":               {"run", "--rates", "digits"},
		"nothing to send":                               {"run"},
		"--rates and --scenario":                        {"run", "--rates", "a=1", "--scenario", "s.yaml"},
		"--grpc-url \"here\"":                           {"run", "--rates", "digits=1", "--grpc-url", "here"},
		"--via \"pigeon\": expected nats, http or grpc": {"run", "--rates", "digits=1", "--via", "pigeon"},
		"arrival \"often\"":                             {"run", "--rates", "digits=1", "--arrival", "often"},
		"--scenario: open " + missing:                   {"run", "--scenario", missing},
		"--arrival: open " + missing:                    {"run", "--rates", "digits=1", "--arrival", "trace:" + missing},
		"--timeout 1h0m0s: model digits":                {"run", "--rates", "digits=1", "--timeout", "1h"},
		"--slo other: no requests":                      {"run", "--rates", "digits=1", "--slo", "other=1s"},
		"expected a duration above 0 and":               {"run", "--rates", "digits=1", "--duration", "1s", "--warmup", "1s"},
		"--min-accuracy \"most\"":                       {"run", "--rates", "digits=1", "--min-accuracy", "most"},
		"--mix: missing":                                {"search"},
		"--mix: found \"many\"":                         {"search", "--mix", "many"},
		"--violations \"some\"":                         {"search", "--mix", "digits=1", "--violations", "some"},
		"0 < from <= most":                              {"search", "--mix", "digits=1", "--from", "5", "--most", "1"},
	} {
		if r := loadgen(t, sys, args...); r.code != 2 || !strings.Contains(r.stderr, want) {
			t.Errorf("%v: exit %d, expected 2 and %q in\n%s", args, r.code, want, r.stderr)
		}
	}
}

func TestNoModelsSaysWhatToLookAt(t *testing.T) {
	sys := echotest.Start(t)
	if r := loadgen(t, &sys, "run", "--rates", "digits=1"); r.code != 2 || !strings.Contains(r.stderr, "no models are registered: is the planner running") {
		t.Errorf("%+v", r)
	}
}

func TestUnreachableNATSIsNamed(t *testing.T) {
	r := loadgen(t, nil, "run", "--rates", "digits=1", "--nats-url", "nats://127.0.0.1:1", "--connect-timeout", "50ms")
	if r.code != 1 || !strings.Contains(r.stderr, "nats://127.0.0.1:1") {
		t.Errorf("%+v", r)
	}
}

func TestSamplesOfAnotherModelAreRefused(t *testing.T) {
	sys := system(t, nil)
	dir := modelDir(t)
	file := filepath.Join(dir, "digits", "samples.msgpack")
	if err := os.WriteFile(file, []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	code := cli.Run(t.Context(), newRootCommand(), []string{
		"run", "--rates", "digits=1", "--models", dir,
		"--nats-url", sys.NATS.URL(), "--state-dir", sys.NATS.StateDir(),
	}, &stdout, &stderr)
	if code != 1 || !strings.Contains(stderr.String(), file) {
		t.Errorf("exit %d: %s", code, &stderr)
	}
}
