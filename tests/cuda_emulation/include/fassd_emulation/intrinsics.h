// The functions of device code: barriers, what lanes tell each other, atomics, arithmetic.

#pragma once

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "machine.h"

namespace fassd::emulation {

template <typename To, typename From>
FASSD_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// What a lane brings to a shuffle, and takes away.
struct Shuffle {
  uint64_t value;
  uint64_t result;
  int source;
};

FASSD_UNCHECKED inline void shuffle_lanes(void* const* lanes, unsigned mask) {
  for (int lane = 0; lane < 32; lane++) {
    if ((mask >> lane & 1) == 0) continue;
    auto* mine = static_cast<Shuffle*>(lanes[lane]);
    if ((mask >> mine->source & 1) == 0) {
      fail("a shuffle with the mask %08x: lane %d reads lane %d, which takes no part", mask, lane,
           mine->source);
    }
    mine->result = static_cast<const Shuffle*>(lanes[mine->source])->value;
  }
}

template <typename T>
FASSD_UNCHECKED T shuffle(unsigned mask, T value, int source, const char* what, Location where) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  Shuffle mine = {0, 0, source};
  __builtin_memcpy(&mine.value, &value, sizeof value);
  meet_lanes(mask, what, &mine, &shuffle_lanes, false, where);
  __builtin_memcpy(&value, &mine.result, sizeof value);
  return value;
}

FASSD_UNCHECKED inline int lane_of_thread() {
  return current_block("a function of device code").threads != nullptr ? machine.current->rank % 32
                                                                       : 0;
}

struct Vote {
  bool mine;
  unsigned ballot;
};

FASSD_UNCHECKED inline void count_votes(void* const* lanes, unsigned mask) {
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; lane++) {
    if ((mask >> lane & 1) != 0 && static_cast<const Vote*>(lanes[lane])->mine) {
      ballot |= 1u << lane;
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    if ((mask >> lane & 1) != 0) static_cast<Vote*>(lanes[lane])->ballot = ballot;
  }
}

FASSD_UNCHECKED inline unsigned ballot(unsigned mask, bool mine, const char* what, Location where) {
  Vote vote = {mine, 0};
  meet_lanes(mask, what, &vote, &count_votes, false, where);
  return vote.ballot;
}

// Atomic accesses are relaxed, as on a GPU: they order nothing else.
template <typename T, typename Update>
FASSD_INLINE T update_atomically(T* address, Update update) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static_assert(sizeof(T) == sizeof(Bits));
  auto* place = reinterpret_cast<Bits*>(address);
  Bits before = __atomic_load_n(place, __ATOMIC_RELAXED);
  for (;;) {
    const T old = bits_as<T>(before);
    if (__atomic_compare_exchange_n(place, &before, bits_as<Bits>(update(old)), false,
                                    __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      return old;
    }
  }
}

}  // namespace fassd::emulation

// --- barriers and fences
// --------------------------------------------------------------------------

FASSD_INLINE void __syncthreads(
    fassd::emulation::Location where = fassd::emulation::Location::here()) {
  fassd::emulation::meet_block(0, "__syncthreads", where);
}

FASSD_INLINE int __syncthreads_count(
    int predicate, fassd::emulation::Location where = fassd::emulation::Location::here()) {
  return fassd::emulation::meet_block(predicate != 0, "__syncthreads_count", where);
}

FASSD_INLINE int __syncthreads_or(
    int predicate, fassd::emulation::Location where = fassd::emulation::Location::here()) {
  return fassd::emulation::meet_block(predicate != 0, "__syncthreads_or", where) != 0;
}

FASSD_INLINE int __syncthreads_and(
    int predicate, fassd::emulation::Location where = fassd::emulation::Location::here()) {
  return fassd::emulation::meet_block(predicate == 0, "__syncthreads_and", where) == 0;
}

FASSD_INLINE void __syncwarp(unsigned mask = 0xFFFFFFFFu, fassd::emulation::Location where =
                                                              fassd::emulation::Location::here()) {
  fassd::emulation::meet_lanes(mask, "__syncwarp", nullptr, nullptr, true, where);
}

// What came before a fence is seen by who passes one later.
FASSD_INLINE void __threadfence() {
  fassd::emulation::order_release(&fassd::emulation::machine.fence_token);
  fassd::emulation::order_acquire(&fassd::emulation::machine.fence_token);
}
FASSD_INLINE void __threadfence_block() {
  __threadfence();
}
FASSD_INLINE void __threadfence_system() {
  __threadfence();
}

// For who polls memory: others cannot write it before this thread gives way.
FASSD_INLINE void __nanosleep(unsigned) {
  fassd::emulation::give_way();
}

[[noreturn]] FASSD_INLINE void __trap() {
  fassd::emulation::fail("__trap()");
}

// --- lanes of a warp
// ------------------------------------------------------------------------------

