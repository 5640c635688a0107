package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/gpulet/gpulet/e2e/harness"
	"github.com/gpulet/gpulet/shared/bus"
)

// standing is a field of what the kernel says of a process.
func standing(t *testing.T, pid int, field string) string {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + field + `:\t(\S+)`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("no %s in %s", field, status)
	}
	return string(m[1])
}

// readable lets everybody read a folder that the test made, and what is above it.
func readable(t *testing.T, dir string) {
	t.Helper()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// open reports whether everybody may run a program, and reach it: a checkout in root's own folder is closed.
func open(t *testing.T, program string) bool {
	t.Helper()
	for path := program; path != "/"; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o001 == 0 {
			t.Logf("gpu-lets run as this test's user: %s is closed to others", path)
			return false
		}
	}
	return true
}

// TestGpuletsHaveFewPrivileges serves with gpu-lets that can gain no privileges and, where the test may
// do that, run as somebody else, who can read neither the keys nor write anything of the agent's.
func TestGpuletsHaveFewPrivileges(t *testing.T) {
	r := newRepository(t, "double")
	readable(t, r.dir)
	cfg := harness.Config{Models: r.dir, Engine: "ref"}
	uid := fmt.Sprint(os.Geteuid())
	if os.Geteuid() == 0 && open(t, filepath.Join(harness.Root(t), "bin/worker")) {
		uid = "4711"
		cfg.WorkerArgs = []string{"--gpulet-user", "4711:4712"}
	}
	s := harness.Up(t, cfg)
	s.WaitReady(t, "double")
	for id, pid := range pids(t, s, s.Bus(t, bus.RoleFrontend)) {
		if got := standing(t, pid, "NoNewPrivs"); got != "1" {
			t.Errorf("gpu-let %s may gain privileges", id)
		}
		if got := standing(t, pid, "Uid"); got != uid {
			t.Errorf("gpu-let %s runs as user %s, expected %s", id, got, uid)
		}
		if uid == "4711" && (standing(t, pid, "CapEff") != "0000000000000000" || standing(t, pid, "Gid") != "4712") {
			t.Errorf("gpu-let %s has capabilities %s, group %s", id, standing(t, pid, "CapEff"), standing(t, pid, "Gid"))
		}
	}
	allRight(t, "with few privileges", load(t, s, "--rates", "double=50", "--duration", "1s").Total)
}
