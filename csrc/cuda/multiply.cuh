// Products of pixels and weights in shared memory, on tensor cores or in plain float32.
//
// A warp multiplies m_tiles groups of 16 pixels by n_tiles groups of 8 output channels. `Math` is
// the arithmetic: the type of the values, the channels of one product, and the way a lane reads
// pixels.

#pragma once

#include "../plan/plan.h"
#include "ptx.cuh"

namespace fassd::cuda {

// 16-bit values on tensor cores.
template <typename Type>
struct HalfMath {
  using T = Type;
  static constexpr int step = 16;      // channels of one product
  static constexpr int addresses = 1;  // of pixels that a lane reads, per 16 rows
  static constexpr bool splits_sums = false;
};

// float32, rounded to TF32, on tensor cores.
struct Tf32Math {
  using T = float;
  static constexpr int step = 8;
  static constexpr int addresses = 1;
  static constexpr bool splits_sums = false;
};

// float32 without rounding. Each chunk is summed separately, so that 18,000 terms stay within the
// tolerance.
struct FloatMath {
  using T = float;
  static constexpr int step = 4;
  static constexpr int addresses = 2;
  static constexpr bool splits_sums = true;
};

// Bytes from slot to slot, and elements from row to row of the weights.
template <typename Math>
__host__ __device__ constexpr int slot_bytes(int chunk) {
  return chunk * int(sizeof(typename Math::T)) + slot_padding;
}
template <typename Math, int n>
constexpr int weight_row_bytes = weight_row(n) * int(sizeof(typename Math::T));

// Accumulators of m_tiles x n_tiles products of 16 x 8 in each warp.
template <typename Math, int m_tiles, int n_tiles>
struct Accumulators {
  float sums[m_tiles][n_tiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < m_tiles; i++) {
#pragma unroll
      for (int j = 0; j < n_tiles; j++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          sums[i][j][k] = 0.0f;
        }
      }
    }
  }

  __device__ __forceinline__ void add(const Accumulators& other) {
#pragma unroll
    for (int i = 0; i < m_tiles; i++) {
#pragma unroll
      for (int j = 0; j < n_tiles; j++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          sums[i][j][k] += other.sums[i][j][k];
        }
      }
    }
  }
};

// Offsets in shared memory of the pixels whose channels a lane reads: for tensor cores pixel lane %
// 16 of 16, at the first or second half of the channels; otherwise pixels g and g + 8.
template <typename Math, int m_tiles>
struct Rows {
  int offset[m_tiles][Math::addresses];
};

template <typename Math>
__device__ __forceinline__ int lane_row(int lane, int address) {
  return Math::addresses == 1 ? lane % 16 : lane / 4 + 8 * address;
}
template <typename Math>
__device__ __forceinline__ int lane_bytes(int lane) {
  return Math::addresses == 1 ? lane / 16 * 16 : 0;
}

