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
};

class Graph {
 public:
  using Body = std::function<NamedTensors(const std::vector<at::Tensor>&)>;

  // Captures body on the current stream; `inputs` become the graph's own, which replay fills.
  // Throws Error(GLE_EUNSUPPORTED) when the body cannot be captured.
  Graph(GraphPool& pool, Stream& stream, std::vector<at::Tensor> inputs, const Body& body);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Copies the inputs in, from the host or the device, and launches. The outputs are overwritten by
  // the next replay, and are there once the stream has been synchronised.
  const NamedTensors& replay(const std::vector<at::Tensor>& inputs);

 private:
  struct Cuda;
  std::unique_ptr<Cuda> cuda_;
  std::vector<at::Tensor> inputs_;
  NamedTensors outputs_;
};

}  // namespace gle
