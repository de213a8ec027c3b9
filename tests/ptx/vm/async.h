// Copies that are on their way, and the barriers that count their bytes.

#pragma once

#include "machine.h"

namespace ptx {

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

}  // namespace ptx
