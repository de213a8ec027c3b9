// The interface for Python (ctypes), and the state behind it.

#include <fstream>
#include <utility>

#include "memory.h"

namespace ptx {
namespace {

// These outlive what is freed at the end of the process.
auto& modules = *new std::vector<std::unique_ptr<Module>>;
auto& kernels = *new std::map<std::string, std::map<int, Kernel*>>;  // by name, by architecture

// What was executed, by instruction, in one launch or in all of a kernel.
struct Executed {
  const Kernel* kernel;
  uint64_t launches, blocks;
  std::vector<Count> counts;
};
auto& ended = *new std::vector<Executed>;  // launches that are counted by themselves, in order

Executed take_counts(Kernel& kernel) {
  Executed taken = {
      &kernel, std::exchange(kernel.launches, 0), std::exchange(kernel.blocks, 0), {}};
  for (const Instruction& instruction : kernel.code) {
    taken.counts.push_back(std::exchange(instruction.count, Count()));
  }
  return taken;
}

void write_counts(std::ostream& out, const Executed& executed, size_t launch) {
  for (size_t at = 0; at < executed.counts.size(); ++at) {
    const Instruction& i = executed.kernel->code[at];
    const Count& count = executed.counts[at];
    out << executed.kernel->name << '\t' << launch << '\t' << executed.launches << '\t'
        << executed.blocks << '\t' << i.line << '\t' << i.opcode << '\t' << i.region << '\t'
        << i.source_line << '\t' << count.warps << '\t' << count.lanes << '\t' << count.passes
        << '\t' << count.least_passes << '\n';
  }
}

template <typename Act>
void for_every_kernel(Act act) {
  for (const auto& [name, versions] : kernels) {
    for (const auto& [architecture, kernel] : versions) {
      act(*kernel);
    }
  }
}

}  // namespace

size_t most_shared_bytes() {
  // CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
  const uint64_t capability = settings.capability;
  const size_t kib = capability < 80                        ? 64
                     : capability == 80 || capability == 87 ? 163
                     : capability >= 90 && capability < 120 ? 227
                                                            : 99;
  return kib * 1024;
}

std::string whereabouts(Warp& warp, const Instruction& i, int lane) {
  const auto [x, y, z] = warp.block->index;
  return joined(" [", warp.kernel->module->file, ':', i.line, ": ", i.text, "; block ", x, ',', y,
                ',', z, " warp ", warp.index, " lane ", lane, "; kernel ", warp.kernel->name, ']');
}

Kernel& kernel_named(const std::string& name) {
  const auto found = kernels.find(name);
  fault_if(found == kernels.end(), "no kernel ", name, " was loaded");
  const auto newer = found->second.upper_bound(int(settings.capability));
  if (newer == found->second.begin()) {
    throw Fault(name, " was compiled for sm_", newer->first, "; the device has a capability of ",
                settings.capability);
  }
  Kernel& kernel = *std::prev(newer)->second;
  translate(kernel);
  return kernel;
}

void checked_launch(Kernel& kernel, Grid grid) {
  const std::string who = kernel.name + ": ";
  const auto [x, y, z] = grid.size;
  const auto [width, height, depth] = grid.threads;
  const uint64_t count = uint64_t(width) * height * depth;
  const size_t shared = size_t(grid.dynamic_shared) + kernel.shared_bytes;
  fault_if(width > 1024 || height > 1024 || depth > 64 || !count || count > kernel.most_threads,
           who, "blocks of ", count, " threads; it takes up to ", kernel.most_threads);
  fault_if(kernel.required[0] && grid.threads != kernel.required, who,
           "it requires other blocks (.reqntid)");
  fault_if(!x || !y || !z || x > 0x7FFFFFFF || y > 65535 || z > 65535, who, "a grid of ", x, " x ",
           y, " x ", z, " blocks");
  fault_if(shared > most_shared_bytes(), who, shared, " bytes of shared memory; a block has ",
           most_shared_bytes());
  fault_if(kernel.parameter_bytes > 32764, who, kernel.parameter_bytes,
           " bytes of parameters; possible are 32764");
  kernel.launches += 1;
  kernel.blocks += uint64_t(x) * y * z;
  grid.kernel = &kernel;
  launch(std::make_unique<Grid>(std::move(grid)));
  if (settings.apart) {
    synchronize();
    ended.push_back(take_counts(kernel));
  }
}

}  // namespace ptx

