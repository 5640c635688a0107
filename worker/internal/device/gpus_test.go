package device

import (
	"errors"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/gpulet/gpulet/shared/plan"
)

const h100 = "NVIDIA H100 80GB HBM3"

var (
	driver580 = Driver{Version: "580.159.04", CUDA: "13.0"}
	free      = GPU{Index: 0, Name: h100, UUID: "GPU-a", MemBytes: 80 << 30, Mode: "default"}
	inMIG     = GPU{Index: 1, Name: h100, UUID: "GPU-b", MemBytes: 80 << 30, Mode: "default", MIG: true}
	busy      = GPU{Index: 2, Name: h100, UUID: "GPU-c", MemBytes: 80 << 30, Mode: "exclusive-process", Processes: []Process{{4711, "python3"}, {4712, ""}}}
	closed    = GPU{Index: 3, Name: h100, UUID: "GPU-d", MemBytes: 80 << 30, Mode: Prohibited}
)

func indices(inv Inventory) []int { return inv.Indices() }

func TestTakesTheGPUsThatNobodyElseUses(t *testing.T) {
	inv, err := cuda(nil, []GPU{free, inMIG, busy, closed}, driver580)
	if err != nil {
		t.Fatal(err)
	}
	want := []plan.Device{{Index: 0, GPUType: "h100", Name: h100, UUID: "GPU-a", MemBytes: 80 << 30}}
	if diff := cmp.Diff(want, inv.Devices); diff != "" || inv.Driver != "driver 580.159.04, CUDA 13.0" {
		t.Errorf("driver %q\n%s", inv.Driver, diff)
	}
	notes := strings.Join(inv.Notes, "\n")
	for _, words := range []string{
		"GPU 1 (NVIDIA H100 80GB HBM3) is left alone: it is in MIG mode", "nvidia-smi -i 1 -mig 0",
		"GPU 2 (NVIDIA H100 80GB HBM3) is left alone: other processes compute on it (4711 python3, 4712)", "--device cuda:2",
		"GPU 3 (NVIDIA H100 80GB HBM3) is left alone: its compute mode is prohibited",
	} {
		if !strings.Contains(notes, words) {
			t.Errorf("notes lack %q:\n%s", words, notes)
		}
	}
}

func TestTakesAGPUThatIsNamedAlthoughItIsUsed(t *testing.T) {
	inv, err := cuda([]int{2}, []GPU{free, inMIG, busy, closed}, driver580)
	if diff := cmp.Diff([]int{2}, indices(inv)); err != nil || diff != "" || len(inv.Notes) > 0 {
		t.Errorf("%v, notes %q\n%s", err, inv.Notes, diff)
	}
	if d, ok := inv.Device(2); !ok || d.UUID != "GPU-c" {
		t.Errorf("device 2 is %+v", d)
	}
	if d, ok := inv.Device(0); ok {
		t.Errorf("device 0 is %+v: expected none", d)
	}
}

func TestRefusesGPUsThatCannotBeCut(t *testing.T) {
	gpus := []GPU{free, inMIG, busy, closed}
	for name, c := range map[string]struct {
		chosen []int
		gpus   []GPU
		want   string
	}{
		"in MIG mode":  {[]int{1}, gpus, "GPU 1 (NVIDIA H100 80GB HBM3) cannot be used: it is in MIG mode"},
		"prohibited":   {[]int{0, 3}, gpus, "GPU 3 (NVIDIA H100 80GB HBM3) cannot be used: its compute mode"},
		"not there":    {[]int{4}, gpus, "found 4 GPUs (" + h100},
		"none is free": {nil, []GPU{inMIG, busy}, "no GPU can be used: GPU 1"},
	} {
		if _, err := cuda(c.chosen, c.gpus, driver580); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v: expected %q", name, err, c.want)
		}
	}
}

