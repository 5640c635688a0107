package device

import (
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/worker/internal/affinity"
)

// host reads what the kernel says of the machine and of the limits this process runs under.
type host struct {
	root    fs.FS                 // the file system from /
	allowed func() ([]int, error) // the cores of the affinity mask
}

func newHost() host { return host{os.DirFS("/"), affinity.Cores} }

func (h host) inventory() (Inventory, error) {
	cores, err := h.cores()
	if err != nil {
		return Inventory{}, err
	}
	name := h.cpuName()
	return Inventory{
		Kind:  CPU,
		Cores: cores,
		Devices: []plan.Device{{
			GPUType:  cpuType(name, len(cores)),
			Name:     fmt.Sprintf("%s, %d cores", name, len(cores)),
			MemBytes: h.memory(),
			Shares:   CoreShares(len(cores)),
		}},
	}, nil
}

// cores are those of the affinity mask, as many of them as the CPU quotas of the process's control
// groups pay for.
func (h host) cores() ([]int, error) {
	cores, err := h.allowed()
	if err != nil {
		return nil, err
	}
	if quota := h.quota(); quota < float64(len(cores)) {
		cores = cores[:max(1, int(quota))]
	}
	return cores, nil
}

// quota is how many cores' time the process may use; infinite without a limit.
func (h host) quota() float64 {
	least := math.Inf(1)
	h.groups("cpu", func(dir string) {
		if f := strings.Fields(h.read(path.Join(dir, "cpu.max"))); len(f) == 2 {
			least = min(least, ratio(f[0], f[1]))
		}
		least = min(least, ratio(h.read(path.Join(dir, "cpu.cfs_quota_us")), h.read(path.Join(dir, "cpu.cfs_period_us"))))
	})
	return least
}

// ratio is a / b, infinite where that is no limit.
func ratio(a, b string) float64 {
	x, errX := strconv.ParseFloat(strings.TrimSpace(a), 64)
	y, errY := strconv.ParseFloat(strings.TrimSpace(b), 64)
	if errX != nil || errY != nil || x <= 0 || y <= 0 {
		return math.Inf(1)
	}
	return x / y
}

// memory is what the process may use, in bytes; 0 when unknown.
func (h host) memory() int64 {
	var total int64
	for _, line := range strings.Split(h.read("proc/meminfo"), "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			total = kib << 10
		}
	}
	h.groups("memory", func(dir string) {
		for _, file := range []string{"memory.max", "memory.limit_in_bytes"} {
			limit, err := strconv.ParseInt(strings.TrimSpace(h.read(path.Join(dir, file))), 10, 64)
			if err == nil && limit > 0 && limit < total {
				total = limit
			}
		}
	})
	return total
}

// groups calls f with the folder of every control group that limits the process: its own and
// those above it, in the unified hierarchy and in that of a version 1 controller.
func (h host) groups(controller string, f func(dir string)) {
	for _, line := range strings.Split(h.read("proc/self/cgroup"), "\n") {
		part := strings.SplitN(line, ":", 3)
		if len(part) != 3 {
			continue
		}
		base := "sys/fs/cgroup"
		switch {
		case part[1] == "":
		case strings.Contains(","+part[1]+",", ","+controller+","):
			base = path.Join(base, controller)
		default:
			continue
		}
		for dir := path.Clean("/" + part[2]); ; dir = path.Dir(dir) {
			f(path.Join(base, dir))
			if dir == "/" {
				break
			}
		}
	}
}

// read returns the text of a file, "" when it cannot be read.
func (h host) read(name string) string {
	data, err := fs.ReadFile(h.root, name)
	if err != nil {
		return ""
	}
	return string(data)
}

func (h host) cpuName() string {
	for _, line := range strings.Split(h.read("proc/cpuinfo"), "\n") {
		key, value, ok := strings.Cut(line, ":")
		if key = strings.TrimSpace(key); ok && (key == "model name" || key == "Model") && strings.TrimSpace(value) != "" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

var notSlug = regexp.MustCompile(`[^a-z0-9]+`)

// slug keeps lower-case letters and digits, joined by dashes, at most limit bytes.
func slug(s string, limit int) string {
	s = strings.Trim(notSlug.ReplaceAllString(strings.ToLower(s), "-"), "-")
	if len(s) > limit {
		s = strings.TrimRight(s[:limit], "-")
	}
	return s
}

// cpuType names the folder of profiles of this CPU and number of cores.
func cpuType(name string, cores int) string {
	for _, noise := range []string{"(R)", "(TM)", "CPU"} {
		name = strings.ReplaceAll(name, noise, " ")
	}
	name, _, _ = strings.Cut(name, "@") // the clock
	if name = slug(name, 48); name == "" {
		name = "unknown"
	}
	return fmt.Sprintf("cpu-%s-%dc", name, cores)
}

// HostID is what a host is called unless it is told: its name as [a-z0-9-]{1,32}.
func HostID() string {
	name, err := os.Hostname()
	if id := slug(name, 32); err == nil && id != "" {
		return id
	}
	return "host"
}
