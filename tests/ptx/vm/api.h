// Modules and kernels by name, settings, and what was executed.

#pragma once

#include "machine.h"

namespace ptx {

std::string& last_error();
// A kernel of a loaded module, translated. Fault if there is none of this name.
const Kernel& kernel_named(const std::string& name);
// Launch within the limits of the architecture; Fault beyond them.
void checked_launch(const Kernel& kernel, std::array<uint32_t, 3> size,
                    std::array<uint32_t, 3> threads, size_t shared, std::vector<uint8_t> parameters,
                    bool dependent);

}  // namespace ptx
