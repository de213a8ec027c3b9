// Modules and kernels by name, settings, and what was executed.

#pragma once

#include "machine.h"

namespace ptx {

#define EXPORTED extern "C" __attribute__((visibility("default")))

std::string& last_error();
size_t most_shared_bytes();  // of a block
// A kernel of a loaded module, translated. Fault if there is none of this name.
Kernel& kernel_named(const std::string& name);
// Launch within the limits of the architecture; Fault beyond them.
void checked_launch(Kernel& kernel, Grid grid);

}  // namespace ptx
