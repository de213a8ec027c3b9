// Memory that is watched: bounds, alignment, guard zones, what was never written, races; and what
// copies it on its own.

#pragma once

#include <cstring>

#include "machine.h"

namespace ptx {

// Generic addresses of the windows of a thread (PTX ISA, "Generic Addressing").
constexpr uint64_t kSharedWindow = 0x0100000000000000ull;
constexpr uint64_t kLocalWindow = 0x0200000000000000ull;
constexpr uint64_t kParamWindow = 0x0300000000000000ull;

// Allocations of global memory. All else is out of bounds.
void add_allocation(uint64_t address, uint64_t bytes);
bool is_allocation(uint64_t address);
void drop_allocation(uint64_t address);

enum class Use : uint8_t { read, write, atomic };

inline uint64_t address_of(Warp& warp, const Address& address, int lane) {
  if (!address.based) {
    return uint64_t(address.offset);
  }
  return address.wide
             ? warp.lanes<uint64_t>(address.base)[lane] + uint64_t(address.offset)
             : uint32_t(warp.lanes<uint32_t>(address.base)[lane] + uint32_t(address.offset));
}

// Where `bytes` at an address lie, after every check; `value`: what is written, where it is known.
uint8_t* locate(Warp& warp, const Instruction& i, Space space, uint64_t address, int lane,
                uint32_t bytes, uint32_t alignment, Use use, const uint8_t* value = nullptr);

// The same for a range of global or shared memory that an engine reads or writes on its own; only
// bounds are looked at.
uint8_t* global_range(Warp& warp, const Instruction& i, int lane, uint64_t address, uint64_t bytes);
uint8_t* shared_range(Warp& warp, const Instruction& i, int lane, uint64_t address, uint64_t bytes);

// Tell the race detector of an access to shared memory, and remember what was written.
void note_shared(Warp& warp, const Instruction& i, int lane, uint32_t address, uint32_t bytes,
                 Use use, const uint8_t* value = nullptr);
// The same of what a copy on its way writes, whose time is the block's `copies_clock`.
void note_copy(Warp& warp, const Instruction& i, int lane, uint32_t address, uint32_t bytes);

// Passes over the banks of shared memory of the lanes' accesses of `bytes` each.
void count_passes(Warp& warp, const Instruction& i, uint32_t mask, uint32_t bytes);

// What `locate` finds where there is nothing to say: null if it has to be asked.
inline uint8_t* located_at_once(Warp& warp, const Instruction& i, uint64_t address, uint32_t bytes,
                                Use use) {
  const Space space = i.address[0].space;
  if (settings.races || (address & (bytes - 1))) {
    return nullptr;
  }
  if (space == Space::global && address >= i.low && address + bytes <= i.high) {
    return reinterpret_cast<uint8_t*>(address);
  }
  if (space != Space::shared || address + bytes > warp.block->shared_bytes) {
    return nullptr;
  }
  uint8_t* written = warp.block->written.data() + address;
  if (use == Use::write) {
    std::memset(written, 1, bytes);
  } else if (std::memchr(written, 0, bytes)) {
    return nullptr;
  }
  return warp.block->shared + address;
}

// Calls f(lane, place) for what lies at the address of each lane. `values`: what is written there,
// a row for each lane.
template <typename F, typename Row = uint8_t[1]>
void access(Warp& warp, const Instruction& i, uint32_t mask, uint32_t bytes, Use use, F f,
            const Row* values = nullptr) {
  if (settings.banks) {
    count_passes(warp, i, mask, bytes);
  }
  for (; mask; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    const uint64_t address = address_of(warp, i.address[0], lane);
    uint8_t* at = located_at_once(warp, i, address, bytes, use);
    f(lane, at ? at
               : locate(warp, i, i.address[0].space, address, lane, bytes, bytes, use,
                        values ? values[lane] : nullptr));
  }
}

// Vector clocks: `clocks` learns all that `other` knows, or all that a warp has done so far.
void join(Clocks& clocks, const Clocks& other);
void release(Warp& warp, Clocks& clocks);

// One of the block's bulk copies arrives.
void arrive(Block& block, size_t index);

// Units of 16 bytes exchanged within rows of `units` of them, by the number of 128 bytes. (PTX ISA,
// "Tensors: Swizzling Modes", "Shared Memory Matrix Layout".)
uint32_t swizzled(uint32_t address, uint32_t units);

// What cuTensorMapEncodeTiled writes into a CUtensorMap's 128 bytes here.
struct TensorMap {
  static constexpr uint64_t kMagic = 0x70616d726f736e74;
  uint64_t magic = 0, address = 0;
  uint32_t rank = 0, bytes = 0, swizzle = 0;  // bytes of an element; 0, 32, 64 or 128
  std::array<uint32_t, 5> size = {}, box = {};
  std::array<uint64_t, 4> stride = {};  // in bytes, of all dimensions but the first
};
static_assert(sizeof(TensorMap) <= 128);

// Who wrote and read which byte of global memory in this launch, by block.
void forget_global_accesses();

}  // namespace ptx
