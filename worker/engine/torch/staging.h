// Staging: the inputs of the next batch, gathered and brought to the device while another batch
// runs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "device.h"
#include "engine.h"
#include "inputs.h"

namespace gle {

// Buffers for one staged batch. On a GPU each input has a page-locked one and one on the device.
class StagingSlot {
 public:
  StagingSlot(at::Device device, bool always_copy)
      : device_(device), gatherer_(/*pinned=*/device.is_cuda(), always_copy), arrived_(device) {}

  // Gathers, and starts the copies on the device's copy stream. The tensors are valid until the
  // next call.
  std::vector<at::Tensor> bring(const gle_input* inputs, int32_t n_inputs, int64_t samples);

  // Makes the stream wait for what was brought.
  void hold_back(Stream& stream) {
    arrived_.hold_back(stream);
  }

  // Blocks until what was brought has arrived.
  void synchronize() {
    arrived_.synchronize();
  }

 private:
  at::Tensor to_device(const at::Tensor& host, size_t index);

  at::Device device_;
  Gatherer gatherer_;
  std::vector<at::Tensor> buffers_;  // on the device, bytes
  Event arrived_;
};

// The slots of one model. What is staged keeps it alive beyond the model.
class Staging {
 public:
  Staging(at::Device device, bool always_copy) : device_(device), always_copy_(always_copy) {}

  std::unique_ptr<StagingSlot> take();

  // Takes back a slot that nothing reads any more, but copies into it may still be under way.
  void give(std::unique_ptr<StagingSlot> slot) noexcept;

 private:
  // One batch that runs and one that is next; more are made as needed and not kept.
  static constexpr size_t kKept = 2;

  at::Device device_;
  bool always_copy_;
  std::mutex mu_;  // guards idle_
  std::vector<std::unique_ptr<StagingSlot>> idle_;
};

}  // namespace gle

// The handle that the ABI shows its callers.
struct gle_staged {
  explicit gle_staged(std::shared_ptr<gle::Staging> of)
      : staging(std::move(of)), slot(staging->take()) {}
  ~gle_staged() {
    inputs.clear();
    staging->give(std::move(slot));
  }
  gle_staged(const gle_staged&) = delete;
  gle_staged& operator=(const gle_staged&) = delete;

  std::shared_ptr<gle::Staging> staging;
  std::unique_ptr<gle::StagingSlot> slot;
  std::vector<at::Tensor> inputs;  // on the model's device, padded
  std::string kind;                // see gle_model::Choice
  int64_t samples = 0;
  int64_t padded = 0;
  uint64_t gather_ns = 0;
  bool ran = false;  // guarded by the model's lock
};
