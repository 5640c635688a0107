package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/shared/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, ctx context.Context) (*telemetry.Server, *prometheus.Registry) {
	t.Helper()
	reg := telemetry.NewRegistry()
	s, err := telemetry.Serve(ctx, "127.0.0.1:0", reg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s, reg
}

func get(t *testing.T, s *telemetry.Server, path string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + s.Addr() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServesMetricsHealthAndProfiles(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, reg := serve(t, ctx)
	count := prometheus.NewCounter(prometheus.CounterOpts{Name: "gpulet_things_total", Help: "things"})
	reg.MustRegister(count)
	count.Add(3)
	code, body := get(t, s, "/metrics")
	for _, part := range []string{"gpulet_things_total 3", "go_goroutines", "process_resident_memory_bytes"} {
		if code != http.StatusOK || !strings.Contains(body, part) {
			t.Errorf("status %d, metrics lack %s", code, part)
		}
	}
	if code, body := get(t, s, "/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("health %d %q", code, body)
	}
	s.SetHealth(func() error { return errors.New("no plan yet") })
	if code, body := get(t, s, "/healthz"); code != http.StatusServiceUnavailable || body != "no plan yet\n" {
		t.Errorf("health %d %q", code, body)
	}
	if code, _ := get(t, s, "/debug/pprof/goroutine?debug=1"); code != http.StatusOK {
		t.Errorf("pprof %d", code)
	}
	if code, _ := get(t, s, "/nothing"); code != http.StatusNotFound {
		t.Errorf("unknown path %d", code)
	}
	cancel()
	s.Wait()
	if _, err := http.Get("http://" + s.Addr() + "/healthz"); err == nil {
		t.Error("answers after its context ended")
	}
}

func TestPortInUseSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, _ := serve(t, ctx)
	_, err := telemetry.Serve(ctx, s.Addr(), telemetry.NewRegistry(), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), s.Addr()+" is in use") {
		t.Errorf("error %v, expected one naming %s", err, s.Addr())
	}
	cancel()
	s.Wait()
	if _, err := telemetry.Serve(ctx, "nonsense:::", telemetry.NewRegistry(), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "nonsense:::") {
		t.Errorf("error %v, expected one naming the address", err)
	}
}

func TestLoggerKeepsToItsSettings(t *testing.T) {
	var out bytes.Buffer
	log := telemetry.NewLogger(telemetry.Config{LogLevel: "warn", LogFormat: "json"}, &out, "worker")
	log.Info("hidden")
	log.Warn("shown", "model", "m")
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	if line["msg"] != "shown" || line["service"] != "worker" || line["model"] != "m" || line["level"] != "WARN" {
		t.Errorf("line %v", line)
	}
	out.Reset()
	telemetry.NewLogger(telemetry.Config{}, &out, "planner").Info("text", "n", 1)
	if !strings.Contains(out.String(), "level=INFO msg=text service=planner n=1") {
		t.Errorf("line %q", out.String())
	}
}

func TestConfigNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		cfg  telemetry.Config
		want string
	}{
		{telemetry.Config{LogLevel: "loud"}, `log level "loud": expected debug, info, warn or error`},
		{telemetry.Config{LogFormat: "xml"}, `log format "xml": expected text or json`},
	} {
		if err := c.cfg.Validate(); err == nil || err.Error() != c.want {
			t.Errorf("error %v, expected %s", err, c.want)
		}
	}
	if err := (telemetry.Config{LogLevel: "DEBUG", LogFormat: "json"}).Validate(); err != nil {
		t.Error(err)
	}
}
