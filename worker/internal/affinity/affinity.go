// Package affinity pins this process to some of the host's cores: what a share of a GPU is on a
// GPU, a number of cores is on a CPU.
//
// It works on Linux. Cores are numbered as the kernel numbers them. Which cores a share gets is
// decided elsewhere (package device).
package affinity

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Cores returns the cores that this process may use, ascending: all of the host, unless something
// (taskset, a container's cpuset) allows fewer.
func Cores() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read cpu affinity: %w", err)
	}
	cores := make([]int, 0, set.Count())
	for core := 0; len(cores) < set.Count(); core++ {
		if set.IsSet(core) {
			cores = append(cores, core)
		}
	}
	return cores, nil
}

// Set pins the whole process, threads that exist and threads to come, to cores. Call it early:
// libraries count the cores when they are loaded.
func Set(cores []int) error {
	var set unix.CPUSet
	for _, core := range cores {
		set.Set(core)
		if !set.IsSet(core) {
			return fmt.Errorf("core %d: expected 0 to %d", core, len(set)*64-1)
		}
	}
	if set.Count() == 0 {
		return errors.New("no cores: expected at least one")
	}
	return pinThreads(&set, cores)
}

// pinThreads pins thread by thread, since the kernel knows no affinity of a process. A new thread
// inherits from the one that starts it, so it repeats until it meets no thread for the first time.
func pinThreads(set *unix.CPUSet, cores []int) error {
	pinned := map[int]bool{}
	for {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list threads: %w", err)
		}
		news := false
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || pinned[tid] {
				continue
			}
			err = unix.SchedSetaffinity(tid, set)
			if err != nil && !errors.Is(err, unix.ESRCH) { // ended meanwhile
				return fmt.Errorf("pin to cores %v: %w", cores, err)
			}
			pinned[tid], news = true, true
		}
		if !news {
			return nil
		}
	}
}
