// Graph: a CUDA graph of a model for inputs of fixed shapes.
//
// At small batches eager execution is bound by kernel launches, whatever the share of the GPU; a
// replayed graph is one launch.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "archive.h"
#include "device.h"

namespace gle {

// The memory that the graphs of one model share. They are replayed one at a time, and each keeps
// its inputs and outputs to itself, so only intermediate results overlap.
class GraphPool {
 public:
  explicit GraphPool(at::Device device);
  ~GraphPool();
  GraphPool(const GraphPool&) = delete;
  GraphPool& operator=(const GraphPool&) = delete;

 private:
  friend class Graph;
  struct Cuda;
  std::unique_ptr<Cuda> cuda_;
  bool rehearsed_ = false;  // a model that can be captured in one size can be in others
};

class Graph {
 public:
  using Body = std::function<NamedTensors(const std::vector<at::Tensor>&)>;

  // Captures body on the current stream; `inputs` become the graph's own. Bodies have run before
  // with inputs of these shapes, on whatever stream: kernels are chosen, and loaded. Throws
  // Error(GLE_EUNSUPPORTED) when the body cannot be captured.
  Graph(GraphPool& pool, Stream& stream, std::vector<at::Tensor> inputs, const Body& body);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // What the body reads: filled on the stream before replay.
  const std::vector<at::Tensor>& inputs() const {
    return inputs_;
  }

  // Launches. The outputs are overwritten by the next replay, and are there once the stream has
  // been synchronised.
  const NamedTensors& replay();

 private:
  struct Cuda;
  std::unique_ptr<Cuda> cuda_;
  std::vector<at::Tensor> inputs_;
  NamedTensors outputs_;
};

}  // namespace gle
