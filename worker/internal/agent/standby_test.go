package agent

import (
	"bytes"
	"context"
	"log/slog"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/device"
)

// ready is a gpu-let that says so when it is told what to serve, and what it was told to become.
const ready = `read assign; echo '{"id":"g","state":"ready","revision":1,"detail":"'$X'"}'; cat >/dev/null`

func sh(script string) *exec.Cmd { return exec.Command("/bin/sh", "-c", script) }

// newStandby is an agent with a plan of one gpu-let, g, and a process that stands by.
func newStandby(t *testing.T, script string) *Agent {
	t.Helper()
	a := New(Config{
		Host: "h", Log: quiet,
		Inventory: device.Inventory{Kind: device.CPU, Devices: []plan.Device{{Index: 0}}},
		Command: func(Start) *exec.Cmd {
			cmd := sh("X=fresh; " + ready)
			cmd.Env = append(cmd.Environ(), "SHARE=7")
			return cmd
		},
		Standby: func() *exec.Cmd { return sh(script) },
	}, newBoard(), prometheus.NewRegistry())
	a.plan, a.planned = plan.Plan{Revision: 1, Gpulets: []plan.Gpulet{{ID: "g", Host: "h", Share: 100}}}, true
	a.report = startReporter(newBoard(), quiet)
	ctx, cancel := context.WithCancel(t.Context())
	a.peers = startPeers(ctx, newBoard(), quiet)
	a.standBy()
	t.Cleanup(func() { stopAll(a, cancel) })
	return a
}

// comesUp waits for the gpu-let's first report.
func comesUp(t *testing.T, a *Agent) plan.GpuletReport {
	t.Helper()
	a.reconcile(time.Now())
	select {
	case e := <-a.events:
		if e.report == nil {
			t.Fatalf("event %+v: expected a report", e)
		}
		a.handle(e)
		return *e.report
	case <-time.After(60 * time.Second):
		t.Fatal("waited 60s for a report")
	}
	panic("unreachable")
}

func TestWhatStandsByBecomesTheNextGpulet(t *testing.T) {
	const told = `read become; case $become in *'"args":["-c","X=fresh; '*'"env":["SHARE=7"]'*) X=told;; *) X="$become";; esac; `
	a := newStandby(t, told+ready)
	pid := a.standby.pid()
	if r := comesUp(t, a); r.Detail != "told" {
		t.Errorf("it was told to become %s: expected the command and its environment", r.Detail)
	}
	if got := a.children["g"].proc.pid(); got != pid {
		t.Errorf("the gpu-let is process %d: expected %d, which stood by", got, pid)
	}
	if a.standby != nil {
		t.Error("another stands by while the gpu-let starts: expected it to wait")
	}
	a.reconcile(time.Now())
	if a.standby == nil || a.standby.pid() == pid {
		t.Error("no other process stands by once the gpu-let is ready")
	}
}

func TestAGpuletStartsWithoutWhatStoodBy(t *testing.T) {
	for name, spoil := range map[string]func(a *Agent){
		"it has died": func(a *Agent) {
			_ = syscall.Kill(a.standby.pid(), syscall.SIGKILL)
			_ = unix.Waitid(unix.P_PID, a.standby.pid(), nil, unix.WEXITED|unix.WNOWAIT, nil)
		},
		"another user": func(a *Agent) { a.standby.cmd.SysProcAttr.Pgid = 1 },
		"none":         func(a *Agent) { a.dismiss() },
	} {
		t.Run(name, func(t *testing.T) {
			a := newStandby(t, "X=stood; read become; "+ready)
			spoil(a)
			if r := comesUp(t, a); r.Detail != "fresh" {
				t.Errorf("the gpu-let is %q: expected a fresh process", r.Detail)
			}
		})
	}
}

func TestSaysWhyNothingStandsByAnyMore(t *testing.T) {
	a := newStandby(t, "echo no such library >&2; exit 3")
	var log bytes.Buffer
	a.log = slog.New(slog.NewTextHandler(&log, nil))
	_ = unix.Waitid(unix.P_PID, a.standby.pid(), nil, unix.WEXITED|unix.WNOWAIT, nil)
	if r := comesUp(t, a); r.Detail != "fresh" {
		t.Errorf("the gpu-let is %q: expected a fresh process", r.Detail)
	}
	for _, want := range []string{"level=WARN", "exit status 3", "no such library"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log %s: expected %s", log.String(), want)
		}
	}
}

func TestGoesOnWithoutAProcessThatStandsBy(t *testing.T) {
	a := newStandby(t, ready)
	a.dismiss()
	tries := 0
	a.cfg.Standby = func() *exec.Cmd { tries++; return exec.Command("/does/not/exist") }
	for range 3 {
		a.standBy()
	}
	if a.standby != nil || tries != 1 {
		t.Errorf("tried %d times: expected one, and then no more", tries)
	}
	if r := comesUp(t, a); r.Detail != "fresh" {
		t.Errorf("the gpu-let is %q: expected a fresh process", r.Detail)
	}
}

func TestNothingStandsByWhenTheAgentStops(t *testing.T) {
	a := newStandby(t, ready)
	pid := a.standby.pid()
	a.stopping = true
	a.dismiss()
	a.standBy()
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH || a.standby != nil { //nolint:errorlint // an errno
		t.Errorf("process %d: %v; standing by: %v", pid, err, a.standby)
	}
}
