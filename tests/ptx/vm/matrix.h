// What products of matrices share: fragments, factors, sums. (PTX ISA, "Matrix Fragments for
// mma.m16n8k16" and so on; g = lane / 4 and t = lane % 4 as in its figures.)

#pragma once

#include "memory.h"
#include "translate.h"

namespace ptx {

inline int values_in_register(Type type) {
  return type == Type::tf32 ? 1 : 2;
}

inline double factor(uint32_t word, int half, Type type) {
  return decode(type == Type::tf32 ? word : word >> (16 * half) & 0xFFFF, type);
}

// A (16 x depth): registers hold rows g and g + 8 in turns.
inline void load_left(Warp& warp, const uint32_t* registers, Type type, int depth, double* a) {
  const int values = values_in_register(type);
  for (int r = 0; r < depth / 2 / values; ++r) {
    const uint32_t* words = warp.lanes<uint32_t>(registers[r]);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int half = 0; half < values; ++half) {
        const int row = lane / 4 + 8 * (r & 1);
        const int column = values * (lane % 4) + half + 4 * values * (r >> 1);
        a[row * depth + column] = factor(words[lane], half, type);
      }
    }
  }
}

// The sums of a lane, `count` of them, in a matrix of `n` columns: calls f(place in it, register).
template <typename F>
void each_sum(const uint32_t* registers, int count, int n, Warp& warp, F f) {
  for (int k = 0; k < count; ++k) {
    float* values = warp.lanes<float>(registers[k]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4 + 8 * (k >> 1 & 1), column = 8 * (k >> 2) + 2 * (lane % 4) + (k & 1);
      f(row * n + column, values[lane]);
    }
  }
}

// D (16 x n) += A (16 x depth) B (depth x n), in double: each product is exact, the sum is rounded
// when it is stored.
inline void multiply_add(const double* a, const double* b, double* d, int depth, int n) {
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < depth; ++k) {
      for (int column = 0; column < n; ++column) {
        d[row * n + column] += a[row * depth + k] * b[k * n + column];
      }
    }
  }
}

}  // namespace ptx
