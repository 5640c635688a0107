// Settings: what LibTorch keeps per process or per thread, and we set for it.
#pragma once

#include "engine.h"

namespace gle {

// Takes the process's settings. Called once, before the first load.
void configure(const gle_config& config);

// Gives memory that is free, but kept for the next batch, back to the kernel and the device.
void return_freed_memory() noexcept;

// Prepares the calling thread for LibTorch. A caller may come on any thread, and the warning
// handler, the executor's mode and OpenMP's thread count are all per thread.
void enter_thread();

// While one lives, graphs may be optimised. Loading needs it: freezing inlines through it. Its end
// restores the mode that models run in.
class OptimizingScope {
 public:
  OptimizingScope();
  ~OptimizingScope();
  OptimizingScope(const OptimizingScope&) = delete;
  OptimizingScope& operator=(const OptimizingScope&) = delete;
};

}  // namespace gle
