// What becomes of a tile's sums: bias, residual, activation, pooling or a batch norm, and the way
// to the result's pixels.

#pragma once

#include "image.cuh"
#include "multiply.cuh"

namespace fassd::cuda {

// A batch norm and PReLU, one value a channel; nothing where there is no scale.
struct Affine {
  const void* scale = nullptr;
  const void* shift = nullptr;
  const void* slope = nullptr;
};

// What becomes of the sums: act(sum + bias + residual), averaged over pool x pool pixels; or
// affine(act(sum + bias) + addend).
struct Epilogue {
  const void* bias = nullptr;
  const void* slope = nullptr;
  Activation activation = Activation::none;
  Source residual;       // none where its data is null
  bool resized = false;  // the residual is enlarged to the result's size first
  Source addend;
  Affine affine;
  int pool = 1;
  Target out;
  Target copy;  // a second place for the same, if any
};

__device__ __forceinline__ float activate(float value, Activation activation, float slope) {
  if (activation == Activation::relu) {
    return value < 0.0f ? 0.0f : value;  // NaN passes
  }
  return activation == Activation::prelu && value < 0.0f ? value * slope : value;
}

// Floats from pixel to pixel of the accumulators in shared memory.
template <int n_tiles>
constexpr int staging_pitch = staging_row(n_tiles * 8);

// A warp's pixels begin at `first`, and each 16 of them `step` after the 16 before.
template <typename Math, int m_tiles, int n_tiles>
__device__ __forceinline__ void stage_sums(float* staging,
                                           const Accumulators<Math, m_tiles, n_tiles>& acc,
                                           int first, int step) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < m_tiles; i++) {
    float* row = staging + (first + i * step + lane / 4) * staging_pitch<n_tiles> + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < n_tiles; j++) {
      *reinterpret_cast<float2*>(row + j * 8) = make_float2(acc.sums[i][j][0], acc.sums[i][j][1]);
      *reinterpret_cast<float2*>(row + 8 * staging_pitch<n_tiles> + j * 8) =
          make_float2(acc.sums[i][j][2], acc.sums[i][j][3]);
    }
  }
}

// Eight values of a vector of T, those behind its end zero; of no vector, eight zeros.
template <typename T>
__device__ __forceinline__ void load_values(const void* vector, int first, int count,
                                            float (&values)[lanes]) {
  Source source;
  source.data = vector;
  source.channels = vector == nullptr ? 0 : count;
  source.vectors = reinterpret_cast<uintptr_t>(vector) % 16 == 0;
  load_lanes<T>(source, 0, first, values);
}

// Writes a tile of `height` x 2^width_log2 pixels that begins at (y, x) of picture n, channels
// [column, column + n_tiles * 8) of `channels`.
template <typename T, int n_tiles>
__device__ __forceinline__ void write_tile(const float* staging, const Epilogue& epilogue,
                                           int width_log2, int height, int n, int y, int x,
                                           int column, int channels, int out_height, int out_width,
                                           int threads) {
  // Pooling is over 1 x 1 or 2 x 2: shifts, where the compiler would call a division.
  const int shift = epilogue.pool - 1, width = 1 << width_log2 >> shift;
  const int pixels = (height >> shift) * width;
  const int most_lanes = epilogue.copy.data != nullptr && epilogue.copy.lanes > epilogue.out.lanes
                             ? epilogue.copy.lanes
                             : epilogue.out.lanes;
  for (int i = threadIdx.x; i < pixels * n_tiles; i += threads) {
    const int pixel = i / n_tiles, part = i - pixel * n_tiles;
    const int channel = column + part * lanes;
    const int row = pixel / width, out_y = (y >> shift) + row,
              out_x = (x >> shift) + pixel - row * width;
    if (channel >= most_lanes || out_y >= out_height >> shift || out_x >= out_width >> shift) {
      continue;
    }
    float bias[lanes], slope[lanes], result[lanes];
    load_values<T>(epilogue.bias, channel, channels, bias);
    load_values<T>(epilogue.slope, channel, channels, slope);
    for (int window = 0; window < 1 << 2 * shift; window++) {
      const int at_row = (row << shift) + (window >> 1);
      const int at_column = ((pixel - row * width) << shift) + (window & 1);
      const float* sums =
          staging + ((at_row << width_log2) + at_column) * staging_pitch<n_tiles> + part * lanes;
      float value[lanes];
#pragma unroll
      for (int k = 0; k < lanes; k += 4) {
        const float4 loaded = *reinterpret_cast<const float4*>(sums + k);
        value[k] = loaded.x + bias[k];
        value[k + 1] = loaded.y + bias[k + 1];
        value[k + 2] = loaded.z + bias[k + 2];
        value[k + 3] = loaded.w + bias[k + 3];
      }
      if (epilogue.residual.data != nullptr) {
        const Source& residual = epilogue.residual;
        float added[lanes];
        if (epilogue.resized) {
          load_resized<T>(residual, n, neighbours_of(y + at_row, residual.height, out_height),
                          neighbours_of(x + at_column, residual.width, out_width), channel, added);
        } else {
          load_lanes<T>(residual,
                        n * residual.stride_n + (y + at_row) * residual.stride_h +
                            (x + at_column) * residual.stride_w,
                        channel, added);
        }
#pragma unroll
        for (int k = 0; k < lanes; k++) {
          value[k] += added[k];
        }
      }
#pragma unroll
      for (int k = 0; k < lanes; k++) {
        value[k] = activate(value[k], epilogue.activation, slope[k]);
        result[k] = window == 0 ? value[k] : result[k] + value[k];
      }
    }
    if (shift > 0) {
#pragma unroll
      for (int k = 0; k < lanes; k++) {
        result[k] *= 0.25f;
      }
    }
    if (epilogue.addend.data != nullptr) {
      const Source& addend = epilogue.addend;
      float added[lanes], scale[lanes], shift[lanes];
      load_lanes<T>(addend, n * addend.stride_n + out_y * addend.stride_h + out_x * addend.stride_w,
                    channel, added);
      load_values<T>(epilogue.affine.scale, channel, channels, scale);
      load_values<T>(epilogue.affine.shift, channel, channels, shift);
      load_values<T>(epilogue.affine.slope, channel, channels, slope);
#pragma unroll
      for (int k = 0; k < lanes; k++) {
        const float sum = (result[k] + added[k]) * scale[k] + shift[k];
        result[k] = sum < 0.0f ? sum * slope[k] : sum;
      }
    }
    // Behind the last channel stand zeros, whatever was multiplied there.
#pragma unroll
    for (int k = 0; k < lanes; k++) {
      result[k] = channel + k < channels ? result[k] : 0.0f;
    }
    const auto write = [&](const Target& target) {
      store_lanes<T>(target,
                     n * target.stride_n + out_y * target.stride_h + out_x * target.stride_w,
                     channel, result);
    };
    write(epilogue.out);
    if (epilogue.copy.data != nullptr) {
      write(epilogue.copy);
    }
  }
}

}  // namespace fassd::cuda
