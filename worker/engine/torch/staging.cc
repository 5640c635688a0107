#include "staging.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace gle {

std::vector<at::Tensor> StagingSlot::bring(const gle_input* inputs, int32_t n_inputs,
                                           int64_t samples) {
  Stream& copies = copy_stream(device_);
  const Stream::Scope scope(copies);
  std::vector<at::Tensor> brought;
  try {
    for (int i = 0; i < n_inputs; i++) {
      brought.push_back(to_device(gatherer_.gather(inputs[i], i, samples), static_cast<size_t>(i)));
    }
  } catch (...) {
    arrived_.record(copies);  // the inputs before may still be on their way
    throw;
  }
  arrived_.record(copies);
  return brought;
}

at::Tensor StagingSlot::to_device(const at::Tensor& host, size_t index) {
  if (!device_.is_cuda()) return host;
  const auto bytes = static_cast<int64_t>(host.nbytes());
  if (buffers_.size() <= index) buffers_.resize(index + 1);
  auto& buffer = buffers_[index];
  // A smaller one can go at once: whoever read it has been waited for.
  if (!buffer.defined() || buffer.numel() < bytes) {
    buffer.reset();
    buffer = at::empty({std::max<int64_t>(bytes, 1)}, at::TensorOptions(at::kByte).device(device_));
  }
  auto to = buffer.narrow(0, 0, bytes).view(host.scalar_type()).view(host.sizes());
  to.copy_(host, /*non_blocking=*/true);
  return to;
}

std::unique_ptr<StagingSlot> Staging::take() {
  {
    const std::lock_guard<std::mutex> lock(mu_);
    if (!idle_.empty()) {
      auto slot = std::move(idle_.back());
      idle_.pop_back();
      return slot;
    }
  }
  return std::make_unique<StagingSlot>(device_, always_copy_);
}

void Staging::give(std::unique_ptr<StagingSlot> slot) noexcept {
  try {
    slot->synchronize();
    const std::lock_guard<std::mutex> lock(mu_);
    if (idle_.size() < kKept) idle_.push_back(std::move(slot));
  } catch (const std::exception&) {
    // The device has failed, which whoever uses it next is told. The slot goes.
  }
}

}  // namespace gle
