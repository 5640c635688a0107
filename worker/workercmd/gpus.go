package workercmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpulet/gpulet/shared/cli"
	"github.com/gpulet/gpulet/worker/internal/agent"
	"github.com/gpulet/gpulet/worker/internal/device"
	"github.com/gpulet/gpulet/worker/internal/mps"
)

// mpsConfig are the settings of sharing GPUs.
type mpsConfig struct {
	// Dir holds the daemons' pipes. Its path has to be short: see mps.Config.
	Dir string `env:"MPS_DIR" usage:"folder of the MPS daemons started here (default gpulet-mps-<uid> in the folder of temporary files)"`
	// Control is NVIDIA's program.
	Control string `env:"MPS_CONTROL" envDefault:"nvidia-cuda-mps-control" usage:"NVIDIA's MPS control program"`
}

func (c mpsConfig) daemon(uuid string, log *slog.Logger) mps.Config {
	dir := c.Dir
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "gpulet-mps-"+strconv.Itoa(os.Geteuid()))
	}
	adopt := os.Getenv("CUDA_MPS_PIPE_DIRECTORY")
	if adopt == "" {
		adopt = mps.SystemPipeDir
	}
	return mps.Config{UUID: uuid, Dir: dir, Adopt: []string{adopt}, Binary: c.Control, Log: log}
}

// gpus are the MPS daemons of the host's GPUs, one each.
type gpus struct {
	daemons map[int]*mps.Daemon // by index of the GPU
	log     *slog.Logger
	trouble chan []string
}

var _ agent.Sharing = (*gpus)(nil)

// healthEvery is how often daemons are asked whether they live.
const healthEvery = 3 * time.Second

// startGPUs starts or adopts a daemon for each device. Devices without one leave the inventory, with
// a note; without any device left it fails. With unpartitioned, devices that MPS cannot share stay,
// to be used as a whole.
func startGPUs(ctx context.Context, cfg mpsConfig, inv *device.Inventory, unpartitioned bool, log *slog.Logger) (*gpus, error) {
	g := &gpus{daemons: map[int]*mps.Daemon{}, log: log, trouble: make(chan []string, 1)}
	kept := inv.Devices[:0:0]
	var errs []error
	for _, d := range inv.Devices {
		daemon, err := mps.Start(ctx, cfg.daemon(d.UUID, log))
		switch {
		case err == nil:
			g.daemons[d.Index] = daemon
		case unpartitioned:
			d.Shares = []int{100}
			inv.Notes = append(inv.Notes, fmt.Sprintf("GPU %d (%s) serves as a whole: %v", d.Index, d.Name, err))
		default:
			errs = append(errs, fmt.Errorf("GPU %d: %w", d.Index, err))
			inv.Notes = append(inv.Notes, fmt.Sprintf("GPU %d (%s) is left alone: %v", d.Index, d.Name, err))
			continue
		}
		kept = append(kept, d)
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("%w (--allow-unpartitioned serves on whole GPUs)", errors.Join(errs...))
	}
	inv.Devices = kept
	return g, nil
}

// env makes a process a client of its GPU's daemon.
func (g *gpus) env(index int, uuid string, l mps.Limits) []string {
	if d := g.daemons[index]; d != nil {
		return d.Env(l)
	}
	return []string{"CUDA_VISIBLE_DEVICES=" + uuid}
}

// Release implements agent.Sharing.
func (g *gpus) Release(ctx context.Context, index, pid int) error {
	if d := g.daemons[index]; d != nil {
		return d.Terminate(ctx, pid)
	}
	return nil
}

// Problems implements agent.Sharing.
func (g *gpus) Problems() <-chan []string { return g.trouble }

// watch looks after the daemons until ctx ends: those that are gone are started again.
func (g *gpus) watch(ctx context.Context) {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	var last []string
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := g.check(ctx)
		if ctx.Err() != nil || slices.Equal(now, last) {
			continue
		}
		last = now
		select {
		case <-g.trouble: // nobody has read the one before
		default:
		}
		g.trouble <- now
	}
}

// check returns what is wrong and could not be mended, by GPU.
func (g *gpus) check(ctx context.Context) (problems []string) {
	for _, index := range slices.Sorted(maps.Keys(g.daemons)) {
		d := g.daemons[index]
		err := d.Health(ctx)
		if err == nil {
			continue
		}
		g.log.Error("MPS daemon does not answer, starting it again", "gpu", index, "error", err)
		if err := d.Revive(ctx); err != nil {
			problems = append(problems, fmt.Sprintf("GPU %d: %v", index, err))
		}
	}
	return problems
}

// stop ends the daemons that are this process's own.
func (g *gpus) stop(ctx context.Context) {
	var stopping sync.WaitGroup
	for index, d := range g.daemons {
		stopping.Go(func() {
			if err := d.Stop(ctx); err != nil {
				g.log.Warn("MPS daemon not ended", "gpu", index, "error", err)
			}
		})
	}
	stopping.Wait()
}

// isMPSClient reports whether whoever started this process has given it a share of a GPU.
func isMPSClient() bool { return os.Getenv(mps.ShareVariable) != "" }

// runAsMPSClient runs this very command again in a process that has a share of the GPU: a process
// cannot end the daemon whose client it is.
func runAsMPSClient(cmd *cobra.Command, cfg mps.Config, share int) error {
	d, err := mps.Start(cmd.Context(), cfg)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := d.Stop(ctx); err != nil {
			cfg.Log.Warn("MPS daemon not ended", "error", err)
		}
	}()
	program, err := self()
	if err != nil {
		return err
	}
	again := exec.CommandContext(cmd.Context(), program, os.Args[1:]...)
	again.Env = append(os.Environ(), d.Env(mps.Limits{Share: share})...)
	again.Stdin, again.Stdout, again.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	var exit *exec.ExitError
	if err := again.Run(); errors.As(err, &exit) && exit.ExitCode() > 0 {
		return cli.WithCode(exit.ExitCode(), nil) // it has said why
	} else if err != nil {
		return err
	}
	return nil
}
