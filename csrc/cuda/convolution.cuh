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

#include "epilogue.cuh"
#include "image.cuh"
#include "multiply.cuh"
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

}  // namespace fassd::cuda
