package device

import (
	"errors"
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpulet/gpulet/shared/profile"
)

// Meter reads a GPU's memory and, where it has them (Hopper and later: NVML's GPM), counters of what
// all processes on it do. One goroutine at a time may use it.
type Meter struct {
	dev     nvml.Device
	samples [2]nvml.GpmSample
	without error // why there are no counters; nil: there are
	began   time.Time
}

// leastInterval is how far apart two samples have to be for their difference to mean something: the
// driver's own counters are updated less often than they can be read.
const leastInterval = 100 * time.Millisecond

// OpenMeter opens the meter of a GPU. After an error nothing of NVML has been left open, and nothing
// was called after a failed Init: that would end the process.
func OpenMeter(uuid string) (*Meter, error) {
	if ret := nvml.Init(); ret != nvml.SUCCESS {
		return nil, fmt.Errorf("NVML does not start: error %d", int(ret))
	}
	m := &Meter{}
	var ret nvml.Return
	if m.dev, ret = nvml.DeviceGetHandleByUUID(uuid); ret != nvml.SUCCESS {
		defer nvml.Shutdown()
		return nil, failed(ret, "GPU "+uuid)
	}
	m.without = m.allocate()
	return m, nil
}

// allocate prepares for counters. The error says why there are none.
func (m *Meter) allocate() error {
	support, ret := m.dev.GpmQueryDeviceSupport()
	if ret != nvml.SUCCESS || support.IsSupportedDevice == 0 {
		why := "the driver offers none for it"
		if err := failed(ret, "ask for counters"); err != nil {
			why = err.Error()
		}
		return m.noCounters(why)
	}
	var samples [2]nvml.GpmSample
	for i := range samples {
		if samples[i], ret = nvml.GpmSampleAlloc(); ret != nvml.SUCCESS {
			for _, s := range samples[:i] {
				_ = nvml.GpmSampleFree(s)
			}
			return m.noCounters(failed(ret, "make room for counters").Error())
		}
	}
	m.samples = samples
	return nil
}

// noCounters names the GPU and what was found. Which GPUs have counters is for the driver to say, and
// it says no more than yes or no.
func (m *Meter) noCounters(why string) error {
	name, ret := m.dev.GetName()
	if ret != nvml.SUCCESS {
		name = "this GPU"
	}
	return withoutCounters(name, driver(), why)
}

// withoutCounters puts the lack of counters into words.
func withoutCounters(name string, d Driver, why string) error {
	return fmt.Errorf("%s (%s): %s: expected NVML's GPM, which Hopper and later GPUs have, but not inside every virtual machine", name, d, why)
}

// Close gives everything back. The meter must not be used afterwards.
func (m *Meter) Close() {
	for _, s := range m.samples {
		if s != nil {
			_ = nvml.GpmSampleFree(s)
		}
	}
	_ = nvml.Shutdown()
}

// Used is the memory in use, in bytes, by all processes and the driver.
func (m *Meter) Used() (int64, error) {
	mem, ret := m.dev.GetMemoryInfo()
	if err := failed(ret, "memory"); err != nil {
		return 0, err
	}
	return int64(mem.Used), nil //nolint:gosec // no GPU has 2^63 bytes
}

// Begin starts an interval.
func (m *Meter) Begin() error {
	if m.without != nil {
		return m.without
	}
	m.began = time.Now()
	return failed(nvml.GpmSampleGet(m.dev, m.samples[0]), "sample the counters")
}

// End returns how busy the GPU was since Begin, of at least 100 ms.
func (m *Meter) End() (profile.Demand, error) {
	if m.without != nil {
		return profile.Demand{}, m.without
	}
	if took := time.Since(m.began); took < leastInterval {
		return profile.Demand{}, fmt.Errorf("counters over %v: expected at least %v", took, leastInterval)
	}
	if err := failed(nvml.GpmSampleGet(m.dev, m.samples[1]), "sample the counters"); err != nil {
		return profile.Demand{}, err
	}
	return read(m.samples[0], m.samples[1])
}

// read computes the metrics between two samples.
func read(from, to nvml.GpmSample) (profile.Demand, error) {
	var d profile.Demand
	wanted := []struct {
		id nvml.GpmMetricId
		to *float64
	}{
		{nvml.GPM_METRIC_SM_UTIL, &d.SM},
		{nvml.GPM_METRIC_SM_OCCUPANCY, &d.Occupancy},
		{nvml.GPM_METRIC_ANY_TENSOR_UTIL, &d.Tensor},
		{nvml.GPM_METRIC_DRAM_BW_UTIL, &d.DRAM},
	}
	get := nvml.GpmMetricsGetType{NumMetrics: uint32(len(wanted)), Sample1: from, Sample2: to}
	for i, w := range wanted {
		get.Metrics[i].MetricId = uint32(w.id)
	}
	if err := failed(nvml.GpmMetricsGet(&get), "compute the counters"); err != nil {
		return d, err
	}
	some := false
	for i, w := range wanted {
		m := get.Metrics[i]
		if nvml.Return(m.NvmlReturn) != nvml.SUCCESS {
			continue // this one is not counted here
		}
		*w.to = fraction(m.Value)
		some = true
	}
	if !some {
		return d, errors.New("NVML: none of the counters was counted")
	}
	return d, nil
}

// fraction is a percentage as a fraction, cut to what a profile may hold and to four digits.
func fraction(percent float64) float64 {
	switch {
	case !(percent > 0): // NaN too
		return 0
	case percent > 100:
		return 1
	}
	return float64(int(percent*100+0.5)) / 1e4
}
