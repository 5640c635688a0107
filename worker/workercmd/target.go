package workercmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/worker/internal/affinity"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/mps"
	"github.com/gpulet/gpulet/worker/internal/profiler"
)

// target is the device that is measured, and how processes on its shares are started.
type target struct {
	cfg     *profileConfig
	program string
	inv     device.Inventory
	dev     plan.Device
	engine  string        // version, once it was asked for
	gpus    *gpus         // of a GPU
	meter   *device.Meter // of a GPU that has counters
}

// newTarget finds the device. close must be called at the end.
func newTarget(ctx context.Context, cfg *profileConfig, choice device.Choice, say func(string, ...any)) (*target, error) {
	program, err := self()
	if err != nil {
		return nil, err
	}
	inv, err := device.Discover(choice, nil)
	if err != nil {
		return nil, err
	}
	t := &target{cfg: cfg, program: program, inv: inv, dev: inv.Devices[0]}
	if t.isGPU() {
		if err := t.useGPU(ctx, choice, say); err != nil {
			t.close()
			return nil, err
		}
	}
	for _, note := range t.inv.Notes {
		say("%s", note)
	}
	return t, nil
}

// useGPU prepares the first GPU of the inventory, or turns to the CPU where the engine knows no GPUs
// and nobody insists.
func (t *target) useGPU(ctx context.Context, choice device.Choice, say func(string, ...any)) error {
	p, err := probe(ctx, t.program, t.cfg.Engine, "", nil)
	if err != nil {
		return err
	}
	t.engine = p.Info.Version
	if !p.Info.CUDA {
		why := fmt.Sprintf("engine %s was built without CUDA (scripts/gpu/build_engine.sh builds one with it)", p.Info.Version)
		if choice.Kind == device.CUDA {
			return fmt.Errorf("device %s: %s", t.cfg.Device, why)
		}
		if t.inv, err = device.Discover(device.Choice{Kind: device.CPU}, nil); err != nil {
			return err
		}
		t.inv.Notes = append(t.inv.Notes, "measuring on the CPU: "+why)
		t.dev = t.inv.Devices[0]
		return nil
	}
	t.inv.Devices = t.inv.Devices[:1]
	log := slog.New(slog.DiscardHandler)
	if t.gpus, err = startGPUs(ctx, t.cfg.MPS, &t.inv, t.cfg.AllowUnpartitioned, log); err != nil {
		return fmt.Errorf("device %s: %w", t.cfg.Device, err)
	}
	t.dev = t.inv.Devices[0]
	for _, share := range t.cfg.shares {
		if len(t.dev.Shares) > 0 && !slices.Contains(t.dev.Shares, share) {
			return fmt.Errorf("--shares: found %d: %s", share, strings.Join(t.inv.Notes, "; "))
		}
	}
	if p, err = probe(ctx, t.program, t.cfg.Engine, "cuda:0", t.gpus.env(t.dev.Index, t.dev.UUID, mps.Limits{})); err != nil {
		return fmt.Errorf("GPU %d (%s, %s): %w", t.dev.Index, t.dev.Name, t.inv.Driver, err)
	}
	t.dev.SMs = p.Device.SMs
	if t.meter, err = device.OpenMeter(t.dev.UUID); err != nil {
		say("no counters of the GPU: %v", err)
	}
	return nil
}

func (t *target) close() {
	if t.meter != nil {
		t.meter.Close()
	}
	if t.gpus != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		t.gpus.stop(ctx)
	}
}

func (t *target) isGPU() bool { return t.inv.Kind == device.CUDA }

// engineVersion asks a process for it, once; empty where it cannot say.
func (t *target) engineVersion(ctx context.Context) string {
	if t.engine == "" {
		if p, err := probe(ctx, t.program, t.cfg.Engine, "", nil); err == nil {
			t.engine = p.Info.Version
		}
	}
	return t.engine
}

// gpuShares are measured by default: closer together where time changes faster.
var gpuShares = []int{10, 20, 30, 40, 50, 60, 80, 100}

// shares are those measured by default: of a GPU, else powers of two of cores, and all of them.
func (t *target) shares() []int {
	if t.isGPU() {
		if len(t.dev.Shares) > 0 { // MPS cannot share it
			return t.dev.Shares
		}
		return gpuShares
	}
	n := len(t.inv.Cores)
	if all := device.CoreShares(n); len(all) <= 4 {
		return all
	}
	var shares []int
	for _, k := range profiler.Batches(n) { // the same powers of two
		shares = append(shares, max(1, 100*k/n))
	}
	return slices.Compact(shares)
}

// extent says in words what a share is.
func (t *target) extent(share int) string {
	if t.isGPU() {
		return ""
	}
	return fmt.Sprintf(" (%d of %d cores)", device.CoresOf(share, len(t.inv.Cores)), len(t.inv.Cores))
}

