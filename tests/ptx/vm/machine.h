// A GPU that executes PTX: warps of 32 lanes in lockstep under masks, blocks, grids, streams.
//
// Semantics are those of NVIDIA's "Parallel Thread Execution ISA", version 9.0; sections are cited
// by their titles. See tests/ptx/README.md for what it watches, and for what it cannot see.

#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = ~0u;

template <typename... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// What is wrong with a program, or with how it is launched; the message names file and line.
struct Fault : std::runtime_error {
  template <typename... Parts>
  explicit Fault(const Parts&... parts) : std::runtime_error(joined(parts...)) {}
};

// Formats of floats that C++ lacks, and predicates, are bits.
struct Opaque16 {
  uint16_t bits;
};
struct Opaque32 {
  uint32_t bits;
};

// Types of PTX and what holds them in C++: integers, floats, and two that are neither.
#define FASSD_PTX_INTEGERS(X)                                                               \
  X(b8, uint8_t), X(b16, uint16_t), X(b32, uint32_t), X(b64, uint64_t), X(u8, uint8_t),     \
      X(u16, uint16_t), X(u32, uint32_t), X(u64, uint64_t), X(s8, int8_t), X(s16, int16_t), \
      X(s32, int32_t), X(s64, int64_t)
#define FASSD_PTX_FLOATS(X)                                                              \
  X(f16, _Float16), X(f32, float), X(f64, double), X(bf16, Opaque16), X(tf32, Opaque32), \
      X(f16x2, Opaque32), X(bf16x2, Opaque32)
#define FASSD_PTX_TYPES(X) \
  FASSD_PTX_INTEGERS(X), FASSD_PTX_FLOATS(X), X(pred, Opaque32), X(none, Opaque32)
#define FASSD_PTX_NAME(name, of) name
#define FASSD_PTX_TEXT(name, of) #name
enum class Type : uint8_t { FASSD_PTX_TYPES(FASSD_PTX_NAME) };

// pick(T()) with T the type of C++.
template <typename Pick>
auto with_type(Type type, Pick pick) {
#define FASSD_PTX_PICK(name, of) +[](Pick& pick) { return pick(of()); }
  static constexpr decltype(pick(uint32_t())) (*kPicks[])(Pick&) = {
      FASSD_PTX_TYPES(FASSD_PTX_PICK)};
  return kPicks[size_t(type)](pick);
}
inline int bytes_of(Type type) {
  return with_type(type, []<typename T>(T) { return int(sizeof(T)); });
}
inline bool is_integer(Type type) {  // also untyped bits
  return type <= Type::s64;
}
inline bool is_signed(Type type) {
  return type >= Type::s8 && type <= Type::s64;
}

enum class Space : uint8_t { generic, global, shared, local, param, constant };

// How the scheduler treats an instruction.
enum class Flow : uint8_t {
  next,  // lanes need not be together
  branch,
  exit,
  trap,
  aligned,     // all lanes of the warp execute it together (.aligned)
  members,     // the lanes of a mask do, in the last source
  barrier,     // of the block: name, number of threads, and a predicate where there is a target
  poll,        // may be tried in vain: others go on in between (mbarrier.try_wait)
  dependents,  // griddepcontrol.launch_dependents
  previous,    // griddepcontrol.wait
};

struct Warp;
struct Block;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&, uint32_t mask);

// An address: a register, if `based`, and a constant.
struct Address {
  Space space = Space::generic;
  bool based = false, wide = false;  // a register of 64 bits
  uint32_t base = 0;
  int64_t offset = 0;
};

// What has been executed of an instruction.
struct Count {
  uint64_t warps = 0, lanes = 0;
  uint64_t passes = 0, least_passes = 0;  // over the banks of shared memory, and without conflicts
};

// What is looked at most stands first.
struct Instruction {
  Handler run = nullptr;
  Flow flow = Flow::next;
  uint8_t outputs = 0, inputs = 0;
  uint32_t guard = 0, guard_inverted = 0;  // a predicate, and what it is exclusive-ored with
  uint32_t target = 0;                     // of a branch
  mutable Count count;
  uint32_t to[8] = {}, from[16] = {};  // registers: byte offsets into the warp's
  Address address[3];
  mutable uint64_t low = 1, high = 0;  // the allocation that was hit last
  uint16_t inverted = 0;               // sources that are predicates and negated, by bit
  Type type = Type::none, type2 = Type::none;
  uint8_t choices[6] = {};               // which of the modifiers it has: see Form
  uint8_t to_bytes = 0, from_bytes = 0;  // of the last target and source
  int immediate = 0;                     // what a handler wants to know
  std::vector<uint32_t> sums;            // wgmma: registers that are read and written
  int line = 0, source_line = 0;
  std::string opcode, text;
  // Functions of the source that it comes from, each inlined in the one behind the comma, where the
  // PTX says them.
  std::string region;
};

