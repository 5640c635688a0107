package device

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// GPU is a physical GPU as NVML describes it.
type GPU struct {
	Index    int
	Name     string // product name
	UUID     string
	MemBytes int64
	// Mode is the compute mode: default, exclusive-process or prohibited.
	Mode string
	// MIG: the GPU is cut into instances, and takes no work as a whole.
	MIG bool
	// Processes compute on it now, but for servers of MPS.
	Processes []Process
}

// Process is a process that uses a GPU.
type Process struct {
	PID  int
	Name string // of its program; empty: unknown, as in a container
}

// Driver is the NVIDIA driver of a host.
type Driver struct {
	Version string // 580.159.04
	CUDA    string // the newest CUDA that it runs: 13.0
}

func (d Driver) String() string {
	if d.Version == "" {
		return ""
	}
	return fmt.Sprintf("driver %s, CUDA %s", d.Version, d.CUDA)
}

// ErrNoDriver: the host has no NVIDIA driver that answers.
var ErrNoDriver = errors.New("no NVIDIA driver found (libnvidia-ml.so.1)")

// GPUs lists the host's GPUs through NVML.
//
// After a failed Init the library is not there, and any further call into it, even for the text of
// the error, ends the process. So nothing is called then.
func GPUs() ([]GPU, Driver, error) {
	if ret := nvml.Init(); ret != nvml.SUCCESS {
		if ret == nvml.ERROR_LIBRARY_NOT_FOUND || ret == nvml.ERROR_DRIVER_NOT_LOADED {
			return nil, Driver{}, ErrNoDriver
		}
		return nil, Driver{}, fmt.Errorf("NVML does not start: error %d", int(ret))
	}
	defer nvml.Shutdown()
	driver := driver()
	n, ret := nvml.DeviceGetCount()
	if err := failed(ret, "count the GPUs"); err != nil {
		return nil, driver, err
	}
	if n == 0 {
		return nil, driver, errors.New("the NVIDIA driver answers, but there is no GPU")
	}
	gpus := make([]GPU, 0, n)
	for i := range n {
		g, err := gpu(i)
		if err != nil {
			return gpus, driver, err
		}
		gpus = append(gpus, g)
	}
	return gpus, driver, nil
}

// failed puts a failed call into words.
func failed(ret nvml.Return, what string) error {
	if ret == nvml.SUCCESS {
		return nil
	}
	return fmt.Errorf("NVML: %s: %s", what, nvml.ErrorString(ret))
}

func driver() Driver {
	var d Driver
	if v, ret := nvml.SystemGetDriverVersion(); ret == nvml.SUCCESS {
		d.Version = v
	}
	if v, ret := nvml.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
		d.CUDA = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
	}
	return d
}

func gpu(i int) (GPU, error) {
	what := func(of string) string { return fmt.Sprintf("%s of GPU %d", of, i) }
	dev, ret := nvml.DeviceGetHandleByIndex(i)
	if err := failed(ret, what("handle")); err != nil {
		return GPU{}, err
	}
	name, ret := dev.GetName()
	if err := failed(ret, what("name")); err != nil {
		return GPU{}, err
	}
	uuid, ret := dev.GetUUID()
	if err := failed(ret, what("UUID")); err != nil {
		return GPU{}, err
	}
	mem, ret := dev.GetMemoryInfo()
	if err := failed(ret, what("memory")); err != nil {
		return GPU{}, err
	}
	g := GPU{Index: i, Name: name, UUID: uuid, MemBytes: int64(mem.Total), Mode: "default"} //nolint:gosec // no GPU has 2^63 bytes
	// What follows is not known of every GPU, and serving does not depend on it.
	if mode, ret := dev.GetComputeMode(); ret == nvml.SUCCESS {
		g.Mode = modeWords(mode)
	}
	if current, _, ret := dev.GetMigMode(); ret == nvml.SUCCESS {
		g.MIG = current == nvml.DEVICE_MIG_ENABLE
	}
	g.Processes = processes(dev)
	return g, nil
}

func modeWords(m nvml.ComputeMode) string {
	switch m {
	case nvml.COMPUTEMODE_PROHIBITED:
		return Prohibited
	case nvml.COMPUTEMODE_EXCLUSIVE_PROCESS, nvml.COMPUTEMODE_EXCLUSIVE_THREAD:
		return "exclusive-process"
	}
	return "default"
}

// mpsServer does the work of the MPS clients of a GPU, and appears in their place.
const mpsServer = "nvidia-cuda-mps-server"

func processes(dev nvml.Device) []Process {
	running, ret := dev.GetComputeRunningProcesses()
	if ret != nvml.SUCCESS {
		return nil
	}
	var found []Process
	for _, r := range running {
		p := Process{PID: int(r.Pid)}
		if path, ret := nvml.SystemGetProcessName(p.PID); ret == nvml.SUCCESS {
			p.Name = filepath.Base(path)
		}
		if p.Name != mpsServer {
			found = append(found, p)
		}
	}
	return found
}
