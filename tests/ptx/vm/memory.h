// Memory that is watched: bounds, alignment, guard zones, what was never written, races.

#pragma once

#include "machine.h"

namespace ptx {

// Generic addresses of the windows of a thread (PTX ISA, "Generic Addressing").
constexpr uint64_t kSharedWindow = 0x0100000000000000ull;
constexpr uint64_t kLocalWindow = 0x0200000000000000ull;
constexpr uint64_t kParamWindow = 0x0300000000000000ull;
constexpr uint64_t kWindowOffset = 0x00FFFFFFFFFFFFFFull;

// Allocations of global memory. All else is out of bounds.
void add_allocation(uint64_t address, uint64_t bytes);
bool is_allocation(uint64_t address);
bool drop_allocation(uint64_t address);

enum class Use : uint8_t { read, write, atomic };

uint64_t address_of(Warp& warp, const Address& address, int lane);
bool is_shared(Space space, uint64_t address);

// Where `bytes` at an address lie, after every check.
uint8_t* locate(Warp& warp, const Instruction& instruction, Space space, uint64_t address, int lane,
                uint32_t bytes, uint32_t alignment, Use use);

// The same for a range of global or shared memory that an engine reads or writes on its own; only
// bounds are looked at.
uint8_t* global_range(Warp& warp, const Instruction& instruction, int lane, uint64_t address,
                      uint64_t bytes);
uint8_t* shared_range(Warp& warp, const Instruction& instruction, int lane, uint64_t address,
                      uint64_t bytes);

// Tell the race detector of an access to shared memory, and remember what was written.
void note_shared(Warp& warp, const Instruction& instruction, int lane, uint32_t address,
                 uint32_t bytes, Use use);
// The same by a copy on its way, whose time is the block's `copies_clock`.
void note_copy(Warp& warp, const Instruction& instruction, int lane, uint32_t address,
               uint32_t bytes, Use use);

// Passes over the banks of shared memory of the lanes' accesses of `bytes` each.
void count_passes(Warp& warp, const Instruction& instruction, const Address& address, uint32_t mask,
                  uint32_t bytes);

// Vector clocks: `clocks` learns all that `other` knows.
void join(std::vector<uint32_t>& clocks, const std::vector<uint32_t>& other);

// Who wrote and read which byte of global memory in this launch, by block.
void forget_global_accesses();

}  // namespace ptx
