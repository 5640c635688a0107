package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gpulet/gpulet/shared/lifecycle"
)

// bench runs models with worker exec: without queue and planner, each in a process with its share.
type bench struct {
	cfg *config
	env []string
}

// startBench starts an MPS daemon for the GPU where there is one to be had. stop ends it.
func startBench(ctx context.Context, cfg *config) (b *bench, stop func(), err error) {
	b = &bench{cfg: cfg}
	if strings.HasPrefix(cfg.Device, "sim") {
		return nil, nil, fmt.Errorf("device %s: a simulated GPU runs no models: expected cuda:N, or cpu to try it out", cfg.Device)
	}
	if !cfg.onGPU() {
		return b, func() {}, nil
	}
	uuid, _, err := output(ctx, nil, "nvidia-smi", "-i", cfg.index(), "--query-gpu=uuid", "--format=csv,noheader")
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "gpulet-mps-")
	if err != nil {
		return nil, nil, err
	}
	b.env = []string{
		"CUDA_VISIBLE_DEVICES=" + strings.TrimSpace(string(uuid)),
		"CUDA_MPS_PIPE_DIRECTORY=" + filepath.Join(dir, "pipe"), "CUDA_MPS_LOG_DIRECTORY=" + filepath.Join(dir, "log"),
	}
	for _, name := range []string{"pipe", "log"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return nil, nil, err
		}
	}
	if err := b.daemon(ctx); err != nil {
		return nil, nil, err
	}
	return b, func() {
		quit := exec.Command("nvidia-cuda-mps-control")
		quit.Env, quit.Stdin = append(os.Environ(), b.env...), strings.NewReader("quit\n")
		if err := quit.Run(); err != nil {
			say("the MPS daemon did not end: %v", err)
		}
		_ = os.RemoveAll(dir)
	}, nil
}

// daemon starts the MPS daemon, which goes on in the background.
func (b *bench) daemon(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "nvidia-cuda-mps-control", "-d")
	cmd.Env = append(os.Environ(), b.env...)
	// It inherits no pipe of this program, which would wait for its end, and no signal of a terminal.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("nvidia-cuda-mps-control -d: %w", err)
	}
	return nil
}

// execRun is a model that runs batches of one size back to back on a share.
type execRun struct {
	Model string `json:"model"`
	Share int    `json:"share"`
	Batch int    `json:"batch"`
	// layout is that of the model's profile.
	layout string
	eager  bool
}

// execResult is what worker exec --json says of it.
type execResult struct {
	Count         int     `json:"count"`
	P50Ms         float64 `json:"p50_ms"`
	P99Ms         float64 `json:"p99_ms"`
	SamplesPerSec float64 `json:"samples_per_s"`
	LoadMs        float64 `json:"load_ms"`
	SMs           int     `json:"sms"`
	Cores         int     `json:"cores"`
}

func (b *bench) args(r execRun, count int) []string {
	args := []string{
		"exec", r.Model, strconv.Itoa(count), strconv.Itoa(r.Batch), "0", strconv.Itoa(r.Share),
		"--models", b.cfg.Models, "--device", b.cfg.Device, "--engine-lib", b.cfg.EngineLib, "--json",
	}
	if r.layout != "" {
		args = append(args, "--layout", r.layout)
	}
	if r.eager {
		args = append(args, "--eager")
	}
	return args
}

// client is the environment of a process with a share. worker exec takes itself for a client of the daemon
// where it finds it, and starts none of its own.
func (b *bench) client(share int) []string {
	if len(b.env) == 0 {
		return nil
	}
	return append(slices.Clone(b.env), "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE="+strconv.Itoa(share))
}

// run runs count batches alone.
func (b *bench) run(ctx context.Context, r execRun, count int) (res execResult, err error) {
	out, _, err := output(ctx, b.client(r.Share), b.cfg.program("worker"), b.args(r, count)...)
	if err != nil {
		return res, err
	}
	return res, json.Unmarshal(out, &res)
}

// longRun is more batches than a process runs before it is told to stop.
const longRun = 1_000_000

// together runs all of them at the same time for about span: they begin when the last has loaded, so that
// every median is one beside all others, and the median of one alone is measured in the same way.
func (b *bench) together(ctx context.Context, runs []execRun, span time.Duration) ([]execResult, error) {
	ctx, stop := context.WithTimeout(ctx, span+60*time.Second)
	var started []*running
	defer func() {
		stop()
		for _, p := range started {
			_ = p.input.Close() // of one that is held still
			<-p.done
		}
	}()
	for _, r := range runs {
		p, err := b.start(ctx, r)
		if err != nil {
			return nil, err
		}
		started = append(started, p)
	}
	for _, p := range started {
		if err := p.loaded(ctx); err != nil {
			return nil, err
		}
	}
	for _, p := range started {
		_ = p.input.Close() // that of a process that has ended fails, which its results show
	}
	if err := lifecycle.Sleep(ctx, span); err != nil {
		return nil, err
	}
	stop()
	results := make([]execResult, len(runs))
	for i, p := range started {
		<-p.done
		if err := json.Unmarshal(p.out.Bytes(), &results[i]); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", runs[i].Model, err, tail(p.words.String(), 300))
		}
	}
	return results, nil
}

// running is a worker exec in the background.
type running struct {
	cmd        *exec.Cmd
	input      io.Closer // its end makes the process run
	out, words bytes.Buffer
	ready      chan struct{} // closed when the model is loaded
	done       chan struct{} // closed when it has ended
}

// start starts a process that loads a model and is held then. The end of ctx tells it to stop, and
// makes it, should it take too long.
func (b *bench) start(ctx context.Context, r execRun) (*running, error) {
	args := append(b.args(r, longRun), "--hold")
	p := &running{cmd: exec.CommandContext(ctx, b.cfg.program("worker"), args...), ready: make(chan struct{}), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), b.client(r.Share)...)
	p.cmd.Stdout = &p.out
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGINT) }
	p.cmd.WaitDelay = 10 * time.Second
	input, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.input = input
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		lines := bufio.NewReader(io.TeeReader(stderr, &p.words))
		for line, err := lines.ReadString('\n'); err == nil; line, err = lines.ReadString('\n') {
			if strings.Contains(line, " is on ") {
				close(p.ready)
			}
		}
		_ = p.cmd.Wait()
	}()
	return p, nil
}

func (p *running) loaded(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-p.done:
		return fmt.Errorf("worker exec has ended: %s", tail(p.words.String(), 300))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// names reads a list that is separated by spaces.
func names(text string) []string { return strings.Fields(text) }

// tens are the shares 10, 20 … 100.
func tens() (shares []int) {
	for s := 10; s <= 100; s += 10 {
		shares = append(shares, s)
	}
	return shares
}

// sorted is the ascending order of values.
func sorted(values []float64) []float64 {
	values = slices.Clone(values)
	slices.Sort(values)
	return values
}

// quantile of values, by nearest rank; 0 of none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	return sorted(values)[min(len(values)-1, int(q*float64(len(values))))]
}
