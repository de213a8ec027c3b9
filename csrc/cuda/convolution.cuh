// The convolution that every operator is made of: an implicit GEMM over a tile of the picture.
//
// A block computes M pixels (a rectangle, its width a power of two) by N output channels. Input
// channels are processed `chunk` at a time. For each chunk, the pixels that the tile reads at any
// tap are copied to shared memory once, from the input of the virtual concatenation that contains
// them, together with the weights of all taps; several chunks are being copied while one is
// multiplied. A tap is then an offset into the same pixels:
//
//     shared memory, one stage           warp w, rows 16 i .. 16 i + 15 of its pixels
//     [slot][chunk channels | 16 bytes]  -> A fragments, at slot(pixel) + offset(tap)
//     [tap][channel][N | padding]        -> B fragments
//
// On sm_90 and later an engine copies boxes of whole tensors (TMA): the pixels of a chunk are one
// box, the weights another, both started by one thread, and a barrier of each stage signals their
// arrival. A block may then compute several tiles, and the first chunks of the next arrive while it
// writes one. If that is impossible, and on older GPUs, each thread copies its share.
//
// The 16 bytes between slots put eight neighbours into different banks. The accumulators are
// written through shared memory, so that a thread has eight channels of one pixel: the epilogue
// reads and writes 16 bytes at a time.

#pragma once

#include "epilogue.cuh"
#include "image.cuh"
#include "multiply.cuh"
#include "ptx.cuh"

namespace fassd::cuda {

// The tile and picture that a block computes, and its block of output channels. Blocks of the same
// pixels are consecutive: what one has read, the next finds in the cache.
struct Place {
  int picture, down, across, columns;
};

__device__ __forceinline__ Place place_of(unsigned block, const Tile& tiles) {
  const auto quotient = [](unsigned dividend, unsigned divisor, unsigned inverse) {
    return inverse != 0   ? __umulhi(dividend, inverse)
           : divisor == 1 ? dividend
                          : dividend / divisor;
  };
  const unsigned tile = quotient(block, tiles.columns, tiles.inverse_columns);
  const unsigned row = quotient(tile, tiles.across, tiles.inverse_across);
  const unsigned picture = quotient(row, tiles.down, tiles.inverse_down);
  return {static_cast<int>(picture), static_cast<int>(row - picture * tiles.down),
          static_cast<int>(tile - row * tiles.across),
          static_cast<int>(block - tile * tiles.columns)};
}

// The position of slot j of an axis in the picture, for a tile that begins at `begin` in the
// result.
__device__ __forceinline__ int position(const Axis& axis, int begin, int j) {
  if (axis.adjacent) {
    return begin * axis.step + axis.shift + j;
  }
  int group = j / axis.pitch;
  group = group < axis.groups ? group : axis.groups - 1;
  return (begin + j - group * axis.pitch) * axis.step + axis.shift + group * axis.dilation;
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
  Affine prologue;  // applied to the single source first
  Weight weight;
  Taps taps;
  Axis rows, columns;
  int out_height = 0, out_width = 0;  // before pooling
  Tile tile;
  int chunk = 16;  // channels at a time
  int chunks = 1;
  int stage_count = 2;
  int boxes = 0;        // of a chunk's pixels; 0 if threads copy them
  unsigned blocks = 1;  // tiles of the launch
  int tiles = 1;        // of a block, or one less
  SharedLayout layout;
  Epilogue epilogue;
};

template <int multiple>
__device__ __forceinline__ int round_up_to(int value) {
  return (value + multiple - 1) / multiple * multiple;
}

// Descriptions of the tensors for the copy engine (CUDA driver API, "Tensor Map Object
// Management").
struct Boxes {
  CUtensorMap sources[most_sources];
  CUtensorMap weight;
};

// The position of a chunk in the virtual concatenation.
struct Cursor {
  int source = -1;
  int left = 0;     // channels of that source
  int channel = 0;  // of the concatenation

