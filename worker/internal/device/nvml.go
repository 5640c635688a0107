package device

import (
	"errors"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// GPU is a physical GPU.
type GPU struct {
	Index    int
	Name     string
	UUID     string
	MemBytes int64
}

// ErrNoDriver: the host has no NVIDIA driver that answers.
var ErrNoDriver = errors.New("no NVIDIA driver found (libnvidia-ml.so.1)")

// GPUs lists the host's GPUs through NVML.
//
// After a failed Init the library is not there, and any further call into it, even for the text of
// the error, ends the process. So nothing is called then.
func GPUs() ([]GPU, error) {
	if ret := nvml.Init(); ret != nvml.SUCCESS {
		if ret == nvml.ERROR_LIBRARY_NOT_FOUND || ret == nvml.ERROR_DRIVER_NOT_LOADED {
			return nil, ErrNoDriver
		}
		return nil, fmt.Errorf("NVML does not start: error %d", int(ret))
	}
	defer nvml.Shutdown()
	n, ret := nvml.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("NVML: count the GPUs: %s", nvml.ErrorString(ret))
	}
	if n == 0 {
		return nil, errors.New("the NVIDIA driver answers, but there is no GPU")
	}
	gpus := make([]GPU, 0, n)
	for i := range n {
		g, err := gpu(i)
		if err != nil {
			return gpus, err
		}
		gpus = append(gpus, g)
	}
	return gpus, nil
}

func gpu(i int) (GPU, error) {
	dev, ret := nvml.DeviceGetHandleByIndex(i)
	if ret != nvml.SUCCESS {
		return GPU{}, fmt.Errorf("NVML: GPU %d: %s", i, nvml.ErrorString(ret))
	}
	g := GPU{Index: i}
	name, ret := dev.GetName()
	if ret != nvml.SUCCESS {
		return GPU{}, fmt.Errorf("NVML: name of GPU %d: %s", i, nvml.ErrorString(ret))
	}
	uuid, ret := dev.GetUUID()
	if ret != nvml.SUCCESS {
		return GPU{}, fmt.Errorf("NVML: UUID of GPU %d: %s", i, nvml.ErrorString(ret))
	}
	mem, ret := dev.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return GPU{}, fmt.Errorf("NVML: memory of GPU %d: %s", i, nvml.ErrorString(ret))
	}
	g.Name, g.UUID, g.MemBytes = name, uuid, int64(mem.Total)
	return g, nil
}
