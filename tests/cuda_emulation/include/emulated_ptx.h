// The second body of csrc/cuda/ptx.cuh: the same functions, with the meaning that the PTX ISA gives
// to the instructions. Addresses in shared memory count from the beginning of the block's dynamic
// part.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace fassd::cuda::ptx {

using SharedAddress = uint32_t;
using emulation::Location;

// Kernels leave so many bytes between arrays in shared memory, and `guard_shared` makes them a zone
// that must not be touched.
constexpr int shared_guard_bytes = 64;

FASSD_INLINE unsigned char* dynamic_shared() {
  return emulation::machine.shared;
}

FASSD_INLINE void guard_shared(void* begin, int bytes) {
  emulation::guard_zone(static_cast<unsigned char*>(begin), static_cast<size_t>(bytes));
}

// Opens the zones in a part of shared memory again. No barrier is needed if all threads call these
// two: the first to come does it.
FASSD_INLINE void unguard_shared(void* begin, int bytes) {
  emulation::open_zones(static_cast<unsigned char*>(begin), static_cast<size_t>(bytes));
}

FASSD_UNCHECKED inline SharedAddress shared_address(const void* pointer) {
  const int64_t offset = static_cast<const unsigned char*>(pointer) - emulation::machine.shared;
  // Arrays without elements may end where the memory does; farther off is another kind of memory.
  const auto size = static_cast<int64_t>(emulation::machine.launch->shared_bytes);
  if (offset < 0 || offset > size) {
    emulation::fail(
        "takes the shared address of a pointer %lld bytes from the beginning of %lld "
        "bytes of dynamic shared memory",
        static_cast<long long>(offset), static_cast<long long>(size));
  }
  return static_cast<SharedAddress>(offset);
}

namespace detail {

using emulation::Sixteen;

// 16 bytes at an address; the sanitizers see the access.
__attribute__((noinline)) inline void load_sixteen(void* to, const void* from) {
  __builtin_memcpy(to, from, 16);
}

__attribute__((noinline)) inline void store_sixteen(unsigned char* to, Sixteen bytes) {
  *reinterpret_cast<uint64_t*>(to) = bytes.words[0];
  *reinterpret_cast<uint64_t*>(to + 8) = bytes.words[1];
}

// Where a 16-byte access goes. Misaligned, a GPU faults. Out of bounds, AddressSanitizer tells more
// than a check could, unless it is so far out that it takes the place for another's.
FASSD_UNCHECKED inline unsigned char* sixteen_at(SharedAddress address, const char* what,
                                                 Location where) {
  if (emulation::machine.current == nullptr) emulation::fail("%s was called", what);
  if (address % 16 != 0) {
    emulation::fail("%s at %s:%d: the shared address %u is not a multiple of 16", what, where.file,
                    where.line, address);
  }
  const size_t size = emulation::machine.launch->shared_bytes;
  if (uint64_t(address) + 16 > size && (!emulation::under_asan || address > size + 16)) {
    emulation::fail("%s at %s:%d: the shared address %u is beyond the block's %d bytes", what,
                    where.file, where.line, address, static_cast<int>(size));
  }
  return emulation::machine.shared + address;
}

FASSD_UNCHECKED inline void check_source(const void* from, int source_bytes, Location where) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    emulation::fail("copy_async at %s:%d: the source %p is not aligned to 16 bytes", where.file,
                    where.line, from);
  }
  if (source_bytes < 0 || source_bytes > 16) {
    emulation::fail("copy_async at %s:%d: source_bytes is %d; expected 0 to 16", where.file,
                    where.line, source_bytes);
  }
}

FASSD_UNCHECKED inline void remember_copy(unsigned char* to, const unsigned char* bytes) {
  emulation::Thread* self = emulation::machine.current;
  emulation::PendingCopy& copy = emulation::new_copy(self);
  for (int i = 0; i < 2; i++) copy.bytes[i] = reinterpret_cast<const uint64_t*>(bytes)[i];
  copy.to = to;
  copy.group = self->open_group;
}

}  // namespace detail

