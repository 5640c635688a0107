package device

import (
	"errors"
	"math"
	"strings"
	"testing"
)

// TestMeterNeedsADriver also shows that no call follows a failed Init: it would end the test's process.
func TestMeterNeedsADriver(t *testing.T) {
	for range 2 {
		if m, err := OpenMeter("GPU-00000000-0000-0000-0000-000000000000"); err == nil {
			m.Close()
			t.Error("opened the meter of a GPU that does not exist")
		}
	}
}

// TestMeterReadsThisHostsGPUs reads what it can of real GPUs, where there are some.
func TestMeterReadsThisHostsGPUs(t *testing.T) {
	gpus, _, err := GPUs()
	if err != nil {
		t.Skip(err)
	}
	for _, g := range gpus {
		m, err := OpenMeter(g.UUID)
		if err != nil {
			t.Fatal(err)
		}
		if used, err := m.Used(); err != nil || used <= 0 || used > g.MemBytes {
			t.Errorf("%s: %d bytes used, %v", g.Name, used, err)
		}
		m.Close()
	}
}

// TestAGPUWithoutCountersSaysSo: a Hopper in a virtual machine may lack them, so its words must not
// blame the GPU alone.
func TestAGPUWithoutCountersSaysSo(t *testing.T) {
	m := &Meter{without: withoutCounters(h100, driver580, "the driver offers none for it")}
	err := m.Begin()
	for _, want := range []string{h100, "driver 580.159.04", "the driver offers none for it", "expected NVML's GPM", "not inside every virtual machine"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("begin: error %v: expected %q", err, want)
		}
	}
	if _, ended := m.End(); !errors.Is(ended, err) {
		t.Errorf("end: error %v: expected %v", ended, err)
	}
}

func TestPercentagesBecomeFractions(t *testing.T) {
	for percent, want := range map[float64]float64{0: 0, 12.34: 0.1234, 100: 1, 101: 1, -3: 0, math.NaN(): 0, math.Inf(1): 1} {
		if got := fraction(percent); got != want {
			t.Errorf("%v %%: %v: expected %v", percent, got, want)
		}
	}
}
