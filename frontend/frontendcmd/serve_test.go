package frontendcmd

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/frontend/internal/frontendtest"
	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var discard = slog.New(slog.DiscardHandler)

// program is a frontend that runs inside the test.
type program struct {
	lines chan map[string]any // of its log
	stop  context.CancelFunc
	code  chan int
}

func run(t *testing.T, args ...string) *program {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	p := &program{lines: make(chan map[string]any, 1000), stop: stop, code: make(chan int, 1)}
	r, w := io.Pipe()
	var done sync.WaitGroup
	done.Go(func() {
		defer close(p.lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			line := map[string]any{}
			if json.Unmarshal(s.Bytes(), &line) != nil {
				line["msg"] = s.Text()
			}
			p.lines <- line
		}
	})
	done.Go(func() {
		p.code <- cli.Run(ctx, New(), append([]string{"serve", "--log-format=json"}, args...), io.Discard, w)
		_ = w.Close()
	})
	t.Cleanup(func() {
		stop()
		done.Wait()
	})
	return p
}

// until reads the log up to the line with this message.
func (p *program) until(t *testing.T, msg string) map[string]any {
	t.Helper()
	late := time.After(20 * time.Second)
	var seen []string
	for {
		select {
		case line, ok := <-p.lines:
			text, _ := line["msg"].(string)
			if !ok {
				t.Fatalf("it ended without %q:\n%s", msg, strings.Join(seen, "\n"))
			}
			if strings.Contains(text, msg) {
				return line
			}
			seen = append(seen, text)
		case <-late:
			t.Fatalf("waited in vain for %q:\n%s", msg, strings.Join(seen, "\n"))
		}
	}
}

func (p *program) wait(t *testing.T) int {
	t.Helper()
	select {
	case code := <-p.code:
		return code
	case <-time.After(20 * time.Second):
		t.Fatal("it did not end")
		return 0
	}
}

// free are the flags of a frontend that is in nobody's way.
func free(t *testing.T) []string {
	t.Helper()
	return []string{
		"--http-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--metrics-addr=127.0.0.1:0", "--nats-port=-1", "--nats-monitor-port=0",
		"--refresh=20ms", "--state-dir=" + t.TempDir(),
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServesWithItsOwnNATS(t *testing.T) {
	p := run(t, free(t)...)
	up := p.until(t, "frontend is up")
	http, metrics := "http://"+up["http"].(string), "http://"+up["metrics"].(string)
	if !strings.HasPrefix(up["nats"].(string), "nats://127.0.0.1:") {
		t.Errorf("NATS at %v", up["nats"])
	}
	for _, c := range []struct {
		url  string
		code int
		want string
	}{
		{http + "/v2/health/live", 200, `"live":true`},
		{http + "/v2/health/ready", 503, "no plan has been published yet"},
		{http + "/", 200, "<title>gpulet"},
		{http + "/status.json", 200, `"ready":false`},
		{http + "/nothing", 404, "404"},
		{metrics + "/metrics", 200, "gpulet_frontend_requests_in_flight 0"},
		{metrics + "/metrics", 200, `gpulet_frontend_replies_unclaimed_total{kind="late"} 0`},
		{metrics + "/healthz", 503, "no plan has been published yet"},
	} {
		if code, body := get(t, c.url); code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s\nexpected %d with %q", c.url, code, body, c.code, c.want)
		}
	}
	p.stop()
	if code := p.wait(t); code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
	if code, _ := get(t, http+"/v2/health/live"); code != 0 {
		t.Errorf("it still answers: %d", code)
	}
}

func TestPortsInUseAreNamed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close() //nolint:errcheck // nothing was sent
	addr := taken.Addr().String()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ flag, want string }{
		{"--http-addr=" + addr, "--http-addr " + addr + " is in use"},
		{"--grpc-addr=" + addr, "--grpc-addr " + addr + " is in use"},
		{"--metrics-addr=" + addr, "--metrics-addr: metrics address " + addr + " is in use"},
		{"--nats-port=" + port, "port " + port + " on 127.0.0.1 is in use"},
	} {
		t.Run(c.flag, func(t *testing.T) {
			p := run(t, append(free(t), c.flag)...)
			p.until(t, c.want)
			if code := p.wait(t); code != cli.ExitFailed {
				t.Errorf("exit code %d: expected %d", code, cli.ExitFailed)
			}
		})
	}
}

