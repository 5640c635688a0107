// Package mps runs NVIDIA's Multi-Process Service for one GPU: the control daemon through which the
// processes of gpu-lets share the GPU, each with its percentage of the SMs.
//
// Each GPU has a daemon of its own, with its own pipe and log directories, so that a fault on one
// GPU concerns no other. A daemon that already answers is adopted: used as it is, and left running
// at the end, unless it was left by a process of ours that is gone.
//
// The package only starts, asks and ends daemons. It changes no compute mode, clock or MIG setting,
// and decides nothing about gpu-lets.
//
// Without a daemon that answers, a CUDA process runs unpartitioned and says nothing. Whoever relies
// on a share must therefore check how many SMs its process sees.
package mps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// DefaultBinary is the control program, which comes with the driver.
const DefaultBinary = "nvidia-cuda-mps-control"

// ShareVariable is the variable of a client's environment that holds its share.
const ShareVariable = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"

// SystemPipeDir is where CUDA looks for a daemon when no variable says otherwise.
const SystemPipeDir = "/tmp/nvidia-mps"

// ErrNoBinary: the host has no MPS control program.
var ErrNoBinary = errors.New("no MPS control program")

// Config says which daemon to run.
type Config struct {
	// UUID of the GPU, as in GPU-6f8a....
	UUID string
	// Dir holds the pipe and log directories of the daemons that are started here, one folder per
	// GPU. Sockets lie in it, whose paths may have at most 107 bytes: keep it short.
	Dir string
	// Adopt lists pipe directories in which a running daemon is looked for, before one is started.
	// See SystemPipeDir.
	Adopt []string
	// Binary is the control program; empty: DefaultBinary, as found in PATH.
	Binary string
	Log    *slog.Logger
}

// Daemon is the control daemon of a GPU. Its methods may be called from several goroutines.
type Daemon struct {
	control
	uuid string
	logs string
	lock *os.File // held by the process that owns the daemon; nil: somebody else does
	log  *slog.Logger
}

// Start finds the daemon that serves the GPU, or starts one. The error says what an operator can do.
func Start(ctx context.Context, cfg Config) (*Daemon, error) {
	program, err := find(cfg.Binary)
	if err != nil {
		return nil, err
	}
	home := filepath.Join(cfg.Dir, shortID(cfg.UUID))
	d := &Daemon{uuid: cfg.UUID, log: cfg.Log}
	own := filepath.Join(home, "pipe")
	for _, pipe := range append([]string{own}, cfg.Adopt...) {
		d.control, d.logs = control{program: program, pipe: pipe}, filepath.Join(filepath.Dir(pipe), "log")
		state, err := d.look(ctx)
		if err != nil {
			return nil, err
		}
		if state != answers {
			continue
		}
		if pipe == own { // the process that started it may be gone
			d.lock, _ = takeLock(home)
		}
		d.log.Info("adopted an MPS daemon", "gpu", cfg.UUID, "pipe", pipe, "owned", d.Owned())
		return d, nil
	}
	d.control, d.logs = control{program: program, pipe: own}, filepath.Join(home, "log")
	if err := d.begin(ctx, home); err != nil {
		return nil, err
	}
	d.log.Info("started an MPS daemon", "gpu", cfg.UUID, "pipe", own, "log", d.logs)
	return d, nil
}

// begin starts the daemon of home as its owner.
func (d *Daemon) begin(ctx context.Context, home string) error {
	if err := privateDir(filepath.Dir(home)); err != nil {
		return err
	}
	if err := privateDir(home); err != nil {
		return err
	}
	lock, err := takeLock(home)
	if err != nil {
		return fmt.Errorf("MPS directory %s: another process is about to start or end a daemon there: %w", home, err)
	}
	d.lock = lock
	if err := d.launch(ctx); err != nil {
		d.unlock()
		return err
	}
	return nil
}

