package workercmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/bus"
	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/shared/profile"
	"github.com/gpulet/gpulet/worker/internal/agent"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/engine"
	"github.com/gpulet/gpulet/worker/internal/mps"
	"github.com/gpulet/gpulet/worker/internal/privilege"
	"github.com/gpulet/gpulet/worker/internal/reconcile"
)

// host is what an agent is made for: the devices, and how to start processes on them.
type host struct {
	agent.Config
	gpus *gpus // nil: none serve

	user *syscall.Credential // of gpu-lets; nil: the agent's
	seed *os.File            // of the worker's key, for another user to read; nil: not opened yet
}

// newHost finds what the host has. close must be called once its gpu-lets have ended.
func newHost(ctx context.Context, cfg *runConfig, log *slog.Logger) (*host, error) {
	choice, err := device.Parse(cfg.Device)
	if err != nil {
		return nil, err
	}
	program, err := self()
	if err != nil {
		return nil, err
	}
	as, err := privilege.Lookup(cfg.GpuletUser)
	if err != nil {
		return nil, err
	}
	inv, err := device.Discover(choice, simProfiles(choice, cfg, log))
	if err != nil {
		return nil, err
	}
	if cfg.Host == "" {
		cfg.Host = device.HostID()
	}
	if cfg.ProfileCache == "" {
		cfg.ProfileCache = filepath.Join(cfg.Bus.StateDir, "profiles")
	}
	limits := reconcile.DefaultLimits
	limits.Drain = cfg.DrainTimeout
	h := &host{user: as, Config: agent.Config{Host: cfg.Host, Inventory: inv, Repository: cfg.Models, Limits: limits, Log: log}}
	switch {
	case inv.Kind == device.Sim:
		cfg.Engine = engineConfig{Engine: engine.Simulated}
		h.Engine, h.Repository = "simulated", ""
	case inv.Kind == device.CUDA:
		err = h.useGPUs(ctx, program, cfg, choice)
	default:
		err = h.useCPU(ctx, program, cfg)
	}
	if err != nil {
		return nil, err
	}
	h.Command = func(s agent.Start) *exec.Cmd {
		cmd := exec.Command(program, gpuletArgs(cfg, h.Inventory.Kind, s)...)
		cmd.Env = append(gpuletEnv(), h.shareEnv(cfg, s)...)
		if h.demote(cmd, cfg.Bus) {
			cmd.Args = append(cmd.Args, "--nats-nkey", privilege.FileOf(0))
		}
		return cmd
	}
	if cfg.standsBy(h.Inventory.Kind) {
		h.Standby = func() *exec.Cmd {
			cmd := exec.Command(program, standbyArgs(cfg, h.Inventory.Cores)...)
			cmd.Env = gpuletEnv()
			h.demote(cmd, cfg.Bus)
			return cmd
		}
	}
	return h, nil
}

// standsBy reports whether a process is to have the engine's libraries loaded before they are needed.
// Those with CUDA take half a second; on a CPU, loading them takes the cores of what serves.
func (c *runConfig) standsBy(kind device.Kind) bool {
	return c.Standby == "on" || c.Standby == "auto" && kind == device.CUDA
}

// demote has cmd run as the user of gpu-lets, if they have one. The worker's key is the agent's alone:
// the process gets a copy to read, as its first extra file, if there is a key.
func (h *host) demote(cmd *exec.Cmd, b bus.Config) (keyed bool) {
	if h.user == nil {
		return false
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: h.user}
	if h.seed == nil {
		file := b.NKey
		if file == "" {
			file = bus.KeyFile(b.StateDir, bus.RoleWorker)
		}
		seed, err := privilege.Secret(file)
		if errors.Is(err, os.ErrNotExist) && b.NKey == "" {
			return false // a bus without keys
		}
		if err != nil {
			h.Log.Error("gpu-lets have no key to log in with", "user", h.user.Uid, "error", err)
			return false
		}
		h.seed = seed
	}
	cmd.ExtraFiles = []*os.File{h.seed}
	return true
}

func simProfiles(choice device.Choice, cfg *runConfig, log *slog.Logger) *profile.Set {
	if choice.Kind != device.Sim {
		return nil
	}
	set, problems := profile.LoadDir(cfg.Profiles)
	for _, p := range problems {
		log.Warn("profile ignored", "error", p)
	}
	return set
}

