#include "inputs.h"

#include <ATen/ATen.h>

#include <cstring>

#include "dtypes.h"
#include "errors.h"

namespace gle {
namespace {

at::Tensor vector_of(const float* values, int n, float otherwise) {
  if (values == nullptr || n == 0) return at::full({1}, otherwise);
  return at::from_blob(const_cast<float*>(values), {n}, at::kFloat).clone();
}

}  // namespace

Preparer::Preparer(const gle_input_spec* spec, at::Device device, at::ScalarType precision,
                   bool channels_last)
    : precision_(precision), channels_last_(channels_last) {
  if (spec == nullptr) return;
  dtype_ = torch_dtype(spec->dtype);
  if (!spec->preprocess) return;
  const auto mean = vector_of(spec->mean, spec->n_channels, 0);
  const auto std = vector_of(spec->std, spec->n_channels, 1);
  factor_ = (at::full({1}, spec->scale) / std).to(device);
  offset_ = (-mean / std).to(device);
}

at::Tensor Preparer::operator()(at::Tensor t) const {
  if (dtype_ != at::ScalarType::Undefined && t.scalar_type() != dtype_) {
    if (!factor_.defined()) {
      throw Error(GLE_EINVAL, std::string("dtype ") + c10::toString(t.scalar_type()) +
                                  ": the model takes " + c10::toString(dtype_));
    }
    t = normalize(t);
  }
  if (precision_ != at::ScalarType::Undefined && at::isFloatingType(t.scalar_type())) {
    t = t.to(precision_);
  }
  if (channels_last_ && t.dim() == 4) t = t.contiguous(at::MemoryFormat::ChannelsLast);
  return t;
}

at::Tensor Preparer::normalize(const at::Tensor& t) const {
  std::vector<int64_t> per_channel(t.dim() > 1 ? t.dim() - 1 : 1, 1);
  const auto shaped = [&](const at::Tensor& v) {
    auto shape = per_channel;
    shape[0] = v.numel();
    return v.view(shape);
  };
  if (t.dim() < 2 && factor_.numel() > 1) {
    throw Error(GLE_EINVAL, "per-channel preprocessing of an input without channels");
  }
  return at::addcmul(shaped(offset_), t.to(at::kFloat), shaped(factor_)).to(dtype_);
}

at::Tensor Gatherer::gather(const gle_input& input, int index, int64_t samples) {
  const int64_t want = bytes_of(input, index);
  int64_t got = 0;
  for (int64_t i = 0; i < input.n_segments; i++) {
    got += static_cast<int64_t>(input.segments[i].n_bytes);
  }
  if (got != want) {
    throw Error(GLE_EINVAL, "input " + std::to_string(index) + ": " + std::to_string(got) +
                                " bytes in " + std::to_string(input.n_segments) +
                                " segments: " + describe(input) + " needs " + std::to_string(want));
  }
  std::vector<int64_t> shape(input.shape, input.shape + input.n_dims);
  const auto type = torch_dtype(input.dtype);
  const bool padded = input.n_dims > 0 && samples > shape[0];
  const auto aligned = [&](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % c10::elementSize(type) == 0;
  };
  if (input.n_segments == 1 && !padded && !pinned_ && !always_copy_ &&
      aligned(input.segments[0].data)) {
    return at::from_blob(const_cast<void*>(input.segments[0].data), shape, type);
  }

  int64_t total = want;
  if (padded && shape[0] > 0) total = want / shape[0] * samples;
  if (padded) shape[0] = samples;
  auto& buf = buffer(index, total);
  char* to = static_cast<char*>(buf.data_ptr());
  for (int64_t i = 0; i < input.n_segments; i++) {
    const auto& segment = input.segments[i];
    if (segment.n_bytes > 0) std::memcpy(to, segment.data, segment.n_bytes);
    to += segment.n_bytes;
  }
  if (total > want) std::memset(to, 0, static_cast<size_t>(total - want));
  return at::from_blob(buf.data_ptr(), shape, type);
}

at::Tensor& Gatherer::buffer(int index, int64_t n_bytes) {
  if (buffers_.size() <= static_cast<size_t>(index)) buffers_.resize(index + 1);
  auto& buf = buffers_[index];
  if (!buf.defined() || buf.numel() < n_bytes) {
    buf =
        at::empty({n_bytes > 0 ? n_bytes : 1}, at::TensorOptions(at::kByte).pinned_memory(pinned_));
  }
  return buf;
}

int64_t Gatherer::buffer_bytes() const {
  int64_t n = 0;
  for (const auto& b : buffers_) n += b.defined() ? b.numel() : 0;
  return n;
}

}  // namespace gle
