#include "graph.h"

#include "errors.h"
#ifdef GLE_CUDA
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/version.h>
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

// Sees whether the body can be captured at all, with a capture of our own that is thrown away.
// After one of LibTorch's that failed, its allocator believes for good that it is capturing, and
// never again gives memory back. The warm-up has left blocks for everything that the body needs.
void rehearse(const Graph::Body& body, const std::vector<at::Tensor>& inputs) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  C10_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  std::string problem;
  try {
    body(inputs);
  } catch (const std::exception& e) {
    problem = words_of(e);
  }
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  (void)cudaGetLastError();  // else the next, innocent call would report it
  if (problem.empty() && ended != cudaSuccess) {
    problem = std::string("CUDA error: ") + cudaGetErrorString(ended);
  }
  if (!problem.empty()) {
    throw Error(classify(problem, GLE_EUNSUPPORTED), "capture: " + cause_first(problem));
  }
}

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
  // From here on, for no memory may go back to the device between the warm-up and the rehearsal.
  const CaptureScope capturing;
  if (!pool.rehearsed_) {
    body(inputs_);  // makes what is made once for a stream: library handles, workspaces
    stream.synchronize();
    rehearse(body, inputs_);
    pool.rehearsed_ = true;
  }
  try {
    begin(cuda_->graph, pool.cuda_->handle);
    outputs_ = body(inputs_);
    cuda_->graph.capture_end();
  } catch (const std::exception& e) {
    abandon(cuda_->graph);
    const std::string words = words_of(e);
    throw Error(classify(words, GLE_EUNSUPPORTED), "capture: " + cause_first(words));
  }
}

const NamedTensors& Graph::replay() {
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

const NamedTensors& Graph::replay() {
  return outputs_;
}

#endif

GraphPool::~GraphPool() = default;
Graph::~Graph() = default;

}  // namespace gle
