package mps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// askTimeout bounds one question to a daemon, which answers within milliseconds.
const askTimeout = 5 * time.Second

// pidFile is where a daemon writes its process id, in its pipe directory.
const pidFile = "nvidia-cuda-mps-control.pid"

// control speaks to the daemon of one pipe directory through the control program, which reads
// commands from its standard input.
type control struct {
	program string
	pipe    string
}

// presence is what is found in a pipe directory.
type presence int

const (
	absent  presence = iota // no daemon, or what one left when it died
	answers                 // a daemon that takes commands from this user
)

// look finds out whether a daemon answers. The error says of one that is there and cannot be used why.
func (c control) look(ctx context.Context) (presence, error) {
	pid, err := c.daemonPID()
	switch {
	case errors.Is(err, fs.ErrPermission):
		return absent, fmt.Errorf("MPS directory %s: %w: it belongs to another user: stop the daemon there, or run as that user", c.pipe, plain(err))
	case err != nil, !alive(pid):
		return absent, nil
	}
	if _, err := c.ask(ctx, "get_server_list"); err != nil {
		if uid, ok := ownerOf(pid); ok && uid != os.Geteuid() {
			return absent, fmt.Errorf("the MPS daemon in %s (pid %d) runs as uid %d and takes no commands from uid %d: stop it (echo quit | %s, as that user), or run as that user",
				c.pipe, pid, uid, os.Geteuid(), DefaultBinary)
		}
		return absent, fmt.Errorf("the MPS daemon in %s (pid %d) does not answer: %w", c.pipe, pid, err)
	}
	return answers, nil
}

// daemonPID is what the daemon wrote, else an error.
func (c control) daemonPID() (int, error) {
	data, err := os.ReadFile(filepath.Join(c.pipe, pidFile))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// ask gives the daemon one command and returns what it prints.
func (c control) ask(ctx context.Context, command string) (string, error) {
	out, err := c.run(ctx, command+"\n", nil)
	if err != nil {
		return "", fmt.Errorf("MPS %s: %w%s", command, err, quoted(out))
	}
	return out, nil
}

// pids asks for a list of process ids, one a line.
func (c control) pids(ctx context.Context, command string) ([]int, error) {
	out, err := c.ask(ctx, command)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, line := range strings.Fields(out) {
		pid, err := strconv.Atoi(line)
		if err != nil {
			return nil, fmt.Errorf("MPS %s: found %q: expected process ids", command, out)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// run runs the control program and returns what it printed, on either stream.
func (c control) run(ctx context.Context, input string, env []string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.program, args...)
	cmd.Env = append(append(os.Environ(), "CUDA_MPS_PIPE_DIRECTORY="+c.pipe), env...)
	cmd.Stdin = strings.NewReader(input)
	// Files and not pipes: the daemon inherits them, and a pipe would be waited for until it ends.
	out, err := os.CreateTemp("", "gpulet-mps-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	// The daemon must not get the signals of the agent's terminal.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer within %v", askTimeout)
	}
	words, _ := os.ReadFile(out.Name())
	return string(bytes.TrimSpace(words)), err
}

// find returns the path of the control program.
func find(binary string) (string, error) {
	if binary == "" {
		binary = DefaultBinary
	}
	path, err := exec.LookPath(binary)
	if err != nil {
		return "", fmt.Errorf("%w: %s is not in PATH: it comes with the NVIDIA driver (package nvidia-compute-utils); without it no gpu-let can be limited to a share", ErrNoBinary, binary)
	}
	return path, nil
}

// alive reports whether a process runs. One that ended and that nobody has waited for, as in a
// container without an init, does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The state follows the name, which stands in brackets and may hold anything.
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	return !bytes.HasPrefix(rest, []byte(" Z")) && !bytes.HasPrefix(rest, []byte(" X"))
}

// ownerOf is the user that a process runs as.
func ownerOf(pid int) (uid int, ok bool) {
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(st.Uid), true
}

func plain(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
