#include "settings.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <malloc.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/version.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <limits>

#include "device.h"

namespace gle {
namespace {

std::atomic<bool> jit_profiling{false};
std::atomic<int> intra_threads{0};

// Without it a model's warnings repeat with every batch on stderr.
struct QuietWarnings : c10::WarningHandler {
#if TORCH_VERSION_MAJOR >= 2
  void process(const c10::Warning&) override {}
  void install() {
    c10::WarningUtils::set_warning_handler(this);
  }
#else
  void process(const c10::SourceLocation&, const std::string&, const bool) override {}
  void install() {
    c10::Warning::set_warning_handler(this);
  }
#endif
};
QuietWarnings quiet_warnings;

// LibTorch allocates every intermediate result of a batch and frees it again, on a CPU with
// malloc. By default glibc gives large blocks back to the kernel at once, and each batch pays for
// clearing the same pages again: mobilenet_v2 in batches of 8 spent 40 % of its CPU time so.
// Freed memory therefore stays with the process until a model is unloaded.
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}

}  // namespace

void configure(const gle_config& config) {
  intra_threads = config.intra_threads;
  jit_profiling = config.jit_profiling == 1;
  if (config.inter_threads > 0) {
    try {
      at::set_num_interop_threads(config.inter_threads);
    } catch (const std::exception&) {
      // LibTorch allows it once per process, and only before its pool exists: keep what is.
    }
  }
  // FP32 means FP32: TF32 keeps 10 bits of mantissa, and answers would differ from a CPU's in the
  // third digit. Speed is what fp16 and bf16 are for. cuDNN and cuBLAS read this variable;
  // LibTorch's own switch has no effect on convolutions of archives (seen with 2.11). An operator's
  // value wins.
  setenv("NVIDIA_TF32_OVERRIDE", "0", /*overwrite=*/0);
  keep_freed_memory();
  enter_thread();
}

void return_freed_memory() noexcept {
  return_device_memory();
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

void enter_thread() {
  quiet_warnings.install();
  torch::jit::setGraphExecutorOptimize(jit_profiling);
  thread_local int threads_set = 0;
  const int want = intra_threads;
  if (want > 0 && threads_set != want) {
    at::set_num_threads(want);
    threads_set = want;
  }
}

OptimizingScope::OptimizingScope() {
  torch::jit::setGraphExecutorOptimize(true);
}

OptimizingScope::~OptimizingScope() {
  torch::jit::setGraphExecutorOptimize(jit_profiling);
}

}  // namespace gle
