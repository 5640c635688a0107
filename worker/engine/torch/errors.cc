#include "errors.h"

#include <algorithm>
#include <cstring>

namespace gle {

bool breaks_device(const std::string& message) {
  // "Sticky" CUDA errors, as cudaGetErrorString words them, and the end of an MPS server.
  static constexpr const char* kFaults[] = {"illegal memory access",
                                            "device-side assert triggered",
                                            "unspecified launch failure",
                                            "misaligned address",
                                            "illegal instruction",
                                            "MPS client",
                                            "MPS server",
                                            "an uncorrectable",
                                            "context is destroyed",
                                            "hardware stack error",
                                            "invalid program counter"};
  return std::any_of(std::begin(kFaults), std::end(kFaults),
                     [&](const char* fault) { return message.find(fault) != std::string::npos; });
}

std::string cause_first(const std::string& message) {
  for (const char* kind :
       {"RuntimeError: ", "IndexError: ", "AssertionError: ", "torch.jit.Error: "}) {
    const auto at = message.rfind(kind);
    if (at == std::string::npos || at == 0) continue;
    const auto cause = message.substr(at, message.find('\n', at) - at);
    return cause + " | " + message.substr(0, at);
  }
  return message;
}

gle_status classify(const std::string& message, gle_status otherwise) {
  if (breaks_device(message)) return GLE_EDEVICE;
  if (message.find("out of memory") != std::string::npos ||
      message.find("can't allocate memory") != std::string::npos) {
    return GLE_EOOM;
  }
  return otherwise;
}

int report(gle_status status, const std::string& message, char* err, size_t err_cap) noexcept {
  if (err == nullptr || err_cap == 0) return status;
  const size_t n = std::min(err_cap - 1, message.size());
  std::memcpy(err, message.data(), n);
  err[n] = '\0';
  return status;
}

}  // namespace gle
