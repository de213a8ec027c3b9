// Images as kernels access them, and reading and writing of eight channels of a pixel.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../checks.h"
#include "launch.cuh"
#include "ptx.cuh"

namespace fassd::cuda {

// Pixels written by this backend begin at multiples of this many elements, so that the next kernel
// loads whole vectors.
constexpr int lanes = 8;

constexpr int64_t most_positions = int64_t(1) << 30;     // of an axis, so that sums of them fit
constexpr int64_t most_pixels = (int64_t(1) << 31) - 1;  // of a picture

// The size of an axis in the kernels' type; throws if it is larger.
int position_count(const char* op, int64_t size);

template <typename T>
constexpr int vector_elements = 16 / int(sizeof(T));

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

inline int64_t divide_up(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

// An N x C x H x W image that is read. Strides are in elements.
struct Source {
  const void* data = nullptr;
  int64_t stride_n = 0, stride_h = 0, stride_w = 0, stride_c = 1;
  int height = 0, width = 0, channels = 0;
  // True if 16 bytes of channels can be loaded from every pixel, and a picture's pixels have the
  // same distance, in bytes. Lanes after the last channel may have any value.
  bool vectors = false;
  bool whole = false;  // even if the last of these vectors has fewer channels
  uint32_t pixel_bytes = 0;
};

// N x H x W pixels whose adjacent channels are written, up to `lanes`: lanes after the last channel
// are never read.
struct Target {
  void* data = nullptr;
  int64_t stride_n = 0, stride_h = 0, stride_w = 0;
  int lanes = 0;
  // True if 16 bytes can be stored at a time, to pixels at one distance; otherwise two channels.
  bool vectors = false, pairs = false;
  uint32_t pixel_bytes = 0;
};

// --- on the host ---------------------------------------------------------------------------------

// A tensor's channels [first, first + channels).
Source source_of(const char* op, const Tensor& tensor, int64_t first = 0, int64_t channels = -1);

// Allocates N x C x H x W, channels_last, with pixels a multiple of `lanes` apart.
Tensor empty_image(const Tensor& like, const ImageSize& size);

// Such an image to write to: all of it, or the lanes [first, last) of each pixel.
Target target_of(const Tensor& tensor);
Target target_of(const Tensor& tensor, int64_t first, int64_t last);

// Vectors of a call, which live as long as this; copied unless they are contiguous, 16-byte aligned
// and followed by memory up to the next multiple of `lanes`.
class Vectors {
 public:
  explicit Vectors(const std::vector<OptionalTensor>& tensors);
  explicit Vectors(const Tensors& tensors);

  // The i-th one's values; null if it is missing.
  const void* operator[](size_t i) const { return data_[i]; }

 private:
  Tensors kept_;
  std::vector<const void*> data_;
};

// Calls `function` with a value of the tensor's own type.
template <typename Function>
void with_type(const char* op, ScalarType dtype, Function function) {
  switch (dtype) {
    case ScalarType::Half:
      return function(__half());
    case ScalarType::BFloat16:
      return function(__nv_bfloat16());
    case ScalarType::Float:
      return function(float());
    default:
      STD_TORCH_CHECK(false, op, ": the cuda backend takes float32, float16 and bfloat16, not ",
                      dtype_name(dtype));
  }
}

// --- on the device -------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float value) {
  return value;
}
__device__ __forceinline__ float to_float(__half value) {
  return __half2float(value);
}
__device__ __forceinline__ float to_float(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}

template <typename T>
struct alignas(16) Vector {
  T values[vector_elements<T>];
};

// Sixteen bytes of adjacent channels, aligned.
template <typename T>
__device__ __forceinline__ void load_vector(const void* from, float* values) {
  const Vector<T> loaded = *static_cast<const Vector<T>*>(from);
#pragma unroll
  for (int i = 0; i < vector_elements<T>; i++) {
    values[i] = to_float(loaded.values[i]);
  }
}

// Eight adjacent channels, 16-byte aligned.
template <typename T>
__device__ __forceinline__ void load_eight(const void* from, float (&values)[lanes]) {
#pragma unroll
  for (int i = 0; i < lanes; i += vector_elements<T>) {
    load_vector<T>(static_cast<const T*>(from) + i, values + i);
  }
}

// Values rounded to T, 16 bytes of them; with `relu`, for 16 bits, those below zero become zero.
template <typename T, bool relu = false>
__device__ __forceinline__ uint4 rounded(const float* values) {
  uint4 result;
  if constexpr (sizeof(T) == 2) {
    result.x = ptx::round_to_halves<T, relu>(values[0], values[1]);
    result.y = ptx::round_to_halves<T, relu>(values[2], values[3]);
    result.z = ptx::round_to_halves<T, relu>(values[4], values[5]);
    result.w = ptx::round_to_halves<T, relu>(values[6], values[7]);
  } else {
    result.x = __float_as_uint(values[0]);
    result.y = __float_as_uint(values[1]);
    result.z = __float_as_uint(values[2]);
    result.w = __float_as_uint(values[3]);
  }
  return result;
}

// Two adjacent channels.
template <typename T>
__device__ __forceinline__ void store_two(void* to, float first, float second) {
  if constexpr (sizeof(T) == 2) {
    *static_cast<uint32_t*>(to) = ptx::round_to_halves<T, false>(first, second);
  } else {
    *static_cast<float2*>(to) = make_float2(first, second);
  }
}

template <typename T, bool relu = false>
__device__ __forceinline__ void store_eight(void* to, const float (&values)[lanes]) {
#pragma unroll
  for (int part = 0; part < lanes / vector_elements<T>; part++) {
    static_cast<uint4*>(to)[part] = rounded<T, relu>(values + part * vector_elements<T>);
  }
}

// Channels [channel, channel + 8) of the pixel at `offset`, with zeros after the last channel.
template <typename T>
__device__ __forceinline__ void load_lanes(const Source& source, int64_t offset, int channel,
                                           float (&values)[lanes]) {
  const T* from = static_cast<const T*>(source.data) + offset;
  if (source.vectors && channel + lanes <= source.channels) {
    load_eight<T>(from + channel, values);
    return;
  }
#pragma unroll
  for (int i = 0; i < lanes; i++) {
    const int c = channel + i;
    values[i] = c < source.channels ? to_float(from[c * source.stride_c]) : 0.0f;
  }
}

// Writes channels [channel, channel + 8), those below the target's lanes.
template <typename T>
__device__ __forceinline__ void store_lanes(const Target& target, int64_t offset, int channel,
                                            const float (&values)[lanes]) {
  T* to = static_cast<T*>(target.data) + offset + channel;
  if (target.vectors && channel + lanes <= target.lanes) {
    store_eight<T>(to, values);
    return;
  }
#pragma unroll
  for (int i = 0; i < lanes; i++) {
    if (channel + i < target.lanes) {
      to[i] = from_float<T>(values[i]);
    }
  }
}

// Bilinear: the pixel before, the one after, and the weight of the latter. Either the centres of
// the corners coincide (`align_corners`), position * (size - 1) / (out_size - 1), or their outer
// edges do, (position + 1/2) * size / out_size - 1/2, at least 0. Computed exactly, in whole
// numbers: float would be off by 3e-5 of a pixel in a row of 512. An axis that keeps its size reads
// no neighbour.
struct Neighbours {
  int before, after;
  float weight;
};

__device__ __forceinline__ Neighbours neighbours_of(int position, int size, int out_size,
                                                    bool align_corners = true) {
  unsigned steps = out_size > 1 ? out_size - 1 : 1;
  uint64_t scaled = uint64_t(position) * (size - 1);
  if (!align_corners) {
    const uint64_t edge = (2 * uint64_t(position) + 1) * size;
    steps = 2 * unsigned(out_size);
    scaled = edge > unsigned(out_size) ? edge - unsigned(out_size) : 0;
  }
  // Few pictures are too large for a division of 32 bits, which takes a fifth of the time.
  const bool small = scaled >> 32 == 0;
  const int before = static_cast<int>(small ? unsigned(scaled) / steps : scaled / steps);
  const unsigned rest = static_cast<unsigned>(scaled - uint64_t(before) * steps);
  const float weight = static_cast<float>(rest) / static_cast<float>(steps);
  const int after = size == out_size || before + 1 > size - 1 ? before : before + 1;
  return {before, after, weight};
}

// Channels [channel, channel + 8) of picture n, resized, between two rows and two columns.
template <typename T>
__device__ __forceinline__ void load_resized(const Source& source, int64_t n,
                                             const Neighbours& rows, const Neighbours& columns,
                                             int channel, float (&values)[lanes]) {
  const int64_t picture = n * source.stride_n;
#pragma unroll
  for (int i = 0; i < lanes; i++) {
    values[i] = 0.0f;
  }
#pragma unroll 1  // one corner's eight channels at a time: four would need 24 more registers
  for (int corner = 0; corner < 4; corner++) {
    const bool below = corner >= 2, right = corner % 2 == 1;
    const float weight =
        (below ? rows.weight : 1 - rows.weight) * (right ? columns.weight : 1 - columns.weight);
    float corner_values[lanes];
    load_lanes<T>(source,
                  picture + (below ? rows.after : rows.before) * source.stride_h +
                      (right ? columns.after : columns.before) * source.stride_w,
                  channel, corner_values);
#pragma unroll
    for (int i = 0; i < lanes; i++) {
      values[i] += corner_values[i] * weight;
    }
  }
}

}  // namespace fassd::cuda
