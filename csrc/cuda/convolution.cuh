// The convolution that every operator is made of: an implicit GEMM over a tile of the picture.
//
// A block computes M pixels (a rectangle, its width a power of two) by N output channels. Input
// channels are taken `chunk` at a time. For each chunk, the pixels that the tile reads at any tap
// are copied to shared memory once, from whichever input of the virtual concatenation they are
// in, and beside them the weights of all taps; several chunks are on their way while one is
// multiplied. A tap is then an offset into the same pixels:
//
//     shared memory, one stage           warp w, rows 16 i .. 16 i + 15 of its pixels
//     [slot][chunk channels | 16 bytes]  -> A fragments, at slot(pixel) + offset(tap)
//     [tap][channel][N | padding]        -> B fragments
//
// The 16 bytes between slots make eight neighbours fall into different banks. The accumulators
// pass through shared memory on their way out, so that a thread has eight channels of one pixel:
// the epilogue reads and writes 16 bytes at a time.

#pragma once

#include "image.cuh"
#include "ptx.cuh"

namespace fassd::cuda {

// Which tile of which picture a block computes, and which of the blocks of output channels. Blocks
// of the same pixels follow each other: what one has read, the next finds in the cache.
struct Place {
  int picture, down, across, columns;
};

__device__ __forceinline__ Place place_of(unsigned block, unsigned across, unsigned down,
                                          unsigned columns) {
  const unsigned tile = block / columns, row = tile / across, picture = row / down;
  return {static_cast<int>(picture), static_cast<int>(row - picture * down),
          static_cast<int>(tile - row * across), static_cast<int>(block - tile * columns)};
}

// Where slot j of an axis lies in the picture, for a tile that begins at `begin` in the result.
__device__ __forceinline__ int position(const Axis& axis, int begin, int j) {
  int group = axis.groups == 1 || axis.pitch == 0 ? 0 : j / axis.pitch;
  group = group < axis.groups ? group : axis.groups - 1;
  const int within = j - group * axis.pitch;
  return begin * axis.step + (axis.slot_step == axis.step ? within : within * axis.step) +
         (axis.pitch == 0 ? 0 : (axis.first_tap + group - axis.middle) * axis.dilation);
}

__device__ __forceinline__ bool holds(const Axis& axis, int at) {
  return at >= 0 && at < axis.size;
}

// A weight in this backend's order: [taps][in_channels][stride], output channels adjacent.
struct Weight {
  const void* data = nullptr;
  int in_channels = 0, out_channels = 0, stride = 0;
};

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

// One launch.
struct Convolution {
  Source sources[most_sources];
  int source_count = 0;
  Affine prologue;  // what the one source passes through first
  Weight weight;
  Taps taps;
  Axis rows, columns;
  int out_height = 0, out_width = 0;  // before pooling
  Tile tile;
  int chunk = 16;  // channels at a time
  int stage_count = 2;
  SharedLayout layout;
  Epilogue epilogue;
};

// --- arithmetic
// -----------------------------------------------------------------------------------

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

// float32 as it is. Sums are made chunk by chunk, so that 18,000 terms stay within the tolerance.
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

// Offsets in shared memory of the pixels whose channels a lane reads: pixel lane % 16 of 16, at the
// channels' first or second half, for tensor cores; pixels g and g + 8 otherwise.
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
// weights' first row.
template <typename T, int m_tiles, int n_tiles>
__device__ __forceinline__ void multiply(HalfMath<T>, unsigned char* shared,
                                         const Rows<HalfMath<T>, m_tiles>& rows, int a, int b,
                                         int chunk,
                                         Accumulators<HalfMath<T>, m_tiles, n_tiles>& acc) {
  const int lane = threadIdx.x % 32;
  constexpr int row_bytes = weight_row_bytes<HalfMath<T>, n_tiles * 8>;
  const ptx::SharedAddress base = ptx::shared_address(shared);
  ptx::SharedAddress weights = base + b + lane % 16 * row_bytes + lane / 16 * 16;
#pragma unroll 1
  for (int k = 0; k < chunk; k += 16, a += 32, weights += 16 * row_bytes) {
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

// All taps of a plain 3x3 over one chunk, for a warp whose m_tiles groups of 16 pixels lie below
// each other. A row of pixels is loaded once for each of the three columns of taps, and multiplied
// by the weights of the rows of taps that lead to a row of the result: shared memory, which has to
// deliver as fast as the tensor cores compute, is read half as often as tap by tap.
template <typename T, int m_tiles, int n_tiles>
__device__ __forceinline__ void multiply_sliding(unsigned char* shared, int first_row,
                                                 int row_bytes, int pitch, int b, int tap_bytes,
                                                 int chunk,
                                                 Accumulators<HalfMath<T>, m_tiles, n_tiles>& acc) {
  const int lane = threadIdx.x % 32;
  constexpr int weight_bytes = weight_row_bytes<HalfMath<T>, n_tiles * 8>;
  const ptx::SharedAddress base = ptx::shared_address(shared);
  const ptx::SharedAddress weights = base + b + lane % 16 * weight_bytes + lane / 16 * 16;
#pragma unroll 1
  for (int column = 0; column < 3; column++) {
    ptx::SharedAddress pixels_at = base + first_row + column * pitch;
    ptx::SharedAddress weights_at = weights + column * tap_bytes;
#pragma unroll 1
    for (int k = 0; k < chunk; k += 16, pixels_at += 32, weights_at += 16 * weight_bytes) {
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

// --- bringing chunks to shared memory
// -------------------------------------------------------------

template <int multiple>
__device__ __forceinline__ int round_up_to(int value) {
  return (value + multiple - 1) / multiple * multiple;
}

// Where a chunk is in the virtual concatenation.
struct Cursor {
  int source = 0;
  int first = 0;   // channel of that source
  int before = 0;  // channels of the sources before it

  __device__ __forceinline__ void advance(const Source* sources, int chunk) {
    first += chunk;
    if (first >= sources[source].channels) {
      before += sources[source].channels;
      source++;
      first = 0;
    }
  }
};

__device__ __forceinline__ int chunks_of(const Source* sources, int count, int chunk) {
  int chunks = 0;
  for (int i = 0; i < count; i++) {
    chunks += (sources[i].channels + chunk - 1) / chunk;
  }
  return chunks;
}

// Writes the picture's position of every slot of a tile, or -1 where the slot is outside.
__device__ __forceinline__ void locate_slots(int2* positions, const Axis& rows, const Axis& columns,
                                             int y, int x, int threads) {
  const int slots = rows.slots * columns.slots;
  for (int slot = threadIdx.x; slot < slots; slot += threads) {
    const int row = slot / columns.slots;
    const int at_y = position(rows, y, row);
    const int at_x = position(columns, x, slot - row * columns.slots);
    const bool inside = holds(rows, at_y) && holds(columns, at_x);
    positions[slot] = make_int2(inside ? at_y : -1, at_x);
  }
}

// Begins to copy channels [first, first + chunk) of all slots; what is not there becomes zero.
template <typename T>
__device__ __forceinline__ void copy_pixels(unsigned char* shared, int to, const int2* positions,
                                            int slots, const Source& source, int n, int first,
                                            int chunk, int pitch, int threads) {
  constexpr int elements = vector_elements<T>;
  const int vectors = chunk / elements;  // a power of two
  const int shift = 31 - __clz(vectors);
  const T* picture = static_cast<const T*>(source.data) + n * source.stride_n;
  for (int i = threadIdx.x; i < slots * vectors; i += threads) {
    const int slot = i >> shift, channel = first + (i & (vectors - 1)) * elements;
    const int2 at = positions[slot];
    const int offset = to + slot * pitch + (i & (vectors - 1)) * 16;
    int there = at.x < 0 ? 0 : source.channels - channel;  // channels that are there
    there = there < 0 ? 0 : there < elements ? there : elements;
    const T* from =
        picture + at.x * source.stride_h + at.y * source.stride_w + channel * source.stride_c;
    if (source.vectors) {
      ptx::copy_async(ptx::shared_address(shared) + offset, there > 0 ? from : picture,
                      there * int(sizeof(T)));
    } else {
      Vector<T> value;
#pragma unroll
      for (int e = 0; e < elements; e++) {
        value.values[e] = e < there ? from[e * source.stride_c] : from_float<T>(0.0f);
      }
      *reinterpret_cast<Vector<T>*>(shared + offset) = value;
    }
  }
}

// Sends what this thread copied through a batch norm and PReLU, in place; padding stays zero.
template <typename T>
__device__ __forceinline__ void transform_pixels(unsigned char* shared, int to,
                                                 const int2* positions, int slots, int channels,
                                                 const Affine& affine, int first, int chunk,
                                                 int pitch, int threads) {
  constexpr int elements = vector_elements<T>;
  const int vectors = chunk / elements;
  const int shift = 31 - __clz(vectors);
  const T* scale = static_cast<const T*>(affine.scale);
  const T* shifts = static_cast<const T*>(affine.shift);
  const T* slope = static_cast<const T*>(affine.slope);
  for (int i = threadIdx.x; i < slots * vectors; i += threads) {
    const int slot = i >> shift, channel = first + (i & (vectors - 1)) * elements;
    if (positions[slot].x < 0) {
      continue;
    }
    Vector<T>& vector =
        *reinterpret_cast<Vector<T>*>(shared + to + slot * pitch + (i & (vectors - 1)) * 16);
    Vector<T> value = vector;
#pragma unroll
    for (int e = 0; e < elements; e++) {
      if (channel + e < channels) {
        const float x = to_float(value.values[e]) * to_float(scale[channel + e]) +
                        to_float(shifts[channel + e]);
        value.values[e] = from_float<T>(x < 0.0f ? x * to_float(slope[channel + e]) : x);
      }
    }
    vector = value;
  }
}

// Begins to copy the weights of the live taps, channels [first, first + chunk) of `channels`,
// output channels [column, column + n).
template <typename Math, int n>
__device__ __forceinline__ void copy_weights(unsigned char* shared, int to, const Weight& weight,
                                             const Taps& taps, unsigned live, int before, int first,
                                             int channels, int chunk, int column, int threads) {
  using T = typename Math::T;
  constexpr int elements = vector_elements<T>, vectors = n / elements;
  constexpr int row_bytes = weight_row_bytes<Math, n>;
  const int shift = 31 - __clz(chunk);
  for (int i = threadIdx.x; i < taps.count * chunk * vectors; i += threads) {
    const int row = i / vectors, part = i - row * vectors;
    const int tap = row >> shift, k = row & (chunk - 1);
    if ((live >> tap & 1) == 0) {
      continue;
    }
    const int out = column + part * elements;
    const bool there = first + k < channels && out < weight.stride;
    const T* from = static_cast<const T*>(weight.data);
    if (there) {
      from += (int64_t(taps.index[tap]) * weight.in_channels + before + first + k) * weight.stride +
              out;
    }
    ptx::copy_async(ptx::shared_address(shared) + to + row * row_bytes + part * 16, from,
                    there ? 16 : 0);
  }
}

// Until the stage that was begun first has come, of so many in turn.
__device__ __forceinline__ void wait_for_stage(int stages) {
  if (stages <= 2) {
    ptx::copy_async_wait<0>();
  } else {
    ptx::copy_async_wait<1>();
  }
}

// sums += all live taps over one chunk, its pixels at offset `a` and its weights at `b`.
template <typename Math, int m_tiles, int n_tiles>
__device__ __forceinline__ void multiply_taps(unsigned char* shared,
                                              const Rows<Math, m_tiles>& rows, int a, int b,
                                              const Taps& taps, unsigned live, int row_pitch,
                                              const Axis& columns, int slot_pitch, int tap_bytes,
                                              int chunk,
                                              Accumulators<Math, m_tiles, n_tiles>& acc) {
  const auto each = [&](Accumulators<Math, m_tiles, n_tiles>& sums) {
    for (int tap = 0; tap < taps.count; tap++) {
      if ((live >> tap & 1) != 0) {
        const int slot =
            taps.row[tap] * row_pitch * columns.slots + taps.column[tap] * columns.pitch;
        multiply(Math(), shared, rows, a + slot * slot_pitch, b + tap * tap_bytes, chunk, sums);
      }
    }
  };
  if constexpr (Math::splits_sums) {
    Accumulators<Math, m_tiles, n_tiles> part;
    part.clear();
    each(part);
    acc.add(part);
  } else {
    each(acc);
  }
}

// Marks what lies between the arrays in shared memory, for whoever watches it. Every thread does: a
// barrier for the watcher's sake would hide one that is missing.
__device__ __forceinline__ void guard_stages(unsigned char* shared, const SharedLayout& layout,
                                             int stages) {
  if constexpr (ptx::shared_guard_bytes > 0) {
    ptx::guard_shared(shared + layout.stages - ptx::shared_guard_bytes, ptx::shared_guard_bytes);
    for (int stage = 0; stage < stages; stage++) {
      unsigned char* at = shared + layout.stages + stage * layout.stage_bytes;
      ptx::guard_shared(at + layout.pixels_end, ptx::shared_guard_bytes);
      ptx::guard_shared(at + layout.weights_end, ptx::shared_guard_bytes);
    }
  }
}

// The stages are needed as one piece.
__device__ __forceinline__ void unguard_stages(unsigned char* shared, const SharedLayout& layout,
                                               int stages) {
  if constexpr (ptx::shared_guard_bytes > 0) {
    ptx::unguard_shared(shared + layout.stages, stages * layout.stage_bytes);
  }
}

// --- on the way out
// -------------------------------------------------------------------------------

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
      const int at_column = (pixel - row * width << shift) + (window & 1);
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
