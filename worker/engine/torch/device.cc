#include "device.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "errors.h"
#ifdef GLE_CUDA
#include <ATen/ATen.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#endif

namespace gle {
namespace {

void set_name(gle_device_info* info, const char* name) {
  const size_t n = std::min(std::strlen(name), sizeof info->name - 1);
  std::memcpy(info->name, name, n);
  info->name[n] = '\0';
}

void fill_cpu_info(gle_device_info* info) {
  set_name(info, "cpu");
  const int64_t page = sysconf(_SC_PAGESIZE);
  info->mem_total = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES) * page);
  info->mem_free = static_cast<uint64_t>(sysconf(_SC_AVPHYS_PAGES) * page);
}

}  // namespace

at::Device parse_device(const char* name) {
  const std::string text = name == nullptr ? "" : name;
  at::Device device(at::kCPU);
  try {
    device = at::Device(text);
  } catch (const std::exception&) {
    throw Error(GLE_EINVAL, "device \"" + text + "\": expected \"cpu\" or \"cuda:N\"");
  }
  if (device.is_cpu()) return device;
  if (!device.is_cuda()) {
    throw Error(GLE_EINVAL, "device \"" + text + "\": expected \"cpu\" or \"cuda:N\"");
  }
#ifdef GLE_CUDA
  const int count = c10::cuda::device_count();
  if (!device.has_index()) device.set_index(0);
  if (device.index() >= count) {
    throw Error(GLE_EINVAL,
                "device \"" + text + "\": this process sees " + std::to_string(count) + " GPUs");
  }
  return device;
#else
  throw Error(GLE_EUNSUPPORTED, "device \"" + text + "\": this engine was built without CUDA");
#endif
}

#ifdef GLE_CUDA

void fill_device_info(at::Device device, gle_device_info* info) {
  if (device.is_cpu()) return fill_cpu_info(info);
  c10::cuda::CUDAGuard guard(device);
  cudaDeviceProp properties;
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, device.index()));
  set_name(info, properties.name);
  // This attribute follows the MPS share of the process.
  int sm_count = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device.index()));
  info->sm_count = sm_count;
  size_t free = 0, total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  info->mem_free = free;
  info->mem_total = total;
}

int64_t reserved_bytes(at::Device device) {
  if (!device.is_cuda()) return 0;
  // The allocator exists only after the first allocation. Statistic 0 is the sum of all pools.
  at::empty({1}, at::TensorOptions(device));
  return c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).reserved_bytes[0].current;
}

struct Stream::Cuda {
  c10::cuda::CUDAStream stream;
};

struct Stream::Scope::Guard {
  c10::cuda::CUDAStreamGuard guard;
};

Stream::Stream(at::Device device) {
  if (!device.is_cuda()) return;
  c10::cuda::CUDAGuard guard(device);
  cuda_.reset(new Cuda{c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())});
}

void Stream::synchronize() {
  if (cuda_) cuda_->stream.synchronize();
}

Stream::Scope::Scope(Stream& stream) {
  if (stream.cuda_) guard_.reset(new Guard{c10::cuda::CUDAStreamGuard(stream.cuda_->stream)});
}

#else  // a build for CPUs

void fill_device_info(at::Device, gle_device_info* info) {
  fill_cpu_info(info);
}

int64_t reserved_bytes(at::Device) {
  return 0;
}

struct Stream::Cuda {};
struct Stream::Scope::Guard {};

Stream::Stream(at::Device) {}

void Stream::synchronize() {}

Stream::Scope::Scope(Stream&) {}

#endif

Stream::~Stream() = default;
Stream::Scope::~Scope() = default;

}  // namespace gle
