#include "device.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

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

std::mutex capturing;
std::atomic<bool> memory_owed{false};

void empty_cache();

// Returns memory if that is owed and nothing is captured: LibTorch keeps what it has while it
// captures. Who captures calls this afterwards; a debt is noted before the mutex is tried, so one
// of the two sees it.
void settle() noexcept {
  const std::unique_lock<std::mutex> lock(capturing, std::try_to_lock);
  if (!lock || !memory_owed.exchange(false)) return;
  try {
    empty_cache();
  } catch (const std::exception&) {
    // The device has failed, which whoever uses it next is told.
  }
}

#ifdef GLE_CUDA

// What limits the GPUs that this process sees, to be put behind other words.
std::string visible_devices() {
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return visible == nullptr ? "" : std::string(", CUDA_VISIBLE_DEVICES is \"") + visible + "\"";
}

// A version as CUDA's functions return it: 12080 is 12.8.
std::string cuda_version(int v) {
  return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10);
}

// Why CUDA sees no GPU. LibTorch counts none then, and keeps the reason to itself.
Error no_gpu(const std::string& device) {
  int count = 0, driver = 0, runtime = 0;
  const std::string reason = cudaGetErrorString(cudaGetDeviceCount(&count));
  (void)cudaDriverGetVersion(&driver);  // 0 where there is none
  (void)cudaRuntimeGetVersion(&runtime);
  (void)cudaGetLastError();  // else the next, innocent call would report it
  const std::string found =
      driver == 0 ? "no driver was found" : "the driver runs CUDA up to " + cuda_version(driver);
  return Error(classify("CUDA error: " + reason, GLE_EUNSUPPORTED),
               "device \"" + device + "\": CUDA sees no GPU: " + reason + ": " + found +
                   ", this engine was built for CUDA " + cuda_version(runtime) + visible_devices());
}

#endif

}  // namespace

CaptureScope::CaptureScope() {
  capturing.lock();
}

CaptureScope::~CaptureScope() {
  capturing.unlock();
  settle();
}

void return_device_memory() noexcept {
  memory_owed = true;
  settle();
}

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
  if (count == 0) throw no_gpu(text);
  if (!device.has_index()) device.set_index(0);
  if (device.index() >= count) {
    throw Error(GLE_EINVAL, "device \"" + text + "\": this process sees " + std::to_string(count) +
                                " GPUs" + visible_devices() + ": expected an index below that");
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

namespace {

void empty_cache() {
  c10::cuda::CUDACachingAllocator::emptyCache();
}

// Streams that no model uses. They are used again, since cuBLAS keeps a workspace (32 MiB on an
// H100) for every stream that it has seen, for good.
class IdleStreams {
 public:
  c10::cuda::CUDAStream take(at::Device device) {
    const std::lock_guard<std::mutex> lock(mu_);
    auto& idle = idle_[device.index()];
    if (!idle.empty()) {
      const auto stream = idle.back();
      idle.pop_back();
      return stream;
    }
    const c10::cuda::CUDAGuard guard(device);
    cudaStream_t stream = nullptr;
    C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return c10::cuda::getStreamFromExternal(stream, device.index());
  }

  void give(c10::cuda::CUDAStream stream) {
    const std::lock_guard<std::mutex> lock(mu_);
    idle_[stream.device_index()].push_back(stream);
  }

  static IdleStreams& all() {
    static auto* const streams = new IdleStreams;  // never destroyed: CUDA may be gone before it
    return *streams;
  }

 private:
  std::mutex mu_;  // guards idle_
  std::map<int, std::vector<c10::cuda::CUDAStream>> idle_;
};

}  // namespace

struct Stream::Cuda {
  c10::cuda::CUDAStream stream;
  ~Cuda() {
    IdleStreams::all().give(stream);
  }
};

struct Stream::Scope::Guard {
  c10::cuda::CUDAStreamGuard guard;
};

Stream::Stream(at::Device device) {
  if (device.is_cuda()) cuda_.reset(new Cuda{IdleStreams::all().take(device)});
}

void Stream::synchronize() {
  if (cuda_) cuda_->stream.synchronize();
}

Stream::Scope::Scope(Stream& stream) {
  if (stream.cuda_) guard_.reset(new Guard{c10::cuda::CUDAStreamGuard(stream.cuda_->stream)});
}

struct Event::Cuda {
  cudaEvent_t event = nullptr;
  ~Cuda() {
    (void)cudaEventDestroy(event);  // fails when the device has failed
  }
};

Event::Event(at::Device device) {
  if (!device.is_cuda()) return;
  const c10::cuda::CUDAGuard guard(device);
  cuda_ = std::make_unique<Cuda>();
  C10_CUDA_CHECK(cudaEventCreateWithFlags(&cuda_->event, cudaEventDisableTiming));
}

void Event::record(Stream& stream) {
  if (cuda_) C10_CUDA_CHECK(cudaEventRecord(cuda_->event, stream.cuda_->stream.stream()));
}

void Event::hold_back(Stream& stream) {
  if (cuda_) C10_CUDA_CHECK(cudaStreamWaitEvent(stream.cuda_->stream.stream(), cuda_->event, 0));
}

void Event::synchronize() {
  if (cuda_) C10_CUDA_CHECK(cudaEventSynchronize(cuda_->event));
}

#else  // a build for CPUs

void fill_device_info(at::Device, gle_device_info* info) {
  fill_cpu_info(info);
}

int64_t reserved_bytes(at::Device) {
  return 0;
}

namespace {

void empty_cache() {}

}  // namespace

struct Stream::Cuda {};
struct Stream::Scope::Guard {};
struct Event::Cuda {};

Stream::Stream(at::Device) {}

void Stream::synchronize() {}

Stream::Scope::Scope(Stream&) {}

Event::Event(at::Device) {}

void Event::record(Stream&) {}

void Event::hold_back(Stream&) {}

void Event::synchronize() {}

#endif

Stream::~Stream() = default;
Stream::Scope::~Scope() = default;
Event::~Event() = default;

namespace {

// One stream of a kind per device, as long as the process lives.
class LastingStreams {
 public:
  Stream& of(at::Device device) {
    const std::lock_guard<std::mutex> lock(mu_);
    auto& stream = streams_[device.index()];
    if (!stream) stream = std::make_unique<Stream>(device);
    return *stream;
  }

 private:
  std::mutex mu_;  // guards streams_
  std::map<int, std::unique_ptr<Stream>> streams_;
};

}  // namespace

Stream& copy_stream(at::Device device) {
  static auto* const streams = new LastingStreams;  // never destroyed: CUDA may be gone before it
  return streams->of(device);
}

Stream& warm_up_stream(at::Device device) {
  static auto* const streams = new LastingStreams;
  return streams->of(device);
}

}  // namespace gle
