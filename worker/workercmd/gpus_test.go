package workercmd

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/agent"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
	"github.com/gpulet/gpulet/worker/internal/mps"
	"github.com/gpulet/gpulet/worker/internal/mps/mpstest"
)

var silent = slog.New(slog.DiscardHandler)

// twoGPUs are two devices and what is needed to share them.
func twoGPUs(t *testing.T) (mpsConfig, *device.Inventory) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("CUDA_MPS_PIPE_DIRECTORY", filepath.Join(dir, "nobody")) // not the one of this machine
	return mpsConfig{Dir: dir, Control: mpstest.Program(t, dir)}, &device.Inventory{Kind: device.CUDA, Devices: []plan.Device{
		{Index: 0, Name: "one", UUID: "GPU-aaaaaaaa-1111"}, {Index: 3, Name: "two", UUID: "GPU-bbbbbbbb-2222"},
	}}
}

func pipeOf(cfg mpsConfig, uuid string) string {
	return filepath.Join(cfg.Dir, strings.TrimPrefix(uuid, "GPU-"), "pipe")
}

func TestEveryGPUHasItsDaemon(t *testing.T) {
	cfg, inv := twoGPUs(t)
	g, err := startGPUs(t.Context(), cfg, inv, false, silent)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range inv.Devices {
		env := g.env(d.Index, d.UUID, mps.Limits{Share: 25})
		for _, want := range []string{
			"CUDA_VISIBLE_DEVICES=" + d.UUID, "CUDA_MPS_PIPE_DIRECTORY=" + pipeOf(cfg, d.UUID), "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25",
		} {
			if !slices.Contains(env, want) {
				t.Errorf("GPU %d: environment %q lacks %s", d.Index, env, want)
			}
		}
	}
	mpstest.SetClients(t, pipeOf(cfg, inv.Devices[1].UUID), 17)
	if err := g.Release(t.Context(), 3, 17); err != nil {
		t.Error(err)
	}
	if got := mpstest.Commands(pipeOf(cfg, inv.Devices[1].UUID)); !slices.Contains(got, "terminate_client 4242 17") {
		t.Errorf("commands %q", got)
	}
	g.stop(t.Context())
	for _, d := range inv.Devices {
		if pid := mpstest.PID(pipeOf(cfg, d.UUID)); pid != 0 {
			t.Errorf("GPU %d: daemon %d is left", d.Index, pid)
		}
	}
}