  // Advances to the next chunk, by the number of channels of the last one. Returns its source.
  __device__ __forceinline__ const Source& next(const Source* sources, int chunk) {
    channel += left < chunk ? left : chunk;
    left -= chunk;
    if (left <= 0) {
      source++;
      left = sources[source].channels;
    }
    return sources[source];
  }
};

// The number of chunks of the sources.
inline int chunks_of(const Source* sources, int count, int chunk) {
  int chunks = 0;
  for (int i = 0; i < count; i++) {
    chunks += static_cast<int>(divide_up(sources[i].channels, chunk));
  }
  return chunks;
}

// Writes the pixel of the picture of each slot of a tile, or -1 if the slot is outside. Returns
// true if a slot of this thread is outside.
template <int threads>
__device__ __forceinline__ bool locate_slots(int* pixels, const Axis& rows, const Axis& columns,
                                             int y, int x) {
  const int slots = rows.slots * columns.slots;
  int row = threadIdx.x * columns.inverse >> inverse_log2;
  int column = threadIdx.x - row * columns.slots;
  const int down = threads * columns.inverse >> inverse_log2;
  const int across = threads - down * columns.slots;
  bool outside = false;
  for (int slot = threadIdx.x; slot < slots; slot += threads) {
    const int at_y = position(rows, y, row), at_x = position(columns, x, column);
    const bool inside = holds(rows, at_y) && holds(columns, at_x);
    pixels[slot] = inside ? at_y * columns.size + at_x : -1;
    outside |= !inside;
    row += down;
    column += across;
    if (column >= columns.slots) {
      column -= columns.slots;
      row++;
    }
  }
  return outside;
}

// Writes zeros to the slots outside the picture in all stages; copies do not touch them.
template <int threads>
__device__ __forceinline__ void clear_outside(unsigned char* shared, const SharedLayout& layout,
                                              int stages, const int* pixels, int slots, int pitch) {
  for (int slot = threadIdx.x; slot < slots; slot += threads) {
    if (pixels[slot] < 0) {
      for (int stage = 0; stage < stages; stage++) {
        unsigned char* at = shared + layout.stages + stage * layout.stage_bytes + slot * pitch;
        for (int byte = 0; byte < pitch; byte += 16) {
          *reinterpret_cast<uint4*>(at + byte) = make_uint4(0, 0, 0, 0);
        }
      }
    }
  }
}

// A thread's share of a chunk: one vector of channels in every `step`-th slot.
template <typename T, int threads>
struct Share {
  int part = 0, first = 0, step = 0;  // vector, slot, slots from one to the next

  __device__ __forceinline__ void divide(int chunk) {
    const int vectors = chunk / vector_elements<T>;  // a power of two
    const int shift = 31 - __clz(vectors);
    part = threadIdx.x & (vectors - 1);
    first = threadIdx.x >> shift;
    step = threads >> shift;
  }
};

// Copies from a tensor that does not allow vector loads, element by element.
template <typename T>
__device__ __forceinline__ void copy_elements(ptx::SharedAddress to, const int* pixels, int slots,
                                              const Source& source, int n, int channel, int there,
                                              int slot, int step, int to_next) {
  const T* from =
      static_cast<const T*>(source.data) + n * source.stride_n + int64_t(channel) * source.stride_c;
#pragma unroll 1
  for (; slot < slots; slot += step, to += to_next) {
    const int pixel = pixels[slot];
    if (pixel < 0) {
      continue;
    }
    const int y = pixel / source.width, x = pixel - y * source.width;
    const T* at = from + y * source.stride_h + x * source.stride_w;
    Vector<T> value;
#pragma unroll
    for (int e = 0; e < vector_elements<T>; e++) {
      value.values[e] = e < there ? at[e * source.stride_c] : from_float<T>(0.0f);
    }
    ptx::store_shared(to, *reinterpret_cast<const uint4*>(&value));
  }
}

// Starts copying channels [first, first + chunk) to all slots in the picture; missing channels
// become zero.
template <typename T, int threads>
__device__ __forceinline__ void copy_pixels(ptx::SharedAddress to, const int* pixels, int slots,
                                            const Source& source, int n, int first,
                                            const Share<T, threads>& share, int pitch) {
  constexpr int elements = vector_elements<T>, together = 4;
  const int channel = first + share.part * elements;
  int there = source.channels - channel;  // channels that exist
  there = there < 0 ? 0 : there < elements ? there : elements;
  to += share.first * pitch + share.part * 16;
  const int to_next = share.step * pitch;
  int slot = share.first;
  if (!source.vectors) {
    copy_elements<T>(to, pixels, slots, source, n, channel, there, slot, share.step, to_next);
    return;
  }
  const int bytes = there * int(sizeof(T));
  const char* from = static_cast<const char*>(source.data) +
                     (n * source.stride_n + (there > 0 ? channel : 0)) * int64_t(sizeof(T));
  const auto copy = [&](int pixel) {
    if (pixel >= 0) {
      ptx::copy_async(to, ptx::element(from, pixel, source.pixel_bytes), bytes);
    }
    to += to_next;
  };
  for (; slot + (together - 1) * share.step < slots; slot += together * share.step) {
    int at[together];
#pragma unroll
    for (int i = 0; i < together; i++) {
      at[i] = pixels[slot + i * share.step];
    }
#pragma unroll
    for (int i = 0; i < together; i++) {
      copy(at[i]);
    }
  }
#pragma unroll 1
  for (; slot < slots; slot += share.step) {
    copy(pixels[slot]);
  }
}

// Passes vectors through a batch norm and PReLU; lanes after the channels stay zero.
template <typename T>
class Transform {
 public:
  __device__ __forceinline__ Transform(const Affine& affine, int channel, int channels) {
    if (channel < channels) {
      load_vector<T>(static_cast<const T*>(affine.scale) + channel, scale_);
      load_vector<T>(static_cast<const T*>(affine.shift) + channel, shift_);
      load_vector<T>(static_cast<const T*>(affine.slope) + channel, slope_);
    }
#pragma unroll
    for (int e = 0; e < elements; e++) {
      scale_[e] = channel + e < channels ? scale_[e] : 0.0f;
      shift_[e] = channel + e < channels ? shift_[e] : 0.0f;
    }
  }

