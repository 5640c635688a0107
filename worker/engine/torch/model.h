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
  // A prepared batch. Clients may send a model's inputs in several dtypes; the model is captured
  // once, for what it takes, and for each dtype that has to be converted first a graph that does
  // only that.
  struct Batch {
    std::shared_ptr<gle::Graph> model;       // null: prepared without being captured
    std::unique_ptr<gle::Graph> conversion;  // fills the inputs of model; null: nothing to convert
  };

  // Prepared batches of one kind: everything but the number of samples is the same.
  using Batches = std::map<int64_t, Batch>;

  // How one call is to be run.
  struct Choice {
    std::string kind;     // of the batch: key of prepared_
    int64_t samples = 0;  // asked for; 0 when the inputs do not agree on it
    int64_t padded = 0;   // to run
  };

  Choice choose(const gle_input* inputs, int32_t n_inputs) const;
  std::vector<at::Tensor> gather(const gle_input* inputs, int32_t n_inputs, const Choice& choice);
  std::vector<at::Tensor> to_device(const std::vector<at::Tensor>& tensors) const;
  std::vector<at::Tensor> convert(const std::vector<at::Tensor>& on_device) const;
  gle::NamedTensors forward(const std::vector<at::Tensor>& on_device);
  std::unique_ptr<gle_staged> stage_as(const Choice& choice, const gle_input* inputs,
                                       int32_t n_inputs) const;
  std::unique_ptr<gle::Result> execute(const Choice& choice, const std::vector<at::Tensor>& inputs,
                                       uint64_t gather_ns);
  void warm_up(const gle_input* inputs, int32_t n_inputs);
  Batch capture(const std::vector<at::Tensor>& on_device);
  static const gle::NamedTensors& replay(const Batch& batch, const std::vector<at::Tensor>& inputs);
  const Batch* captured(const Choice& choice) const;
  void keep(const Choice& choice, Batch batch);

  // Serialises run, run_staged, info and the capturing of prepare, and guards all that has no lock
  // of its own; stage does not take it.
  std::mutex mu_;
  // Prepares take turns, or two would both count the memory that either takes. Locked before mu_.
  std::mutex preparing_;
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
  std::map<std::string, std::shared_ptr<gle::Graph>> graphs_;  // of the model, by its inputs
  mutable std::mutex prepared_mu_;           // guards prepared_; its graphs are used under mu_ only
  std::map<std::string, Batches> prepared_;  // by kind
  int64_t device_bytes_ = 0;
};
