// The processing of a tile's sums: bias, residual, activation, pooling or a batch norm, and writing
// to the result's pixels.

#pragma once

#include "image.cuh"
#include "multiply.cuh"

namespace fassd::cuda {

// A batch norm and PReLU, one value per channel; nothing without a scale.
struct Affine {
  const void* scale = nullptr;
  const void* shift = nullptr;
  const void* slope = nullptr;
};

// The epilogues that have their own code: those of 16-bit networks. Everything else that an
// operator may request, including foreign layouts and float32, is `any`.
enum class Finish : int8_t {
  any,
  none,      // sum + bias
  relu,      // relu(sum + bias)
  prelu,     // prelu(sum + bias)
  placed,    // relu, to channels of a larger result from any even one on, and to the copy
  pooled,    // relu, averaged
  residual,  // sum + bias + residual
  resized,   // relu(sum + bias + residual), the residual enlarged
  addend,    // affine(prelu(sum + bias) + addend)
};

// The processing of the sums: act(sum + bias + residual), averaged over pool x pool pixels; or
// affine(act(sum + bias) + addend).
struct Epilogue {
  const void* bias = nullptr;
  const void* slope = nullptr;
  Activation activation = Activation::none;
  Source residual;       // none if its data is null
  bool resized = false;  // the residual is enlarged to the result's size first
  Source addend;
  Affine affine;
  int pool = 1;
  Target out;
  Target copy;  // second copy of the result, if any
  Finish finish = Finish::any;
};

// The kind of an epilogue.
Finish finish_of(const Epilogue& epilogue);

__device__ __forceinline__ float activate(float value, Activation activation, float slope) {
  if (activation == Activation::relu) {
    return ptx::relu(value);
  }
  return activation == Activation::prelu && value < 0.0f ? value * slope : value;
}

// Floats from pixel to pixel of the accumulators in shared memory.
template <int n_tiles>
constexpr int staging_pitch = staging_row(n_tiles * 8);

// Stores a warp's sums. Its pixels start at `first`, and each 16 of them `step` after the previous
// 16. With `add`, adds them to the stored values.
template <typename Math, int m_tiles, int n_tiles>
__device__ __forceinline__ void stage_sums(float* staging,
                                           const Accumulators<Math, m_tiles, n_tiles>& acc,
                                           int first, int step, bool add = false) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < m_tiles; i++) {
    float* row = staging + (first + i * step + lane / 4) * staging_pitch<n_tiles> + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < n_tiles; j++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float2* at = reinterpret_cast<float2*>(row + half * 8 * staging_pitch<n_tiles> + j * 8);
        float2 sums = make_float2(acc.sums[i][j][2 * half], acc.sums[i][j][2 * half + 1]);
        if (add) {
          sums.x += at->x;
          sums.y += at->y;
        }
        *at = sums;
      }
    }
  }
}

// Eight values of one of a call's `Vectors`, of `count`; zeros if it is missing, and after the
// last.
template <typename T>
__device__ __forceinline__ void load_values(const void* vector, int first, int count,
                                            float (&values)[lanes]) {
  if (vector != nullptr && first < count) {
    load_eight<T>(static_cast<const T*>(vector) + first, values);
  } else {
#pragma unroll
    for (int i = 0; i < lanes; i++) {
      values[i] = 0.0f;
    }
  }
}

// A tile of 2^width_log2 columns and `rows` rows that starts at (y, x) of picture n, and channels
// from `column` on, of `channels`. Sizes are those before pooling.
struct Patch {
  int width_log2, rows, n, y, x, column, channels, height, width;
};

// The two rows or columns that the resize of a row or a column reads, and the weight of each.
struct Edge {
  int before, after;
  float before_weight, after_weight;
};

__device__ __forceinline__ Edge edge_of(int position, int size, int out_size, int distance) {
  const Neighbours at = neighbours_of(position < out_size ? position : 0, size, out_size);
  return {at.before * distance, at.after * distance, 1.0f - at.weight, at.weight};
}