// The bytes are read now and written at the wait. Until then the destination is not a number.
inline void copy_async(SharedAddress to, const void* from, int source_bytes,
                       Location where = Location::here()) {
  unsigned char* place = detail::sixteen_at(to, "copy_async", where);
  detail::check_source(from, source_bytes, where);
  alignas(16) unsigned char bytes[16] = {};
  if (source_bytes == 16) {
    detail::load_sixteen(bytes, from);
  } else {
    for (int i = 0; i < source_bytes; i++) bytes[i] = static_cast<const unsigned char*>(from)[i];
  }
  detail::store_sixteen(place, {{~uint64_t(0), ~uint64_t(0)}});
  detail::remember_copy(place, bytes);
}

FASSD_UNCHECKED inline void copy_async_commit() {
  emulation::machine.current->open_group++;
}

template <int pending>
void copy_async_wait() {
  static_assert(pending >= 0);
  const uint64_t closed = emulation::machine.current->open_group;
  const uint64_t before = closed > pending ? closed - pending : 0;
  detail::Sixteen bytes;
  unsigned char* place = nullptr;
  while (emulation::take_copy(before, bytes, place)) detail::store_sixteen(place, bytes);
}

namespace detail {

struct Rows {
  alignas(16) uint16_t row[8];  // that this lane addressed
  uint32_t* out;
};

template <int matrices, bool transposed>
FASSD_UNCHECKED void hand_out_rows(void* const* lanes, unsigned) {
  for (int lane = 0; lane < 32; lane++) {
    const int g = lane / 4, t = lane % 4;
    uint32_t* out = static_cast<Rows*>(lanes[lane])->out;
    for (int matrix = 0; matrix < matrices; matrix++) {
      uint32_t pair[2];
      for (int i = 0; i < 2; i++) {
        const int row = transposed ? 2 * t + i : g, column = transposed ? g : 2 * t + i;
        pair[i] = static_cast<const Rows*>(lanes[8 * matrix + row])->row[column];
      }
      out[matrix] = pair[0] | pair[1] << 16;
    }
  }
}

// Lanes whose addresses are not used must name memory all the same: Turing asks for it.
template <int matrices, bool transposed>
void load_matrices(uint32_t (&out)[matrices], SharedAddress row, const char* what, Location where) {
  Rows mine = {{}, out};
  const unsigned char* place = sixteen_at(row, what, where);
  if (emulation::lane_of_thread() < 8 * matrices) load_sixteen(mine.row, place);
  emulation::meet_lanes(0xFFFFFFFFu, what, &mine, &hand_out_rows<matrices, transposed>, false,
                        where);
}

}  // namespace detail

inline void load_matrices(uint32_t (&out)[4], SharedAddress row,
                          Location where = Location::here()) {
  detail::load_matrices<4, false>(out, row, "load_matrices", where);
}

inline void load_matrices_transposed(uint32_t (&out)[4], SharedAddress row,
                                     Location where = Location::here()) {
  detail::load_matrices<4, true>(out, row, "load_matrices_transposed of four", where);
}

inline void load_matrices_transposed(uint32_t (&out)[2], SharedAddress row,
                                     Location where = Location::here()) {
  detail::load_matrices<2, true>(out, row, "load_matrices_transposed of two", where);
}

