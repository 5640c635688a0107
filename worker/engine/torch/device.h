// Device: where models live. On a CPU almost nothing; on CUDA the stream, the context and memory.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <string>

#include "engine.h"

namespace gle {

// Parses "cpu" or "cuda:N". Throws GLE_EINVAL for anything else and for an index beyond the GPUs
// that the process sees, GLE_EUNSUPPORTED for CUDA in a build without it, and where CUDA sees no
// GPU at all what that comes from: a driver too old for this build, say.
at::Device parse_device(const char* name);

// Fills info, whose size the caller has set.
void fill_device_info(at::Device device, gle_device_info* info);

// Bytes that LibTorch holds of the device in this process; 0 on a CPU.
int64_t reserved_bytes(at::Device device);

// Held while a graph is captured: one at a time, because LibTorch keeps global state about it.
class CaptureScope {
 public:
  CaptureScope();
  ~CaptureScope();
  CaptureScope(const CaptureScope&) = delete;
  CaptureScope& operator=(const CaptureScope&) = delete;
};

// Gives the device memory that LibTorch keeps for later back to the driver, or has it done at the
// end of a capture that is under way.
void return_device_memory() noexcept;

// A stream on a device; nothing on a CPU. No other Stream is the same one while it lives: what
// another model launched on a stream that is being captured would end up in the graph. (LibTorch's
// own pool hands the same 32 streams out again and again.)
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
  friend class Event;
  struct Cuda;
  std::unique_ptr<Cuda> cuda_;
};

// The stream on which inputs travel to a device, the same for all models: a GPU has one engine for
// copies in this direction, and few hardware queues for streams. It lives as long as the process.
Stream& copy_stream(at::Device device);

// The stream on which batches run for the first time, beside others of their model. No graph is
// captured on it: cuBLAS keeps a workspace for every stream, which a captured graph goes on using.
Stream& warm_up_stream(at::Device device);

// A point in the work of a stream; nothing on a CPU.
class Event {
 public:
  explicit Event(at::Device device);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // Marks all that was launched on the stream so far.
  void record(Stream& stream);

  // Holds back what is launched on the stream from now on; the caller does not wait.
  void hold_back(Stream& stream);

  // Blocks until what was marked is done.
  void synchronize();

 private:
  struct Cuda;
  std::unique_ptr<Cuda> cuda_;
};

}  // namespace gle