// The edges of a tile's rows, in pixels of the residual, followed by those of its columns.
__device__ __forceinline__ void find_edges(Edge* edges, const Source& residual, const Patch& patch,
                                           int threads) {
  const int columns = 1 << patch.width_log2;
  for (int i = threadIdx.x; i < patch.rows + columns; i += threads) {
    edges[i] = i < patch.rows ? edge_of(patch.y + i, residual.height, patch.height, residual.width)
                              : edge_of(patch.x + i - patch.rows, residual.width, patch.width, 1);
  }
}

// Adds the resized residual to eight channels from `from` on, at this position of the picture.
template <typename T>
__device__ __forceinline__ void add_resized(const char* from, uint32_t pixel_bytes, const Edge& row,
                                            const Edge& column, float (&values)[lanes]) {
  const auto add = [&](int pixel, float weight) {
    float corner[lanes];
    load_eight<T>(ptx::element(from, pixel, pixel_bytes), corner);
#pragma unroll
    for (int k = 0; k < lanes; k++) {
      values[k] += corner[k] * weight;
    }
  };
  add(row.before + column.before, row.before_weight * column.before_weight);
  add(row.before + column.after, row.before_weight * column.after_weight);
  add(row.after + column.before, row.after_weight * column.before_weight);
  add(row.after + column.after, row.after_weight * column.after_weight);
}

// A thread's share of a tile's sums, with the bias: eight channels of every `step`-th pixel.
template <typename T, int n_tiles, int threads>
struct StagedSums {
  static constexpr int step = threads / n_tiles;
  int part = threadIdx.x % n_tiles, first = threadIdx.x / n_tiles;
  int channel;
  float bias[lanes];

  __device__ __forceinline__ StagedSums(const Epilogue& epilogue, const Patch& patch)
      : channel(patch.column + part * lanes) {
    load_values<T>(epilogue.bias, channel, patch.channels, bias);
  }

  __device__ __forceinline__ void load(const float* staging, int pixel,
                                       float (&sums)[lanes]) const {
    const float4* from =
        reinterpret_cast<const float4*>(staging + pixel * staging_pitch<n_tiles> + part * lanes);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const float4 loaded = from[k];
      sums[4 * k] = loaded.x + bias[4 * k];
      sums[4 * k + 1] = loaded.y + bias[4 * k + 1];
      sums[4 * k + 2] = loaded.z + bias[4 * k + 2];
      sums[4 * k + 3] = loaded.w + bias[4 * k + 3];
    }
  }
};

// The address of a thread's channels of pixel 0 of the picture.
template <typename T, typename Image>
__device__ __forceinline__ auto picture_of(const Image& image, int n, int channel) {
  using Byte = std::conditional_t<std::is_same_v<Image, Source>, const char, char>;
  return static_cast<Byte*>(image.data) + (n * image.stride_n + channel) * int64_t(sizeof(T));
}

// Stores pairs of channels, those of eight that are below `count`.
__device__ __forceinline__ void store_pairs(char* to, uint4 eight, int count) {
  const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
  for (int pair = 0; pair < 4; pair++) {
    if (2 * pair < count) {
      reinterpret_cast<uint32_t*>(to)[pair] = pairs[pair];
    }
  }
}

