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
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = ~0u;

// What is wrong with a program, or with how it is launched; the message names file and line.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Type : uint8_t {
  none, pred,
  b8, b16, b32, b64, b128,
  u8, u16, u32, u64,
  s8, s16, s32, s64,
  f16, f16x2, bf16, bf16x2, tf32, f32, f64,
};
int bytes_of(Type type);
bool is_signed(Type type);
bool is_integer(Type type);  // also untyped bits

enum class Space : uint8_t { generic, global, shared, local, param, constant };

// How the scheduler treats an instruction.
enum class Flow : uint8_t {
  next,     // lanes need not be together
  branch,
  exit,
  trap,
  aligned,  // all lanes of the warp execute it together (.aligned)
  members,  // the lanes of a mask do, in input 15
  barrier,  // of the block
  poll,     // may be tried in vain: others go on in between (mbarrier.try_wait)
  dependents,  // griddepcontrol.launch_dependents
  previous,    // griddepcontrol.wait
};

struct Warp;
struct Block;
struct Kernel;
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

struct Instruction {
  Handler run = nullptr;
  Flow flow = Flow::next;
  bool guarded = false, guard_negated = false;
  uint8_t outputs = 0, inputs = 0;
  uint8_t option = 0, option2 = 0;  // what a handler wants to know
  Type type = Type::none, type2 = Type::none;
  uint32_t guard = 0;
  uint32_t to[8] = {}, from[16] = {};  // registers: byte offsets into the warp's
  Address address, address2;
  int64_t immediate = 0;
  uint32_t target = 0;             // of a branch
  std::vector<uint32_t> registers;  // more of them (wgmma)
  int line = 0;
  std::string opcode, text;
  std::string region;  // the function of the source that it comes from, where the PTX says it
  int source_line = 0;
  mutable Count count;
  mutable uint64_t low = 1, high = 0;  // the allocation that was hit last
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
  bool starts_dependents = false, awaits_previous = false;
  uint64_t launches = 0, blocks = 0;
};

struct Variable {
  Space space = Space::generic;
  uint32_t alignment = 1;
  uint64_t bytes = 0;
  bool sized_by_launch = false;
  uint64_t address = 0;
};

struct Module {
  std::string file, target;
  int architecture = 0;
  std::map<std::string, Variable> variables;
  std::deque<std::vector<uint8_t>> storage;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;
  std::map<int, std::string> files;      // of `.file`
  std::map<std::string, std::string> strings;  // labels of .debug_str: names of inlined functions
};

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

// A cp.async of a lane that is on its way.
struct Copy {
  uint8_t lane = 0;
  uint32_t group = 0;  // of the lane's
  uint32_t to = 0, bytes = 0;     // in shared memory
  const uint8_t* from = nullptr;  // read when it arrives
  uint32_t given = 0;             // bytes that are read; the others become zeros
  const Instruction* instruction = nullptr;
};

// A wgmma that is on its way.
struct Product {
  const Instruction* instruction = nullptr;
  uint32_t group = 0;
  std::vector<uint64_t> descriptors;
  bool accumulate = false;
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

  std::vector<Copy> copies;
  std::vector<Product> products;
  std::array<uint32_t, kLanes> committed = {};  // groups of cp.async
  uint32_t products_committed = 0;              // groups of wgmma
  std::array<uint32_t, kLanes> bulk_committed = {};

  uint8_t vote = 0;  // what barrier.red asks for
  uint32_t vote_to = 0, vote_mask = 0;

  std::vector<uint32_t> clocks;  // by warp: until when this one has seen it; the last: copies
  uint32_t step = 1;

  template <typename T>
  T* lanes(uint32_t offset) {
    return reinterpret_cast<T*>(registers + offset);
  }
  uint32_t& predicate(uint32_t offset) { return *reinterpret_cast<uint32_t*>(registers + offset); }
  void set_predicate(uint32_t offset, uint32_t bits, uint32_t mask) {
    predicate(offset) = (predicate(offset) & ~mask) | (bits & mask);
  }
};

struct Barrier {
  uint32_t arrived = 0, expected = 0, ones = 0;
  bool all = true, any = false;
  std::vector<uint32_t> clocks;
};

// A phase of an mbarrier object (PTX ISA, "mbarrier"), beside the 64 bits in shared memory.
struct PhaseBarrier {
  uint32_t expected = 0, arrivals = 0;  // that are still missing
  int64_t bytes = 0;                    // of copies that are on their way
  uint32_t phase = 0;
  std::vector<uint32_t> clocks;
};

// A bulk copy (cp.async.bulk, TMA), which belongs to no lane once it is issued.
struct BulkCopy {
  struct Part {
    uint32_t shared = 0;
    uint8_t* global = nullptr;  // none: zeros
    uint32_t bytes = 0;
  };
  std::vector<Part> parts;
  bool to_shared = true;
  uint32_t barrier = 0;  // that counts its bytes, of copies to shared memory
  uint64_t bytes = 0;
  int warp = 0, lane = 0;
  uint32_t group = 0;    // of copies to global memory
  const Instruction* instruction = nullptr;
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
  bool ended = false;
};

struct Grid {
  const Kernel* kernel = nullptr;
  std::array<uint32_t, 3> size = {}, threads = {};
  uint32_t dynamic_shared = 0;
  std::vector<uint8_t> parameters;
  bool dependent = false;  // may begin before the grid before it has ended
  std::vector<std::unique_ptr<Block>> suspended;
  uint64_t instructions = 0;
  uint64_t number = 0;
};

// How the machine behaves where the ISA leaves it open, and what it watches.
enum class Arrival : uint8_t { early, late, random };
struct Settings {
  uint64_t seed = 0;  // 0: warps and blocks in order, else at random
  Arrival arrival = Arrival::late;
  bool races = false;
  bool banks = false;
  bool overlap = false;          // dependent grids begin early
  bool truncate_products = false;  // tensor cores round sums towards zero
  int capability = 90;
  int multiprocessors = 132;
  uint64_t most_instructions = 1ull << 36;  // by warps, of a launch
};
Settings& settings();
std::mt19937_64& dice();
size_t most_shared_bytes(int capability);

[[noreturn]] void fault(Warp& warp, const Instruction& instruction, int lane,
                        const std::string& what);

// Calls f(lane) for each lane of a mask.
template <typename F>
inline void each(uint32_t mask, F f) {
  if (mask == kAllLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      f(lane);
    }
  } else {
    for (; mask; mask &= mask - 1) {
      f(__builtin_ctz(mask));
    }
  }
}

// Scheduling (schedule.cpp).
void launch(const Kernel& kernel, std::array<uint32_t, 3> size, std::array<uint32_t, 3> threads,
            uint32_t dynamic_shared, std::vector<uint8_t> parameters, bool dependent);
void synchronize();  // until all that was launched has ended

// The text of a module (parse.cpp), a kernel's code (translate.cpp).
std::unique_ptr<Module> parse(const std::string& file, const std::string& text);
void translate(Kernel& kernel);

}  // namespace ptx
