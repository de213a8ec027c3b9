// Loads, stores and atomics. (PTX ISA, "Data Movement and Conversion Instructions: ld, st, cvta",
// "Parallel Synchronization and Communication Instructions: atom".)

#include "memory.h"
#include "translate.h"

namespace ptx {
namespace {

template <typename Memory, typename Register>
void load(Warp& warp, const Instruction& i, uint32_t mask) {
  const int count = i.outputs;
  access(warp, i, mask, uint32_t(sizeof(Memory)) * count, Use::read, [&](int lane, uint8_t* at) {
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
  const auto put = [&](int lane, uint8_t* at) {
    for (int k = 0; k < count; ++k) {
      const Memory value = Memory(warp.lanes<Register>(i.from[k])[lane]);
      std::memcpy(at + k * sizeof value, &value, sizeof value);
    }
  };
  uint8_t values[kLanes][8 * sizeof(Memory)];  // what others may have written, too
  each(settings.races ? mask : 0, [&](int lane) { put(lane, values[lane]); });
  access(warp, i, mask, uint32_t(sizeof(Memory)) * count, Use::write, put,
         settings.races ? values : nullptr);
}

// Registers may be wider than what they are loaded from or stored to.
template <bool loads>
Handler pick_access(Instruction& i) {
  constexpr Type kBits[] = {Type::b8, Type::b16, Type::b32, Type::b64};
  const Type bits = kBits[__builtin_ctz(unsigned(bytes_of(i.type)))];
  const int width = loads ? i.to_bytes : i.from_bytes;
  return for_integers(loads && is_signed(i.type) ? i.type : bits, [&]<typename M>(M) {
    return for_bits(width,
                    []<typename R>(R) -> Handler { return loads ? load<M, R> : store<M, R>; });
  });
}

void atomic(Warp& warp, const Instruction& i, uint32_t mask) {
  access(warp, i, mask, 4, Use::atomic, [&](int lane, uint8_t* at) {
    const uint32_t x = warp.lanes<uint32_t>(i.from[0])[lane];
    uint32_t old;
    std::memcpy(&old, at, sizeof old);
    const uint32_t made = i.choices[0] == 0 ? old + x : x;
    std::memcpy(at, &made, sizeof made);
    warp.lanes<uint32_t>(i.to[0])[lane] = old;
  });
}

// Between generic addresses and those of a window.
template <bool to>
void convert_address(Warp& warp, const Instruction& i, uint32_t mask) {
  const Space space = i.address[0].space;
  const uint64_t window = space == Space::shared  ? kSharedWindow
                          : space == Space::local ? kLocalWindow
                          : space == Space::param ? kParamWindow
                                                  : 0;
  const uint64_t* from = warp.lanes<uint64_t>(i.from[0]);
  uint64_t* made = warp.lanes<uint64_t>(i.to[0]);
  each(mask, [&](int lane) { made[lane] = from[lane] + (to ? 0 - window : window); });
}

const bool kAdded = add_forms({
    {"ld", "[v2|v4|v8] S T H", "=r* m", pick_access<true>},
    {"st", "[v2|v4|v8] S T H", "m r*", pick_access<false>},
    {"atom", "add|exch S u32|b32 H", "=4 m 4", atomic},
    {"cvta", "to S u64", "=8 8", convert_address<true>},
    {"cvta", "S u64", "=8 8", convert_address<false>},
    // Hints, and fences: nothing here waits in a cache.
    {"membar", "*", "*", nothing},
    {"fence", "*", "*", nothing},
    {"prefetch", "*", "*", nothing},
});

}  // namespace
}  // namespace ptx
