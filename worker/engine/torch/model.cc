#include "model.h"

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <sstream>

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

// What two captures of the same graph have in common.
std::string shapes_of(const std::vector<at::Tensor>& tensors) {
  std::ostringstream out;
  for (const auto& t : tensors) out << t.scalar_type() << t.sizes() << ";";
  return out.str();
}

// Runs f, and waits for the stream if f fails: what was launched may still read the inputs. And if
// the device has failed, it says so here, whatever words the error came in.
template <class F>
auto settled(Stream& stream, F&& f) {
  try {
    return f();
  } catch (...) {
    stream.synchronize();
    throw;
  }
}

void fill(const std::vector<at::Tensor>& to, const std::vector<at::Tensor>& from) {
  for (size_t i = 0; i < to.size(); i++) to[i].copy_(from[i], /*non_blocking=*/true);
}

}  // namespace
}  // namespace gle

using gle::Entered;
using gle::Error;

gle_model::gle_model(const gle_load_options& o)
    : device_(gle::parse_device(o.device)),
      pad_always_(o.flags & GLE_PAD),
      eager_(o.flags & GLE_EAGER),
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
  staging_ = std::make_shared<gle::Staging>(device_, archive_->writes_inputs());
  device_bytes_ = gle::reserved_bytes(device_) - before;
}

gle_model::Choice gle_model::choose(const gle_input* inputs, int32_t n_inputs) const {
  Choice c;
  c.samples = gle::samples_of(inputs, n_inputs);
  c.padded = c.samples;
  if (c.samples == 0) return c;
  c.kind = gle::kind_of(inputs, n_inputs);
  const std::lock_guard<std::mutex> lock(prepared_mu_);
  const auto kind = prepared_.find(c.kind);
  if (kind == prepared_.end()) return c;
  for (auto it = kind->second.lower_bound(c.samples); it != kind->second.end(); ++it) {
    if (!it->second.model && !pad_always_) continue;
    c.padded = it->first;
    return c;
  }
  return c;
}

const gle_model::Batch* gle_model::captured(const Choice& c) const {
  const std::lock_guard<std::mutex> lock(prepared_mu_);
  const auto kind = prepared_.find(c.kind);
  if (kind == prepared_.end()) return nullptr;
  const auto batch = kind->second.find(c.padded);
  return batch == kind->second.end() || !batch->second.model ? nullptr : &batch->second;
}

void gle_model::keep(const Choice& c, Batch batch) {
  const std::lock_guard<std::mutex> lock(prepared_mu_);
  prepared_[c.kind][c.padded] = std::move(batch);
}

std::vector<at::Tensor> gle_model::gather(const gle_input* inputs, int32_t n_inputs,
                                          const Choice& choice) {
  std::vector<at::Tensor> host;
  for (int i = 0; i < n_inputs; i++) host.push_back(gatherer_.gather(inputs[i], i, choice.padded));
  return host;
}

std::vector<at::Tensor> gle_model::to_device(const std::vector<at::Tensor>& tensors) const {
  if (!device_.is_cuda()) return tensors;
  std::vector<at::Tensor> on_device;
  for (const auto& t : tensors) {
    on_device.push_back(t.to(device_, t.scalar_type(), /*non_blocking=*/true));
  }
  return on_device;
}

std::vector<at::Tensor> gle_model::convert(const std::vector<at::Tensor>& on_device) const {
  std::vector<at::Tensor> converted;
  for (size_t i = 0; i < on_device.size(); i++) {
    converted.push_back(preparers_[std::min(i, preparers_.size() - 1)](on_device[i]));
  }
  return converted;
}

gle::NamedTensors gle_model::forward(const std::vector<at::Tensor>& on_device) {
  return archive_->forward(convert(on_device));
}

void gle_model::prepare(const gle_input* inputs, int32_t n_inputs) {
  Choice exact;
  exact.samples = exact.padded = gle::samples_of(inputs, n_inputs);
  if (exact.samples < 1) throw Error(GLE_EINVAL, "prepare: inputs without a batch dimension");
  exact.kind = gle::kind_of(inputs, n_inputs);
  const std::lock_guard<std::mutex> turn(preparing_);
  const int64_t before = gle::reserved_bytes(device_);
  // A GPU runs this beside other batches; on a CPU it would only take their cores.
  const bool beside = device_.is_cuda() && archive_->reentrant();
  std::unique_lock<std::mutex> lock(mu_, std::defer_lock);
  if (!beside) lock.lock();
  warm_up(inputs, n_inputs);
  if (beside) lock.lock();

  const Entered entered(stream_);
  Batch batch;
  std::exception_ptr uncapturable;
  if (device_.is_cuda()) {
    // Both slots get buffers of this size now: page-locking memory takes milliseconds.
    const auto running = stage_as(exact, inputs, n_inputs);
    const auto next = stage_as(exact, inputs, n_inputs);
  }
  if (device_.is_cuda() && !eager_) {
    try {
      batch = capture(to_device(gather(inputs, n_inputs, exact)));
    } catch (const Error& e) {
      if (e.status != GLE_EUNSUPPORTED) throw;
      uncapturable = std::current_exception();
    }
  }
  keep(exact, std::move(batch));
  device_bytes_ += gle::reserved_bytes(device_) - before;
  if (uncapturable) std::rethrow_exception(uncapturable);
}