func (h *host) useCPU(ctx context.Context, program string, cfg *runConfig) error {
	p, err := probe(ctx, program, cfg.Engine, "", nil)
	if err != nil {
		return err
	}
	h.Engine = p.Info.Version
	m := &measurement{program: program, cfg: cfg, gpuType: h.Inventory.Devices[0].GPUType, log: h.Log}
	h.Profile = m.profile
	return nil
}

// useGPUs prepares the GPUs: a daemon for each, through which the engine must see it. Where nobody
// asked for GPUs, an engine that was built without CUDA serves on the CPU instead.
func (h *host) useGPUs(ctx context.Context, program string, cfg *runConfig, choice device.Choice) error {
	p, err := probe(ctx, program, cfg.Engine, "", nil)
	if err != nil {
		return err
	}
	h.Engine = p.Info.Version
	if !p.Info.CUDA {
		why := fmt.Sprintf("engine %s was built without CUDA (scripts/gpu/build_engine.sh builds one with it)", p.Info.Version)
		if choice.Kind == device.CUDA {
			return fmt.Errorf("device %s: %s", cfg.Device, why)
		}
		if h.Inventory, err = device.Discover(device.Choice{Kind: device.CPU}, nil); err != nil {
			return err
		}
		h.Inventory.Notes = append(h.Inventory.Notes, "serving on the CPU: "+why)
		return h.useCPU(ctx, program, cfg)
	}
	if h.gpus, err = startGPUs(ctx, cfg.MPS, &h.Inventory, cfg.AllowUnpartitioned, h.Log); err != nil {
		return fmt.Errorf("device %s: %w", cfg.Device, err)
	}
	h.Sharing = h.gpus
	if err := h.measureGPUs(ctx, program, cfg); err != nil {
		h.close()
		return err
	}
	return nil
}

// measureGPUs has the engine say what it sees of each GPU: how many SMs, and how much memory is free.
// GPUs that it cannot use leave the inventory, with a note; without any left it fails.
func (h *host) measureGPUs(ctx context.Context, program string, cfg *runConfig) error {
	kept := h.Inventory.Devices[:0:0]
	var errs []error
	for _, d := range h.Inventory.Devices {
		p, err := probe(ctx, program, cfg.Engine, "cuda:0", h.gpus.env(d.Index, d.UUID, mps.Limits{}))
		if err != nil {
			errs = append(errs, fmt.Errorf("GPU %d (%s, %s): %w", d.Index, d.Name, h.Inventory.Driver, err))
			h.Inventory.Notes = append(h.Inventory.Notes, fmt.Sprintf("GPU %d (%s, %s) is left alone: %v", d.Index, d.Name, h.Inventory.Driver, err))
			continue
		}
		d.SMs = p.Device.SMs
		if p.Device.MemFree > 0 {
			d.MemBytes = min(d.MemBytes, p.Device.MemFree)
		}
		kept = append(kept, d)
	}
	if len(kept) == 0 {
		return errors.Join(errs...)
	}
	h.Inventory.Devices = kept
	return nil
}

// close ends what was started for the host.
func (h *host) close() {
	if h.seed != nil {
		_ = h.seed.Close()
	}
	if h.gpus == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	h.gpus.stop(ctx)
}

// shareEnv gives a gpu-let's process its share of a GPU; nothing elsewhere.
func (h *host) shareEnv(cfg *runConfig, s agent.Start) []string {
	if h.gpus == nil {
		return nil
	}
	limits := mps.Limits{Share: s.Gpulet.MaxShare(), PinnedBytes: s.MemBytes}
	if cfg.Uncapped {
		limits.Share = 0
	}
	return h.gpus.env(s.Device.Index, s.Device.UUID, limits)
}

// gpuletArgs are the arguments of a gpu-let's process.
func gpuletArgs(cfg *runConfig, kind device.Kind, s agent.Start) []string {
	engineDevice := string(kind)
	if kind == device.CUDA {
		engineDevice = "cuda:0" // the only one that its process sees
	}
	args := []string{
		"gpulet", "--gpulet-id", s.Gpulet.ID, "--host", cfg.Host, "--gpu", strconv.Itoa(s.Gpulet.GPU), "--share", strconv.Itoa(s.Gpulet.Share),
		"--gpu-type", s.Device.GPUType, "--device", engineDevice, "--sms", strconv.Itoa(s.Device.SMs),
		"--grace", (cfg.DrainTimeout * 4 / 5).String(), "--hang-after", cfg.HangAfter.String(),
		"--nats-url", cfg.Bus.URL, "--nats-nkey", cfg.Bus.NKey, "--nats-inbox-prefix", cfg.Bus.InboxPrefix,
		"--state-dir", cfg.Bus.StateDir, "--log-level", cfg.Telemetry.LogLevel, "--log-format", cfg.Telemetry.LogFormat,
	}
	if most := s.Gpulet.MaxShare(); most > s.Gpulet.Share {
		args = append(args, "--limit", strconv.Itoa(most))
	}
	args = append(args, cfg.Engine.args()...)
	if kind == device.Sim {
		args = append(args, "--profiles", cfg.Profiles)
	}
	if cfg.Streams {
		args = append(args, "--streams")
	}
	if cfg.AllowUnpartitioned || cfg.Uncapped {
		args = append(args, "--allow-unpartitioned")
	}
	if len(s.Cores) > 0 {
		args = append(args, "--cores", joinInts(s.Cores))
	}
	return args
}

