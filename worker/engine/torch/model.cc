#include "model.h"

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <chrono>

#include "dtypes.h"
#include "errors.h"
#include "settings.h"

namespace gle {
namespace {

using Clock = std::chrono::steady_clock;

// Nanoseconds since the last call, for timing one step after the other.
class Stopwatch {
 public:
  uint64_t lap() {
    const auto now = Clock::now();
    const auto d = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last_);
    last_ = now;
    return static_cast<uint64_t>(d.count());
  }

 private:
  Clock::time_point last_ = Clock::now();
};

// What a thread needs around any use of a model.
struct Entered {
  explicit Entered(Stream& stream) : scope((enter_thread(), stream)) {}
  c10::InferenceMode inference;
  Stream::Scope scope;
};

std::unique_ptr<Archive> open_archive(const gle_load_options& o, at::Device device) {
  Archive::Options options;
  options.path = o.path;
  options.device = device;
  options.flags = o.flags;
  if (o.precision != GLE_NONE) options.precision = torch_dtype(o.precision);
  options.n_inputs = o.n_inputs;
  return Archive::open(options);
}

std::vector<at::ScalarType> output_types(const gle_load_options& o) {
  std::vector<at::ScalarType> types;
  for (int i = 0; i < o.n_outputs; i++) types.push_back(torch_dtype(o.output_dtypes[i]));
  return types;
}

std::vector<Preparer> make_preparers(const gle_load_options& o, at::Device device) {
  const auto precision =
      o.precision == GLE_NONE ? at::ScalarType::Undefined : torch_dtype(o.precision);
  const bool channels_last = o.flags & GLE_CHANNELS_LAST;
  std::vector<Preparer> preparers;
  for (int i = 0; i < o.n_inputs; i++) {
    preparers.emplace_back(&o.inputs[i], device, precision, channels_last);
  }
  if (preparers.empty()) preparers.emplace_back(nullptr, device, precision, channels_last);
  return preparers;
}

// Samples of a batch, 0 when the inputs have none or do not agree.
int64_t samples_of(const gle_input* inputs, int32_t n_inputs) {
  int64_t samples = 0;
  for (int i = 0; i < n_inputs; i++) {
    if (inputs[i].n_dims < 1) return 0;
    if (i > 0 && inputs[i].shape[0] != samples) return 0;
    samples = inputs[i].shape[0];
  }
  return samples;
}

// What two batches must share to be padded to each other: all but the number of samples.
std::string kind_of(const gle_input* inputs, int32_t n_inputs) {
  std::string kind;
  for (int i = 0; i < n_inputs; i++) {
    gle_input one = inputs[i];
    if (one.n_dims > 0) one.shape[0] = 0;
    kind += describe(one) + ";";
  }
  return kind;
}

}  // namespace
}  // namespace gle

using gle::Entered;
using gle::Error;

gle_model::gle_model(const gle_load_options& o)
    : device_(gle::parse_device(o.device)),
      pad_always_(o.flags & GLE_PAD),
      output_dtypes_(gle::output_types(o)),
      stream_(device_),
      pool_(device_),
      gatherer_(/*pinned=*/device_.is_cuda(), /*always_copy=*/false) {
  gle::enter_thread();
  const int64_t before = gle::reserved_bytes(device_);
  {
    // Weights must be ordinary tensors: inference tensors cannot be converted in place.
    const c10::NoGradGuard no_grad;
    const gle::Stream::Scope scope(stream_);
    archive_ = gle::open_archive(o, device_);
    preparers_ = gle::make_preparers(o, device_);
    stream_.synchronize();
  }
  gatherer_ = gle::Gatherer(device_.is_cuda(), archive_->writes_inputs());
  device_bytes_ = gle::reserved_bytes(device_) - before;
}

