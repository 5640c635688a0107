package embedded_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/embedded"
	"github.com/gpulet/gpulet/shared/embedded/embeddedtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

func port(t *testing.T, raw string) int {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestEveryRoleGetsAKeyOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	srv := embeddedtest.Start(t, embedded.Config{StateDir: dir})
	if info, err := os.Stat(filepath.Join(dir, "keys")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder of keys: %v, %v, expected mode 0700", info.Mode(), err)
	}
	seeds := map[string]bool{}
	for _, role := range bus.Roles() {
		file := bus.KeyFile(dir, role)
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%s: %v, expected mode 0600", file, err)
		}
		seed, err := os.ReadFile(file)
		if err != nil || !bytes.HasPrefix(seed, []byte("SU")) {
			t.Errorf("%s holds no user seed: %v", file, err)
		}
		seeds[string(seed)] = true
		embeddedtest.Connect(t, srv, role)
	}
	if len(seeds) != len(bus.Roles()) {
		t.Errorf("%d different keys for %d roles", len(seeds), len(bus.Roles()))
	}
}

func TestKeysAndDataAreKept(t *testing.T) {
	dir := t.TempDir()
	srv := embeddedtest.Start(t, embedded.Config{StateDir: dir})
	if err := embeddedtest.Connect(t, srv, bus.RolePlanner).EnsureBase(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(bus.KeyFile(dir, bus.RoleWorker))
	if err != nil {
		t.Fatal(err)
	}
	embeddedtest.Stop(t, srv)
	srv = embeddedtest.Start(t, embedded.Config{StateDir: dir})
	after, err := os.ReadFile(bus.KeyFile(dir, bus.RoleWorker))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key changed with a restart (%v)", err)
	}
	if _, rev, err := embeddedtest.Connect(t, srv, bus.RoleWorker).GetPlan(t.Context()); err != nil || rev != 0 {
		t.Errorf("the bucket of plans is gone: revision %d, %v", rev, err)
	}
}

func TestPortInUseNamesThePort(t *testing.T) {
	first := embeddedtest.Start(t, embedded.Config{Port: -1, MonitorPort: -1, StateDir: t.TempDir()})
	client, monitor := port(t, first.URL()), port(t, first.MonitorURL())
	for _, c := range []struct {
		cfg  embedded.Config
		port int
	}{
		{embedded.Config{Port: client}, client},
		{embedded.Config{Port: -1, MonitorPort: monitor}, monitor},
	} {
		c.cfg.StateDir = t.TempDir()
		_, err := embedded.Start(c.cfg, quiet)
		if err == nil || !strings.Contains(err.Error(), strconv.Itoa(c.port)+" on 127.0.0.1 is in use") || !strings.Contains(err.Error(), "GPULET_NATS_PORT") {
			t.Errorf("error %v, expected one naming port %d and what to do", err, c.port)
		}
	}
}

func TestStateFolderHasOneOwner(t *testing.T) {
	dir := t.TempDir()
	srv := embeddedtest.Start(t, embedded.Config{StateDir: dir})
	_, err := embedded.Start(embedded.Config{StateDir: dir}, quiet)
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("error %v, expected one naming %s and process %d", err, dir, os.Getpid())
	}
	embeddedtest.Stop(t, srv)
	embeddedtest.Start(t, embedded.Config{StateDir: dir})
}

func TestListensOnLoopbackUnlessTold(t *testing.T) {
	srv := embeddedtest.Start(t, embedded.Config{MonitorPort: -1, StateDir: t.TempDir()})
	for _, raw := range []string{srv.URL(), srv.MonitorURL()} {
		if u, err := url.Parse(raw); err != nil || u.Hostname() != "127.0.0.1" {
			t.Errorf("listens on %s, %v, expected loopback", raw, err)
		}
	}
	resp, err := http.Get(srv.MonitorURL() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("monitoring: %d %s %v", resp.StatusCode, body, err)
	}
	if off := embeddedtest.StartTest(t); off.MonitorURL() != "" {
		t.Errorf("monitoring at %s, expected none", off.MonitorURL())
	}
}

func TestSyncAlwaysReachesTheStore(t *testing.T) {
	defer http.DefaultClient.CloseIdleConnections()
	for _, always := range []bool{false, true} {
		srv := embeddedtest.Start(t, embedded.Config{Port: -1, MonitorPort: -1, StateDir: t.TempDir(), SyncAlways: always})
		resp, err := http.Get(srv.MonitorURL() + "/jsz")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || strings.Contains(string(body), `"sync_always": true`) != always {
			t.Errorf("sync always %v: %v in %s", always, err, body)
		}
	}
}

func TestWrongSettingsAreNamed(t *testing.T) {
	keys := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(keys, "keys"), 0o700), os.WriteFile(bus.KeyFile(keys, bus.RolePlanner), []byte("nonsense"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for want, cfg := range map[string]embedded.Config{
		"port 70000":                  {Port: 70000, StateDir: t.TempDir()},
		"monitoring port -7":          {MonitorPort: -7, StateDir: t.TempDir()},
		"max payload 12":              {MaxPayload: 12, StateDir: t.TempDir()},
		"no state folder":             {},
		bus.KeyFile(keys, "planner"):  {StateDir: keys},
		"/dev/null/x":                 {StateDir: "/dev/null/x"},
		"host-that-does-not-exist.in": {Host: "host-that-does-not-exist.invalid", Port: 4242, StateDir: t.TempDir()},
	} {
		srv, err := embedded.Start(cfg, quiet)
		if err == nil {
			embeddedtest.Stop(t, srv)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, expected one with %q", err, want)
		}
	}
}

func TestLooseKeyFileIsWarnedOf(t *testing.T) {
	dir := t.TempDir()
	embeddedtest.Stop(t, embeddedtest.Start(t, embedded.Config{StateDir: dir}))
	if err := os.Chmod(bus.KeyFile(dir, bus.RoleClient), 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	srv, err := embedded.Start(embedded.Config{StateDir: dir}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	embeddedtest.Stop(t, srv)
	if !strings.Contains(log.String(), bus.KeyFile(dir, bus.RoleClient)) || !strings.Contains(log.String(), "0600") {
		t.Errorf("the log says nothing of the file: %s", log.String())
	}
}
