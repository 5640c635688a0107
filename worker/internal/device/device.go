// Package device finds what a host can run gpu-lets on: its GPUs, its CPU, or virtual GPUs that
// answer from a profile.
//
// It only looks. It starts nothing and changes no setting of any device.
package device

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/gpulet/gpulet/shared/plan"
	"github.com/gpulet/gpulet/shared/profile"
)

// Kind is what serves on a host.
type Kind string

// The kinds.
const (
	Auto Kind = "auto" // CUDA where there are GPUs, else CPU
	CUDA Kind = "cuda"
	CPU  Kind = "cpu"
	Sim  Kind = "sim"
)

// Choice is a parsed --device.
type Choice struct {
	Kind Kind
	GPUs []int     // of CUDA: indices, ascending; none: all that are free
	Sim  []SimGPUs // of Sim
}

// SimGPUs are virtual GPUs of one type.
type SimGPUs struct {
	Type  string
	Count int
}

var simRE = regexp.MustCompile(`^([a-z0-9][a-z0-9_.-]{0,62}?)(?:[x:]([0-9]{1,4}))?$`)

// MaxSim bounds the virtual GPUs of one host.
const MaxSim = 1024

// parseHint is what Parse takes.
const parseHint = "expected auto, cuda, cpu or sim:<gpu type>x<count>, such as sim:h100x4 or cuda:0,2"

// Parse reads auto, cuda, cuda:<index>[,<index>...], cpu or sim:<type>[x<count>][,<type>[x<count>]...];
// ":" may stand for "x", which a type that itself ends in x and digits needs.
func Parse(s string) (Choice, error) {
	kind, list, listed := strings.Cut(s, ":")
	switch {
	case !listed && (Kind(s) == Auto || Kind(s) == CUDA || Kind(s) == CPU):
		return Choice{Kind: Kind(s)}, nil
	case listed && Kind(kind) == CUDA:
		return parseGPUs(s, list)
	case listed && Kind(kind) == Sim:
		return parseSim(s, list)
	}
	return Choice{}, fmt.Errorf("device %q: %s", s, parseHint)
}

func parseGPUs(s, list string) (Choice, error) {
	c := Choice{Kind: CUDA}
	for _, part := range strings.Split(list, ",") {
		index, err := strconv.Atoi(part)
		if err != nil || index < 0 {
			return Choice{}, fmt.Errorf("device %q: found %q: expected the index of a GPU, from 0", s, part)
		}
		c.GPUs = append(c.GPUs, index)
	}
	slices.Sort(c.GPUs)
	c.GPUs = slices.Compact(c.GPUs)
	return c, nil
}

func parseSim(s, list string) (Choice, error) {
	c := Choice{Kind: Sim}
	total := 0
	for _, part := range strings.Split(list, ",") {
		m := simRE.FindStringSubmatch(part)
		if m == nil {
			return Choice{}, fmt.Errorf("device %q: found %q: expected <gpu type>x<count>, such as h100x4", s, part)
		}
		n := 1
		if m[2] != "" {
			n, _ = strconv.Atoi(m[2])
		}
		if total += n; n < 1 || total > MaxSim {
			return Choice{}, fmt.Errorf("device %q: found %q: expected 1 to %d GPUs on a host", s, part, MaxSim)
		}
		c.Sim = append(c.Sim, SimGPUs{m[1], n})
	}
	return c, nil
}

// Inventory is what a host has.
type Inventory struct {
	Kind    Kind // CUDA, CPU or Sim
	Devices []plan.Device
	// Cores are those that the CPU device may use, ascending.
	Cores []int
	// Driver describes the NVIDIA driver, where GPUs serve.
	Driver string
	// Notes are things an operator should see.
	Notes []string
}

// Device returns the device of an index, which need not be its place in Devices: GPUs that are left
// alone keep theirs.
func (inv Inventory) Device(index int) (plan.Device, bool) {
	i := slices.IndexFunc(inv.Devices, func(d plan.Device) bool { return d.Index == index })
	if i < 0 {
		return plan.Device{}, false
	}
	return inv.Devices[i], true
}

// Indices lists the devices by index.
func (inv Inventory) Indices() []int {
	list := make([]int, len(inv.Devices))
	for i, d := range inv.Devices {
		list[i] = d.Index
	}
	return list
}

// Discover looks for what was chosen. profiles say how large virtual GPUs are.
func Discover(c Choice, profiles *profile.Set) (Inventory, error) {
	switch c.Kind {
	case Sim:
		return simulated(c, profiles)
	case CPU:
		return newHost().inventory()
	}
	gpus, driver, err := GPUs()
	return serving(c, gpus, driver, err, newHost())
}

// serving decides between the GPUs that were found, or the reason why there are none, and the CPU.
func serving(c Choice, gpus []GPU, driver Driver, err error, cpu host) (Inventory, error) {
	var inv Inventory
	if err == nil {
		inv, err = cuda(c.GPUs, gpus, driver)
	}
	switch {
	case err == nil:
		return inv, nil
	case c.Kind == CUDA:
		return Inventory{}, fmt.Errorf("device cuda: %w", err)
	}
	onCPU, cpuErr := cpu.inventory()
	onCPU.Notes = append(onCPU.Notes, inv.Notes...)
	if !errors.Is(err, ErrNoDriver) && len(inv.Notes) == 0 {
		onCPU.Notes = append(onCPU.Notes, err.Error())
	}
	return onCPU, cpuErr
}

// simMem is the memory of a virtual GPU whose type says nothing about it.
const simMem = 80 << 30

func simulated(c Choice, profiles *profile.Set) (Inventory, error) {
	inv := Inventory{Kind: Sim}
	for _, s := range c.Sim {
		if profiles == nil || len(profiles.Models(s.Type)) == 0 {
			return Inventory{}, fmt.Errorf("device sim:%s: no profile of this GPU type: expected <profiles>/%s/<model>.json", s.Type, s.Type)
		}
		dev := plan.Device{GPUType: s.Type, Name: "sim " + s.Type, MemBytes: simMem, Sim: true}
		if d, ok := profiles.Device(s.Type); ok {
			dev.Shares = d.Shares
			if d.Name != "" {
				dev.Name = "sim " + d.Name
			}
			if d.MemBytes > 0 {
				dev.MemBytes = d.MemBytes
			}
		}
		for range s.Count {
			dev.Index = len(inv.Devices)
			inv.Devices = append(inv.Devices, dev)
		}
	}
	return inv, nil
}
