package loadgencmd

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gpulet/gpulet/shared/cli"
)

func TestMetricsWhileItRuns(t *testing.T) {
	sys := system(t, nil)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	logs, stderr := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		code := cli.Run(ctx, newRootCommand(), []string{
			"run", "--rates", "digits=100", "--duration", "10m", "--metrics-addr", "127.0.0.1:0",
			"--nats-url", sys.NATS.URL(), "--state-dir", sys.NATS.StateDir(), "--models", modelDir(t),
		}, new(bytes.Buffer), stderr)
		_ = stderr.Close()
		ended <- code
	}()
	lines := bufio.NewScanner(logs)
	addr := ""
	for addr == "" && lines.Scan() {
		if m := regexp.MustCompile(`addr=(127\.0\.0\.1:\d+)`).FindStringSubmatch(lines.Text()); m != nil {
			addr = m[1]
		}
	}
	if addr == "" {
		t.Fatal("no address in the log")
	}
	go io.Copy(io.Discard, logs) //nolint:errcheck // ends when the run does

	some := regexp.MustCompile(`(?m)^gpulet_loadgen_request_duration_seconds_count\{model="digits"\} [1-9]`)
	var text string
	for limit := time.Now().Add(30 * time.Second); !some.MatchString(text); text = metricsOf(t, addr) {
		if time.Now().After(limit) {
			t.Fatalf("no answer is counted:\n%s", text)
		}
	}
	for _, want := range []string{
		`(?m)^gpulet_loadgen_sent_requests_total\{model="digits"\} [1-9]`,
		`(?m)^gpulet_loadgen_requests_total\{model="digits",status="ok"\} [1-9]`,
		`(?m)^gpulet_loadgen_requests_total\{model="digits",status="lost"\} 0$`,
		`(?m)^gpulet_loadgen_requests_total\{model="digits",status="overloaded"\} 0$`,
		`(?m)^gpulet_loadgen_request_duration_seconds_bucket\{model="digits",le="5"\} [1-9]`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("metrics lack %s:\n%s", want, text)
		}
	}
	stop()
	if code := <-ended; code != cli.ExitOK {
		t.Errorf("exit %d", code)
	}
}

// metricsOf reads the lines of the load generator's own metrics.
func metricsOf(t *testing.T, addr string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, own, _ := strings.Cut(string(body), "# HELP gpulet_")
	return own
}

func TestWrongMetricsAddressIsNamed(t *testing.T) {
	r := loadgen(t, nil, "run", "--rates", "digits=1", "--via", "http", "--metrics-addr", "127.0.0.1:0:1")
	if r.code != cli.ExitFailed || !strings.Contains(r.stderr, "--metrics-addr: metrics address 127.0.0.1:0:1") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
}