template <typename T>
FASSD_INLINE T __shfl_sync(unsigned mask, T value, int source, int width = 32,
                           fassd::emulation::Location where = fassd::emulation::Location::here()) {
  const int lane = fassd::emulation::lane_of_thread();
  const int from = (lane & ~(width - 1)) | (source & (width - 1));
  return fassd::emulation::shuffle(mask, value, from, "__shfl_sync", where);
}

template <typename T>
FASSD_INLINE T
__shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                fassd::emulation::Location where = fassd::emulation::Location::here()) {
  const int lane = fassd::emulation::lane_of_thread(), from = lane ^ lane_mask;
  const bool later = from >= (lane & ~(width - 1)) + width;
  return fassd::emulation::shuffle(mask, value, later ? lane : from, "__shfl_xor_sync", where);
}

template <typename T>
FASSD_INLINE T
__shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 fassd::emulation::Location where = fassd::emulation::Location::here()) {
  const int lane = fassd::emulation::lane_of_thread();
  const bool beyond = (lane & (width - 1)) + static_cast<int>(delta) >= width;
  return fassd::emulation::shuffle(mask, value, beyond ? lane : lane + static_cast<int>(delta),
                                   "__shfl_down_sync", where);
}

template <typename T>
FASSD_INLINE T
__shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
               fassd::emulation::Location where = fassd::emulation::Location::here()) {
  const int lane = fassd::emulation::lane_of_thread();
  const bool before = (lane & (width - 1)) < static_cast<int>(delta);
  return fassd::emulation::shuffle(mask, value, before ? lane : lane - static_cast<int>(delta),
                                   "__shfl_up_sync", where);
}

FASSD_INLINE unsigned __ballot_sync(
    unsigned mask, int predicate,
    fassd::emulation::Location where = fassd::emulation::Location::here()) {
  return fassd::emulation::ballot(mask, predicate != 0, "__ballot_sync", where);
}

FASSD_INLINE int __any_sync(unsigned mask, int predicate,
                            fassd::emulation::Location where = fassd::emulation::Location::here()) {
  return fassd::emulation::ballot(mask, predicate != 0, "__any_sync", where) != 0;
}

FASSD_INLINE int __all_sync(unsigned mask, int predicate,
                            fassd::emulation::Location where = fassd::emulation::Location::here()) {
  return fassd::emulation::ballot(mask, predicate == 0, "__all_sync", where) == 0;
}

// --- atomics
// --------------------------------------------------------------------------------------

namespace fassd::emulation {
// The value has the type that the memory has; as on a GPU, integers wrap around.
template <typename T>
using Number = std::enable_if_t<std::is_arithmetic_v<T>, T>;
template <typename T>
using Integer = std::enable_if_t<std::is_integral_v<T>, T>;
}  // namespace fassd::emulation

template <typename T>
FASSD_INLINE T atomicAdd(T* address, fassd::emulation::Number<T> value) {
  return fassd::emulation::update_atomically(address, [=](T old) {
    if constexpr (std::is_integral_v<T>) {
      using Unsigned = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<Unsigned>(old) + static_cast<Unsigned>(value));
    } else {
      return old + value;
    }
  });
}
template <typename T>
FASSD_INLINE T atomicMax(T* address, fassd::emulation::Integer<T> value) {
  return fassd::emulation::update_atomically(address,
                                             [=](T old) { return old < value ? value : old; });
}
template <typename T>
FASSD_INLINE T atomicMin(T* address, fassd::emulation::Integer<T> value) {
  return fassd::emulation::update_atomically(address,
                                             [=](T old) { return value < old ? value : old; });
}
template <typename T>
FASSD_INLINE T atomicOr(T* address, fassd::emulation::Integer<T> value) {
  return fassd::emulation::update_atomically(address, [=](T old) { return old | value; });
}
template <typename T>
FASSD_INLINE T atomicAnd(T* address, fassd::emulation::Integer<T> value) {
  return fassd::emulation::update_atomically(address, [=](T old) { return old & value; });
}
template <typename T>
FASSD_INLINE T atomicExch(T* address, fassd::emulation::Number<T> value) {
  return fassd::emulation::update_atomically(address, [=](T) { return value; });
}
template <typename T>
FASSD_INLINE T atomicCAS(T* address, fassd::emulation::Integer<T> compare,
                         fassd::emulation::Integer<T> value) {
  return fassd::emulation::update_atomically(address,
                                             [=](T old) { return old == compare ? value : old; });
}

// --- arithmetic
// -----------------------------------------------------------------------------------

template <typename T>
FASSD_INLINE T __ldg(const T* address) {
  return *address;
}
template <typename T>
FASSD_INLINE T __ldcs(const T* address) {
  return *address;
}
template <typename T>
FASSD_INLINE T __ldcg(const T* address) {
  return *address;
}
template <typename T>
FASSD_INLINE void __stcs(T* address, T value) {
  *address = value;
}