// check refuses a process that sees more of a GPU than its share.
func (t *target) check(h profiler.Hello, share int) error {
	if !t.isGPU() || t.cfg.AllowUnpartitioned {
		return nil
	}
	if why := unpartitioned(share, t.dev.SMs, engine.Device{SMs: h.SMs}); why != "" {
		return errors.New(why)
	}
	return nil
}

// endWithin is how long a process may take to end when it is told to.
const endWithin = 10 * time.Second

// start starts a process on a share: a profiler.Starter.
func (t *target) start(ctx context.Context, at profiler.Place) (*profiler.Process, error) {
	cmd := t.command(ctx, at)
	requests, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	answers, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", t.program, err)
	}
	return profiler.Attach(requests, answers, func() error {
		_, _ = io.Copy(io.Discard, answers)
		if err := cmd.Wait(); err != nil {
			return errors.New(strings.TrimPrefix(lastLine(words.String(), err), "gpulet worker: "))
		}
		return nil
	})
}

// command is a process on a share. It has a process group of its own, so that Ctrl-C on a terminal
// reaches it by way of ctx only: it ends after the batch that it runs, and is killed when that takes
// too long, once MPS has let go of it.
func (t *target) command(ctx context.Context, at profiler.Place) *exec.Cmd {
	args := []string{"bench", "--share", strconv.Itoa(at.Share)}
	env := gpuletEnv()
	if t.isGPU() {
		args = append(args, "--device", "cuda:0") // the only one that it sees
		env = append(env, t.gpus.env(t.dev.Index, t.dev.UUID, mps.Limits{Share: at.Share})...)
	} else {
		args = append(args, "--device", "cpu", "--cores", joinInts(t.cores(at)))
	}
	cmd := exec.CommandContext(ctx, t.program, append(args, t.cfg.Engine.args()...)...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = endWithin
	cmd.Cancel = func() error {
		if t.gpus != nil {
			time.AfterFunc(endWithin/2, func() { t.release(cmd.Process.Pid) })
		}
		return cmd.Process.Signal(syscall.SIGTERM)
	}
	return cmd
}

// release has MPS let go of a process that does not end, which must come before it is killed. It is
// harmless when the process has ended.
func (t *target) release(pid int) {
	ctx, cancel := context.WithTimeout(context.Background(), endWithin/2)
	defer cancel()
	_ = t.gpus.Release(ctx, t.dev.Index, pid)
}

// cores are those of a share of the CPU that begins after what others have.
func (t *target) cores(at profiler.Place) []int {
	n := len(t.inv.Cores)
	from := at.Beside * n / 100
	var cores []int
	for i := range device.CoresOf(at.Share, n) {
		cores = append(cores, t.inv.Cores[(from+i)%n])
	}
	slices.Sort(cores)
	return cores
}

// saveDevice notes what a GPU is and what a process takes of its memory, beside what is known already.
func (p *profiling) saveDevice(contextBytes int64) error {
	t := p.target
	if !t.isGPU() || contextBytes == 0 {
		return nil
	}
	path := filepath.Join(p.cfg.out, t.dev.GPUType, profile.DeviceFile)
	d := &profile.Device{GPUType: t.dev.GPUType}
	if data, err := os.ReadFile(path); err == nil {
		known, err := profile.ParseDevice(path, data)
		if err != nil {
			return err
		}
		d = known
	}
	d.Name, d.MemBytes, d.SMs, d.ContextBytes = t.dev.Name, t.dev.MemBytes, t.dev.SMs, contextBytes
	d.Source = "measured on the host by `worker profile`, " + time.Now().UTC().Format(time.DateOnly)
	return profile.WriteJSON(path, d)
}

// benchConfig are the settings of `worker bench`.
type benchConfig struct {
	Engine engineConfig
	Device string `env:"DEVICE" envDefault:"cpu" usage:"device of the engine: cpu or cuda:0"`
	Share  int    `env:"SHARE" envDefault:"100" usage:"percent of the device, to be noted"`
	Cores  []int  `env:"CORES" usage:"cores to run on"`
}

func newBenchCommand() *cobra.Command {
	cfg := &benchConfig{}
	cmd := &cobra.Command{
		Use:    "bench",
		Short:  "Measure models as it is asked to on standard input (started by profile)",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			return runBench(cmd, cfg)
		},
	}
	cli.Bind(cmd, cfg)
	return cmd
}

// runBench restricts the process to its cores, which must come before the engine's library, and
// serves.
func runBench(cmd *cobra.Command, cfg *benchConfig) error {
	threads := 1
	if len(cfg.Cores) > 0 {
		threads = len(cfg.Cores)
		if err := affinity.Set(cfg.Cores); err != nil {
			return err
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	eng, err := engine.Open(cfg.Engine.Engine, engine.Options{Library: cfg.Engine.EngineLib, Threads: threads})
	if err != nil {
		return err
	}
	defer eng.Close()
	bench := &profiler.Bench{Engine: eng, Device: cfg.Device, Share: cfg.Share}
	return bench.Serve(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
}