  __device__ __forceinline__ uint4 operator()(const unsigned char* vector) const {
    float values[elements];
    load_vector<T>(vector, values);
#pragma unroll
    for (int e = 0; e < elements; e++) {
      const float x = values[e] * scale_[e] + shift_[e];
      values[e] = x < 0.0f ? x * slope_[e] : x;
    }
    return rounded<T>(values);
  }

 private:
  static constexpr int elements = vector_elements<T>;
  float scale_[elements] = {}, shift_[elements] = {}, slope_[elements] = {};
};

// For 16 bits: two channels at a time, rounded twice where PReLU multiplies.
template <typename T>
class HalfTransform {
 public:
  __device__ __forceinline__ HalfTransform(const Affine& affine, int channel, int channels) {
    if (channel < channels) {
      const int bytes = channel * 2;
      load(affine.scale, bytes, scale_);
      load(affine.shift, bytes, shift_);
      load(affine.slope, bytes, slope_);
    }
#pragma unroll
    for (int pair = 0; pair < pairs; pair++) {
      const int there = channels - channel - 2 * pair;
      const uint32_t kept = there >= 2 ? ~0u : there == 1 ? 0xFFFFu : 0u;
      scale_[pair] &= kept;
      shift_[pair] &= kept;
      slope_[pair] &= kept;
    }
  }

  __device__ __forceinline__ uint4 operator()(const unsigned char* vector) const {
    uint32_t values[pairs];
    load(vector, 0, values);
#pragma unroll
    for (int pair = 0; pair < pairs; pair++) {
      const uint32_t x = ptx::multiply_add<T>(values[pair], scale_[pair], shift_[pair]);
      const uint32_t below = ptx::multiply_add<T>(x, slope_[pair], 0x80008000u);  // -0
      values[pair] = ptx::select_bits(ptx::signs_of(x), below, x);
    }
    return make_uint4(values[0], values[1], values[2], values[3]);
  }

 private:
  static constexpr int pairs = 4;

  static __device__ __forceinline__ void load(const void* from, int bytes,
                                              uint32_t (&values)[pairs]) {
    const uint4 loaded =
        *reinterpret_cast<const uint4*>(static_cast<const unsigned char*>(from) + bytes);
    values[0] = loaded.x;
    values[1] = loaded.y;
    values[2] = loaded.z;
    values[3] = loaded.w;
  }