FASSD_INLINE unsigned __float_as_uint(float value) {
  return fassd::emulation::bits_as<unsigned>(value);
}
FASSD_INLINE int __float_as_int(float value) {
  return fassd::emulation::bits_as<int>(value);
}
FASSD_INLINE float __uint_as_float(unsigned bits) {
  return fassd::emulation::bits_as<float>(bits);
}
FASSD_INLINE float __int_as_float(int bits) {
  return fassd::emulation::bits_as<float>(bits);
}
FASSD_INLINE long long __double_as_longlong(double value) {
  return fassd::emulation::bits_as<long long>(value);
}
FASSD_INLINE double __longlong_as_double(long long bits) {
  return fassd::emulation::bits_as<double>(bits);
}

FASSD_INLINE int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}
FASSD_INLINE int __clz(int bits) {
  return bits == 0 ? 32 : __builtin_clz(unsigned(bits));
}
FASSD_INLINE int __ffs(int bits) {
  return __builtin_ffs(bits);
}
FASSD_INLINE unsigned __brev(unsigned bits) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; i++) reversed |= (bits >> i & 1u) << (31 - i);
  return reversed;
}
FASSD_INLINE unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t(a) * b >> 32);
}
FASSD_INLINE int __mulhi(int a, int b) {
  return static_cast<int>(int64_t(a) * b >> 32);
}
FASSD_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

// Four bytes of eight, chosen by four hexadecimal digits; a digit's high bit spreads the byte's
// sign.
FASSD_INLINE unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned digit = selector >> 4 * i & 15u;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (digit & 7u)) & 255u;
    if ((digit & 8u) != 0) byte = (byte & 128u) != 0 ? 255u : 0u;
    result |= byte << 8 * i;
  }
  return result;
}

FASSD_INLINE float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
FASSD_INLINE double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}

// Never fused with what follows: the compiler does not see through a volatile.
#define FASSD_ROUNDED(T, name, operation) \
  FASSD_INLINE T name(T a, T b) {         \
    volatile T result = a operation b;    \
    return result;                        \
  }
FASSD_ROUNDED(float, __fadd_rn, +)
FASSD_ROUNDED(float, __fsub_rn, -)
FASSD_ROUNDED(float, __fmul_rn, *)
FASSD_ROUNDED(float, __fdiv_rn, /)
FASSD_ROUNDED(double, __dadd_rn, +)
FASSD_ROUNDED(double, __dsub_rn, -)
FASSD_ROUNDED(double, __dmul_rn, *)
FASSD_ROUNDED(double, __ddiv_rn, /)
#undef FASSD_ROUNDED

FASSD_INLINE float __fdividef(float a, float b) {
  return a / b;
}
FASSD_INLINE float __expf(float value) {
  return std::exp(value);
}
FASSD_INLINE float __logf(float value) {
  return std::log(value);
}
FASSD_INLINE float __frcp_rn(float value) {
  return 1.0f / value;
}
FASSD_INLINE float __fsqrt_rn(float value) {
  return std::sqrt(value);
}
FASSD_INLINE float rsqrtf(float value) {
  return 1.0f / std::sqrt(value);
}
FASSD_INLINE float __saturatef(float value) {
  return value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f;
}

FASSD_INLINE float __double2float_rn(double value) {
  return static_cast<float>(value);
}
FASSD_INLINE float __int2float_rn(int value) {
  return static_cast<float>(value);
}
FASSD_INLINE float __uint2float_rn(unsigned value) {
  return static_cast<float>(value);
}
FASSD_INLINE double __int2double_rn(int value) {
  return static_cast<double>(value);
}

// A GPU's conversions saturate, and make zero of what is not a number.
namespace fassd::emulation {
FASSD_INLINE int saturated_int(double whole) {
  if (!(whole == whole)) return 0;
  return whole >= 2147483647.0 ? INT_MAX : whole <= -2147483648.0 ? INT_MIN : int(whole);
}
}  // namespace fassd::emulation
FASSD_INLINE int __float2int_rn(float value) {
  return fassd::emulation::saturated_int(std::nearbyint(double(value)));
}
FASSD_INLINE int __float2int_rd(float value) {
  return fassd::emulation::saturated_int(std::floor(double(value)));
}
FASSD_INLINE int __float2int_ru(float value) {
  return fassd::emulation::saturated_int(std::ceil(double(value)));
}
FASSD_INLINE int __float2int_rz(float value) {
  return fassd::emulation::saturated_int(std::trunc(double(value)));
}
FASSD_INLINE int __double2int_rd(double value) {
  return fassd::emulation::saturated_int(std::floor(value));
}

// Of floating point numbers, the one that is a number.
template <typename A, typename B>
constexpr auto min(A a, B b) -> std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>,
                                                 std::common_type_t<A, B>> {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return a != a ? T(b) : T(b) < T(a) ? T(b) : T(a);
  return T(b) < T(a) ? T(b) : T(a);
}
template <typename A, typename B>
constexpr auto max(A a, B b) -> std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>,
                                                 std::common_type_t<A, B>> {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return a != a ? T(b) : T(a) < T(b) ? T(b) : T(a);
  return T(a) < T(b) ? T(b) : T(a);
}
