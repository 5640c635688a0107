#include "graph.h"

#include "errors.h"
#ifdef GLE_CUDA
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <cuda_runtime_api.h>
#include <torch/version.h>

#include <mutex>
#endif

namespace gle {

#ifdef GLE_CUDA

struct GraphPool::Cuda {
  decltype(at::cuda::graph_pool_handle()) handle = at::cuda::graph_pool_handle();
};

GraphPool::GraphPool(at::Device device) {
  if (device.is_cuda()) cuda_ = std::make_unique<Cuda>();
}

struct Graph::Cuda {
  at::cuda::CUDAGraph graph;
};

namespace {

// Runs until nothing is made lazily any more: library handles, autotuning, allocator blocks.
constexpr int kWarmUps = 3;

// One capture at a time in the process: LibTorch keeps global state about the one in progress.
std::mutex capturing;

template <class Pool>
void begin(at::cuda::CUDAGraph& graph, const Pool& pool) {
#if TORCH_VERSION_MAJOR >= 2
  // Thread-local: other models of this process keep running while this one is captured.
  graph.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
#else
  graph.capture_begin(pool);
#endif
}

// Leaves capture mode after a failure, whatever state the graph is in.
void abandon(at::cuda::CUDAGraph& graph) noexcept {
  try {
    graph.capture_end();
  } catch (...) {
  }
  (void)cudaGetLastError();  // else the next, innocent call would report it
}

}  // namespace

Graph::Graph(GraphPool& pool, Stream& stream, std::vector<at::Tensor> inputs, const Body& body)
    : cuda_(std::make_unique<Cuda>()), inputs_(std::move(inputs)) {
  for (int i = 0; i < kWarmUps; i++) body(inputs_);
  stream.synchronize();
  const std::lock_guard<std::mutex> lock(capturing);
  try {
    begin(cuda_->graph, pool.cuda_->handle);
    outputs_ = body(inputs_);
    cuda_->graph.capture_end();
  } catch (const std::exception& e) {
    abandon(cuda_->graph);
    const auto status = classify(e.what(), GLE_EUNSUPPORTED);
    throw Error(status, "capture: " + cause_first(e.what()));
  }
}

const NamedTensors& Graph::replay(const std::vector<at::Tensor>& host) {
  for (size_t i = 0; i < inputs_.size(); i++) inputs_[i].copy_(host[i], /*non_blocking=*/true);
  cuda_->graph.replay();
  return outputs_;
}

#else  // a build for CPUs: nothing makes a Graph here

struct GraphPool::Cuda {};
struct Graph::Cuda {};

GraphPool::GraphPool(at::Device) {}

Graph::Graph(GraphPool&, Stream&, std::vector<at::Tensor>, const Body&) {
  throw Error(GLE_EUNSUPPORTED, "this engine was built without CUDA");
}

const NamedTensors& Graph::replay(const std::vector<at::Tensor>&) {
  return outputs_;
}

#endif

GraphPool::~GraphPool() = default;
Graph::~Graph() = default;

}  // namespace gle
