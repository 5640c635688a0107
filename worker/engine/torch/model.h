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

// The handle that the ABI shows its callers.
struct gle_model {
 public:
  explicit gle_model(const gle_load_options& options);

  // See gle_api.prepare, gle_api.run and gle_api.model_info.
  void prepare(const gle_input* inputs, int32_t n_inputs);
  std::unique_ptr<gle::Result> run(const gle_input* inputs, int32_t n_inputs);
  void info(gle_model_info* info);

 private:
  // Prepared batches of one kind: everything but the number of samples is the same. A null graph
  // was prepared without being captured.
  using Batches = std::map<int64_t, std::unique_ptr<gle::Graph>>;

  // How one call is to be run.
  struct Choice {
    int64_t samples = 0;          // asked for; 0 when the inputs do not agree on it
    int64_t padded = 0;           // to run
    gle::Graph* graph = nullptr;  // null: eagerly
  };

  Choice choose(const gle_input* inputs, int32_t n_inputs) const;
  std::vector<at::Tensor> gather(const gle_input* inputs, int32_t n_inputs, const Choice& choice);
  std::vector<at::Tensor> to_device(const std::vector<at::Tensor>& host) const;
  gle::NamedTensors forward(const std::vector<at::Tensor>& on_device);
  void capture(std::unique_ptr<gle::Graph>& slot, const std::vector<at::Tensor>& host);

  std::mutex mu_;  // serialises prepare, run and info
  at::Device device_;
  bool pad_always_;
  std::vector<at::ScalarType> output_dtypes_;
  std::unique_ptr<gle::Archive> archive_;
  std::vector<gle::Preparer> preparers_;
  gle::Stream stream_;
  gle::GraphPool pool_;
  gle::Gatherer gatherer_;
  std::map<std::string, Batches> prepared_;
  int64_t device_bytes_ = 0;
};
