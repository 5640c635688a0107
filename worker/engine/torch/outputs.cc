#include "outputs.h"

#include <ATen/ATen.h>

#include <cstring>

#include "dtypes.h"
#include "errors.h"

namespace gle {
namespace {

at::Tensor convert(at::Tensor t, size_t index, const FetchOptions& o) {
  if (t.layout() != at::kStrided) throw Error(GLE_EUNSUPPORTED, "outputs that are not dense");
  if (t.dim() > GLE_MAX_DIMS) {
    throw Error(GLE_EUNSUPPORTED, "an output of " + std::to_string(t.dim()) +
                                      " dimensions: expected at most " +
                                      std::to_string(GLE_MAX_DIMS));
  }
  if (o.padded > o.samples && t.dim() > 0 && t.size(0) == o.padded) t = t.narrow(0, 0, o.samples);
  if (o.dtypes != nullptr && index < o.dtypes->size()) {
    const auto declared = (*o.dtypes)[index];
    if (at::isFloatingType(declared) && at::isFloatingType(t.scalar_type())) t = t.to(declared);
  }
  return t.contiguous();
}

// Host memory of its own: an output may be a view of an input, which is the caller's memory or a
// buffer that the next batch overwrites.
at::Tensor to_host(const at::Tensor& t, const FetchOptions& o) {
  if (t.is_cuda()) {
    // Of the size of a full batch, as for the batches before it: LibTorch uses page-locked memory
    // again by its size, and new memory waits for whatever kernels the driver is loading.
    auto sizes = t.sizes().vec();
    const bool narrowed = o.padded > o.samples && t.dim() > 0 && sizes[0] == o.samples;
    if (narrowed) sizes[0] = o.padded;
    auto host = at::empty(sizes, t.options().device(at::kCPU).pinned_memory(true));
    if (narrowed) host = host.narrow(0, 0, o.samples);
    host.copy_(t, /*non_blocking=*/true);
    return host;
  }
  if (o.borrowed != nullptr) {
    for (const auto& b : *o.borrowed) {
      if (t.is_alias_of(b)) return t.clone();
    }
  }
  return t;
}

gle_output view_of(const at::Tensor& t, const std::string& name) {
  gle_output v{};
  v.dtype = abi_dtype(t.scalar_type());
  v.n_dims = static_cast<int32_t>(t.dim());
  for (int d = 0; d < v.n_dims; d++) v.shape[d] = t.size(d);
  v.data = t.data_ptr();
  v.n_bytes = static_cast<uint64_t>(t.nbytes());
  std::strncpy(v.name, name.c_str(), sizeof v.name - 1);
  return v;
}

}  // namespace

std::unique_ptr<Result> fetch(const NamedTensors& outputs, const FetchOptions& options,
                              Stream& stream) {
  auto result = std::make_unique<Result>();
  for (size_t i = 0; i < outputs.size(); i++) {
    result->tensors.push_back(to_host(convert(outputs[i].second, i, options), options));
  }
  stream.synchronize();
  for (size_t i = 0; i < outputs.size(); i++) {
    result->views.push_back(view_of(result->tensors[i], outputs[i].first));
  }
  result->size = sizeof(gle_result);
  result->n_outputs = static_cast<int32_t>(result->views.size());
  result->outputs = result->views.data();
  return result;
}

}  // namespace gle
