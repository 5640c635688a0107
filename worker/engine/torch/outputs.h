// Outputs: from a model's tensors to host memory that the caller reads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "archive.h"
#include "device.h"
#include "engine.h"

namespace gle {

// What the caller holds: the ABI's result and the tensors that own its memory.
struct Result : gle_result {
  std::vector<at::Tensor> tensors;
  std::vector<gle_output> views;
};

struct FetchOptions {
  int64_t samples = 0;  // rows to keep of outputs that have `padded` of them
  int64_t padded = 0;
  const std::vector<at::ScalarType>* dtypes = nullptr;  // declared, by position; may be empty
  const std::vector<at::Tensor>* borrowed = nullptr;    // host tensors that outputs must not alias
};

// Copies outputs to the host, waits for the stream, and describes them.
std::unique_ptr<Result> fetch(const NamedTensors& outputs, const FetchOptions& options,
                              Stream& stream);

}  // namespace gle