// Writes a tile with an epilogue that has its own code. `edges` has room for those of a resize.
template <typename T, int n_tiles, int threads, Finish finish>
__device__ __forceinline__ void write_share(const float* staging, Edge* edges,
                                            const Epilogue& epilogue, const Patch& patch) {
  constexpr bool affine = finish == Finish::addend;
  constexpr bool resized = finish == Finish::resized, residual = finish == Finish::residual;
  constexpr bool placed = finish == Finish::placed;
  constexpr bool relu = placed || resized || finish == Finish::relu;
  constexpr int pool = finish == Finish::pooled ? 1 : 0;
  if constexpr (resized) {
    find_edges(edges, epilogue.residual, patch, threads);
    __syncthreads();
  }
  const StagedSums<T, n_tiles, threads> share(epilogue, patch);
  const Target &out = epilogue.out, &copy = epilogue.copy;
  const int width = patch.width >> pool, columns_log2 = patch.width_log2 - pool;
  const int y = patch.y >> pool, x = patch.x >> pool;
  const int rows = min(patch.rows >> pool, (patch.height >> pool) - y);
  const int columns = min(1 << columns_log2, width - x);
  const int most_lanes = placed ? max(out.lanes, copy.lanes) : out.lanes;
  if (share.first >= share.step || share.channel >= most_lanes) {
    return;
  }
  char* to = picture_of<T>(out, patch.n, share.channel);
  char* to_copy = placed ? picture_of<T>(copy, patch.n, share.channel) : nullptr;
  const Source& added = affine ? epilogue.addend : epilogue.residual;
  const char* from =
      affine || residual || resized ? picture_of<T>(added, patch.n, share.channel) : nullptr;
  float slope[lanes], scale[lanes], shift[lanes], last_slope[lanes];
  if constexpr (finish == Finish::prelu || affine) {
    load_values<T>(epilogue.slope, share.channel, patch.channels, slope);
  }
  if constexpr (affine) {
    load_values<T>(epilogue.affine.scale, share.channel, patch.channels, scale);
    load_values<T>(epilogue.affine.shift, share.channel, patch.channels, shift);
    load_values<T>(epilogue.affine.slope, share.channel, patch.channels, last_slope);
  }
  const int pixels = patch.rows << patch.width_log2 >> 2 * pool;
#pragma unroll 1
  for (int pixel = share.first; pixel < pixels; pixel += share.step) {
    const int row = pixel >> columns_log2, column = pixel & ((1 << columns_log2) - 1);
    if (row >= rows || column >= columns) {
      continue;
    }
    const int at = (y + row) * width + x + column;
    float values[lanes];
    if constexpr (pool == 0) {
      share.load(staging, pixel, values);
    } else {
      const int corner = (row << patch.width_log2) * 2 + column * 2;
#pragma unroll
      for (int window = 0; window < 4; window++) {
        float sums[lanes];
        share.load(staging, corner + (window / 2 << patch.width_log2) + window % 2, sums);
#pragma unroll
        for (int k = 0; k < lanes; k++) {
          const float value = activate(sums[k], Activation::relu, 0.0f);
          values[k] = (window == 0 ? value : values[k] + value) * (window == 3 ? 0.25f : 1.0f);
        }
      }
    }
    if constexpr (residual) {
      float loaded[lanes];
      load_eight<T>(ptx::element(from, at, added.pixel_bytes), loaded);
#pragma unroll
      for (int k = 0; k < lanes; k++) {
        values[k] += loaded[k];
      }
    }
    if constexpr (resized) {
      add_resized<T>(from, added.pixel_bytes, edges[row], edges[patch.rows + column], values);
    }
    if constexpr (finish == Finish::prelu || affine) {
#pragma unroll
      for (int k = 0; k < lanes; k++) {
        values[k] = activate(values[k], Activation::prelu, slope[k]);
      }
    }
    if constexpr (affine) {
      float loaded[lanes];
      load_eight<T>(ptx::element(from, at, added.pixel_bytes), loaded);
#pragma unroll
      for (int k = 0; k < lanes; k++) {
        values[k] = activate((values[k] + loaded[k]) * scale[k] + shift[k], Activation::prelu,
                             last_slope[k]);
      }
    }
    if constexpr (placed) {
      const uint4 result = rounded<T, relu>(values);
      store_pairs(ptx::element(to, at, out.pixel_bytes), result, out.lanes - share.channel);
      if (share.channel < copy.lanes) {
        *reinterpret_cast<uint4*>(ptx::element(to_copy, at, copy.pixel_bytes)) = result;
      }
    } else {
      if constexpr (relu && sizeof(T) == 4) {
#pragma unroll
        for (int k = 0; k < lanes; k++) {
          values[k] = activate(values[k], Activation::relu, 0.0f);
        }
      }
      store_eight<T, relu>(ptx::element(to, at, out.pixel_bytes), values);
    }
  }
}