func TestWrongSettingsAreUsageErrors(t *testing.T) {
	for _, c := range []struct{ flag, want string }{
		{"--http-addr=8000", `--http-addr "8000": expected host:port or :port`},
		{"--grpc-addr=here", `--grpc-addr "here": expected host:port or :port`},
		{"--max-body=12", "--max-body 12: expected 1024 to"},
		{"--max-bodies=1048576", "--max-bodies 1048576: expected at least 16777216 and --max-body, 33554432 bytes"},
		{"--max-in-flight=0", "--max-in-flight 0: expected 1 or more"},
		{"--refresh=1ms", "--refresh 1ms: expected 10ms or more"},
		{"--grace=-1s", "--grace -1s: expected 0 or more"},
		{"--nats-url=http://x", `NATS URL "http://x": expected nats://host:port`},
		{"--nats-port=99999", "NATS port 99999: expected"},
		{"--log-level=loud", `log level "loud": expected debug`},
		{"--htp-addr=:0", "unknown flag: --htp-addr"},
	} {
		t.Run(c.flag, func(t *testing.T) {
			p := run(t, append(free(t), c.flag)...)
			p.until(t, c.want)
			if code := p.wait(t); code != cli.ExitUsage {
				t.Errorf("exit code %d: expected %d", code, cli.ExitUsage)
			}
		})
	}
}

func TestWaitsForANATSServerAndSaysSo(t *testing.T) {
	t.Setenv("GPULET_NATS_URL", "nats://127.0.0.1:1")
	p := run(t, free(t)...)
	line := p.until(t, "cannot reach NATS")
	if line["url"] != "nats://127.0.0.1:1" || line["error"] == nil {
		t.Errorf("%v", line)
	}
	p.stop()
	if code := p.wait(t); code != cli.ExitOK {
		t.Errorf("exit code %d: a stop is no failure", code)
	}
}

// The first signal ends intake; a request in flight is answered before the program ends.
func TestRequestsInFlightAreAnsweredWhenStopping(t *testing.T) {
	toy := frontendtest.Toy()
	s := frontendtest.Start(t, toy)
	t.Setenv("GPULET_NATS_URL", s.NATS.URL())
	p := run(t, append(free(t), "--state-dir="+s.NATS.StateDir())...)
	addr := p.until(t, "frontend is up")["http"].(string)

	fetched, release := make(chan struct{}), make(chan struct{})
	s.Work(t, toy, func(m *bus.Msg, req wire.Request) wire.Reply {
		close(fetched)
		<-release
		return frontendtest.ToyWorker(m, req)
	})
	frontendtest.Eventually(t, "the frontend knows the model", func() bool {
		code, _ := get(t, "http://"+addr+"/v2/models/toy")
		return code == 200
	})
	var client sync.WaitGroup
	client.Go(func() {
		body := `{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}`
		tr := &http.Transport{DisableKeepAlives: true}
		resp, err := (&http.Client{Transport: tr}).Post("http://"+addr+"/v2/models/toy/infer", "", strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close() //nolint:errcheck // read to its end
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || !strings.Contains(string(got), `"data":[2,4]`) {
			t.Errorf("%d %s %v", resp.StatusCode, got, err)
		}
	})
	<-fetched
	p.stop()
	p.until(t, "stopping: no new requests are taken")
	frontendtest.Eventually(t, "new requests are refused", func() bool {
		code, _ := get(t, "http://"+addr+"/v2/health/live")
		return code == 0
	})
	close(release)
	client.Wait()
	if code := p.wait(t); code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
}

// Whoever reads the folder of the embedded server's state can connect; the planner does.
func TestThePlannerReachesTheEmbeddedNATS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	p := run(t, append(free(t), "--state-dir="+dir)...)
	up := p.until(t, "frontend is up")
	cfg := bus.Config{URL: up["nats"].(string), StateDir: dir}
	planner, err := bus.Connect(t.Context(), cfg, bus.RolePlanner, "test", discard)
	if err != nil {
		t.Fatal(err)
	}
	defer planner.Close()
	if err := planner.EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := planner.PutModel(t.Context(), frontendtest.Toy()); err != nil {
		t.Fatal(err)
	}
	frontendtest.Eventually(t, "the frontend knows the model", func() bool {
		code, _ := get(t, "http://"+up["http"].(string)+"/v2/models/toy")
		return code == 200
	})
	code, body := get(t, "http://"+up["metrics"].(string)+"/metrics")
	if code != 200 || !strings.Contains(body, `gpulet_frontend_model_ready{model="toy"} 0`) {
		t.Errorf("metrics: %d", code)
	}
}
