// Loads, stores and atomics. (PTX ISA, "Data Movement and Conversion Instructions: ld, st, cvta",
// "Parallel Synchronization and Communication Instructions: atom, red".)

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

constexpr const char* kOperations = FASSD_PTX_OPERATIONS "|exch|cas|inc|dec S T H";
enum { kExchange = 6, kCompareAndSwap, kIncrement, kDecrement };

template <typename T>
void atomic(Warp& warp, const Instruction& i, uint32_t mask) {
  access(warp, i, mask, sizeof(T), Use::atomic, [&](int lane, uint8_t* at) {
    const T x = warp.lanes<T>(i.from[0])[lane];
    T old, made;
    std::memcpy(&old, at, sizeof old);
    switch (i.choices[0]) {
      case kExchange:
        made = x;
        break;
      case kCompareAndSwap:
        made = old == x ? warp.lanes<T>(i.from[1])[lane] : old;
        break;
      case kIncrement:
        made = old >= x ? T(0) : T(old + 1);
        break;
      case kDecrement:
        made = old == 0 || old > x ? x : T(old - 1);
        break;
      default:
        made = combined(i.choices[0], old, x);
    }
    std::memcpy(at, &made, sizeof made);
    if (i.outputs) {
      warp.lanes<T>(i.to[0])[lane] = old;
    }
  });
}

Handler pick_atomic(Instruction& i) {
  fault_if((i.choices[0] == kCompareAndSwap) != (i.inputs == 2), i.inputs, " values");
  return with_type(i.type, [&]<typename T>(T) -> Handler {
    if constexpr ((std::is_integral_v<T> || std::is_floating_point_v<T>) && sizeof(T) >= 4) {
      if (std::is_integral_v<T> || i.choices[0] == 0) {
        return atomic<T>;
      }
    }
    throw Fault("this atomic operation is not supported");
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
    {"ldu", "[v2|v4] S T H", "=r* m", pick_access<true>},
    {"st", "[v2|v4|v8] S T H", "m r*", pick_access<false>},
    {"atom", kOperations, "=t m t t?", pick_atomic},
    {"red", kOperations, "m t", pick_atomic},
    {"cvta", "to S u64", "=8 8", convert_address<true>},
    {"cvta", "S u64", "=8 8", convert_address<false>},
    // Hints, and fences: nothing here waits in a cache.
    {"createpolicy", "*", "=8 *",
     [](Warp& warp, const Instruction& i, uint32_t mask) {
       each(mask, [&](int lane) { warp.lanes<uint64_t>(i.to[0])[lane] = 0; });
     }},
    {"membar", "*", "*", nothing},
    {"fence", "*", "*", nothing},
    {"prefetch", "*", "*", nothing},
    {"prefetchu", "*", "*", nothing},
    {"discard", "*", "*", nothing},
    {"applypriority", "*", "*", nothing},
    {"nanosleep", "*", "*", nothing},
    {"setmaxnreg", "*", "*", nothing},
});

}  // namespace
}  // namespace ptx
