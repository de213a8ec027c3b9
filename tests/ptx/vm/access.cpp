// Loads, stores and atomics. (PTX ISA, "Data Movement and Conversion Instructions: ld, st, cvta",
// "Parallel Synchronization and Communication Instructions: atom, red".)

#include <algorithm>
#include <cstring>

#include "memory.h"
#include "numbers.h"
#include "translate.h"

namespace ptx {
namespace {

// Memory is consistent here as soon as it is written: orders, scopes and cache operators change
// nothing that this machine could show.
void pass_over_hints(Binding& b) {
  b.choice({"weak", "relaxed", "acquire", "release", "acq_rel", "volatile"});
  b.choice({"cta", "cluster", "gpu", "sys"});
  b.choice({"nc"});
  b.choice({"ca", "cg", "cs", "lu", "cv", "wb", "wt"});
  b.choice({"L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last",
            "L1::no_allocate"});
  b.choice({"L2::evict_first", "L2::evict_last", "L2::evict_normal"});
  b.choice({"L2::64B", "L2::128B", "L2::256B"});
  if (b.flag("L2::cache_hint")) {
    b.operands.pop_back();
  }
  b.flag("unified");
}

template <typename Memory, typename Register>
void load(Warp& warp, const Instruction& i, uint32_t mask) {
  const int count = i.outputs;
  const uint32_t bytes = uint32_t(sizeof(Memory)) * count;
  if (settings().banks) {
    count_passes(warp, i, i.address, mask, bytes);
  }
  each(mask, [&](int lane) {
    const uint64_t address = address_of(warp, i.address, lane);
    const uint8_t* at =
        locate(warp, i, i.address.space, address, lane, bytes, bytes, Use::read);
    for (int k = 0; k < count; ++k) {
      Memory value;
      std::memcpy(&value, at + k * sizeof value, sizeof value);
      warp.lanes<Register>(i.to[k])[lane] = Register(value);
    }
  });
}

template <typename Memory, typename Register>
void store(Warp& warp, const Instruction& i, uint32_t mask) {
  const int count = i.inputs;
  const uint32_t bytes = uint32_t(sizeof(Memory)) * count;
  if (settings().banks) {
    count_passes(warp, i, i.address, mask, bytes);
  }
  each(mask, [&](int lane) {
    const uint64_t address = address_of(warp, i.address, lane);
    Memory values[8];
    for (int k = 0; k < count; ++k) {
      values[k] = Memory(warp.lanes<Register>(i.from[k])[lane]);
    }
    std::memcpy(locate(warp, i, i.address.space, address, lane, bytes, bytes, Use::write,
                       reinterpret_cast<const uint8_t*>(values)),
                values, bytes);
  });
}

// The handler for values of `memory` bytes in registers of `registers` bytes.
#define FASSD_PICK(access)                                                      \
  [](int memory, bool is_signed, int registers) -> Handler {                    \
    const auto of = [&]<typename M>(M) -> Handler {                             \
      return registers == 2   ? Handler(access<M, uint16_t>)                    \
             : registers == 4 ? Handler(access<M, uint32_t>)                    \
                              : Handler(access<M, uint64_t>);                   \
    };                                                                          \
    switch (memory) {                                                           \
      case 1:                                                                   \
        return is_signed ? of(int8_t()) : of(uint8_t());                        \
      case 2:                                                                   \
        return is_signed ? of(int16_t()) : of(uint16_t());                      \
      case 4:                                                                   \
        return is_signed ? of(int32_t()) : of(uint32_t());                      \
      default:                                                                  \
        return of(uint64_t());                                                  \
    }                                                                           \
  }

template <bool is_load>
void move_memory(Binding& b) {
  Instruction& i = b.instruction;
  pass_over_hints(b);
  const Space space = b.space();
  const int count = b.flag("v2") ? 2 : b.flag("v4") ? 4 : b.flag("v8") ? 8 : 1;
  const Type type = b.type();
  if (type == Type::b128) {
    throw Fault("loads and stores of 128 bits at once are not supported");
  }
  b.expect(2);
  const Operand& listed = b.operands[is_load ? 0 : 1];
  const std::vector<Operand> values =
      listed.kind == Operand::vector ? listed.parts : std::vector<Operand>{listed};
  if (int(values.size()) != count) {
    throw Fault(std::to_string(values.size()) + " registers for a vector of " +
                std::to_string(count));
  }
  const int memory = bytes_of(type);
  int width = 0;
  for (const Operand& value : values) {
    int bytes = std::max(2, memory);
    if (is_load) {
      i.to[i.outputs++] = b.wide_target(value, bytes);
    } else {
      i.from[i.inputs++] = b.wide_source(value, bytes);
    }
    if (bytes < memory || (width && width != bytes)) {
      throw Fault("a register has the wrong width");
    }
    width = bytes;
  }
  i.address = b.address(b.operands[is_load ? 1 : 0], space);
  i.run = is_load ? FASSD_PICK(load)(memory, is_signed(type), width)
                  : FASSD_PICK(store)(memory, false, width);
}

enum Operation : uint8_t { op_add, op_min, op_max, op_and, op_or, op_xor, op_exch, op_cas, op_inc, op_dec };

uint64_t applied(const Instruction& i, uint64_t old, uint64_t x, uint64_t y) {
  const auto ordered = [&](auto pick) -> uint64_t {
    switch (i.type) {
      case Type::s32:
        return uint32_t(pick(int32_t(old), int32_t(x)));
      case Type::s64:
        return uint64_t(pick(int64_t(old), int64_t(x)));
      default:
        return pick(old, x);
    }
  };
  switch (Operation(i.option)) {
    case op_add:
      if (i.type == Type::f32) {
        return bits_as<uint32_t>(bits_as<float>(uint32_t(old)) + bits_as<float>(uint32_t(x)));
      }
      return i.type == Type::f64 ? bits_as<uint64_t>(bits_as<double>(old) + bits_as<double>(x))
                                 : old + x;
    case op_min:
      return ordered([](auto a, auto b) { return std::min(a, b); });
    case op_max:
      return ordered([](auto a, auto b) { return std::max(a, b); });
    case op_and:
      return old & x;
    case op_or:
      return old | x;
    case op_xor:
      return old ^ x;
    case op_exch:
      return x;
    case op_cas:
      return old == x ? y : old;
    case op_inc:
      return old >= x ? 0 : old + 1;
    default:
      return old == 0 || old > x ? x : old - 1;
  }
}

void atomic(Warp& warp, const Instruction& i, uint32_t mask) {
  const size_t bytes = size_t(bytes_of(i.type));
  each(mask, [&](int lane) {
    const uint64_t address = address_of(warp, i.address, lane);
    uint8_t* at = locate(warp, i, i.address.space, address, lane, uint32_t(bytes), uint32_t(bytes),
                         Use::atomic);
    uint64_t old = 0, values[2] = {};
    std::memcpy(&old, at, bytes);
    for (int k = 0; k < i.inputs; ++k) {
      std::memcpy(&values[k], warp.registers + i.from[k] + bytes * lane, bytes);
    }
    const uint64_t result = applied(i, old, values[0], values[1]);
    std::memcpy(at, &result, bytes);
    if (i.outputs) {
      std::memcpy(warp.registers + i.to[0] + bytes * lane, &old, bytes);
    }
  });
}

template <bool returns>
void bind_atomic(Binding& b) {
  Instruction& i = b.instruction;
  pass_over_hints(b);
  const Space space = b.space();
  i.option = uint8_t(
      b.required({"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"}));
  i.type = b.type();
  const int bytes = bytes_of(i.type);
  const bool is_float = i.type == Type::f32 || i.type == Type::f64;
  if ((bytes != 4 && bytes != 8) || (is_float && i.option != op_add)) {
    throw Fault("this atomic operation is not supported");
  }
  b.expect((returns ? 1 : 0) + 2 + (i.option == op_cas));
  size_t k = 0;
  if (returns) {
    b.add_target(b.operands[k++], bytes);
  }
  i.address = b.address(b.operands[k++], space);
  for (; k < b.operands.size(); ++k) {
    b.add_source(b.operands[k], bytes);
  }
  i.run = atomic;
}

// Between generic addresses and those of a window.
void convert_address(Binding& b) {
  Instruction& i = b.instruction;
  const bool to = b.flag("to");
  const Space space = b.space();
  const int bytes = bytes_of(b.type());
  if (bytes != 8) {
    throw Fault("addresses of 32 bits");
  }
  const uint64_t window = space == Space::shared  ? kSharedWindow
                          : space == Space::local ? kLocalWindow
                          : space == Space::param ? kParamWindow
                                                  : 0;
  i.immediate = int64_t(to ? 0 - window : window);
  b.registers(
      [](Warp& warp, const Instruction& i, uint32_t mask) {
        const uint64_t* from = warp.lanes<uint64_t>(i.from[0]);
        each(mask, [&](int lane) {
          warp.lanes<uint64_t>(i.to[0])[lane] = from[lane] + uint64_t(i.immediate);
        });
      },
      8, {8});
}

void nothing(Warp&, const Instruction&, uint32_t) {}

// Hints, and fences: memory here is consistent without them.
void pass_over(Binding& b) {
  b.instruction.run = nothing;
  while (true) {
    try {
      b.next();
    } catch (const Fault&) {
      return;
    }
  }
}

void create_policy(Binding& b) {
  pass_over(b);
  b.instruction.run = [](Warp& warp, const Instruction& i, uint32_t mask) {
    each(mask, [&](int lane) { warp.lanes<uint64_t>(i.to[0])[lane] = 0; });
  };
  b.add_target(b.operands.at(0), 8);
}

const bool kAdded = add_opcodes({
    {"ld", move_memory<true>},
    {"ldu", move_memory<true>},
    {"st", move_memory<false>},
    {"atom", bind_atomic<true>},
    {"red", bind_atomic<false>},
    {"cvta", convert_address},
    {"createpolicy", create_policy},
    {"membar", pass_over},
    {"fence", pass_over},
    {"prefetch", pass_over},
    {"prefetchu", pass_over},
    {"discard", pass_over},
    {"applypriority", pass_over},
    {"nanosleep", pass_over},
    {"setmaxnreg", pass_over},
});

}  // namespace
}  // namespace ptx
