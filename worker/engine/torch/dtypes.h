// Dtypes and shapes: between the ABI's numbers and LibTorch's.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>

#include "engine.h"

namespace gle {

// Throws GLE_EINVAL for a number that is no gle_dtype.
at::ScalarType torch_dtype(int32_t dtype);

// Throws GLE_EUNSUPPORTED for a type that the ABI does not carry (complex, quantised).
gle_dtype abi_dtype(at::ScalarType type);

// The bytes of a dense input of this shape and type. Throws GLE_EINVAL, naming input `index`, for
// a wrong number of dimensions, a negative one, and a product beyond an int64.
int64_t bytes_of(const gle_input& input, int index);

// "FP32[8 3 224 224]", for messages and as a key.
std::string describe(const gle_input& input);

}  // namespace gle
