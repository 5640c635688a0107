// Errors: from C++ exceptions to the status and message of the C ABI.
#pragma once

#include <c10/util/Exception.h>
#include <torch/version.h>

#include <new>
#include <stdexcept>
#include <string>

#include "engine.h"

namespace gle {

// An error whose status we know; everything else that is thrown is classified by guard().
struct Error : std::runtime_error {
  gle_status status;
  Error(gle_status s, const std::string& message) : std::runtime_error(message), status(s) {}
};

// True for faults after which every later call on the device fails too.
bool breaks_device(const std::string& message);

// True for a lack of memory, of the host or the device.
bool out_of_memory(const std::string& message);

// What an exception says, without the C++ backtrace that LibTorch's own carry.
std::string words_of(const std::exception& e);

// Puts the cause first: TorchScript's interpreter writes it after a long trace.
std::string cause_first(const std::string& message);

// Writes message into err (cut to fit, always terminated) and returns status.
int report(gle_status status, const std::string& message, char* err, size_t err_cap) noexcept;

// The status of a LibTorch error's message; `otherwise` when nothing in it tells.
gle_status classify(const std::string& message, gle_status otherwise);

// Runs f and turns what it throws into a status and a message. `otherwise` is the status of an
// error that says nothing of its kind. This is the only way from the ABI into C++ code.
template <class F>
int guard(gle_status otherwise, char* err, size_t err_cap, F&& f) noexcept {
  try {
    f();
    return GLE_OK;
  } catch (const Error& e) {
    return report(e.status, e.what(), err, err_cap);
  } catch (const c10::OutOfMemoryError& e) {
    return report(GLE_EOOM, e.what_without_backtrace(), err, err_cap);
  } catch (const std::bad_alloc&) {
    return report(GLE_EOOM, "out of host memory", err, err_cap);
  } catch (const std::exception& e) {
    const std::string words = words_of(e);
    return report(classify(words, otherwise), cause_first(words), err, err_cap);
  } catch (...) {
    return report(otherwise, "an exception of unknown type", err, err_cap);
  }
}

}  // namespace gle