gle_model::Choice gle_model::choose(const gle_input* inputs, int32_t n_inputs) const {
  Choice c;
  c.samples = gle::samples_of(inputs, n_inputs);
  c.padded = c.samples;
  if (c.samples == 0 || prepared_.empty()) return c;
  const auto kind = prepared_.find(gle::kind_of(inputs, n_inputs));
  if (kind == prepared_.end()) return c;
  for (auto it = kind->second.lower_bound(c.samples); it != kind->second.end(); ++it) {
    if (!it->second && !pad_always_) continue;
    c.padded = it->first;
    c.graph = it->second.get();
    return c;
  }
  return c;
}

std::vector<at::Tensor> gle_model::gather(const gle_input* inputs, int32_t n_inputs,
                                          const Choice& choice) {
  std::vector<at::Tensor> host;
  for (int i = 0; i < n_inputs; i++) host.push_back(gatherer_.gather(inputs[i], i, choice.padded));
  return host;
}

std::vector<at::Tensor> gle_model::to_device(const std::vector<at::Tensor>& host) const {
  if (!device_.is_cuda()) return host;
  std::vector<at::Tensor> on_device;
  for (const auto& t : host) {
    on_device.push_back(t.to(device_, t.scalar_type(), /*non_blocking=*/true));
  }
  return on_device;
}

gle::NamedTensors gle_model::forward(const std::vector<at::Tensor>& on_device) {
  std::vector<at::Tensor> prepared;
  for (size_t i = 0; i < on_device.size(); i++) {
    prepared.push_back(preparers_[std::min(i, preparers_.size() - 1)](on_device[i]));
  }
  return archive_->forward(prepared);
}

void gle_model::prepare(const gle_input* inputs, int32_t n_inputs) {
  const std::lock_guard<std::mutex> lock(mu_);
  const Entered entered(stream_);
  const int64_t before = gle::reserved_bytes(device_);
  Choice exact;
  exact.samples = exact.padded = gle::samples_of(inputs, n_inputs);
  if (exact.samples < 1) throw Error(GLE_EINVAL, "prepare: inputs without a batch dimension");
  const auto host = gather(inputs, n_inputs, exact);
  forward(to_device(host));
  stream_.synchronize();
  auto& slot = prepared_[gle::kind_of(inputs, n_inputs)][exact.samples];
  if (device_.is_cuda()) capture(slot, host);
  device_bytes_ += gle::reserved_bytes(device_) - before;
}

void gle_model::capture(std::unique_ptr<gle::Graph>& slot, const std::vector<at::Tensor>& host) {
  slot.reset();
  auto inputs = to_device(host);
  const auto body = [this](const std::vector<at::Tensor>& in) { return forward(in); };
  slot = std::make_unique<gle::Graph>(pool_, stream_, std::move(inputs), body);
}

std::unique_ptr<gle::Result> gle_model::run(const gle_input* inputs, int32_t n_inputs) {
  const std::lock_guard<std::mutex> lock(mu_);
  const Entered entered(stream_);
  const Choice choice = choose(inputs, n_inputs);
  gle_timing timing{};
  gle::Stopwatch watch;

  const auto host = gather(inputs, n_inputs, choice);
  timing.gather_ns = watch.lap();

  const auto outputs = choice.graph ? choice.graph->replay(host) : forward(to_device(host));
  timing.run_ns = watch.lap();

  gle::FetchOptions options;
  options.samples = choice.samples;
  options.padded = choice.padded;
  options.dtypes = &output_dtypes_;
  options.borrowed = &host;
  auto result = gle::fetch(outputs, options, stream_);
  timing.fetch_ns = watch.lap();
  result->timing = timing;
  return result;
}

void gle_model::info(gle_model_info* info) {
  const std::lock_guard<std::mutex> lock(mu_);
  info->weight_bytes = static_cast<uint64_t>(archive_->weight_bytes());
  const int64_t used =
      device_.is_cuda() ? device_bytes_ : archive_->weight_bytes() + gatherer_.buffer_bytes();
  info->device_bytes = static_cast<uint64_t>(used > 0 ? used : 0);
  info->copies_inputs = archive_->writes_inputs();
  for (const auto& kind : prepared_) {
    for (const auto& batch : kind.second) info->n_graphs += batch.second ? 1 : 0;
  }
}