// sums += A * B over `chunk` channels. `a` shifts the rows' offsets; `b` is the offset of the
// weights' first row. With several sets of warps, each takes every `splits`-th step.
template <int splits = 1, typename T, int m_tiles, int n_tiles>
__device__ __forceinline__ void multiply(HalfMath<T>, unsigned char* shared,
                                         const Rows<HalfMath<T>, m_tiles>& rows, int a, int b,
                                         int chunk,
                                         Accumulators<HalfMath<T>, m_tiles, n_tiles>& acc,
                                         int set = 0) {
  const int lane = threadIdx.x % 32;
  constexpr int row_bytes = weight_row_bytes<HalfMath<T>, n_tiles * 8>;
  const ptx::SharedAddress base = ptx::shared_address(shared);
  ptx::SharedAddress weights =
      base + b + set * 16 * row_bytes + lane % 16 * row_bytes + lane / 16 * 16;
  a += set * 32;
#pragma unroll 1
  for (int k = set * 16; k < chunk;
       k += splits * 16, a += splits * 32, weights += splits * 16 * row_bytes) {
    uint32_t pixels[m_tiles][4];
#pragma unroll
    for (int i = 0; i < m_tiles; i++) {
      ptx::load_matrices(pixels[i], base + rows.offset[i][0] + a);
    }
#pragma unroll
    for (int j = 0; j < n_tiles; j += 2) {
      if constexpr (n_tiles % 2 == 1) {
        if (j == n_tiles - 1) {
          uint32_t factors[2];
          ptx::load_matrices_transposed(factors, weights - lane / 16 * 16 + j * 16);
#pragma unroll
          for (int i = 0; i < m_tiles; i++) {
            ptx::multiply<T>(acc.sums[i][j], pixels[i], factors[0], factors[1]);
          }
          break;
        }
      }
      uint32_t factors[4];
      ptx::load_matrices_transposed(factors, weights + j * 16);
#pragma unroll
      for (int i = 0; i < m_tiles; i++) {
        ptx::multiply<T>(acc.sums[i][j], pixels[i], factors[0], factors[1]);
        ptx::multiply<T>(acc.sums[i][j + 1], pixels[i], factors[2], factors[3]);
      }
    }
  }
}

// Weights of 16 channels and all output channels, at offset `at` of shared memory.
template <typename T, int n_tiles>
__device__ __forceinline__ void load_weights(uint32_t (&factors)[n_tiles][2],
                                             ptx::SharedAddress at) {
#pragma unroll
  for (int j = 0; j + 1 < n_tiles; j += 2) {
    uint32_t loaded[4];
    ptx::load_matrices_transposed(loaded, at + j * 16);
    factors[j][0] = loaded[0];
    factors[j][1] = loaded[1];
    factors[j + 1][0] = loaded[2];
    factors[j + 1][1] = loaded[3];
  }
  if constexpr (n_tiles % 2 == 1) {
    const int lane = threadIdx.x % 32;
    ptx::load_matrices_transposed(factors[n_tiles - 1], at - lane / 16 * 16 + (n_tiles - 1) * 16);
  }
}

// All taps of a plain 3x3 over one chunk, for a warp whose m_tiles groups of 16 pixels are below
// each other. A row of pixels is loaded once for each of the three columns of taps, and multiplied
// by the weights of the rows of taps that contribute to a row of the result: shared memory, which
// has to deliver as fast as the tensor cores compute, is read half as often as tap by tap.
template <typename T, int m_tiles, int n_tiles, int splits = 1>
__device__ __forceinline__ void multiply_sliding(unsigned char* shared, int first_row,
                                                 int row_bytes, int pitch, int b, int tap_bytes,
                                                 int chunk,
                                                 Accumulators<HalfMath<T>, m_tiles, n_tiles>& acc,
                                                 int set = 0) {
  const int lane = threadIdx.x % 32;
  constexpr int weight_bytes = weight_row_bytes<HalfMath<T>, n_tiles * 8>;
  const ptx::SharedAddress base = ptx::shared_address(shared);
  const ptx::SharedAddress weights =
      base + b + set * 16 * weight_bytes + lane % 16 * weight_bytes + lane / 16 * 16;
#pragma unroll 1
  for (int column = 0; column < 3; column++) {
    ptx::SharedAddress pixels_at = base + first_row + set * 32 + column * pitch;
    ptx::SharedAddress weights_at = weights + column * tap_bytes;
#pragma unroll 1
    for (int k = set * 16; k < chunk;
         k += splits * 16, pixels_at += splits * 32, weights_at += splits * 16 * weight_bytes) {
      uint32_t factors[3][n_tiles][2];
#pragma unroll
      for (int row = 0; row < 3; row++) {
        load_weights<T, n_tiles>(factors[row], weights_at + row * 3 * tap_bytes);
      }
#pragma unroll
      for (int i = 0; i < m_tiles + 2; i++) {
        uint32_t pixels[4];
        ptx::load_matrices(pixels, pixels_at + i * row_bytes);
#pragma unroll
        for (int row = 0; row < 3; row++) {
          if (i - row >= 0 && i - row < m_tiles) {
#pragma unroll
            for (int j = 0; j < n_tiles; j++) {
              ptx::multiply<T>(acc.sums[i - row][j], pixels, factors[row][j][0],
                               factors[row][j][1]);
            }
          }
        }
      }
    }
  }
}