func TestFallsBackToTheCPUOnlyWhereItMay(t *testing.T) {
	cpu := host{fstest.MapFS{}, func() ([]int, error) { return []int{0, 1}, nil }}
	broken := errors.New("NVML does not start: error 18")
	for name, c := range map[string]struct {
		choice Choice
		gpus   []GPU
		err    error
		kind   Kind
		note   string // of the result
		want   string // error
	}{
		"auto, a GPU":            {choice: Choice{Kind: Auto}, gpus: []GPU{free}, kind: CUDA},
		"auto, no driver":        {choice: Choice{Kind: Auto}, err: ErrNoDriver, kind: CPU},
		"auto, a broken driver":  {choice: Choice{Kind: Auto}, err: broken, kind: CPU, note: "NVML does not start"},
		"auto, a GPU in use":     {choice: Choice{Kind: Auto}, gpus: []GPU{busy}, kind: CPU, note: "GPU 2"},
		"cuda, no driver":        {choice: Choice{Kind: CUDA}, err: ErrNoDriver, want: "device cuda: no NVIDIA driver found"},
		"cuda, a GPU in use":     {choice: Choice{Kind: CUDA}, gpus: []GPU{busy}, want: "device cuda: no GPU can be used"},
		"cuda, it is named":      {choice: Choice{Kind: CUDA, GPUs: []int{2}}, gpus: []GPU{free, busy}, kind: CUDA},
		"cuda, no such GPU":      {choice: Choice{Kind: CUDA, GPUs: []int{7}}, gpus: []GPU{free}, want: "expected an index below 1, not 7"},
		"cuda, a broken driver":  {choice: Choice{Kind: CUDA}, err: broken, want: "device cuda: NVML does not start"},
		"auto, a GPU and others": {choice: Choice{Kind: Auto}, gpus: []GPU{free, inMIG}, kind: CUDA, note: "GPU 1"},
	} {
		inv, err := serving(c.choice, c.gpus, driver580, c.err, cpu)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: error %v: expected %q", name, err, c.want)
			}
			continue
		}
		notes := strings.Join(inv.Notes, "\n")
		if err != nil || inv.Kind != c.kind || !strings.Contains(notes, c.note) || c.note == "" && notes != "" {
			t.Errorf("%s: %v, kind %s, notes %q: expected %s and %q", name, err, inv.Kind, notes, c.kind, c.note)
		}
	}
}

func TestGPUTypes(t *testing.T) {
	for name, want := range map[string]string{
		h100:                             "h100",
		"NVIDIA H100 PCIe":               "h100-pcie",
		"NVIDIA H100 NVL":                "h100-nvl",
		"NVIDIA H200":                    "h200",
		"NVIDIA A100-SXM4-80GB":          "a100",
		"NVIDIA A100-PCIE-40GB":          "a100-pcie",
		"NVIDIA GeForce RTX 2080 Ti":     "rtx2080ti",
		"GeForce RTX 2080 Ti":            "rtx2080ti",
		"NVIDIA RTX 6000 Ada Generation": "rtx6000ada",
		"Tesla T4":                       "t4",
		"Tesla V100-SXM2-16GB":           "v100",
		"NVIDIA L4":                      "l4",
		"NVIDIA B200":                    "b200",
		"":                               "unknown",
	} {
		if got := GPUType(name); got != want {
			t.Errorf("%q: found %q: expected %q", name, got, want)
		}
	}
}

func TestExpectedSMsHoldWhatWasSeen(t *testing.T) {
	for share, seen := range map[int]int{100: 132, 50: 66, 20: 26} {
		if least, most := ExpectedSMs(share, 132); seen < least || seen > most {
			t.Errorf("%d %%: %d SMs were seen: expected %d to %d", share, seen, least, most)
		}
	}
	// A process that is not limited is found out at any share that is worth cutting.
	for share := 1; share <= 95; share++ {
		if _, most := ExpectedSMs(share, 132); most >= 132 {
			t.Errorf("%d %%: all 132 SMs would pass", share)
		}
	}
}
