package workercmd

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/engine/enginetest"
	"github.com/gpulet/gpulet/worker/internal/profiler"
)

// profileArgs measure models of the reference engine on the CPU.
func profileArgs(t *testing.T, repository, out string, more ...string) []string {
	t.Helper()
	return append([]string{
		"profile", "--repository", repository, "--out", out, "--device", "cpu", "--engine", "ref", "--engine-lib", enginetest.ReferenceLibrary(t),
	}, more...)
}

// writeRefModels writes models of the reference engine, which double their input.
func writeRefModels(t *testing.T, names ...string) (root string) {
	t.Helper()
	root = t.TempDir()
	for _, name := range names {
		for path, content := range map[string]string{
			"model.yaml": "name: " + name + "\nslo: 1s\nmax_batch: 4\ninputs: [{name: x, dtype: FP32, shape: [4]}]\noutputs: [{name: y, dtype: FP32, shape: [4]}]\n",
			"1/model.pt": "gpulet-ref 1\n# " + name + "\ninput x FP32\naffine y FP32 0 2 x\n",
		} {
			path = filepath.Join(root, name, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

// loadProfiles reads what was written for the one GPU type of out.
func loadProfiles(t *testing.T, out string) (set *profile.Set, gpuType string) {
	t.Helper()
	set, problems := profile.LoadDir(out)
	if len(problems) > 0 || len(set.Types()) != 1 {
		t.Fatalf("%v, types %v", problems, set.Types())
	}
	return set, set.Types()[0]
}

func TestProfileWithCorunsAndReport(t *testing.T) {
	repository, out := writeRefModels(t, "a", "b"), t.TempDir()
	page := filepath.Join(t.TempDir(), "profile.html")
	p := worker(t, profileArgs(t, repository, out, "--quick", "--budget", "5s", "--corun", "--corun-budget", "2s", "--html", page)...)
	if code := p.wait(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	set, gpuType := loadProfiles(t, out)
	if diff := cmp.Diff([]string{"a", "b"}, set.Models(gpuType)); diff != "" {
		t.Error(diff)
	}
	a, _ := set.Get(gpuType, "a")
	if a.Inputs["x"] != "FP32" || a.Torch == "" || a.Points[0].N == 0 {
		t.Errorf("profile %+v", a)
	}
	runs, ok := set.Corun(gpuType)
	if !ok || len(runs.Runs) < 2 || len(runs.ModelHashes) != 2 || runs.Torch != a.Torch {
		t.Fatalf("co-runs %+v", runs)
	}
	text, err := os.ReadFile(page)
	if err != nil || !strings.Contains(string(text), "Profile of "+gpuType) || !strings.Contains(string(text), "Interference") {
		t.Errorf("page %v: %.200s", err, text)
	}

	// Another run adds to what there is.
	p = worker(t, profileArgs(t, repository, out, "--quick", "--budget", "5s", "--corun", "--corun-budget", "1s")...)
	if code := p.wait(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	p.waitLog(`a: measured before, see .*a\.json`)
	p.waitLog(`corun\.json: going on from \d+ measurements, 0 of other archives dropped`)
	set, _ = loadProfiles(t, out)
	more, _ := set.Corun(gpuType)
	if len(more.Runs) <= len(runs.Runs) || !cmp.Equal(more.Runs[:len(runs.Runs)], runs.Runs) {
		t.Errorf("%d measurements after %d: expected those and more", len(more.Runs), len(runs.Runs))
	}
	if _, ok := set.Interference(gpuType); !ok {
		t.Error("no interference.json after two runs")
	}
}

func TestProfileGoesOnWhereItWasInterrupted(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f"}
	repository, out := writeRefModels(t, names...), t.TempDir()
	args := profileArgs(t, repository, out, "--shares", "50,100", "--batches", "1", "--budget", "5s")
	slow := worker(t, args...)
	slow.waitLog(`a: +\d+%`)
	if err := slow.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	code := slow.wait()
	set, gpuType := loadProfiles(t, out)
	before := map[string][]profile.Point{}
	for _, name := range set.Models(gpuType) {
		p, _ := set.Get(gpuType, name)
		before[name] = p.Points
	}
	if len(before) == 0 {
		t.Fatal("nothing was kept")
	}
	if text, _ := slow.log.state(); code != 0 && !strings.Contains(text, "what was measured is kept in") {
		t.Errorf("exit code %d: expected words on what is kept", code)
	}
	again := worker(t, args...)
	if code := again.wait(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	set, _ = loadProfiles(t, out)
	for _, name := range names {
		p, ok := set.Get(gpuType, name)
		if !ok || !slices.Equal(p.Shares(), []int{50, 100}) {
			t.Fatalf("%s: %+v", name, p)
		}
		for _, q := range before[name] {
			if !slices.Contains(p.Points, q) {
				t.Errorf("%s: %+v was measured again", name, q)
			}
		}
	}
}

func TestProfileMeasuresAgainWhatChanged(t *testing.T) {
	repository, out := writeRefModels(t, "a"), t.TempDir()
	args := profileArgs(t, repository, out, "--quick", "--budget", "5s")
	run := func(more ...string) string {
		t.Helper()
		p := worker(t, append(args, more...)...)
		if code := p.wait(); code != 0 {
			t.Fatalf("exit code %d", code)
		}
		text, _ := p.log.state()
		return text
	}
	run()
	if text := run(); !strings.Contains(text, "a: measured before") || strings.Contains(text, "a:  50%") {
		t.Errorf("measured again:\n%s", text)
	}
	if text := run("--force"); strings.Contains(text, "measured before") || !strings.Contains(text, "a: 100%") {
		t.Errorf("not measured again:\n%s", text)
	}
	if text := run("--batches", "1,2,3,4"); !strings.Contains(text, "a: measured in part before, going on") || !strings.Contains(text, "b3 ") || strings.Contains(text, "b2 ") {
		t.Errorf("expected only what was missing:\n%s", text)
	}
	if err := os.WriteFile(filepath.Join(repository, "a", "1", "model.pt"), []byte("gpulet-ref 1\n# new\ninput x FP32\naffine y FP32 0 2 x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text := run(); !strings.Contains(text, "a.json: refused, measuring again") || !strings.Contains(text, "found a profile of the archive") {
		t.Errorf("expected why it was measured again:\n%s", text)
	}
}

func TestProfileOfABrokenModelFailsAndMeasuresTheOthers(t *testing.T) {
	repository, out := writeRefModels(t, "bad", "good"), t.TempDir()
	if err := os.WriteFile(filepath.Join(repository, "bad", "1", "model.pt"), []byte("PK"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := worker(t, profileArgs(t, repository, out, "--quick", "--budget", "5s")...)
	if code := p.wait(); code != 1 {
		t.Errorf("exit code %d: expected 1", code)
	}
	p.waitLog(`not measured: bad \(share \d+%: load bad`)
	set, gpuType := loadProfiles(t, out)
	if diff := cmp.Diff([]string{"good"}, set.Models(gpuType)); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(filepath.Join(out, gpuType, profile.DeviceFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a device.json of a CPU: %v", err)
	}
}

func TestNeighboursOnACPUShareNoCore(t *testing.T) {
	s := &target{inv: device.Inventory{Kind: device.CPU, Cores: []int{2, 3, 4, 5, 6, 7, 8, 9}}}
	for _, split := range [][]int{{50, 50}, {25, 75}, {25, 25, 50}} {
		beside, users := 0, map[int]int{}
		for _, share := range split {
			for _, core := range s.cores(profiler.Place{Share: share, Beside: beside}) {
				users[core]++
			}
			beside += share
		}
		for _, core := range s.inv.Cores {
			if users[core] != 1 {
				t.Errorf("%v: core %d has %d users", split, core, users[core])
			}
		}
	}
}

func TestAProcessOnAGPUIsAClientWithItsShare(t *testing.T) {
	cfg, inv := twoGPUs(t)
	g, err := startGPUs(t.Context(), cfg, inv, false, silent)
	if err != nil {
		t.Fatal(err)
	}
	defer g.stop(t.Context())
	s := &target{cfg: &profileConfig{Engine: engineConfig{Engine: "torch", EngineLib: "/lib"}}, program: "worker", inv: *inv, dev: inv.Devices[1], gpus: g}
	cmd := s.command(t.Context(), profiler.Place{Share: 30})
	if got, want := strings.Join(cmd.Args, " "), "worker bench --share 30 --device cuda:0 --engine torch --engine-lib /lib"; got != want {
		t.Errorf("%s\nexpected %s", got, want)
	}
	for _, want := range []string{
		"CUDA_VISIBLE_DEVICES=" + s.dev.UUID, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=30", "CUDA_MPS_PIPE_DIRECTORY=" + pipeOf(cfg, s.dev.UUID),
	} {
		if !slices.Contains(cmd.Env, want) {
			t.Errorf("the environment lacks %s", want)
		}
	}
	s.dev.SMs = 132
	for _, c := range []struct {
		sms, share int
		held       bool
	}{{132, 100, true}, {40, 30, true}, {132, 30, false}} {
		if err := s.check(profiler.Hello{SMs: c.sms}, c.share); (err == nil) != c.held {
			t.Errorf("%d SMs on %d %%: %v", c.sms, c.share, err)
		}
	}
}

func TestTheDeviceFileKeepsWhatItHad(t *testing.T) {
	out := t.TempDir()
	path := filepath.Join(out, "h100", profile.DeviceFile)
	if err := profile.WriteJSON(path, profile.Device{GPUType: "h100", Shares: []int{50, 100}, ContextBytes: 1}); err != nil {
		t.Fatal(err)
	}
	p := &profiling{cfg: &profileConfig{out: out}, target: &target{
		inv: device.Inventory{Kind: device.CUDA}, dev: plan.Device{GPUType: "h100", Name: "NVIDIA H100", MemBytes: 80 << 30, SMs: 132},
	}}
	read := func() *profile.Device {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		d, err := profile.ParseDevice(path, data)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if err := p.saveDevice(0); err != nil || read().ContextBytes != 1 { // not measured
		t.Errorf("%+v, %v: expected it as it was", read(), err)
	}
	if err := p.saveDevice(500 << 20); err != nil {
		t.Fatal(err)
	}
	if d := read(); d.ContextBytes != 500<<20 || d.SMs != 132 || d.MemBytes != 80<<30 || !slices.Equal(d.Shares, []int{50, 100}) {
		t.Errorf("%+v", d)
	}
}

func TestProfileNeedsSensibleSettings(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"tolerance":    {[]string{"--tolerance", "2"}, 2, "tolerance 2: expected a fraction from 0 to 1"},
		"corun budget": {[]string{"--corun-budget", "0s"}, 2, "corun budget 0s: expected more than 0"},
		"batches":      {[]string{"--batches", "0"}, 2, "--batches: found 0: expected 1 to"},
		"device":       {[]string{"--device", "cuda:x"}, 2, `device "cuda:x"`},
	} {
		t.Run(name, func(t *testing.T) {
			p := worker(t, append([]string{"profile", "--repository", t.TempDir()}, c.args...)...)
			if code := p.wait(); code != c.code {
				t.Errorf("exit code %d: expected %d", code, c.code)
			}
			p.waitLog(c.want)
		})
	}
}
