// The interface for Python (ctypes), and the state behind it.

#include "api.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <sstream>

#include "memory.h"

namespace ptx {
namespace {

struct Loaded {
  std::recursive_mutex mutex;
  std::vector<std::unique_ptr<Module>> modules;
  std::map<std::string, std::map<int, Kernel*>> kernels;  // by name, by architecture
};
Loaded& loaded() {
  static Loaded* all = new Loaded;
  return *all;
}

void load(const std::string& file, const std::string& text) {
  std::unique_ptr<Module> module = parse(file, text);
  for (const auto& [name, kernel] : module->kernels) {
    loaded().kernels[name][module->architecture] = kernel.get();
  }
  loaded().modules.push_back(std::move(module));
}

template <typename Act>
void for_every_kernel(Act act) {
  for (const auto& [name, versions] : loaded().kernels) {
    for (const auto& [architecture, kernel] : versions) {
      act(*kernel);
    }
  }
}

// Runs `act`, and keeps what went wrong; 0 if nothing did.
template <typename Act>
int guarded(Act act) {
  const std::lock_guard<std::recursive_mutex> lock(loaded().mutex);
  try {
    act();
    return 0;
  } catch (const std::exception& error) {
    last_error() = error.what();
    return 1;
  }
}

}  // namespace

Settings& settings() {
  static Settings all;
  return all;
}

std::mt19937_64& dice() {
  static std::mt19937_64 generator;
  return generator;
}

std::string& last_error() {
  static std::string text;
  return text;
}

size_t most_shared_bytes(int capability) {
  // CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
  const int kib = capability < 80                         ? 64
                  : capability == 80 || capability == 87  ? 163
                  : capability >= 90 && capability < 120  ? 227
                                                          : 99;
  return size_t(kib) * 1024;
}

void fault(Warp& warp, const Instruction& instruction, int lane, const std::string& what) {
  const Block& block = *warp.block;
  std::ostringstream text;
  text << what << " [" << warp.kernel->module->file << ':' << instruction.line << ": "
       << instruction.text << "; block " << block.index[0] << ',' << block.index[1] << ','
       << block.index[2] << " warp " << warp.index << " lane " << lane << "; kernel "
       << warp.kernel->name << ']';
  throw Fault(text.str());
}

const Kernel& kernel_named(const std::string& name) {
  const auto found = loaded().kernels.find(name);
  if (found == loaded().kernels.end()) {
    throw Fault("no kernel " + name + " was loaded");
  }
  const auto newer = found->second.upper_bound(settings().capability);
  if (newer == found->second.begin()) {
    throw Fault(name + " was compiled for sm_" + std::to_string(newer->first) +
                "; the device has a capability of " + std::to_string(settings().capability));
  }
  Kernel& kernel = *std::prev(newer)->second;
  translate(kernel);
  return kernel;
}

void checked_launch(const Kernel& kernel, std::array<uint32_t, 3> size,
                    std::array<uint32_t, 3> threads, size_t shared, std::vector<uint8_t> parameters,
                    bool dependent) {
  const std::lock_guard<std::recursive_mutex> lock(loaded().mutex);
  const uint64_t count = uint64_t(threads[0]) * threads[1] * threads[2];
  const auto refuse = [&](const std::string& what) { throw Fault(kernel.name + ": " + what); };
  if (threads[0] > 1024 || threads[1] > 1024 || threads[2] > 64 || count == 0 ||
      count > kernel.most_threads) {
    refuse("blocks of " + std::to_string(count) + " threads; it takes up to " +
           std::to_string(kernel.most_threads));
  }
  if (kernel.required[0] && threads != kernel.required) {
    refuse("it requires other blocks (.reqntid)");
  }
  if (!size[0] || !size[1] || !size[2] || size[0] > 0x7FFFFFFF || size[1] > 65535 ||
      size[2] > 65535) {
    refuse("a grid of " + std::to_string(size[0]) + " x " + std::to_string(size[1]) + " x " +
           std::to_string(size[2]) + " blocks");
  }
  const size_t most = most_shared_bytes(settings().capability);
  if (shared + kernel.shared_bytes > most) {
    refuse(std::to_string(shared + kernel.shared_bytes) + " bytes of shared memory; a block has " +
           std::to_string(most));
  }
  if (kernel.parameter_bytes > 32764) {
    refuse(std::to_string(kernel.parameter_bytes) + " bytes of parameters; possible are 32764");
  }
  launch(kernel, size, threads, uint32_t(shared), std::move(parameters), dependent);
}

}  // namespace ptx

