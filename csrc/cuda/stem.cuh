// The 3x3 convolution of a picture's three channels.
//
// Sixteen channels at a time, three would leave 13 of 16 products idle, nine times over. Here taps
// and channels are one axis of 27, padded to 32, and a block makes the matrix of it in shared
// memory: the picture's pixels under the tile are brought there once, then each thread gathers the
// 27 values of its own pixel. Packed weights, [tap][channel][out], are the other matrix as they
// lie. The picture may be one of bytes, RGB: then each is looked up in a table of normalised values
// on its way in, and what `normalize` would have written is never written.

#pragma once

#include "convolution_kernel.cuh"

namespace fassd::cuda {

// What each value of a byte becomes, for each channel of the network's input (BGR).
struct NormalizationTable {
  uint16_t values[stem_channels][256];
};

struct Stem {
  Source source;  // three channels; of bytes, the picture's own order, RGB
  Weight weight;
  int out_height = 0, out_width = 0;  // before pooling
  int stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1;
  Tile tile;
  int patch_rows = 0, patch_columns = 0;   // pixels of the picture under a tile
  int matrix = 0, weights = 0, table = 0;  // offsets in shared memory
  Epilogue epilogue;
};

template <typename T, bool bytes>
__device__ __forceinline__ T stem_value(const Stem& stem, const T* table, int n, int y, int x,
                                        int channel) {
  const Source& source = stem.source;
  const bool inside = y >= 0 && y < source.height && x >= 0 && x < source.width;
  if (!inside) {
    return from_float<T>(0.0f);
  }
  const int from = bytes ? stem_channels - 1 - channel : channel;
  const int64_t at =
      n * source.stride_n + y * source.stride_h + x * source.stride_w + from * source.stride_c;
  if constexpr (bytes) {
    return table[channel * 256 + static_cast<const uint8_t*>(source.data)[at]];
  } else {
    return static_cast<const T*>(source.data)[at];
  }
}

template <typename T, bool bytes, int n_tiles>
__global__ void __launch_bounds__(stem_warps * 32)
    stem_kernel(const __grid_constant__ Stem stem,
                const __grid_constant__ NormalizationTable values) {
  using Math = HalfMath<T>;
  constexpr int threads = stem_warps * 32, n = n_tiles * 8;
  unsigned char* shared = ptx::dynamic_shared();
  T* patch = reinterpret_cast<T*>(shared);  // [row][column][channel]
  T* table = reinterpret_cast<T*>(shared + stem.table);
  const Tile& tile = stem.tile;
  const Place place = place_of(blockIdx.x, tile.across, tile.down, tile.columns);
  const int picture = place.picture, column = place.columns * n;
  const int x = place.across << tile.width_log2, y = place.down * tile.height;

  if constexpr (bytes) {
    for (int i = threadIdx.x; i < stem_channels * 256; i += threads) {
      reinterpret_cast<uint16_t*>(table)[i] = values.values[i / 256][i % 256];
    }
    __syncthreads();
  }
  ptx::wait_for_previous_kernels();
  // Neighbouring threads read neighbouring addresses, whichever axis these lie on.
  const int count = stem.patch_rows * stem.patch_columns * stem_channels;
  const int top = y * stem.stride_h - stem.dilation_h, left = x * stem.stride_w - stem.dilation_w;
  const bool interleaved = stem.source.stride_c == 1;
  for (int i = threadIdx.x; i < count; i += threads) {
    int row, at, channel;
    if (interleaved) {
      channel = i % stem_channels;
      row = i / stem_channels / stem.patch_columns;
      at = i / stem_channels - row * stem.patch_columns;
    } else {
      row = i / stem.patch_columns;
      at = i - row * stem.patch_columns;
      channel = row / stem.patch_rows;
      row -= channel * stem.patch_rows;
    }
    patch[(row * stem.patch_columns + at) * stem_channels + channel] =
        stem_value<T, bytes>(stem, table, picture, top + row, left + at, channel);
  }
  // Rows behind the 27th are zeros.
  for (int i = threadIdx.x; i < stem_depth * n_tiles; i += threads) {
    const int row = i / n_tiles, part = i - row * n_tiles, out = column + part * lanes;
    Vector<T> value;
    const bool there = row < 9 * stem_channels && out < stem.weight.stride;
    if (there) {
      value = *reinterpret_cast<const Vector<T>*>(static_cast<const T*>(stem.weight.data) +
                                                  row * stem.weight.stride + out);
    } else {
#pragma unroll
      for (int e = 0; e < lanes; e++) {
        value.values[e] = from_float<T>(0.0f);
      }
    }
    *reinterpret_cast<Vector<T>*>(shared + stem.weights + row * weight_row_bytes<Math, n> +
                                  part * 16) = value;
  }
  __syncthreads();

  {
    const int pixel = threadIdx.x;
    static_assert(threads == stem_pixels, "a thread gathers one pixel");
    const int row = pixel >> tile.width_log2, at = pixel & ((1 << tile.width_log2) - 1);
    const T* corner =
        patch + (row * stem.stride_h * stem.patch_columns + at * stem.stride_w) * stem_channels;
#pragma unroll
    for (int part = 0; part < stem_depth / lanes; part++) {
      Vector<T> gathered;
#pragma unroll
      for (int e = 0; e < lanes; e++) {
        const int k = part * lanes + e, tap = k / stem_channels, channel = k % stem_channels;
        gathered.values[e] = tap < 9 ? corner[(tap / 3 * stem.dilation_h * stem.patch_columns +
                                               tap % 3 * stem.dilation_w) *
                                                  stem_channels +
                                              channel]
                                     : from_float<T>(0.0f);
      }
      *reinterpret_cast<Vector<T>*>(shared + stem.matrix + pixel * stem_pitch + part * 16) =
          gathered;
    }
  }
  __syncthreads();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Rows<Math, stem_m_tiles> rows;
#pragma unroll
  for (int i = 0; i < stem_m_tiles; i++) {
    rows.offset[i][0] = stem.matrix +
                        ((warp * stem_m_tiles + i) * 16 + lane_row<Math>(lane, 0)) * stem_pitch +
                        lane_bytes<Math>(lane);
  }
  Accumulators<Math, stem_m_tiles, n_tiles> acc;
  acc.clear();
  multiply(Math(), shared, rows, 0, stem.weights, stem_depth, acc);
  __syncthreads();
  ptx::let_next_kernel_start();
  float* staging = reinterpret_cast<float*>(shared);
  stage_sums<Math, stem_m_tiles, n_tiles>(staging, acc, warp * stem_m_tiles * 16, 16);
  __syncthreads();
  write_tile<T, n_tiles, threads>(staging, nullptr, stem.epilogue,
                                  {tile.width_log2, tile.height, picture, y, x, column,
                                   stem.weight.out_channels, stem.out_height, stem.out_width});
}

}  // namespace fassd::cuda
