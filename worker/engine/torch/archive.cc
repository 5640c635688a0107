#include "archive.h"

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/version.h>

#include <fstream>
#include <sstream>

#include "errors.h"
#include "settings.h"
#if __has_include(<torch/csrc/inductor/aoti_package/model_package_loader.h>) && !defined(GLE_NO_AOTI)
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#define GLE_AOTI 1
#endif

namespace gle {
namespace {

// Names the parts of whatever a model returns: tensors in tuples, lists and dictionaries.
void flatten(const c10::IValue& value, const std::string& name, NamedTensors& out) {
  const auto child = [&](const std::string& key) { return name.empty() ? key : name + "." + key; };
  if (value.isTensor()) {
    out.emplace_back(name.empty() ? "0" : name, value.toTensor());
  } else if (value.isTuple()) {
    int i = 0;
    for (const auto& v : value.toTupleRef().elements()) flatten(v, child(std::to_string(i++)), out);
  } else if (value.isTensorList()) {
    const auto tensors = value.toTensorVector();
    for (size_t i = 0; i < tensors.size(); i++) {
      out.emplace_back(child(std::to_string(i)), tensors[i]);
    }
  } else if (value.isList()) {
    int i = 0;
    for (const c10::IValue& v : value.toListRef()) flatten(v, child(std::to_string(i++)), out);
  } else if (value.isGenericDict()) {
    for (const auto& kv : value.toGenericDict()) {
      if (!kv.key().isString()) throw Error(GLE_EUNSUPPORTED, "output keys that are not strings");
      flatten(kv.value(), child(kv.key().toStringRef()), out);
    }
  } else {
    throw Error(GLE_EUNSUPPORTED, "output \"" + name + "\" is a " + value.tagKind() +
                                      ": expected tensors in tuples, lists or dictionaries");
  }
}

class ScriptArchive final : public Archive {
 public:
  explicit ScriptArchive(const Options& o) {
    OptimizingScope optimizing;
    module_ = torch::jit::load(o.path, o.device);
    module_.eval();
    check_arguments(o);
    convert_weights(o);
    writes_inputs_ = find_input_writers();
    if (o.flags & (GLE_FREEZE | GLE_OPTIMIZE)) module_ = torch::jit::freeze(module_);
    if (o.flags & GLE_OPTIMIZE) module_ = torch::jit::optimize_for_inference(module_);
  }

  NamedTensors forward(const std::vector<at::Tensor>& inputs) override {
    NamedTensors out;
    flatten(module_.forward(std::vector<c10::IValue>(inputs.begin(), inputs.end())), "", out);
    return out;
  }

 private:
  void check_arguments(const Options& o) const {
    const auto& arguments = module_.get_method("forward").function().getSchema().arguments();
    const int most = static_cast<int>(arguments.size()) - 1;  // the first is self
    int least = 0;
    std::ostringstream names;
    for (int i = 1; i <= most; i++) {
      if (!arguments[i].default_value()) least = i;
      names << (i > 1 ? ", " : "") << arguments[i].name();
    }
    if (o.n_inputs == 0 || (o.n_inputs >= least && o.n_inputs <= most)) return;
    throw Error(GLE_ELOAD, "the archive's forward takes " + std::to_string(least) + " inputs (" +
                               names.str() + "): " + std::to_string(o.n_inputs) + " are declared");
  }

  // jit::Module::to(dtype) would convert integer buffers too, so this is by hand.
  void convert_weights(const Options& o) {
    const auto convert = [&](const at::Tensor& t) {
      at::Tensor c = t;
      if (o.precision != at::ScalarType::Undefined && at::isFloatingType(t.scalar_type())) {
        c = c.to(o.precision);
      }
      if ((o.flags & GLE_CHANNELS_LAST) && c.dim() == 4) {
        c = c.contiguous(at::MemoryFormat::ChannelsLast);
      }
      if (!c.is_same(t)) t.set_data(c);
      weight_bytes_ += static_cast<int64_t>(t.nbytes());
    };
    for (const at::Tensor& t : module_.parameters()) convert(t);
    for (const at::Tensor& t : module_.buffers()) convert(t);
  }

  // In-place operators on an input (x.relu_()) would write into a request's own buffer.
  bool find_input_writers() const {
    try {
      auto graph = module_.get_method("forward").graph()->copy();
      torch::jit::Inline(*graph);
      const torch::jit::AliasDb aliases(graph);
      for (size_t i = 1; i < graph->inputs().size(); i++) {
        if (aliases.hasWriters(graph->inputs()[i])) return true;
      }
      return false;
    } catch (const std::exception&) {
      return true;  // an operator that the analysis does not know: assume the worst
    }
  }

  torch::jit::Module module_;
};

#ifdef GLE_AOTI
class AotiArchive final : public Archive {
 public:
  explicit AotiArchive(const Options& o)
      : loader_(o.path, "model", /*run_single_threaded=*/true, /*num_runners=*/1,
                o.device.is_cuda() ? o.device.index() : -1) {
    if (o.precision != at::ScalarType::Undefined) {
      throw Error(GLE_EUNSUPPORTED, "a .pt2 package runs in the precision it was compiled in");
    }
    writes_inputs_ = true;  // compiled code tells nothing about it
  }

  NamedTensors forward(const std::vector<at::Tensor>& inputs) override {
    NamedTensors out;
    for (auto& t : loader_.run(inputs)) out.emplace_back(std::to_string(out.size()), t);
    return out;
  }

  bool reentrant() const override {
    return false;  // as it was opened: it takes no lock, and has one set of buffers
  }

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
};
#endif

bool ends_with(const std::string& s, const std::string& end) {
  return s.size() >= end.size() && s.compare(s.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

std::unique_ptr<Archive> Archive::open(const Options& o) {
  if (!std::ifstream(o.path).good()) throw Error(GLE_ELOAD, o.path + ": cannot be opened");
  if (o.precision == at::kHalf && o.device.is_cpu()) {
    throw Error(GLE_EUNSUPPORTED, "precision fp16 needs a CUDA device");
  }
  if (!ends_with(o.path, ".pt2")) return std::make_unique<ScriptArchive>(o);
#ifdef GLE_AOTI
  return std::make_unique<AotiArchive>(o);
#else
  throw Error(GLE_EUNSUPPORTED,
              o.path + ": .pt2 packages need LibTorch 2.6 or newer, this is " + TORCH_VERSION);
#endif
}

}  // namespace gle