template <int m_tiles, int n_tiles>
__device__ __forceinline__ void multiply(Tf32Math, unsigned char* shared,
                                         const Rows<Tf32Math, m_tiles>& rows, int a, int b,
                                         int chunk, Accumulators<Tf32Math, m_tiles, n_tiles>& acc) {
  const int lane = threadIdx.x % 32;
  constexpr int row = weight_row_bytes<Tf32Math, n_tiles * 8> / 4;
  const ptx::SharedAddress base = ptx::shared_address(shared);
  const uint32_t* weights =
      reinterpret_cast<const uint32_t*>(shared + b) + lane % 4 * row + lane / 4;
#pragma unroll 1
  for (int k = 0; k < chunk; k += 8, a += 32, weights += 8 * row) {
    uint32_t pixels[m_tiles][4];
#pragma unroll
    for (int i = 0; i < m_tiles; i++) {
      ptx::load_matrices(pixels[i], base + rows.offset[i][0] + a);
#pragma unroll
      for (int r = 0; r < 4; r++) {
        pixels[i][r] = ptx::to_tf32(pixels[i][r]);
      }
    }
#pragma unroll
    for (int j = 0; j < n_tiles; j++) {
      const uint32_t b0 = ptx::to_tf32(weights[j * 8]);
      const uint32_t b1 = ptx::to_tf32(weights[4 * row + j * 8]);
#pragma unroll
      for (int i = 0; i < m_tiles; i++) {
        ptx::multiply_tf32(acc.sums[i][j], pixels[i], b0, b1);
      }
    }
  }
}

template <int m_tiles, int n_tiles>
__device__ __forceinline__ void multiply(FloatMath, unsigned char* shared,
                                         const Rows<FloatMath, m_tiles>& rows, int a, int b,
                                         int chunk,
                                         Accumulators<FloatMath, m_tiles, n_tiles>& acc) {
  const int lane = threadIdx.x % 32;
  constexpr int row = weight_row_bytes<FloatMath, n_tiles * 8> / 4;
  const float* weights = reinterpret_cast<const float*>(shared + b) + lane % 4 * 2;
#pragma unroll 1
  for (int k = 0; k < chunk; k += 4, a += 16, weights += 4 * row) {
    float pixels[m_tiles][2][4];
#pragma unroll
    for (int i = 0; i < m_tiles; i++) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float4 loaded = *reinterpret_cast<const float4*>(shared + rows.offset[i][r] + a);
        pixels[i][r][0] = loaded.x;
        pixels[i][r][1] = loaded.y;
        pixels[i][r][2] = loaded.z;
        pixels[i][r][3] = loaded.w;
      }
    }
#pragma unroll
    for (int kk = 0; kk < 4; kk++) {
#pragma unroll
      for (int j = 0; j < n_tiles; j++) {
        const float2 factors = *reinterpret_cast<const float2*>(weights + kk * row + j * 8);
#pragma unroll
        for (int i = 0; i < m_tiles; i++) {
          acc.sums[i][j][0] += pixels[i][0][kk] * factors.x;
          acc.sums[i][j][1] += pixels[i][0][kk] * factors.y;
          acc.sums[i][j][2] += pixels[i][1][kk] * factors.x;
          acc.sums[i][j][3] += pixels[i][1][kk] * factors.y;
        }
      }
    }
  }
}

}  // namespace fassd::cuda
