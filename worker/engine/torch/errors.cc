#include "errors.h"

#include <algorithm>
#include <cstring>

namespace gle {

bool breaks_device(const std::string& message) {
  // As cudaGetErrorString of CUDA 11 to 13 words them; the number is the cudaError_t. LibTorch puts
  // "CUDA error: " or "CUDA driver error: " in front. Faults of a kernel are "sticky": they end the
  // context. So does the end of the MPS server, whatever the cause. The names, without a number,
  // are cudaGetErrorName's, which some libraries print instead.
  static constexpr const char* kFaults[] = {
      "driver shutting down",                              // 4
      "uncorrectable ECC error",                           // 214
      "uncorrectable NVLink error",                        // 220
      "Invalid access of peer GPU memory",                 // 226, contained
      "illegal memory access",                             // 700
      "launch timed out and was terminated",               // 702
      "context is destroyed",                              // 709
      "device-side assert triggered",                      // 710
      "hardware stack error",                              // 714
      "illegal instruction",                               // 715
      "misaligned address",                                // 716
      "operation not supported on global/shared address",  // 717
      "invalid program counter",                           // 718
      "unspecified launch failure",                        // 719
      "tensor memory not completely freed",                // 721
      "MPS client failed to connect",                      // 805
      "remote procedural call between the MPS server",     // 806
      "MPS server is not ready",                           // 807
      "resources required to create MPS client",           // 808
      "resources required to support device connections",  // 809
      "MPS client has been terminated",                    // 810
      "async error has occured in external entity",        // 911, spelled so
      "CUDA error: unknown error",                         // 999
      "CUDA driver error: unknown error",                  //
      "cudaErrorIllegalAddress",                           //
      "cudaErrorLaunchFailure",                            //
      "cudaErrorECCUncorrectable",                         //
      "cudaErrorMpsClientTerminated",                      //
      "CUDA_ERROR_ILLEGAL_ADDRESS",                        //
      "CUDA_ERROR_LAUNCH_FAILED",                          //
      "CUDA_ERROR_ECC_UNCORRECTABLE",                      //
      "CUDA_ERROR_CONTAINED",                              //
      "CUDA_ERROR_MPS_CLIENT_TERMINATED",                  //
      "cudaErrorContained",
  };
  // Without this, an archive that raises an error of its own could end its process.
  if (message.find("CUDA") == std::string::npos && message.find("cudaError") == std::string::npos) {
    return false;
  }
  return std::any_of(std::begin(kFaults), std::end(kFaults),
                     [&](const char* fault) { return message.find(fault) != std::string::npos; });
}

bool out_of_memory(const std::string& message) {
  static constexpr const char* kWordings[] = {
      "out of memory",                 // CUDA's allocator and cudaErrorMemoryAllocation
      "can't allocate memory",         // the CPU's
      "CUBLAS_STATUS_ALLOC_FAILED",    // a workspace or a handle
      "CUDNN_STATUS_ALLOC_FAILED",     //
      "CUSOLVER_STATUS_ALLOC_FAILED",  //
  };
  return std::any_of(std::begin(kWordings), std::end(kWordings), [&](const char* wording) {
    return message.find(wording) != std::string::npos;
  });
}

std::string words_of(const std::exception& e) {
  const auto* const torch = dynamic_cast<const c10::Error*>(&e);
  return torch != nullptr ? torch->what_without_backtrace() : e.what();
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
  return out_of_memory(message) ? GLE_EOOM : otherwise;
}

int report(gle_status status, const std::string& message, char* err, size_t err_cap) noexcept {
  if (err == nullptr || err_cap == 0) return status;
  const size_t n = std::min(err_cap - 1, message.size());
  std::memcpy(err, message.data(), n);
  err[n] = '\0';
  return status;
}

}  // namespace gle