// Runs a batch for the first time, when kernels are chosen and may be compiled, which has taken up
// to 2 s. Runs need not wait for it.
void gle_model::warm_up(const gle_input* inputs, int32_t n_inputs) {
  static std::mutex one_at_a_time;  // the stream is the same for all
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  gle::Stream& stream = gle::warm_up_stream(device_);
  const Entered entered(stream);
  gle::Gatherer gatherer(/*pinned=*/false, archive_->writes_inputs());
  std::vector<at::Tensor> host;
  for (int i = 0; i < n_inputs; i++) {
    host.push_back(gatherer.gather(inputs[i], i, inputs[i].n_dims > 0 ? inputs[i].shape[0] : 0));
  }
  gle::settled(stream, [&] { return forward(to_device(host)); });
  stream.synchronize();
}

gle_model::Batch gle_model::capture(const std::vector<at::Tensor>& on_device) {
  Batch batch;
  const auto converted = convert(on_device);
  const auto shapes = gle::shapes_of(converted);
  if (const auto known = graphs_.find(shapes); known != graphs_.end()) {
    batch.model = known->second;
  } else {
    const auto body = [this](const std::vector<at::Tensor>& in) { return archive_->forward(in); };
    batch.model = std::make_shared<gle::Graph>(pool_, stream_, converted, body);
    graphs_[shapes] = batch.model;
  }
  if (std::equal(on_device.begin(), on_device.end(), converted.begin(),
                 [](const at::Tensor& a, const at::Tensor& b) { return a.is_same(b); })) {
    return batch;
  }
  const auto body = [&](const std::vector<at::Tensor>& in) {
    gle::fill(batch.model->inputs(), convert(in));
    return gle::NamedTensors();
  };
  body(on_device);
  batch.conversion = std::make_unique<gle::Graph>(pool_, stream_, on_device, body);
  return batch;
}

// Inputs may lie on the host or on the device.
const gle::NamedTensors& gle_model::replay(const Batch& batch,
                                           const std::vector<at::Tensor>& inputs) {
  if (batch.conversion) {
    gle::fill(batch.conversion->inputs(), inputs);
    batch.conversion->replay();
  } else {
    gle::fill(batch.model->inputs(), inputs);
  }
  return batch.model->replay();
}

std::unique_ptr<gle::Result> gle_model::run(const gle_input* inputs, int32_t n_inputs) {
  const std::lock_guard<std::mutex> lock(mu_);
  const Entered entered(stream_);
  gle::Stopwatch watch;
  const Choice choice = choose(inputs, n_inputs);
  const auto host = gather(inputs, n_inputs, choice);
  return execute(choice, host, watch.lap());
}

std::unique_ptr<gle_staged> gle_model::stage(const gle_input* inputs, int32_t n_inputs) {
  gle::enter_thread();
  const c10::InferenceMode inference;
  return stage_as(choose(inputs, n_inputs), inputs, n_inputs);
}

std::unique_ptr<gle_staged> gle_model::stage_as(const Choice& choice, const gle_input* inputs,
                                                int32_t n_inputs) const {
  gle::Stopwatch watch;
  auto staged = std::make_unique<gle_staged>(staging_);
  staged->inputs = staged->slot->bring(inputs, n_inputs, choice.padded);
  staged->kind = choice.kind;
  staged->samples = choice.samples;
  staged->padded = choice.padded;
  staged->gather_ns = watch.lap();
  return staged;
}

std::unique_ptr<gle::Result> gle_model::run_staged(gle_staged& staged) {
  if (staged.staging != staging_) throw Error(GLE_EINVAL, "the batch was staged for another model");
  const std::lock_guard<std::mutex> lock(mu_);
  if (staged.ran) throw Error(GLE_EINVAL, "the staged batch was run already");
  staged.ran = true;
  const Entered entered(stream_);
  staged.slot->hold_back(stream_);
  Choice choice;
  choice.kind = staged.kind;
  choice.samples = staged.samples;
  choice.padded = staged.padded;
  return execute(choice, staged.inputs, staged.gather_ns);
}

// Runs inputs that lie on the host or on the device.
std::unique_ptr<gle::Result> gle_model::execute(const Choice& choice,
                                                const std::vector<at::Tensor>& inputs,
                                                uint64_t gather_ns) {
  gle::Stopwatch watch;
  gle_timing timing{};
  timing.gather_ns = gather_ns;
  return gle::settled(stream_, [&] {
    const Batch* const batch = captured(choice);
    const auto outputs = batch ? replay(*batch, inputs) : forward(to_device(inputs));
    timing.run_ns = watch.lap();

    gle::FetchOptions options;
    options.samples = choice.samples;
    options.padded = choice.padded;
    options.dtypes = &output_dtypes_;
    options.borrowed = &inputs;
    auto result = gle::fetch(outputs, options, stream_);
    timing.fetch_ns = watch.lap();
    result->timing = timing;
    return result;
  });
}

void gle_model::info(gle_model_info* info) {
  const std::lock_guard<std::mutex> lock(mu_);
  info->weight_bytes = static_cast<uint64_t>(archive_->weight_bytes());
  // LibTorch takes device memory in large blocks: a small model may fit what others left free.
  const int64_t used = device_.is_cuda() ? std::max(device_bytes_, archive_->weight_bytes())
                                         : archive_->weight_bytes() + gatherer_.buffer_bytes();
  info->device_bytes = static_cast<uint64_t>(used > 0 ? used : 0);
  info->copies_inputs = archive_->writes_inputs();
  info->n_graphs = static_cast<int32_t>(graphs_.size());
}