func TestAGPUWithoutADaemonIsLeftAlone(t *testing.T) {
	cfg, inv := twoGPUs(t)
	// Something that is no directory stands where the second GPU's daemon would live.
	if err := os.WriteFile(filepath.Join(cfg.Dir, "bbbbbbbb-2222"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := startGPUs(t.Context(), cfg, inv, false, silent)
	if err != nil {
		t.Fatal(err)
	}
	defer g.stop(context.Background())
	if diff := cmp.Diff([]int{0}, inv.Indices()); diff != "" || len(inv.Notes) != 1 || !strings.Contains(inv.Notes[0], "GPU 3 (two) is left alone: ") {
		t.Errorf("notes %q\n%s", inv.Notes, diff)
	}
}

func TestWithoutMPSOnlyWholeGPUsServe(t *testing.T) {
	cfg, inv := twoGPUs(t)
	cfg.Control = filepath.Join(cfg.Dir, "nothing")
	if _, err := startGPUs(t.Context(), cfg, &device.Inventory{Devices: inv.Devices}, false, silent); err == nil ||
		!strings.Contains(err.Error(), "comes with the NVIDIA driver") || !strings.Contains(err.Error(), "--allow-unpartitioned") {
		t.Errorf("error %v: expected what is missing and what can be done", err)
	}
	g, err := startGPUs(t.Context(), cfg, inv, true, silent)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range inv.Devices {
		if diff := cmp.Diff([]int{100}, d.Shares); diff != "" {
			t.Errorf("GPU %d: shares\n%s", d.Index, diff)
		}
	}
	if diff := cmp.Diff([]string{"CUDA_VISIBLE_DEVICES=GPU-aaaaaaaa-1111"}, g.env(0, "GPU-aaaaaaaa-1111", mps.Limits{Share: 100})); diff != "" {
		t.Error(diff)
	}
}

func TestADaemonThatDiesIsStartedAgain(t *testing.T) {
	cfg, inv := twoGPUs(t)
	g, err := startGPUs(t.Context(), cfg, inv, false, silent)
	if err != nil {
		t.Fatal(err)
	}
	defer g.stop(context.Background())
	pipe := pipeOf(cfg, inv.Devices[0].UUID)
	dead := mpstest.PID(pipe)
	if err := syscall.Kill(dead, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for mpstest.PID(pipe) == dead {
		if problems := g.check(t.Context()); len(problems) > 0 {
			t.Fatal(problems)
		}
		if t.Context().Err() != nil {
			t.Fatal("not started again")
		}
	}
	// One that does not answer is told of, until it does.
	if err := os.WriteFile(filepath.Join(pipe, "mute"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if problems := g.check(t.Context()); len(problems) != 1 || !strings.HasPrefix(problems[0], "GPU 0: ") {
		t.Errorf("problems %q", problems)
	}
	if err := os.Remove(filepath.Join(pipe, "mute")); err != nil {
		t.Fatal(err)
	}
	if problems := g.check(t.Context()); len(problems) > 0 {
		t.Errorf("problems %q: expected none any more", problems)
	}
}

func TestProblemsOfDaemonsAreToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told sync.WaitGroup
		g := &gpus{trouble: make(chan []string, 1), log: silent}
		ctx, cancel := context.WithCancel(t.Context())
		told.Go(func() { g.watch(ctx) })
		time.Sleep(10 * healthEvery) // in the bubble's time
		synctest.Wait()
		select {
		case p := <-g.Problems():
			t.Errorf("told %q although nothing is wrong", p)
		default:
		}
		cancel()
		told.Wait()
	})
}

func TestRefusesToServeOnMoreThanItsShare(t *testing.T) {
	for _, c := range []struct {
		share, sms, seen int
		refused          bool
	}{
		{share: 20, sms: 132, seen: 26},
		{share: 10, sms: 132, seen: 12},
		{share: 20, sms: 132, seen: 132, refused: true},
		{share: 50, sms: 132, seen: 80, refused: true},
		{share: 100, sms: 132, seen: 132},
		{share: 20, sms: 0, seen: 132}, // not known
		{share: 1, sms: 132, seen: 2},
		{share: 2, sms: 46, seen: 1, refused: true}, // less than one SM
		{share: 3, sms: 46, seen: 1},
	} {
		if why := unpartitioned(c.share, c.sms, engine.Device{SMs: c.seen}); (why != "") != c.refused {
			t.Errorf("%+v: %q", c, why)
		}
	}
	if why := unpartitioned(2, 46, engine.Device{SMs: 1}); why != "share 2 % of 46 SMs is less than one SM: expected at least 3 %" {
		t.Errorf("less than one SM: %q", why)
	}
	eng := deviceEngine{sms: 132}
	cfg := gpuletConfig{Device: "cuda:0", Share: 20, SMs: 132}
	if _, err := cfg.checkShare(eng, silent); err == nil || !strings.Contains(err.Error(), "sees 132 of 132 SMs: expected 23 to 29, 20 %") {
		t.Errorf("error %v", err)
	}
	cfg.Limit, eng.sms = 40, 52
	if sms, err := cfg.checkShare(eng, silent); err != nil || sms != 52 {
		t.Errorf("%d SMs, %v: expected 52 to be the 40 %% that it may use", sms, err)
	}
	cfg.Limit, eng.sms = 0, 132
	cfg.Unlimited = true
	var log bytes.Buffer
	if sms, err := cfg.checkShare(eng, slog.New(slog.NewTextHandler(&log, nil))); err != nil || sms != 132 || !strings.Contains(log.String(), "serving unpartitioned") {
		t.Errorf("%d SMs, %v, log %q: expected a warning", sms, err, log.String())
	}
}

// TestAGPUThatTheEngineCannotUseIsLeftAlone, with the engine's own words; all of them are an error.
func TestAGPUThatTheEngineCannotUseIsLeftAlone(t *testing.T) {
	mpsCfg, inv := twoGPUs(t)
	g, err := startGPUs(t.Context(), mpsCfg, inv, false, silent)
	if err != nil {
		t.Fatal(err)
	}
	defer g.stop(context.Background())
	inv.Driver = "driver 470.1, CUDA 11.4"
	for i := range inv.Devices {
		inv.Devices[i].MemBytes = 80
	}
	worker := filepath.Join(t.TempDir(), "worker")
	script := "#!/bin/sh\ncase \"$CUDA_VISIBLE_DEVICES\" in \"$USABLE\") echo '{\"device\": {\"sms\": 132, \"mem_free\": 70}}' ;;" +
		" *) echo 'error: the driver is too old' >&2; exit 1 ;; esac\n"
	if err := os.WriteFile(worker, []byte(script), 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	cfg := &runConfig{Engine: engineConfig{Engine: engine.Reference, EngineLib: enginetest.ReferenceLibrary(t)}}
	const words = "GPU 3 (two, driver 470.1, CUDA 11.4)"

	t.Setenv("USABLE", "GPU-aaaaaaaa-1111")
	h := &host{Config: agent.Config{Inventory: *inv}, gpus: g}
	if err := h.measureGPUs(t.Context(), worker, cfg); err != nil {
		t.Fatal(err)
	}
	if d := h.Inventory.Devices; len(d) != 1 || d[0].Index != 0 || d[0].SMs != 132 || d[0].MemBytes != 70 {
		t.Errorf("devices %+v: expected the first, with 132 SMs and what is free of it", d)
	}
	if n := h.Inventory.Notes; len(n) != 1 || !strings.HasPrefix(n[0], words+" is left alone: ") || !strings.Contains(n[0], "the driver is too old") {
		t.Errorf("notes %q", n)
	}

	t.Setenv("USABLE", "none")
	h = &host{Config: agent.Config{Inventory: *inv}, gpus: g}
	if err := h.measureGPUs(t.Context(), worker, cfg); err == nil || !strings.Contains(err.Error(), words+": ") || !strings.Contains(err.Error(), "the driver is too old") {
		t.Errorf("error %v: expected one for each GPU", err)
	}
}

// deviceEngine only describes a device.
type deviceEngine struct {
	engine.Engine
	sms int
}

func (e deviceEngine) Device(string) (engine.Device, error) { return engine.Device{SMs: e.sms}, nil }

func TestALimitIsAtLeastTheShare(t *testing.T) {
	for limit, want := range map[int]string{0: "", 20: "", 40: "", 10: "limit 10: expected 20 to 100 percent, or 0", 101: "limit 101: expected"} {
		cfg := gpuletConfig{ID: "g", Share: 20, Limit: limit, Grace: time.Second, Engine: engineConfig{Engine: engine.Reference}}
		if err := cfg.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("limit %d: error %v: expected %q", limit, err, want)
		}
	}
}

func TestMPSHoldsAGpuletToItsLimit(t *testing.T) {
	cfg, inv := twoGPUs(t)
	g, err := startGPUs(t.Context(), cfg, inv, false, silent)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{gpus: g}
	defer h.close()
	for limit, want := range map[int]string{0: "=20", 40: "=40"} {
		start := agent.Start{Gpulet: plan.Gpulet{ID: "g", Share: 20, Limit: limit}, Device: inv.Devices[0]}
		if env := h.shareEnv(&runConfig{}, start); !slices.Contains(env, mps.ShareVariable+want) {
			t.Errorf("share 20, limit %d: environment %q lacks %s%s", limit, env, mps.ShareVariable, want)
		}
	}
}

func TestArgumentsOfAGpuletOnAGPU(t *testing.T) {
	cfg := &runConfig{DrainTimeout: 30 * time.Second}
	start := agent.Start{Gpulet: plan.Gpulet{ID: "g", GPU: 3, Share: 40}, Device: plan.Device{Index: 3, GPUType: "h100", SMs: 132}}
	args := strings.Join(gpuletArgs(cfg, device.CUDA, start), " ")
	for _, want := range []string{"--gpu 3", "--share 40", "--device cuda:0", "--gpu-type h100", "--sms 132"} {
		if !strings.Contains(args+" ", want+" ") {
			t.Errorf("arguments %q lack %q", args, want)
		}
	}
	if strings.Contains(args, "unpartitioned") {
		t.Errorf("arguments %q: expected the share to be checked", args)
	}
	if strings.Contains(args, "--limit") {
		t.Errorf("arguments %q: expected none of a limit, which is the share", args)
	}
	start.Gpulet.Limit = 60
	if args := strings.Join(gpuletArgs(cfg, device.CUDA, start), " "); !strings.Contains(args, "--limit 60") {
		t.Errorf("arguments %q: expected the limit of 60", args)
	}
	cfg.Uncapped = true
	if args := gpuletArgs(cfg, device.CUDA, start); !slices.Contains(args, "--allow-unpartitioned") {
		t.Errorf("arguments %q of an uncapped gpu-let", args)
	}
}
