// Device: where models live. On a CPU almost nothing; on CUDA the stream, the context and memory.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <string>

#include "engine.h"

namespace gle {

// Parses "cpu" or "cuda:N". Throws GLE_EINVAL for anything else, GLE_EUNSUPPORTED for CUDA in a
// build without it, GLE_EINVAL for a GPU that is not there.
at::Device parse_device(const char* name);

// Fills info, whose size the caller has set.
void fill_device_info(at::Device device, gle_device_info* info);

// Bytes that LibTorch holds of the device in this process; 0 on a CPU.
int64_t reserved_bytes(at::Device device);

// One model's stream on a device; nothing on a CPU.
class Stream {
 public:
  explicit Stream(at::Device device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Blocks until everything that was launched on it is done.
  void synchronize();

  // While a Scope lives, the calling thread launches on the stream.
  class Scope {
   public:
    explicit Scope(Stream& stream);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    struct Guard;
    std::unique_ptr<Guard> guard_;
  };

 private:
  struct Cuda;
  std::unique_ptr<Cuda> cuda_;
};

}  // namespace gle