struct Parameter {
  std::string name;
  uint32_t offset = 0, bytes = 0;
};

struct Module;

// A `.entry`, translated when it is first launched.
struct Kernel {
  Module* module = nullptr;
  std::string name;
  std::vector<Parameter> parameters;
  uint32_t parameter_bytes = 0;
  uint32_t most_threads = 1024;
  std::array<uint32_t, 3> required = {0, 0, 0};  // .reqntid
  std::string body;
  int first_line = 0;

  bool translated = false;
  std::vector<Instruction> code;
  std::vector<uint8_t> registers;  // of a warp, as they are at its begin
  std::vector<std::pair<uint32_t, int>> specials;
  uint32_t local_bytes = 0, shared_bytes = 0;
  bool starts_dependents = false;
  uint64_t launches = 0, blocks = 0;
};

struct Variable {
  std::string name;
  Type element = Type::none;
  Space space = Space::generic;
  uint32_t alignment = 1;
  uint64_t bytes = 0;
  bool sized_by_launch = false;
  uint64_t address = 0;
};

struct Module {
  std::string file;
  int architecture = 0;
  std::vector<Variable> variables;
  std::deque<std::vector<uint8_t>> storage;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;
  std::map<std::string, std::string> strings;  // labels of .debug_str: names of inlined functions
};

using Clocks = std::vector<uint32_t>;  // by warp, the last: copies

// Of an access to shared memory: by which lane of which warp, and when, in the warp's own time.
struct Access {
  int16_t warp = -1;
  uint8_t lane = 0;
  bool atomic = false;
  uint32_t clock = 0;  // of the warp among the block's: barriers passed
  uint32_t step = 0;   // of the lane among the warp's: bar.warp.sync and barriers passed
};
struct History {
  Access write, read;
  int32_t more = -1;  // index of readers of several warps, by warp
};

// Bytes that are on their way from global to shared memory.
struct Piece {
  uint32_t shared = 0;
  uint8_t* global = nullptr;
  uint32_t bytes = 0, given = 0;  // beyond what is given come zeros
};
// A cp.async of a lane.
struct LaneCopy {
  const Instruction* instruction = nullptr;
  int lane = 0;
  uint32_t group = 0;  // of the lane's
  Piece piece;
};
// A tile (cp.async.bulk.tensor, TMA), which belongs to no lane once it is issued.
struct BulkCopy {
  std::vector<Piece> pieces;
  uint32_t barrier = 0;  // that counts its bytes
  uint64_t bytes = 0;
};

// A wgmma that is on its way.
struct Product {
  const Instruction* instruction = nullptr;
  uint32_t group = 0;
  bool accumulate = false;
  std::array<uint64_t, 2> descriptors;
  std::vector<float> sums;  // as the registers held them
};

// Lanes that are at one place.
struct Together {
  uint32_t at = 0, mask = 0;
  bool parked = false;  // until others have come to it
};

struct Warp {
  Block* block = nullptr;
  const Kernel* kernel = nullptr;
  int index = 0;
  uint8_t* registers = nullptr;
  std::vector<uint8_t> local;
  std::vector<Together> groups;
  uint32_t alive = 0;
  bool ended = false, yielded = false;
  int barrier = -1;  // that it waits at
  bool awaits_previous = false, started_dependents = false;

  std::vector<LaneCopy> copies;
  std::vector<Product> products;
  std::array<uint32_t, kLanes> committed = {};  // groups of copies
  uint32_t products_committed = 0;              // groups of wgmma

  const Instruction* vote = nullptr;  // the barrier.red that it waits at
  uint32_t vote_mask = 0;
  Clocks clocks;  // until when this one has seen the others
  uint32_t step = 1;

