package mps_test

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/worker/internal/mps"
	"github.com/gpulet/gpulet/worker/internal/mps/mpstest"
)

const uuid = "GPU-6f8a1c2e-0000-1111-2222-333344445555"

// rig is a folder for daemons and the stand-in for the control program.
type rig struct {
	t   *testing.T
	cfg mps.Config
}

func newRig(t *testing.T) rig {
	t.Helper()
	dir := t.TempDir()
	return rig{t, mps.Config{UUID: uuid, Dir: dir, Binary: mpstest.Program(t, dir), Log: slog.New(slog.DiscardHandler)}}
}

func (r rig) start() *mps.Daemon {
	r.t.Helper()
	d, err := mps.Start(r.t.Context(), r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

func (r rig) fails(want ...string) {
	r.t.Helper()
	_, err := mps.Start(r.t.Context(), r.cfg)
	for _, w := range want {
		if err == nil || !strings.Contains(err.Error(), w) {
			r.t.Errorf("error %v: expected %q", err, w)
		}
	}
}

func (r rig) pipe() string { return filepath.Join(r.cfg.Dir, "6f8a1c2e-0000", "pipe") }

func TestStartsADaemonOfItsOwnAndEndsIt(t *testing.T) {
	r := newRig(t)
	d := r.start()
	if !d.Owned() {
		t.Error("the daemon is not owned")
	}
	env, err := os.ReadFile(filepath.Join(r.pipe(), "environment"))
	if err != nil || !strings.Contains(string(env), "CUDA_VISIBLE_DEVICES="+uuid+"\n") {
		t.Errorf("the daemon's environment %q, %v: expected its GPU", env, err)
	}
	if err := d.Health(t.Context()); err != nil {
		t.Error(err)
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if pid := mpstest.PID(r.pipe()); pid != 0 {
		t.Errorf("the daemon left its id, %d", pid)
	}
	if err := d.Health(t.Context()); err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("health %v: expected that it is gone", err)
	}
}

func TestAClientsEnvironment(t *testing.T) {
	r := newRig(t)
	d := r.start()
	got := d.Env(mps.Limits{Share: 20, PinnedBytes: 3 << 30})
	want := []string{
		"CUDA_VISIBLE_DEVICES=" + uuid,
		"CUDA_MPS_PIPE_DIRECTORY=" + r.pipe(),
		"CUDA_MPS_LOG_DIRECTORY=" + filepath.Join(filepath.Dir(r.pipe()), "log"),
		"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=20",
		"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=3072M",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := d.Env(mps.Limits{}); len(got) != 3 {
		t.Errorf("without limits: %q: expected neither a percentage nor a memory limit", got)
	}
}

func TestAdoptsWhatAKilledAgentLeft(t *testing.T) {
	r := newRig(t)
	// What is left of an agent that was killed is its daemon, and no lock.
	if err := r.start().Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(r.cfg.Binary, "-d")
	cmd.Env = append(os.Environ(), "CUDA_MPS_PIPE_DIRECTORY="+r.pipe())
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	pid := mpstest.PID(r.pipe())
	d := r.start()
	if got := mpstest.PID(r.pipe()); got != pid || !d.Owned() {
		t.Errorf("daemon %d, owned %v: expected %d, which is ours", got, d.Owned(), pid)
	}
	if err := d.Stop(t.Context()); err != nil || mpstest.PID(r.pipe()) != 0 {
		t.Errorf("%v: expected the daemon to end", err)
	}
}

func TestUsesTheDaemonOfARunningAgentAndLeavesItRunning(t *testing.T) {
	r := newRig(t)
	agents := r.start()
	ours := r.start()
	if ours.Owned() || !agents.Owned() {
		t.Errorf("owned: ours %v, the agent's %v: expected it to stay the agent's", ours.Owned(), agents.Owned())
	}
	if err := ours.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := agents.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAdoptsAnOperatorsDaemonAndLeavesItRunning(t *testing.T) {
	operators := newRig(t)
	operators.start()
	r := newRig(t)
	r.cfg.Adopt = []string{filepath.Join(t.TempDir(), "nothing"), operators.pipe()}
	d := r.start()
	if d.Owned() || !slices.Contains(d.Env(mps.Limits{}), "CUDA_MPS_PIPE_DIRECTORY="+operators.pipe()) {
		t.Errorf("owned %v, %q: expected the operator's daemon", d.Owned(), d.Env(mps.Limits{}))
	}
	if err := d.Stop(t.Context()); err != nil || mpstest.PID(operators.pipe()) == 0 {
		t.Errorf("%v: expected the operator's daemon to go on", err)
	}
	if err := syscall.Kill(mpstest.PID(operators.pipe()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := d.Revive(t.Context()); err == nil || !strings.Contains(err.Error(), "started by somebody else") {
		t.Errorf("revive: %v: expected that it is not ours", err)
	}
}

func TestRevivesItsDaemon(t *testing.T) {
	r := newRig(t)
	d := r.start()
	if err := syscall.Kill(mpstest.PID(r.pipe()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for d.Health(t.Context()) == nil { // a process goes a moment after it was killed
		if t.Context().Err() != nil {
			t.Fatal("the daemon lives on")
		}
	}
	if err := d.Revive(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTerminatesOnlyItsClients(t *testing.T) {
	r := newRig(t)
	d := r.start()
	if err := d.Terminate(t.Context(), 17); err != nil {
		t.Errorf("without a server: %v", err)
	}
	mpstest.SetClients(t, r.pipe(), 16, 17)
	for _, pid := range []int{17, 99} {
		if err := d.Terminate(t.Context(), pid); err != nil {
			t.Error(err)
		}
	}
	var got []string
	for _, c := range mpstest.Commands(r.pipe()) {
		if strings.HasPrefix(c, "terminate") {
			got = append(got, c)
		}
	}
	if diff := cmp.Diff([]string{"terminate_client 4242 17"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestSaysWhatIsWrong(t *testing.T) {
	t.Run("no program", func(t *testing.T) {
		r := newRig(t)
		r.cfg.Binary = filepath.Join(t.TempDir(), "nothing")
		r.fails("no MPS control program", "comes with the NVIDIA driver")
	})
	t.Run("does not start", func(t *testing.T) {
		r := newRig(t)
		t.Setenv("FAKE_MPS_FAILS", "1")
		r.fails("start the MPS daemon of "+uuid, "already running")
	})
	t.Run("is mute", func(t *testing.T) {
		r := newRig(t)
		r.start()
		if err := os.WriteFile(filepath.Join(r.pipe(), "mute"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		r.fails("does not answer", "Cannot find MPS control daemon")
	})
	t.Run("directory of others", func(t *testing.T) {
		r := newRig(t)
		if err := os.Chmod(r.cfg.Dir, 0o777); err != nil { //nolint:gosec // that is the case to refuse
			t.Fatal(err)
		}
		r.fails("expected one that only its owner can write to")
	})
	t.Run("long path", func(t *testing.T) {
		r := newRig(t)
		r.cfg.Dir = filepath.Join(r.cfg.Dir, strings.Repeat("x", 100))
		r.fails("expected at most 107")
	})
	t.Run("time is up", func(t *testing.T) {
		r := newRig(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := mps.Start(ctx, r.cfg); err == nil {
			t.Error("started although the context had ended")
		}
	})
}

func TestAnotherUsersDaemon(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run a process as another user")
	}
	r := newRig(t)
	r.start()
	// Process 1 of a container is root's, so a child is given away instead.
	pid := startAs(t, 12345)
	file := filepath.Join(r.pipe(), "nvidia-cuda-mps-control.pid")
	ours := mpstest.PID(r.pipe())
	t.Cleanup(func() { _ = syscall.Kill(ours, syscall.SIGKILL) })
	if err := os.WriteFile(file, []byte(pid), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.pipe(), "mute"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.fails("runs as uid 12345", "stop it")
}
