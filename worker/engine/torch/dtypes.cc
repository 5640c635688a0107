#include "dtypes.h"

#include <sstream>

#include "errors.h"

namespace gle {
namespace {

struct Dtype {
  gle_dtype abi;
  at::ScalarType torch;
  const char* name;
};

constexpr Dtype kDtypes[] = {
    {GLE_FP32, at::kFloat, "FP32"},    {GLE_FP16, at::kHalf, "FP16"},
    {GLE_BF16, at::kBFloat16, "BF16"}, {GLE_FP64, at::kDouble, "FP64"},
    {GLE_UINT8, at::kByte, "UINT8"},   {GLE_INT8, at::kChar, "INT8"},
    {GLE_INT16, at::kShort, "INT16"},  {GLE_INT32, at::kInt, "INT32"},
    {GLE_INT64, at::kLong, "INT64"},   {GLE_BOOL, at::kBool, "BOOL"},
};

const Dtype& lookup(int32_t dtype) {
  for (const auto& d : kDtypes) {
    if (d.abi == dtype) return d;
  }
  throw Error(GLE_EINVAL, "unknown dtype " + std::to_string(dtype));
}

}  // namespace

at::ScalarType torch_dtype(int32_t dtype) {
  return lookup(dtype).torch;
}

gle_dtype abi_dtype(at::ScalarType type) {
  for (const auto& d : kDtypes) {
    if (d.torch == type) return d.abi;
  }
  throw Error(GLE_EUNSUPPORTED, std::string("outputs of type ") + c10::toString(type));
}

int64_t bytes_of(const gle_input& input, int index) {
  const auto bad = [&](const std::string& what) {
    return Error(GLE_EINVAL, "input " + std::to_string(index) + ": " + what);
  };
  if (input.n_dims < 0 || input.n_dims > GLE_MAX_DIMS) {
    throw bad(std::to_string(input.n_dims) + " dimensions: expected at most " +
              std::to_string(GLE_MAX_DIMS));
  }
  int64_t n = static_cast<int64_t>(c10::elementSize(torch_dtype(input.dtype)));
  for (int d = 0; d < input.n_dims; d++) {
    if (input.shape[d] < 0) throw bad("negative dimension in " + describe(input));
    if (__builtin_mul_overflow(n, input.shape[d], &n)) throw bad(describe(input) + " is too large");
  }
  return n;
}

std::string describe(const gle_input& input) {
  std::ostringstream s;
  s << lookup(input.dtype).name << '[';
  for (int d = 0; d < input.n_dims; d++) s << (d > 0 ? " " : "") << input.shape[d];
  s << ']';
  return s.str();
}

}  // namespace gle