using namespace ptx;

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* ptx_error() { return last_error().c_str(); }

EXPORTED int ptx_load(const char* file, const char* text) {
  return guarded([&] { load(file, text); });
}

EXPORTED void ptx_register(uint64_t address, uint64_t bytes) { add_allocation(address, bytes); }
EXPORTED void ptx_unregister(uint64_t address) { drop_allocation(address); }

EXPORTED int ptx_set(const char* name, uint64_t value) {
  return guarded([&] {
    Settings& all = settings();
    const std::string key = name;
    if (key == "seed") {
      all.seed = value;
      dice().seed(value);
    } else if (key == "arrival") {
      all.arrival = Arrival(value);
    } else if (key == "races") {
      all.races = value;
    } else if (key == "banks") {
      all.banks = value;
    } else if (key == "overlap") {
      all.overlap = value;
    } else if (key == "truncate_products") {
      all.truncate_products = value;
    } else if (key == "capability") {
      all.capability = int(value);
    } else if (key == "multiprocessors") {
      all.multiprocessors = int(value);
    } else if (key == "most_instructions") {
      all.most_instructions = value;
    } else {
      throw Fault("there is no setting " + key);
    }
  });
}

// The offset and size of a parameter: -1 if there are fewer; of parameter -1, those of all.
EXPORTED int ptx_parameter(const char* kernel, int index, uint32_t* offset, uint32_t* bytes) {
  int found = -1;
  const int result = guarded([&] {
    const Kernel& known = kernel_named(kernel);
    if (index < 0) {
      *offset = 0;
      *bytes = known.parameter_bytes;
      found = 0;
    } else if (size_t(index) < known.parameters.size()) {
      *offset = known.parameters[size_t(index)].offset;
      *bytes = known.parameters[size_t(index)].bytes;
      found = 0;
    }
  });
  return result ? -2 : found;
}

EXPORTED int ptx_launch(const char* kernel, const uint32_t* grid, const uint32_t* block,
                        uint32_t shared, const uint8_t* parameters, uint32_t bytes,
                        int dependent) {
  return guarded([&] {
    const Kernel& known = kernel_named(kernel);
    if (bytes != known.parameter_bytes) {
      throw Fault(std::string(kernel) + ": " + std::to_string(bytes) +
                  " bytes of parameters; it has " + std::to_string(known.parameter_bytes));
    }
    checked_launch(known, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared,
                   std::vector<uint8_t>(parameters, parameters + bytes), dependent != 0);
  });
}

EXPORTED int ptx_synchronize() {
  return guarded([] { synchronize(); });
}

EXPORTED void ptx_forget_counts() {
  for_every_kernel([](Kernel& kernel) {
    kernel.launches = kernel.blocks = 0;
    for (const Instruction& instruction : kernel.code) {
      instruction.count = Count();
    }
  });
}

// A line for each instruction of each kernel that was launched, tabs between: kernel, launches,
// blocks, line of the PTX, opcode, function and line of the source, warps, lanes, passes over the
// banks of shared memory, and passes without conflicts.
EXPORTED int ptx_counts(const char* path) {
  return guarded([&] {
    std::ofstream out(path);
    for_every_kernel([&](Kernel& kernel) {
      for (const Instruction& i : kernel.code) {
        if (kernel.launches) {
          out << kernel.name << '\t' << kernel.launches << '\t' << kernel.blocks << '\t' << i.line
              << '\t' << i.opcode << '\t' << i.region << '\t' << i.source_line << '\t'
              << i.count.warps << '\t' << i.count.lanes << '\t' << i.count.passes << '\t'
              << i.count.least_passes << '\n';
        }
      }
    });
    if (!out) {
      throw Fault(std::string("cannot write ") + path);
    }
  });
}