namespace detail {

// What a lane brings to a product: its accumulators and its parts of A and B.
struct Fragments {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

struct Half {
  static FASSD_INLINE float value(uint32_t bits) {
    return emulation::half_to_float(static_cast<uint16_t>(bits));
  }
};

struct Bfloat16 {
  static FASSD_INLINE float value(uint32_t bits) {
    return emulation::bfloat16_to_float(static_cast<uint16_t>(bits));
  }
};

// D += A * B, row by row of 8 columns, terms in order.
template <int depth>
FASSD_INLINE void multiply_gathered(const float (&a)[16][depth], const float (&b)[depth][8],
                                    void* const* lanes) {
  for (int row = 0; row < 16; row++) {
    float sums[8];
    for (int t = 0; t < 4; t++) {
      const float* d = static_cast<const Fragments*>(lanes[row % 8 * 4 + t])->d + row / 8 * 2;
      sums[2 * t] = d[0];
      sums[2 * t + 1] = d[1];
    }
    for (int k = 0; k < depth; k++) {
      for (int column = 0; column < 8; column++) sums[column] += a[row][k] * b[k][column];
    }
    for (int t = 0; t < 4; t++) {
      float* d = static_cast<const Fragments*>(lanes[row % 8 * 4 + t])->d + row / 8 * 2;
      d[0] = sums[2 * t];
      d[1] = sums[2 * t + 1];
    }
  }
}

template <typename Format>
FASSD_UNCHECKED void multiply_halves(void* const* lanes, unsigned) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const auto* mine = static_cast<const Fragments*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
      float* pair = &a[g + i % 2 * 8][2 * t + i / 2 * 8];
      pair[0] = Format::value(mine->a[i]);
      pair[1] = Format::value(mine->a[i] >> 16);
    }
    for (int i = 0; i < 2; i++) {
      b[2 * t + 8 * i][g] = Format::value(mine->b[i]);
      b[2 * t + 8 * i + 1][g] = Format::value(mine->b[i] >> 16);
    }
  }
  multiply_gathered(a, b, lanes);
}

// The hardware looks at the upper 19 bits only.
FASSD_INLINE float tf32_value(uint32_t bits) {
  return emulation::bits_as<float>(bits & 0xFFFFE000u);
}

FASSD_UNCHECKED inline void multiply_tf32s(void* const* lanes, unsigned) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; lane++) {
    const auto* mine = static_cast<const Fragments*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) a[g + i % 2 * 8][t + i / 2 * 4] = tf32_value(mine->a[i]);
    for (int i = 0; i < 2; i++) b[t + 4 * i][g] = tf32_value(mine->b[i]);
  }
  multiply_gathered(a, b, lanes);
}

FASSD_UNCHECKED inline void multiply_together(float* d, const uint32_t* a, uint32_t b0, uint32_t b1,
                                              const char* what,
                                              void (*work)(void* const* lanes, unsigned),
                                              Location where) {
  Fragments mine = {d, a, {b0, b1}};
  emulation::meet_lanes(0xFFFFFFFFu, what, &mine, work, false, where);
}

FASSD_UNCHECKED inline void need_ampere(const char* what) {
  if (emulation::machine.launch->capability < 80) emulation::fail("%s on Turing", what);
}

}  // namespace detail

template <typename T>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
              Location where = Location::here()) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  if constexpr (std::is_same_v<T, __half>) {
    detail::multiply_together(d, a, b0, b1, "multiply<__half>",
                              &detail::multiply_halves<detail::Half>, where);
  } else {
    detail::need_ampere("multiply<__nv_bfloat16>");
    detail::multiply_together(d, a, b0, b1, "multiply<__nv_bfloat16>",
                              &detail::multiply_halves<detail::Bfloat16>, where);
  }
}

inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                          Location where = Location::here()) {
  detail::need_ampere("multiply_tf32");
  detail::multiply_together(d, a, b0, b1, "multiply_tf32", &detail::multiply_tf32s, where);
}

FASSD_INLINE uint32_t to_tf32(uint32_t bits) {
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7FFFFFFFu;
  return magnitude == 0x7F800000u ? bits : (bits + 0x1000u) & 0xFFFFE000u;
}

FASSD_INLINE void named_barrier(int name, int threads, Location where = Location::here()) {
  emulation::meet_named(name, threads, where);
}

FASSD_INLINE void grid_barrier(Location where = Location::here()) {
  emulation::meet_grid(where);
}

// A launch begins when the one before it has ended.
FASSD_INLINE void wait_for_previous_kernels() {}
FASSD_INLINE void let_next_kernel_start() {}

}  // namespace fassd::cuda::ptx
