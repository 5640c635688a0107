// The table of the C ABI. Everything here is translation: sizes are checked, exceptions become
// statuses, handles become objects.

#include <dlfcn.h>
#include <torch/version.h>

#include <cstring>

#include "device.h"
#include "engine.h"
#include "errors.h"
#include "images.h"
#include "model.h"
#include "settings.h"

namespace gle {
namespace {

// Throws unless the caller's struct is there and has at least the fields of this ABI version.
template <class T>
void check_size(const T* s, const char* name) {
  if (s == nullptr || s->size < sizeof(T)) {
    throw Error(GLE_EINVAL, std::string(name) + ": size " +
                                std::to_string(s == nullptr ? 0 : s->size) + ": expected " +
                                std::to_string(sizeof(T)));
  }
}

// Clears all of a struct that the engine fills but its size, which is the caller's.
template <class T>
void clear(T* s) {
  const auto size = s->size;
  *s = T{};
  s->size = size;
}

// Runs f as guard does. What a failure may have left in LibTorch's caches goes back to the device,
// where other models of this process and of others can have it.
template <class F>
int guard_memory(gle_status otherwise, char* err, size_t err_cap, F&& f) noexcept {
  const int status = guard(otherwise, err, err_cap, std::forward<F>(f));
  if (status == GLE_EOOM) return_freed_memory();
  return status;
}

void check_inputs(gle_model* model, const gle_input* inputs, int32_t n_inputs) {
  if (model == nullptr) throw Error(GLE_EINVAL, "no model");
  if (n_inputs < 0 || (n_inputs > 0 && inputs == nullptr)) {
    throw Error(GLE_EINVAL, std::to_string(n_inputs) + " inputs");
  }
}

int init(const gle_config* config, char* err, size_t err_cap) {
  return guard(GLE_EINVAL, err, err_cap, [&] {
    check_size(config, "gle_config");
    configure(*config);
  });
}

int device_info(const char* device, gle_device_info* info, char* err, size_t err_cap) {
  return guard(GLE_EDEVICE, err, err_cap, [&] {
    check_size(info, "gle_device_info");
    clear(info);
    fill_device_info(parse_device(device), info);
  });
}

int load_operators(const char* path, char* err, size_t err_cap) {
  return guard(GLE_ELOAD, err, err_cap, [&] {
    if (path == nullptr) throw Error(GLE_EINVAL, "no path");
    if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) == nullptr) throw Error(GLE_ELOAD, dlerror());
  });
}

int load(const gle_load_options* options, gle_model** model, char* err, size_t err_cap) {
  return guard_memory(GLE_ELOAD, err, err_cap, [&] {
    check_size(options, "gle_load_options");
    if (options->path == nullptr || model == nullptr) throw Error(GLE_EINVAL, "no path or model");
    if ((options->n_inputs > 0 && options->inputs == nullptr) ||
        (options->n_outputs > 0 && options->output_dtypes == nullptr)) {
      throw Error(GLE_EINVAL, "inputs or outputs are counted but not given");
    }
    *model = new gle_model(*options);
  });
}

void unload(gle_model* model) {
  if (model == nullptr) return;
  delete model;
  return_freed_memory();
}

int model_info(gle_model* model, gle_model_info* info, char* err, size_t err_cap) {
  return guard(GLE_EINVAL, err, err_cap, [&] {
    check_inputs(model, nullptr, 0);
    check_size(info, "gle_model_info");
    clear(info);
    model->info(info);
  });
}

int prepare(gle_model* model, const gle_input* inputs, int32_t n_inputs, char* err,
            size_t err_cap) {
  return guard_memory(GLE_ERUN, err, err_cap, [&] {
    check_inputs(model, inputs, n_inputs);
    model->prepare(inputs, n_inputs);
  });
}

int run(gle_model* model, const gle_input* inputs, int32_t n_inputs, gle_result** result, char* err,
        size_t err_cap) {
  return guard_memory(GLE_ERUN, err, err_cap, [&] {
    check_inputs(model, inputs, n_inputs);
    if (result == nullptr) throw Error(GLE_EINVAL, "no result");
    *result = model->run(inputs, n_inputs).release();
  });
}

void result_free(gle_result* result) {
  delete static_cast<Result*>(result);
}

int stage(gle_model* model, const gle_input* inputs, int32_t n_inputs, gle_staged** staged,
          char* err, size_t err_cap) {
  return guard_memory(GLE_ERUN, err, err_cap, [&] {
    check_inputs(model, inputs, n_inputs);
    if (staged == nullptr) throw Error(GLE_EINVAL, "no staged batch");
    *staged = model->stage(inputs, n_inputs).release();
  });
}

int run_staged(gle_model* model, gle_staged* staged, gle_result** result, char* err,
               size_t err_cap) {
  return guard_memory(GLE_ERUN, err, err_cap, [&] {
    check_inputs(model, nullptr, 0);
    if (staged == nullptr || result == nullptr)
      throw Error(GLE_EINVAL, "no staged batch or result");
    *result = model->run_staged(*staged).release();
  });
}

void staged_free(gle_staged* staged) {
  delete staged;
}

#ifdef GLE_JPEG
int decode_image(const gle_image* image, char* err, size_t err_cap) {
  return guard(GLE_EINVAL, err, err_cap, [&] {
    check_size(image, "gle_image");
    decode_jpeg(*image);
  });
}
#else
constexpr decltype(gle_api::decode_image) decode_image = nullptr;
#endif

constexpr uint32_t features() {
  uint32_t f = 0;
#ifdef GLE_CUDA
  f |= GLE_HAS_CUDA;
#endif
#if __has_include(<torch/csrc/inductor/aoti_package/model_package_loader.h>) && !defined(GLE_NO_AOTI)
  f |= GLE_HAS_AOTI;
#endif
#ifdef GLE_JPEG
  f |= GLE_HAS_JPEG;
#endif
  return f;
}

constexpr gle_api kApi = {
    sizeof(gle_api),
    GLE_ABI_VERSION,
    "torch",
    "libtorch " TORCH_VERSION,
    features(),
    0,
    init,
    device_info,
    load_operators,
    load,
    unload,
    model_info,
    prepare,
    run,
    result_free,
    stage,
    run_staged,
    staged_free,
    decode_image,
};

}  // namespace
}  // namespace gle

extern "C" const gle_api* gle_get_api(uint32_t abi_version) {
  return abi_version == GLE_ABI_VERSION ? &gle::kApi : nullptr;
}