  uint32_t scale_[pairs] = {}, shift_[pairs] = {}, slope_[pairs] = {};
};

// Passes this thread's share through a batch norm and PReLU, in place; padding stays zero.
template <typename T, int threads>
__device__ __forceinline__ void transform_pixels(unsigned char* stage, const int* pixels, int slots,
                                                 int channels, const Affine& affine, int first,
                                                 const Share<T, threads>& share, int pitch) {
  const int channel = first + share.part * vector_elements<T>;
  const std::conditional_t<sizeof(T) == 2, HalfTransform<T>, Transform<T>> transform(
      affine, channel, channels);
  unsigned char* vector = stage + share.first * pitch + share.part * 16;
  const int to_next = share.step * pitch;
  for (int slot = share.first; slot < slots; slot += share.step, vector += to_next) {
    if (pixels[slot] >= 0) {
      *reinterpret_cast<uint4*>(vector) = transform(vector);
    }
  }
}

constexpr int power_of_two_below(int value) {
  return value < 2 ? 1 : 2 * power_of_two_below(value / 2);
}

// Starts copying the weights of all taps, channels [first, first + chunk), of which `there` exist,
// and output channels [column, column + n).
template <typename Math, int n, int threads>
__device__ __forceinline__ void copy_weights(ptx::SharedAddress to, const Weight& weight,
                                             const Taps& taps, int first, int there, int chunk,
                                             int column) {
  using T = typename Math::T;
  chunk = ptx::rarely(chunk);
  constexpr int elements = vector_elements<T>, vectors = n / elements;
  constexpr int rows = power_of_two_below(threads / vectors);  // of all vectors, at a time
  constexpr int row_bytes = weight_row_bytes<Math, n>;
  const int thread = ptx::rarely(threadIdx.x);
  const int part = thread % vectors, row = thread / vectors;
  if (row >= rows) {
    return;
  }
  // The rows at a time are some channels of some taps.
  const int k_log2 = 31 - __clz(chunk < rows ? chunk : rows), tap_step = rows >> k_log2;
  const int out = column + part * elements;
  const int tap_to = chunk * row_bytes;
  for (int k = row & ((1 << k_log2) - 1); k < chunk; k += 1 << k_log2) {
    const bool is_there = k < there && out < weight.stride;
    const int bytes = is_there ? 16 : 0;
    const char* from = static_cast<const char*>(weight.data);
    if (is_there) {  // otherwise zero bytes, from the first channel
      from += (int64_t(first + k) * weight.stride + out) * int64_t(sizeof(T));
    }
    int tap = row >> k_log2;
    ptx::SharedAddress at = to + tap * tap_to + k * row_bytes + part * 16;
#pragma unroll 2
    for (; tap < taps.count; tap += tap_step, at += tap_step * tap_to) {
      ptx::copy_async(at, from + taps.weights[tap], bytes);
    }
  }
}

// Starts copying channels [first, first + chunk) to all slots of a tile at (y, x), together with
// the bytes after a slot's channels.
__device__ __forceinline__ void copy_boxes(ptx::SharedAddress to, const CUtensorMap& source,
                                           ptx::SharedAddress barrier, const Axis& rows,
                                           const Axis& columns, int picture, int y, int x,
                                           int first, int boxes, int row_bytes) {
  const int left = x * columns.step + columns.shift;
  int top = y * rows.step + rows.shift;
#pragma unroll 1
  for (int box = 0; box < boxes; box++) {
    ptx::copy_box(to, source, barrier, first, left, top, picture);
    to += rows.pitch * row_bytes;
    top += rows.dilation;
  }
}

// Waits for the stage whose copy started first, with `stages` stages in turn.
__device__ __forceinline__ void wait_for_stage(int stages) {
  if (stages <= 2) {
    ptx::copy_async_wait<0>();
  } else {
    ptx::copy_async_wait<1>();
  }
}

// Stages of shared memory that chunks use in turn: some are being filled while one is read.
struct Ring {
  const SharedLayout& layout;
  int stages, chunks;
  bool boxes;                    // the engine copies
  ptx::SharedAddress barriers;   // of the stages, one behind the other
  int reading = 0, filling = 0;  // stages
  uint32_t parity = 0;           // of the phase that ends when the next chunk has arrived

  __device__ __forceinline__ Ring(const SharedLayout& layout, int stages, int chunks, bool boxes,
                                  ptx::SharedAddress barriers)
      : layout(layout),
        stages(stages),
        chunks(chunks),
        boxes(ptx::copies_boxes && boxes),
        barriers(barriers) {}

