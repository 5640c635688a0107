// Package device finds what a host can run gpu-lets on: its GPUs, its CPU, or virtual GPUs that
// answer from a profile.
//
// It only looks. It starts nothing and changes no setting of any device.
package device

import (
	"fmt"
	"regexp"
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

// Parse reads auto, cuda, cpu or sim:<type>[x<count>][,<type>[x<count>]...]; ":" may stand for
// "x", which a type that itself ends in x and digits needs.
func Parse(s string) (Choice, error) {
	kind, list, listed := strings.Cut(s, ":")
	switch {
	case !listed && (Kind(s) == Auto || Kind(s) == CUDA || Kind(s) == CPU):
		return Choice{Kind: Kind(s)}, nil
	case Kind(kind) != Sim || !listed:
		return Choice{}, fmt.Errorf("device %q: expected auto, cuda, cpu or sim:<gpu type>x<count>, such as sim:h100x4", s)
	}
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
	// Notes are things an operator should see.
	Notes []string
}

// Discover looks for what was chosen. profiles say how large virtual GPUs are.
func Discover(c Choice, profiles *profile.Set) (Inventory, error) {
	switch c.Kind {
	case Sim:
		return simulated(c, profiles)
	case CPU:
		return newHost().inventory()
	}
	gpus, err := GPUs()
	if c.Kind == CUDA {
		if err != nil {
			return Inventory{}, fmt.Errorf("device cuda: %w", err)
		}
		return Inventory{}, fmt.Errorf("device cuda: found %s, but this build does not serve on CUDA yet: use --device cpu", describe(gpus))
	}
	inv, cpuErr := newHost().inventory()
	if len(gpus) > 0 {
		inv.Notes = append(inv.Notes, fmt.Sprintf("found %s, but this build does not serve on CUDA yet: serving on the CPU", describe(gpus)))
	}
	return inv, cpuErr
}

func describe(gpus []GPU) string {
	names := make([]string, len(gpus))
	for i, g := range gpus {
		names[i] = g.Name
	}
	if len(gpus) == 1 {
		return "a GPU (" + names[0] + ")"
	}
	return fmt.Sprintf("%d GPUs (%s)", len(gpus), strings.Join(names, ", "))
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
