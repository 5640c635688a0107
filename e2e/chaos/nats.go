package chaos

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
)

// natsPackage is the server that go.mod pins, as a program.
const natsPackage = "github.com/nats-io/nats-server/v2"

// natsServer is a NATS server as a process of its own.
type natsServer struct {
	*harness.Process
	conf string
	addr string // host:port of clients
	http string // of monitoring
}

// natsConfig is what the suite varies.
type natsConfig struct {
	name    string
	store   string
	cluster string   // host:port of this server's routes; empty: it stands alone
	routes  []string // of all servers of the cluster
}

// buildNATS builds the server into bin/.
func buildNATS(t testing.TB) { build(t, "nats-server", natsPackage) }

// build builds a program into bin/. Where there is no Go, one that was brought along is used.
func build(t testing.TB, program string, args ...string) {
	t.Helper()
	out := filepath.Join(harness.Root(t), "bin", program)
	if _, err := exec.LookPath("go"); err != nil {
		if _, err := os.Stat(out); err == nil {
			return
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-trimpath", "-o", out}, args...)...)
	cmd.Dir = harness.Root(t)
	if words, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", program, err, words)
	}
}

// newNATS writes a server's configuration and starts it. It gives up on a client that
// has 4 MB to take, so that a slow consumer is one within the time of a test.
func newNATS(t testing.TB, cfg natsConfig) *natsServer {
	t.Helper()
	n := &natsServer{conf: filepath.Join(t.TempDir(), "nats.conf"), addr: freeAddr(t), http: freeAddr(t)}
	text := fmt.Sprintf("server_name: %s\nlisten: %q\nhttp: %q\nmax_payload: 1MB\nmax_pending: 4MB\njetstream { store_dir: %q, max_file_store: 4GB }\n",
		cfg.name, n.addr, n.http, cfg.store)
	if cfg.cluster != "" {
		text += fmt.Sprintf("cluster { name: chaos, listen: %q, routes: [%s] }\n", cfg.cluster, `"nats://`+strings.Join(cfg.routes, `", "nats://`)+`"`)
	}
	if err := os.WriteFile(n.conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	n.start(t)
	return n
}

// start starts the server, again after it was killed, and waits until it takes connections.
func (n *natsServer) start(t testing.TB) {
	t.Helper()
	n.Process = harness.Start(t, "nats-server", nil, "--config", n.conf)
	n.WaitLine(t, "that it is ready", func(line string) bool { return strings.Contains(line, "Server is ready") })
}

func (n *natsServer) url() string { return "nats://" + n.addr }

// slowConsumers is how many connections the server has cut off for taking too little.
func (n *natsServer) slowConsumers(t testing.TB) int {
	t.Helper()
	_, body, err := harness.Get("http://" + n.http + "/varz")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Slow int `json:"slow_consumers"`
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return v.Slow
}

// freeAddr is an address of this host that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// serverName is what the site's server i calls itself.
func serverName(i int) string { return fmt.Sprintf("n%d", i) }
