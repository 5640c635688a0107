package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// cpuTimes is the CPU time that programs have used until now, by program; gpu-lets together.
type cpuTimes map[string]time.Duration

// tick is the unit of times in /proc: the kernel's USER_HZ, which is 100 wherever Linux runs.
const tick = 10 * time.Millisecond

// cpu reads the CPU time of the site's processes.
func (s *site) cpu() cpuTimes {
	times := cpuTimes{}
	for _, p := range []*process{s.frontend, s.planner, s.worker} {
		t, _ := readStat(p.cmd.Process.Pid)
		times[p.name] += t
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if t, parent := readStat(pid); parent == s.worker.cmd.Process.Pid {
			times["gpulets"] += t
		}
	}
	return times
}

// readStat is a process's CPU time and its parent; zero when it has gone.
func readStat(pid int) (cpu time.Duration, parent int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// The name of the program, in parentheses, may hold anything.
	f := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(f) < 13 {
		return 0, 0
	}
	number := func(i int) int64 { n, _ := strconv.ParseInt(string(f[i]), 10, 64); return n }
	return time.Duration(number(11)+number(12)) * tick, int(number(1))
}

// cores is how many cores were busy on average between two readings, by program.
func (after cpuTimes) cores(before cpuTimes, span time.Duration) map[string]float64 {
	busy := map[string]float64{}
	for name, t := range after {
		// Gpu-lets that have gone meanwhile took their time with them.
		busy[name] = max(0, (t-before[name]).Seconds()/span.Seconds())
	}
	return busy
}

// stolen reads the time that this virtual machine's cores wanted to run and its host let others; zero where
// the kernel does not tell.
func stolen() time.Duration {
	data, _ := os.ReadFile("/proc/stat")
	return stealOf(data)
}

// stealOf is the eighth figure of the first line of /proc/stat.
func stealOf(stat []byte) time.Duration {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) < 9 || string(f[0]) != "cpu" {
		return 0
	}
	n, _ := strconv.ParseInt(string(f[8]), 10, 64)
	return time.Duration(n) * tick
}

// sampler reads the utilisation of the GPU several times a second, where nvidia-smi is there.
type sampler struct {
	cmd *exec.Cmd

	mu   sync.Mutex // guards the fields below
	sum  float64
	n    int
	rest string
}

func startSampler(cfg *config) *sampler {
	s := &sampler{}
	if !cfg.onGPU() {
		return s
	}
	cmd := exec.Command("nvidia-smi", "-i", cfg.index(), "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200")
	cmd.Stdout = s
	if cmd.Start() == nil {
		s.cmd = cmd
	}
	return s
}

// Write takes lines of percentages.
func (s *sampler) Write(data []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := strings.Split(s.rest+string(data), "\n")
	s.rest = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		if v, err := strconv.ParseFloat(strings.TrimSpace(line), 64); err == nil {
			s.sum += v
			s.n++
		}
	}
	return len(data), nil
}

// take is the mean since it was called last, in percent; nil when nothing was read.
func (s *sampler) take() *float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == 0 {
		return nil
	}
	mean := s.sum / float64(s.n)
	s.sum, s.n = 0, 0
	return &mean
}

func (s *sampler) stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}