// Writes a tile with any epilogue, value by value.
template <typename T, int n_tiles>
__device__ __forceinline__ void write_any(const float* staging, const Epilogue& epilogue,
                                          const Patch& patch, int threads) {
  constexpr int n = n_tiles * 8;
  // Pooling is over 1 x 1 or 2 x 2: shifts, where the compiler would call a division.
  const int shift = epilogue.pool - 1, width_log2 = patch.width_log2 - shift;
  const Source &residual = epilogue.residual, &addend = epilogue.addend;
#pragma unroll 1
  for (int i = threadIdx.x; i < (patch.rows >> shift << width_log2) * n; i += threads) {
    const int pixel = i / n, column = i - pixel * n, channel = patch.column + column;
    const int row = pixel >> width_log2, at = pixel & ((1 << width_log2) - 1);
    const int out_y = (patch.y >> shift) + row, out_x = (patch.x >> shift) + at;
    if (out_y >= patch.height >> shift || out_x >= patch.width >> shift) {
      continue;
    }
    const bool there = channel < patch.channels;
    const auto value = [&](const void* of) {
      return there && of != nullptr ? to_float(static_cast<const T*>(of)[channel]) : 0.0f;
    };
    const auto pixel_of = [&](const Source& source, int y, int x) {
      return there ? to_float(static_cast<const T*>(
                         source.data)[patch.n * source.stride_n + y * source.stride_h +
                                      x * source.stride_w + channel * source.stride_c])
                   : 0.0f;
    };
    const float bias = value(epilogue.bias), slope = value(epilogue.slope);
    float result = 0.0f;
#pragma unroll 1
    for (int window = 0; window < 1 << 2 * shift; window++) {
      const int tile_y = (row << shift) + (window >> 1), tile_x = (at << shift) + (window & 1);
      const int y = patch.y + tile_y, x = patch.x + tile_x;
      float sum =
          bias + staging[((tile_y << patch.width_log2) + tile_x) * staging_pitch<n_tiles> + column];
      if (residual.data != nullptr && epilogue.resized) {
        const Neighbours rows = neighbours_of(y, residual.height, patch.height);
        const Neighbours columns = neighbours_of(x, residual.width, patch.width);
#pragma unroll 1
        for (int corner = 0; corner < 4; corner++) {
          const bool below = corner >= 2, right = corner % 2 == 1;
          sum += (below ? rows.weight : 1 - rows.weight) *
                 (right ? columns.weight : 1 - columns.weight) *
                 pixel_of(residual, below ? rows.after : rows.before,
                          right ? columns.after : columns.before);
        }
      } else if (residual.data != nullptr) {
        sum += pixel_of(residual, y, x);
      }
      result += activate(sum, epilogue.activation, slope);
    }
    result = shift > 0 ? result * 0.25f : result;
    if (addend.data != nullptr) {
      const Affine& affine = epilogue.affine;
      result = activate(
          (result + pixel_of(addend, out_y, out_x)) * value(affine.scale) + value(affine.shift),
          Activation::prelu, value(affine.slope));
    }
    const auto write = [&](const Target& target) {
      if (channel < target.lanes) {
        static_cast<T*>(target.data)[patch.n * target.stride_n + out_y * target.stride_h +
                                     out_x * target.stride_w + channel] =
            from_float<T>(there ? result : 0.0f);
      }
    };
    write(epilogue.out);
    if (epilogue.copy.data != nullptr) {
      write(epilogue.copy);
    }
  }
}

// Writes a tile's sums, which all threads have staged, to the result. `edges` is shared memory with
// room for those of the tile's rows and columns. After a pair (`few`) only few kinds of epilogue
// have their own code: the others are written value by value.
template <typename T, int n_tiles, int threads, bool few = false>
__device__ __forceinline__ void write_tile(const float* staging, Edge* edges,
                                           const Epilogue& epilogue, const Patch& patch) {
  switch (epilogue.finish) {
#define FASSD_FINISH(name, exists)                                                            \
  case Finish::name:                                                                          \
    if constexpr (exists) {                                                                   \
      return write_share<T, n_tiles, threads, Finish::name>(staging, edges, epilogue, patch); \
    }                                                                                         \
    break;
    FASSD_FINISH(none, true)
    FASSD_FINISH(relu, true)
    FASSD_FINISH(prelu, true)
    FASSD_FINISH(addend, true)
    FASSD_FINISH(pooled, !few)
    FASSD_FINISH(residual, !few)
    FASSD_FINISH(resized, !few)
    FASSD_FINISH(placed, !few && sizeof(T) == 2)
#undef FASSD_FINISH
    default:
      break;
  }
  write_any<T, n_tiles>(staging, epilogue, patch, threads);
}

}  // namespace fassd::cuda
