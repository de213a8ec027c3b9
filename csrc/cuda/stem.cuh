// The 3x3 convolution of a picture's three channels.
//
// Sixteen channels at a time, three would leave 13 of 16 products unused, for nine taps. Here one
// product takes a row of the window: four pixels of four channels, the last of which are zeros. The
// pixels under a block's tile are in shared memory, 8 bytes each, so that a lane loads its part of
// the matrix, one pixel of the window, at once:
//
//     lane 4g + t, product of the kernel's row r:
//       A[g][2t, 2t + 1], A[g][2t + 8, 2t + 9] = channels 0, 1 and 2, 3 of pixel t (zeros of t = 3)
//       rows 2t, 2t + 1 and 2t + 8, 2t + 9 of the weights = those of tap (r, t)
//
// The picture may consist of bytes, RGB: then each byte is looked up in a table of normalised
// values when it is loaded, and the result of `normalize` is never written.

#pragma once

#include "convolution_kernel.cuh"

namespace fassd::cuda {

// The result for each value of a byte, for each channel of the network's input (BGR).
struct alignas(16) NormalizationTable {
  uint16_t values[stem_channels][256];
};

struct Stem {
  Source source;        // three channels; for bytes in the picture's order, RGB
  bool packed = false;  // bytes with adjacent pixels
  Weight weight;
  int out_height = 0, out_width = 0;  // before pooling
  int stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1;
  Tile tile;
  int patch_rows = 0, patch_groups = 0;   // under a tile: rows of the picture, pixels by four
  unsigned inverse = 0;                   // of patch_groups, times 2^stem_inverse_log2
  int eighths[stem_m_tiles * 2] = {};     // bytes from a warp's first pixel to its 8th, 16th, 24th
  int zeros = 0, weights = 0, table = 0;  // offsets in shared memory
  Epilogue epilogue;
};

// Four pixels in the layout of shared memory.
struct alignas(16) PixelGroup {
  uint2 pixels[stem_group];
};

__device__ __forceinline__ uint2 pixel_of(uint32_t blue, uint32_t green, uint32_t red) {
  return make_uint2(blue | green << 16, red);
}

// Pixels [x, x + 4) of a row of a picture, zeros outside; for bytes, looked up in the table.
template <bool bytes>
__device__ __forceinline__ PixelGroup load_pixels(const Source& source, int64_t row, int x,
                                                  const uint16_t* table) {
  PixelGroup group;
#pragma unroll
  for (int i = 0; i < stem_group; i++) {
    group.pixels[i] = make_uint2(0, 0);
    if (static_cast<unsigned>(x + i) < static_cast<unsigned>(source.width)) {
      const int64_t at = row + (x + i) * source.stride_w;
      const auto value = [&](int channel) -> uint32_t {
        if constexpr (bytes) {
          const uint8_t* from = static_cast<const uint8_t*>(source.data) + at;
          return table[channel * 256 + from[(stem_channels - 1 - channel) * source.stride_c]];
        } else {
          return static_cast<const uint16_t*>(source.data)[at + channel * source.stride_c];
        }
      };
      group.pixels[i] = pixel_of(value(0), value(1), value(2));
    }
  }
  return group;
}

// The same for a picture of bytes with adjacent pixels: 12 bytes out of the four words that contain
// them, if these are within the row.
__device__ __forceinline__ PixelGroup load_packed_pixels(const Source& source, int64_t row, int x,
                                                         const uint16_t* table) {
  if (x <= 0 || source.width - x < 6) {
    return load_pixels<true>(source, row, x, table);
  }
  const uint8_t* from = static_cast<const uint8_t*>(source.data) + row + int64_t(stem_channels) * x;
  const unsigned odd = static_cast<unsigned>(reinterpret_cast<uintptr_t>(from)) % 4;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(from - odd);
  uint32_t loaded[4], whole[3];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    loaded[i] = words[i];
  }
#pragma unroll
  for (int i = 0; i < 3; i++) {
    whole[i] = __funnelshift_r(loaded[i], loaded[i + 1], 8 * odd);
  }
  PixelGroup group;
#pragma unroll
  for (int i = 0; i < stem_group; i++) {
    const auto value = [&](int channel) -> uint32_t {
      const int byte = i * stem_channels + stem_channels - 1 - channel;
      return table[channel * 256 + (whole[byte / 4] >> byte % 4 * 8 & 255)];
    };
    group.pixels[i] = pixel_of(value(0), value(1), value(2));
  }
  return group;
}

