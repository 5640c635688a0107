// Archive: a model file (TorchScript, or an AOTInductor package where LibTorch has it) as a
// function from tensors to named tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"

namespace gle {

// Outputs with the names that the ABI gives them: positions and keys, "0" or "1.boxes".
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

class Archive {
 public:
  struct Options {
    std::string path;
    at::Device device{at::kCPU};
    uint32_t flags = 0;                                    // GLE_FREEZE, ...
    at::ScalarType precision = at::ScalarType::Undefined;  // Undefined: as stored
    int n_inputs = 0;                                      // 0: not known
  };

  // Reads the file, converts and optimises it. Throws when it cannot be used.
  static std::unique_ptr<Archive> open(const Options& options);

  virtual ~Archive() = default;

  // Runs the model on tensors of its own device, dtypes and layout.
  virtual NamedTensors forward(const std::vector<at::Tensor>& inputs) = 0;

  // True when forward may be called while another thread is in it.
  virtual bool reentrant() const {
    return true;
  }

  // Parameters and buffers, as they were after conversion; 0 when not known.
  int64_t weight_bytes() const {
    return weight_bytes_;
  }

  // True when the model may write into one of its inputs, which then must not be the caller's
  // own memory.
  bool writes_inputs() const {
    return writes_inputs_;
  }

 protected:
  int64_t weight_bytes_ = 0;
  bool writes_inputs_ = false;
};

}  // namespace gle
