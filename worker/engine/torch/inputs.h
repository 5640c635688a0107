// Inputs: from the requests' own buffers to the tensors that a model takes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "engine.h"

namespace gle {

// How one declared input becomes what the model takes. Runs on the model's device.
class Preparer {
 public:
  // spec may be null: then tensors are only converted to the precision and layout.
  Preparer(const gle_input_spec* spec, at::Device device, at::ScalarType precision,
           bool channels_last);

  at::Tensor operator()(at::Tensor t) const;

 private:
  at::Tensor normalize(const at::Tensor& t) const;

  at::ScalarType dtype_ = at::ScalarType::Undefined;  // what the model takes, if it is known
  at::ScalarType precision_;
  bool channels_last_;
  // y = x * factor + offset, per channel, in fp32: scale/std and -mean/std.
  at::Tensor factor_, offset_;
};

// Gathers inputs into host tensors. It owns one reusable buffer per input.
class Gatherer {
 public:
  // pinned: buffers are page-locked, for copies to a GPU that do not wait. always_copy: never
  // hand out the caller's own memory, because the model writes into its inputs.
  Gatherer(bool pinned, bool always_copy) : pinned_(pinned), always_copy_(always_copy) {}

  // A host tensor of the input with its first dimension padded with zeros to `samples`. It is
  // valid until the next gather of the same index, and may be a view of the caller's memory.
  at::Tensor gather(const gle_input& input, int index, int64_t samples);

  int64_t buffer_bytes() const;

 private:
  at::Tensor& buffer(int index, int64_t n_bytes);

  bool pinned_;
  bool always_copy_;
  std::vector<at::Tensor> buffers_;
};

}  // namespace gle