template <typename T, bool bytes, int n_tiles>
__global__ void __launch_bounds__(stem_warps * 32, stem_blocks)
    stem_kernel(const __grid_constant__ Stem stem,
                const __grid_constant__ NormalizationTable values) {
  using Math = HalfMath<T>;
  constexpr int threads = stem_warps * 32, n = n_tiles * 8, row_bytes = weight_row_bytes<Math, n>;
  unsigned char* shared = ptx::dynamic_shared();
  uint16_t* table = reinterpret_cast<uint16_t*>(shared + stem.table);
  const Source& source = stem.source;
  const Tile& tile = stem.tile;
  const Place place = place_of(blockIdx.x, tile);
  const int picture = place.picture, column = place.columns * n;
  const int x = place.across << tile.width_log2, y = place.down * tile.height;

  if constexpr (bytes) {
    if (threadIdx.x < sizeof(values) / 16) {
      reinterpret_cast<uint4*>(table)[threadIdx.x] =
          reinterpret_cast<const uint4*>(&values)[threadIdx.x];
    }
    __syncthreads();
  }
  ptx::wait_for_previous_kernels();
  const int top = y * stem.stride_h - stem.dilation_h, left = x * stem.stride_w - stem.dilation_w;
  for (int i = threadIdx.x; i < stem.patch_rows * stem.patch_groups; i += threads) {
    const int row = i * stem.inverse >> stem_inverse_log2;
    const int at_y = top + row, at_x = left + (i - row * stem.patch_groups) * stem_group;
    PixelGroup group = {};
    if (static_cast<unsigned>(at_y) < static_cast<unsigned>(source.height)) {
      const int64_t begin = picture * source.stride_n + at_y * source.stride_h;
      group = bytes && stem.packed ? load_packed_pixels(source, begin, at_x, table)
                                   : load_pixels<bytes>(source, begin, at_x, table);
    }
    reinterpret_cast<PixelGroup*>(shared)[i] = group;
  }
  static_assert(stem_depth * n_tiles <= threads, "a thread brings one vector of weights");
  if (threadIdx.x < stem_depth * n_tiles) {
    const unsigned row = threadIdx.x / n_tiles, part = threadIdx.x % n_tiles;
    const unsigned pixel = row % 8 / 2, channel = row % 16 / 8 * 2 + row % 2;
    const unsigned from = (row / 16 * 3 + pixel) * stem_channels + channel;
    const int out = column + part * lanes;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (pixel < 3 && channel < stem_channels && out < stem.weight.stride) {
      value = *reinterpret_cast<const uint4*>(static_cast<const T*>(stem.weight.data) +
                                              from * stem.weight.stride + out);
    }
    *reinterpret_cast<uint4*>(shared + stem.weights + row * row_bytes + part * 16) = value;
  }
  if (threadIdx.x == 0) {
    *reinterpret_cast<uint2*>(shared + stem.zeros) = make_uint2(0, 0);
  }
  __syncthreads();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tap = lane % 4;
  // Eight neighbours are in one row, and so are the 32 of a warp unless it has whole rows.
  const int pitch = stem.patch_groups * int(sizeof(PixelGroup)), pixel_bytes = 8;
  const int first = warp * stem_m_tiles * 16;
  const int begin = (first >> tile.width_log2) * stem.stride_h * pitch +
                    (((first & ((1 << tile.width_log2) - 1)) + lane / 4) * stem.stride_w +
                     tap * stem.dilation_w) *
                        pixel_bytes;
  const int step = tap < 3 ? stem.dilation_h * pitch : 0;  // from row to row of the kernel
  int at[stem_m_tiles][2];
#pragma unroll
  for (int i = 0; i < stem_m_tiles * 2; i++) {
    at[i / 2][i % 2] = tap < 3 ? begin + stem.eighths[i] : stem.zeros;
  }
  const ptx::SharedAddress weights =
      ptx::shared_address(shared) + stem.weights + lane % 16 * row_bytes + lane / 16 * 16;
  Accumulators<Math, stem_m_tiles, n_tiles> acc;
  acc.clear();
#pragma unroll
  for (int r = 0; r < 3; r++) {
    uint32_t factors[n_tiles][2];
    load_weights<T, n_tiles>(factors, weights + r * 16 * row_bytes);
#pragma unroll
    for (int i = 0; i < stem_m_tiles; i++) {
      const uint2 upper = *reinterpret_cast<const uint2*>(shared + at[i][0] + r * step);
      const uint2 lower = *reinterpret_cast<const uint2*>(shared + at[i][1] + r * step);
      const uint32_t pixels[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
      for (int j = 0; j < n_tiles; j++) {
        ptx::multiply<T>(acc.sums[i][j], pixels, factors[j][0], factors[j][1]);
      }
    }
  }
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