using namespace ptx;

EXPORTED const char* ptx_error() {
  return last_error.c_str();
}

EXPORTED int ptx_load(const char* file, const char* text) {
  return !succeeds([&] {
    std::unique_ptr<Module> module = parse(file, text);
    for (const auto& [name, kernel] : module->kernels) {
      kernels[name][module->architecture] = kernel.get();
    }
    modules.push_back(std::move(module));
  });
}

EXPORTED void ptx_register(uint64_t address, uint64_t bytes) {
  add_allocation(address, bytes);
}
EXPORTED void ptx_unregister(uint64_t address) {
  drop_allocation(address);
}

EXPORTED int ptx_set(const char* name, uint64_t value) {
  static const std::map<std::string, uint64_t Settings::*> kNames = {
      {"seed", &Settings::seed},
      {"arrival", &Settings::arrival},
      {"races", &Settings::races},
      {"banks", &Settings::banks},
      {"apart", &Settings::apart},
      {"overlap", &Settings::overlap},
      {"truncate_products", &Settings::truncate_products},
      {"capability", &Settings::capability},
      {"multiprocessors", &Settings::multiprocessors},
      {"most_instructions", &Settings::most_instructions},
  };
  return !succeeds([&] {
    const auto found = kNames.find(name);
    fault_if(found == kNames.end(), "there is no setting ", name);
    settings.*found->second = value;
    dice.seed(settings.seed);
  });
}

// The offset and size of a parameter: -1 if there are fewer; of parameter -1, those of all.
EXPORTED int ptx_parameter(const char* name, int index, uint32_t* offset, uint32_t* bytes) {
  bool is_there = false;
  const bool known = succeeds([&] {
    const Kernel& kernel = kernel_named(name);
    is_there = index < int(kernel.parameters.size());
    const Parameter all{"", 0, kernel.parameter_bytes};
    const Parameter& found = index < 0 || !is_there ? all : kernel.parameters[size_t(index)];
    *offset = found.offset;
    *bytes = found.bytes;
  });
  return !known ? -2 : is_there ? 0 : -1;
}

EXPORTED int ptx_launch(const char* name, const uint32_t* grid, const uint32_t* block,
                        uint32_t shared, const uint8_t* parameters, uint32_t bytes, int dependent) {
  return !succeeds([&] {
    Kernel& kernel = kernel_named(name);
    fault_if(bytes != kernel.parameter_bytes, name, ": ", bytes, " bytes of parameters; it has ",
             kernel.parameter_bytes);
    Grid made;
    made.size = {grid[0], grid[1], grid[2]};
    made.threads = {block[0], block[1], block[2]};
    made.dynamic_shared = shared;
    made.parameters = {parameters, parameters + bytes};
    made.dependent = dependent != 0;
    checked_launch(kernel, std::move(made));
  });
}

EXPORTED int ptx_synchronize() {
  return !succeeds([] { synchronize(); });
}

EXPORTED void ptx_forget_counts() {
  ended.clear();
  for_every_kernel(take_counts);
}

// A line for each instruction of each kernel that was launched, and forgets them; tabs between:
// kernel, number of the launch among those that are counted by themselves, launches, blocks, line
// of the PTX, opcode, functions and line of the source, warps, lanes, passes over the banks of
// shared memory, and passes without conflicts.
EXPORTED int ptx_counts(const char* path) {
  return !succeeds([&] {
    std::ofstream out(path);
    for (size_t launch = 0; launch < ended.size(); ++launch) {
      write_counts(out, ended[launch], launch);
    }
    for_every_kernel([&](Kernel& kernel) {
      if (kernel.launches) {
        write_counts(out, take_counts(kernel), 0);
      }
    });
    ended.clear();
    fault_if(!out, "cannot write ", path);
  });
}
