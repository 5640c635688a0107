// Model: a loaded archive on a device, its prepared batches, and one run.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "archive.h"
#include "device.h"
#include "engine.h"
#include "graph.h"
#include "inputs.h"
#include "outputs.h"
#include "staging.h"

// The handle that the ABI shows its callers.
struct gle_model {
 public:
  explicit gle_model(const gle_load_options& options);

  // See gle_api's functions of the same names.
  void prepare(const gle_input* inputs, int32_t n_inputs);
  std::unique_ptr<gle::Result> run(const gle_input* inputs, int32_t n_inputs);
  std::unique_ptr<gle_staged> stage(const gle_input* inputs, int32_t n_inputs);
  std::unique_ptr<gle::Result> run_staged(gle_staged& staged);
  void info(gle_model_info* info);

 private:
  // Prepared batches of one kind: everything but the number of samples is the same. A null graph
  // was prepared without being captured.
  using Batches = std::map<int64_t, std::unique_ptr<gle::Graph>>;

  // How one call is to be run.
  struct Choice {
    std::string kind;     // of the batch: key of prepared_
    int64_t samples = 0;  // asked for; 0 when the inputs do not agree on it
    int64_t padded = 0;   // to run
  };

  Choice choose(const gle_input* inputs, int32_t n_inputs) const;
  std::vector<at::Tensor> gather(const gle_input* inputs, int32_t n_inputs, const Choice& choice);
  std::vector<at::Tensor> to_device(const std::vector<at::Tensor>& tensors) const;
  gle::NamedTensors forward(const std::vector<at::Tensor>& on_device);
  std::unique_ptr<gle_staged> stage_as(const Choice& choice, const gle_input* inputs,
                                       int32_t n_inputs) const;
  std::unique_ptr<gle::Result> execute(const Choice& choice, const std::vector<at::Tensor>& inputs,
                                       uint64_t gather_ns);
  std::unique_ptr<gle::Graph> capture(const std::vector<at::Tensor>& host);
  gle::Graph* graph_of(const Choice& choice) const;
  void keep(const Choice& choice, std::unique_ptr<gle::Graph> graph);

  // Serialises prepare, run, run_staged and info, and guards all that has no lock of its own; stage
  // does not take it.
  std::mutex mu_;
  at::Device device_;
  bool pad_always_;
  bool eager_;
  std::vector<at::ScalarType> output_dtypes_;
  std::unique_ptr<gle::Archive> archive_;
  std::vector<gle::Preparer> preparers_;
  gle::Stream stream_;
  gle::GraphPool pool_;
  gle::Gatherer gatherer_;
  std::shared_ptr<gle::Staging> staging_;
  mutable std::mutex prepared_mu_;  // guards prepared_; its graphs are used under mu_ only
  std::map<std::string, Batches> prepared_;
  int64_t device_bytes_ = 0;
};