// standbyArgs are the arguments of a process that stands by on a host whose gpu-lets share these cores.
func standbyArgs(cfg *runConfig, cores []int) []string {
	args := append([]string{"standby"}, cfg.Engine.args()...)
	if len(cores) > 0 {
		args = append(args, "--cores", joinInts(cores))
	}
	return args
}

// gpuletEnv is the environment of a gpu-let's process: with large messages, collecting garbage less
// often cuts the tail of latencies by a third. What the operator set is kept.
func gpuletEnv() []string {
	env := os.Environ()
	for key, value := range map[string]string{"GOGC": "400", "GOMEMLIMIT": "2GiB"} {
		if os.Getenv(key) == "" {
			env = append(env, key+"="+value)
		}
	}
	return env
}

// probed is what a process with the engine says of it.
type probed struct {
	engine.Info
	Device engine.Device `json:"device"` // of the one that was asked for
}

// probe opens the engine in a process of its own, which shows that gpu-lets can, without the agent
// having to hold the engine's memory. With a device it also says what the engine sees of that.
func probe(ctx context.Context, program string, cfg engineConfig, device string, env []string) (probed, error) {
	var p probed
	if _, err := engine.FindLibrary(cfg.Engine, cfg.EngineLib); err != nil {
		return p, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	args := append([]string{"engine"}, cfg.args()...)
	if device != "" {
		args = append(args, "--device", device)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		return p, fmt.Errorf("engine %s cannot be used: %s", cfg.Engine, lastLine(words.String(), err))
	}
	if err := json.Unmarshal(out.Bytes(), &p); err != nil {
		return p, fmt.Errorf("engine %s: found %.100q: expected its description", cfg.Engine, out.String())
	}
	return p, nil
}

// lastLine is what a process that failed said last, else how it ended.
func lastLine(words string, err error) string {
	lines := strings.Split(strings.TrimSpace(words), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return last
	}
	return err.Error()
}

func newEngineCommand() *cobra.Command {
	cfg := &engineConfig{}
	var dev string // no setting: the agent's own must not be taken for it
	cmd := &cobra.Command{
		Use:    "engine",
		Short:  "Describe the engine as JSON",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Load(cmd, cfg); err != nil {
				return err
			}
			eng, err := engine.Open(cfg.Engine, engine.Options{Library: cfg.EngineLib, Threads: 1})
			if err != nil {
				return err
			}
			p := probed{Info: eng.Info()}
			if dev != "" {
				p.Device, err = eng.Device(dev)
			}
			return errors.Join(err, json.NewEncoder(cmd.OutOrStdout()).Encode(p), eng.Close())
		},
	}
	cli.Bind(cmd, cfg)
	cmd.Flags().StringVar(&dev, "device", "", "device to describe too, such as cuda:0")
	return cmd
}

// unpartitioned says why a process must not serve: it sees more of the GPU than its share, or has to,
// since MPS gives no less than an SM. Empty: all is well, or nothing can be told.
func unpartitioned(share, sms int, seen engine.Device) string {
	if sms <= 0 || seen.SMs <= 0 {
		return ""
	}
	if share*sms < 100 {
		return fmt.Sprintf("share %d %% of %d SMs is less than one SM: expected at least %d %%", share, sms, (100+sms-1)/sms)
	}
	least, most := device.ExpectedSMs(share, sms)
	if seen.SMs <= most {
		return ""
	}
	return fmt.Sprintf("the process sees %d of %d SMs: expected %d to %d, %d %%: MPS does not limit it (is its daemon running, and CUDA_MPS_PIPE_DIRECTORY its pipe directory?)",
		seen.SMs, sms, least, most, share)
}
