// Package mpstest is a stand-in for NVIDIA's MPS control program, for machines without a GPU.
package mpstest

import (
	_ "embed"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

//go:embed nvidia-cuda-mps-control
var script []byte

// Program writes the stand-in into a folder of the test and returns its path. Daemons that are left
// in dirs (see mps.Config.Dir) are ended with the test.
func Program(t testing.TB, dirs ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nvidia-cuda-mps-control")
	if err := os.WriteFile(path, script, 0o700); err != nil { //nolint:gosec // it has to be executable
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, dir := range dirs {
			left, _ := filepath.Glob(filepath.Join(dir, "*", "pipe", "nvidia-cuda-mps-control.pid"))
			for _, file := range left {
				if pid := readPID(file); pid > 0 {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
	})
	return path
}

// PID is the process id of the daemon in a pipe directory, 0 when there is none.
func PID(pipe string) int { return readPID(filepath.Join(pipe, "nvidia-cuda-mps-control.pid")) }

// SetClients says which clients the daemon of a pipe directory shall list, all of one server.
func SetClients(t testing.TB, pipe string, pids ...int) {
	t.Helper()
	lines := ""
	for _, pid := range pids {
		lines += strconv.Itoa(pid) + "\n"
	}
	if err := os.WriteFile(filepath.Join(pipe, "clients"), []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Commands are those that the daemon of a pipe directory was given, in order.
func Commands(pipe string) []string {
	data, _ := os.ReadFile(filepath.Join(pipe, "commands"))
	return strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' })
}

func readPID(file string) int {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return pid
}
