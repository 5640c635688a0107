package device

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/gpulet/gpulet/shared/plan"
)

// Prohibited is the compute mode in which a GPU takes no CUDA process.
const Prohibited = "prohibited"

// cuda is the inventory of a host's GPUs: those that were chosen, else all that can be cut into
// gpu-lets and that nobody else uses. The others are left alone, and noted.
func cuda(chosen []int, gpus []GPU, driver Driver) (Inventory, error) {
	inv := Inventory{Kind: CUDA, Driver: driver.String()}
	for _, want := range chosen {
		if !slices.ContainsFunc(gpus, func(g GPU) bool { return g.Index == want }) {
			return Inventory{}, fmt.Errorf("found %s: expected an index below %d, not %d", describe(gpus), len(gpus), want)
		}
	}
	for _, g := range gpus {
		named := slices.Contains(chosen, g.Index)
		if len(chosen) > 0 && !named {
			continue
		}
		why := g.unfit()
		if why == "" && !named {
			why = g.taken()
		}
		switch {
		case why == "":
			inv.Devices = append(inv.Devices, plan.Device{
				Index: g.Index, GPUType: GPUType(g.Name), Name: g.Name, UUID: g.UUID, MemBytes: g.MemBytes,
			})
		case named:
			return Inventory{}, fmt.Errorf("GPU %d (%s) cannot be used: %s", g.Index, g.Name, why)
		default:
			inv.Notes = append(inv.Notes, fmt.Sprintf("GPU %d (%s) is left alone: %s", g.Index, g.Name, why))
		}
	}
	if len(inv.Devices) == 0 {
		return inv, errors.New("no GPU can be used: " + strings.Join(inv.Notes, "; "))
	}
	return inv, nil
}

// unfit says why a GPU cannot be cut into gpu-lets; empty: it can.
func (g GPU) unfit() string {
	switch {
	case g.MIG:
		return "it is in MIG mode, in which MPS cannot share it as a whole (nvidia-smi -i " + fmt.Sprint(g.Index) + " -mig 0 ends that)"
	case g.Mode == Prohibited:
		return "its compute mode is prohibited: expected default or exclusive-process"
	}
	return ""
}

// taken says who else computes on a GPU; empty: nobody.
func (g GPU) taken() string {
	if len(g.Processes) == 0 {
		return ""
	}
	var who []string
	for _, p := range g.Processes {
		who = append(who, strings.TrimSpace(fmt.Sprintf("%d %s", p.PID, p.Name)))
	}
	return fmt.Sprintf("other processes compute on it (%s): --device cuda:%d takes it all the same", strings.Join(who, ", "), g.Index)
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

var (
	gpuBrands = regexp.MustCompile(`(?i)\b(nvidia|geforce|tesla|quadro|graphics|generation)\b`)
	// What does not change how fast a GPU computes: memory, whose size is known otherwise, and the
	// socket of data-centre boards, whose PCIe version is another GPU.
	gpuNoise = regexp.MustCompile(`(?i)^([0-9]+gb|hbm[0-9a-z]*|sxm[0-9]*)$`)
)

// GPUType names the folder of profiles of a GPU by its product name: "NVIDIA H100 80GB HBM3" is
// h100, "NVIDIA A100-PCIE-40GB" a100-pcie, "NVIDIA GeForce RTX 2080 Ti" rtx2080ti.
func GPUType(name string) string {
	var letters, variants []string
	for _, word := range strings.FieldsFunc(gpuBrands.ReplaceAllString(name, " "), func(r rune) bool { return r == ' ' || r == '-' }) {
		switch word = strings.ToLower(word); {
		case gpuNoise.MatchString(word):
		case word == "pcie" || word == "nvl":
			variants = append(variants, word)
		default:
			letters = append(letters, word)
		}
	}
	id := slug(strings.Join(append([]string{strings.Join(letters, "")}, variants...), "-"), 48)
	if id == "" {
		return "unknown"
	}
	return id
}

// ExpectedSMs are those that a process on a share of a GPU should see. MPS hands SMs out in pairs
// and rounds either way, so a few more or less than exactly the share are right.
//
// Source: seen on an H100 (132 SMs, driver 580): 132, 66 and 26 SMs at 100, 50 and 20 percent.
func ExpectedSMs(share, sms int) (least, most int) {
	exact := float64(share) * float64(sms) / 100
	return max(1, int(exact)-3), min(sms, int(exact)+3)
}