// takeLock makes this process the owner of the daemon of home, until it unlocks or ends.
func takeLock(home string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(home, "owner"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (d *Daemon) unlock() {
	if d.lock != nil {
		_ = d.lock.Close() // which gives the lock back
		d.lock = nil
	}
}

// Owned reports whether the daemon is this process's to end.
func (d *Daemon) Owned() bool { return d.lock != nil }

// Limits are what one client process may have of the GPU.
type Limits struct {
	// Share is the percentage of SMs, 1 to 100; 0 sets no limit.
	Share int
	// PinnedBytes bounds the device memory that the process may allocate; 0 sets no limit.
	PinnedBytes int64
}

// Env is the environment by which a process becomes a client of the daemon, to be appended to the
// rest. The process sees the GPU as device 0.
func (d *Daemon) Env(l Limits) []string {
	env := []string{
		"CUDA_VISIBLE_DEVICES=" + d.uuid,
		"CUDA_MPS_PIPE_DIRECTORY=" + d.pipe,
		"CUDA_MPS_LOG_DIRECTORY=" + d.logs,
	}
	if l.Share > 0 {
		env = append(env, ShareVariable+"="+strconv.Itoa(l.Share))
	}
	if l.PinnedBytes > 0 {
		const mib = 1 << 20
		env = append(env, fmt.Sprintf("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=%dM", max(1, l.PinnedBytes/mib)))
	}
	return env
}

// Health reports whether the daemon still answers.
func (d *Daemon) Health(ctx context.Context) error {
	state, err := d.look(ctx)
	if err == nil && state != answers {
		err = fmt.Errorf("the MPS daemon of %s (%s) is gone", d.uuid, d.pipe)
	}
	return err
}

// Revive starts a daemon again that is gone. One that was adopted is not ours to start.
func (d *Daemon) Revive(ctx context.Context) error {
	if !d.Owned() {
		return fmt.Errorf("the MPS daemon in %s is gone, and was started by somebody else: start it again, or restart the agent, which then runs its own", d.pipe)
	}
	return d.launch(ctx)
}

// Terminate makes the daemon's server let go of a client process. Under MPS, that must come before
// a client is killed: one that dies with work in flight may take the server with it. It is no error
// when the process is no client.
func (d *Daemon) Terminate(ctx context.Context, pid int) error {
	servers, err := d.pids(ctx, "get_server_list")
	if err != nil {
		return err
	}
	for _, server := range servers {
		clients, err := d.pids(ctx, fmt.Sprintf("get_client_list %d", server))
		if err != nil {
			return err
		}
		for _, client := range clients {
			if client == pid {
				_, err := d.ask(ctx, fmt.Sprintf("terminate_client %d %d", server, client))
				return err
			}
		}
	}
	return nil
}

// Stop ends the daemon if this process owns it. Clients must have ended.
func (d *Daemon) Stop(ctx context.Context) error {
	if !d.Owned() {
		return nil
	}
	defer d.unlock()
	if _, err := d.ask(ctx, "quit"); err != nil {
		return err
	}
	return d.waitGone(ctx)
}

// launch starts the daemon, which puts itself into the background, and waits until it answers.
func (d *Daemon) launch(ctx context.Context) error {
	for _, dir := range []string{d.pipe, d.logs} {
		if err := privateDir(dir); err != nil {
			return err
		}
	}
	if n := len(d.pipe) + len("/control_privileged"); n > 107 {
		return fmt.Errorf("MPS directory %s: found a path of %d bytes for its sockets: expected at most 107: set a shorter one", d.pipe, n)
	}
	words, err := d.run(ctx, "", []string{"CUDA_VISIBLE_DEVICES=" + d.uuid, "CUDA_MPS_LOG_DIRECTORY=" + d.logs}, "-d")
	if err != nil {
		return fmt.Errorf("start the MPS daemon of %s: %w%s", d.uuid, err, quoted(words))
	}
	if state, err := d.look(ctx); err != nil || state != answers {
		return fmt.Errorf("the MPS daemon of %s was started and does not answer in %s (%w): see %s/control.log", d.uuid, d.pipe, errors.Join(err, errSilent), d.logs)
	}
	return nil
}

var errSilent = errors.New("no answer")

// waitGone waits until the daemon that was told to quit has gone.
func (d *Daemon) waitGone(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		state, err := d.look(ctx)
		if err == nil && state != answers {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the MPS daemon of %s does not end: %w", d.uuid, ctx.Err())
		}
	}
}

// privateDir makes a directory that only this user can write to: whoever can replace a socket in it
// could pose as the daemon.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("MPS directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("MPS directory: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("MPS directory %s: found uid %d as its owner: expected %d, this user: set another one", dir, st.Uid, os.Geteuid())
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("MPS directory %s: found permissions %v: expected one that only its owner can write to", dir, perm)
	}
	return nil
}

// shortID is enough of a UUID to tell the GPUs of a host apart.
func shortID(uuid string) string {
	id := strings.TrimPrefix(uuid, "GPU-")
	return id[:min(len(id), 13)]
}

func quoted(words string) string {
	if words == "" {
		return ""
	}
	return fmt.Sprintf(": %q", words)
}
