package cli

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CollectSeldom trades memory for fewer garbage collections, each of which delays requests: requests
// of 150 to 600 KB had a 30 to 45 % lower p99 so. From half of the memory that the process may use on,
// memory counts again. GOGC and GOMEMLIMIT, where they are set, decide instead.
func CollectSeldom() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if limit := memoryLimit("/sys/fs/cgroup"); os.Getenv("GOMEMLIMIT") == "" && limit > 0 {
		debug.SetMemoryLimit(limit / 2)
	}
}

// memoryLimit is how many bytes the process may use: all of the machine's, or what its control group
// (version 2, mounted at root) allows. 0: not known.
func memoryLimit(root string) int64 {
	limit := int64(math.MaxInt64)
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		limit = int64(info.Totalram) * int64(info.Unit)
	}
	if text, err := os.ReadFile(filepath.Join(root, "memory.max")); err == nil {
		if most, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
			limit = min(limit, most)
		}
	}
	if limit == math.MaxInt64 {
		return 0
	}
	return limit
}