  // With boxes, called before the first chunk by one thread: calls `begin_boxes(chunk, offset,
  // barrier)` for as many chunks as are to be in flight. All threads must synchronise after it.
  template <typename Boxes>
  __device__ __forceinline__ void begin(const Boxes& begin_boxes) const {
    for (int stage = 0; stage < stages; stage++) {
      ptx::create_barrier(barriers + stage * barrier_bytes);
    }
    ptx::show_to_engine();
    ptx::wait_for_previous_kernels();
    for (int chunk = 0; chunk < stages - 1 && chunk < chunks; chunk++) {
      begin_boxes(chunk, offset_of(chunk), barriers + chunk * barrier_bytes);
    }
  }

  // The number of the chunk with which `next` is called first: negative while threads copy the
  // chunks that are to be in flight.
  __device__ __forceinline__ int first() const { return boxes ? 0 : 1 - stages; }

  // To be called for each chunk. Starts copying the one that is stages - 1 ahead, if there is one,
  // by `begin_copy(chunk, offset)`, or by `begin_boxes` in one thread. For chunks from 0 on it
  // returns the offset, after all of the chunk has arrived and, if requested, each thread has
  // called `change(offset)` for its share, which requires stages > 1.
  template <typename Copy, typename Boxes, typename Change>
  __device__ __forceinline__ int next(int chunk, const Copy& begin_copy, const Boxes& begin_boxes,
                                      bool changes, const Change& change) {
    const int at = offset_of(reading), ahead = chunk + stages - 1;
    if (boxes) {
      if (ahead < chunks) {
        if (chunk > 0) {
          __syncthreads();  // the chunk before is no longer read
        } else {
          filling = stages - 1;
        }
        if (threadIdx.x == 0) {
          begin_boxes(ahead, offset_of(filling), barriers + filling * barrier_bytes);
        }
        filling = behind(filling);
      }
      ptx::wait_for_phase(barriers + reading * barrier_bytes, parity);
      if (changes) {
        change(at);
        ptx::show_to_engine();
        __syncthreads();
      }
      reading = behind(reading);
      parity ^= reading == 0;
      return at;
    }
    if (stages > 1 && chunk >= 0) {
      wait_for_stage(stages);
      if (changes) {
        change(at);
      }
    }
    if (stages == 1 || chunk >= 0) {
      __syncthreads();  // this chunk has arrived, and the one before is no longer read
    }
    if (ahead < chunks) {
      begin_copy(ahead, offset_of(filling));
      filling = behind(filling);
    }
    ptx::copy_async_commit();
    if (stages == 1) {
      ptx::copy_async_wait<0>();
      __syncthreads();
    }
    reading = chunk < 0 ? 0 : behind(reading);
    return at;
  }

  template <typename Copy, typename Boxes>
  __device__ __forceinline__ int next(int chunk, const Copy& begin_copy, const Boxes& begin_boxes) {
    return next(chunk, begin_copy, begin_boxes, false, [](int) {});
  }

  __device__ __forceinline__ int behind(int stage) const {
    return stage + 1 == stages ? 0 : stage + 1;
  }
  __device__ __forceinline__ int offset_of(int stage) const {
    return layout.stages + stage * layout.stage_bytes;
  }
};

// sums += all live taps over one chunk, its pixels at offset `a` and its weights at `b`.
template <int splits = 1, typename Math, int m_tiles, int n_tiles>
__device__ __forceinline__ void multiply_taps(unsigned char* shared,
                                              const Rows<Math, m_tiles>& rows, int a, int b,
                                              const Taps& taps, unsigned live, int tap_bytes,
                                              int chunk, Accumulators<Math, m_tiles, n_tiles>& acc,
                                              int set = 0) {
  const auto each = [&](Accumulators<Math, m_tiles, n_tiles>& sums) {
    for (int tap = 0; tap < taps.count; tap++, b += tap_bytes) {
      if ((live >> tap & 1) != 0) {
        if constexpr (splits > 1) {
          multiply<splits>(Math(), shared, rows, a + taps.offset[tap], b, chunk, sums, set);
        } else {
          multiply(Math(), shared, rows, a + taps.offset[tap], b, chunk, sums);
        }
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
