// Modules and kernels by name, settings, and what was executed.

#pragma once

#include <mutex>

#include "machine.h"

namespace ptx {

#define EXPORTED extern "C" __attribute__((visibility("default")))

inline std::string last_error;
inline std::recursive_mutex machine_mutex;

// Runs `act`, and keeps what went wrong; false if something did.
template <typename Act>
bool succeeds(Act act) {
  const std::lock_guard<std::recursive_mutex> lock(machine_mutex);
  try {
    act();
    return true;
  } catch (const std::exception& error) {
    last_error = error.what();
    return false;
  }
}

size_t most_shared_bytes();  // of a block
// A kernel of a loaded module, translated. Fault if there is none of this name.
Kernel& kernel_named(const std::string& name);
// Launch within the limits of the architecture; Fault beyond them.
void checked_launch(Kernel& kernel, Grid grid);

}  // namespace ptx
