// Package privilege starts the processes that run models with no more rights than they need: models
// are files from elsewhere, read by large libraries.
//
// It works on Linux. What it takes away no child can get back. What the child may still do is what
// its user may.
package privilege

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start starts cmd so that neither it nor its children can gain rights by executing a file: bits for
// set-user-id and file capabilities have no effect (PR_SET_NO_NEW_PRIVS). Errors are those of
// cmd.Start, and of a kernel that does not know how.
func Start(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		// The attribute is a thread's, passed on to what it starts, and cannot be taken back: the thread
		// ends with this goroutine, since it is never unlocked.
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			started <- fmt.Errorf("start %s: no new privileges: %w", cmd.Path, err)
			return
		}
		started <- cmd.Start()
	}()
	return <-started
}

// Lookup finds the user to start processes as: a name, with all of its groups, or <uid>:<gid>. Nil for
// "": the own one. It fails where this process may not become another user.
func Lookup(name string) (*syscall.Credential, error) {
	if name == "" {
		return nil, nil
	}
	c, err := parse(name)
	if err != nil {
		c, err = named(name)
	}
	if err != nil {
		return nil, err
	}
	if own := uint32(os.Geteuid()); own != 0 && own != c.Uid {
		return nil, fmt.Errorf("user %q: this process runs as user %d and cannot start others as %d: run it as root, or as that user", name, own, c.Uid)
	}
	if os.Geteuid() != 0 {
		return nil, nil // it is that user already
	}
	return c, nil
}

func parse(name string) (*syscall.Credential, error) {
	uid, gid, ok := strings.Cut(name, ":")
	u, uerr := strconv.ParseUint(uid, 10, 32)
	g, gerr := strconv.ParseUint(gid, 10, 32)
	if !ok || uerr != nil || gerr != nil {
		return nil, errors.New("not <uid>:<gid>")
	}
	return &syscall.Credential{Uid: uint32(u), Gid: uint32(g)}, nil
}

func named(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("user %q: expected the name of a user, or <uid>:<gid>: %w", name, err)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("user %q: groups: %w", name, err)
	}
	c, err := parse(u.Uid + ":" + u.Gid)
	if err != nil {
		return nil, fmt.Errorf("user %q: found user %q, group %q: expected numbers", name, u.Uid, u.Gid)
	}
	for _, g := range groups {
		id, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %q: found group %q: expected a number", name, g)
		}
		c.Groups = append(c.Groups, uint32(id))
	}
	return c, nil
}

// Secret is a copy of a file in memory that a process may read to which it is given, whoever its user
// is, under the name that FileOf returns. Close it when no more processes are to get it.
func Secret(file string) (*os.File, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	fd, err := unix.MemfdCreate("secret", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory for a copy of %s: %w", file, err)
	}
	f := os.NewFile(uintptr(fd), file)
	_, err = f.Write(data)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("memory for a copy of %s: %w", file, err)
	}
	return f, nil
}

// FileOf is the name under which a process reads the extra file of that index.
func FileOf(extra int) string { return fmt.Sprintf("/proc/self/fd/%d", 3+extra) }