  template <typename T>
  T* lanes(uint32_t offset) {
    return reinterpret_cast<T*>(registers + offset);
  }
  // The lanes' predicates, as bits.
  uint32_t& predicate(uint32_t offset) { return *lanes<uint32_t>(offset); }
  uint32_t predicate(const Instruction& i, int source) {
    return predicate(i.from[source]) ^ (i.inverted >> source & 1 ? kAllLanes : 0);
  }
  void set_predicate(uint32_t offset, uint32_t bits, uint32_t mask) {
    predicate(offset) = (predicate(offset) & ~mask) | (bits & mask);
  }
};

struct Barrier {
  uint32_t arrived = 0, expected = 0;
  bool any = false;
  Clocks clocks;
};

// A phase of an mbarrier object (PTX ISA, "mbarrier"), beside the 64 bits in shared memory.
struct PhaseBarrier {
  uint32_t expected = 0, arrivals = 0;  // that are still missing
  int64_t bytes = 0;                    // of copies that are on their way
  uint32_t phase = 0;
  Clocks clocks;
};

struct Grid;

struct Block {
  Grid* grid = nullptr;
  uint64_t number = 0;
  std::array<uint32_t, 3> index = {};
  std::vector<uint8_t> shared_storage, written;  // written: by byte, whether anything was
  uint8_t* shared = nullptr;
  uint32_t shared_bytes = 0;
  std::vector<std::vector<uint8_t>> register_files;
  std::vector<Warp> warps;
  std::array<Barrier, 16> barriers;
  std::map<uint32_t, PhaseBarrier> phase_barriers;
  std::vector<BulkCopy> copies;
  uint32_t copies_clock = 0;
  std::vector<History> history;  // by byte of shared memory
  std::vector<std::vector<Access>> readers;
  size_t turn = 0;
};

// What is launched.
struct Grid {
  const Kernel* kernel = nullptr;
  std::array<uint32_t, 3> size = {}, threads = {};
  uint32_t dynamic_shared = 0;
  std::vector<uint8_t> parameters;
  bool dependent = false;  // may begin before the grid before it has ended
  std::vector<std::unique_ptr<Block>> suspended;
  uint64_t instructions = 0;
};

// How the machine behaves where the ISA leaves it open, and what it watches.
enum Arrival : uint64_t { kEarly, kLate, kRandom };
struct Settings {
  uint64_t seed = 0;  // 0: warps and blocks in order, else at random
  uint64_t arrival = kLate;
  uint64_t races = false, banks = false;
  uint64_t apart = false;  // each launch is counted by itself
  // Dependent grids begin early: 1, those of an operator's call; 2, of all to the next
  // synchronization, and no memory is freed meanwhile.
  uint64_t overlap = 0;
  uint64_t truncate_products = false;  // tensor cores round sums towards zero
  uint64_t capability = 90;
  uint64_t multiprocessors = 132;
  uint64_t most_instructions = 1ull << 36;  // by warps, of a launch
};
inline Settings settings;
inline std::mt19937_64 dice;

// Whether what is issued has arrived at once.
inline bool arrives_now() {
  return settings.arrival == kEarly || (settings.arrival == kRandom && dice() & 1);
}

std::string whereabouts(Warp& warp, const Instruction& instruction, int lane);
template <typename... Parts>
[[noreturn]] void fault(Warp& warp, const Instruction& i, int lane, const Parts&... what) {
  throw Fault(what..., whereabouts(warp, i, lane));
}
template <typename... Parts>
void fault_if(bool wrong, Warp& warp, const Instruction& i, int lane, const Parts&... what) {
  if (wrong) {
    fault(warp, i, lane, what...);
  }
}
template <typename... Parts>
void fault_if(bool wrong, const Parts&... what) {
  if (wrong) {
    throw Fault(what...);
  }
}

// Calls f(lane) for each lane of a mask. Registers are the same or apart, so that what one lane
// writes no other one reads.
template <typename F>
inline void each(uint32_t mask, F f) {
  if (mask == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) {
      f(lane);
    }
  } else {
    for (; mask; mask &= mask - 1) {
      f(__builtin_ctz(mask));
    }
  }
}

// Modules and kernels by name (api.cpp).
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

// Scheduling (schedule.cpp).
void launch(std::unique_ptr<Grid> grid);
void synchronize();  // until all that was launched has ended

// The text of a module (parse.cpp), a kernel's code (translate.cpp).
std::unique_ptr<Module> parse(const std::string& file, const std::string& text);
void translate(Kernel& kernel);

}  // namespace ptx
