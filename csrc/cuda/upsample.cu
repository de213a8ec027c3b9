// upsample, upsample_argmax and upsample_confidence: bilinear; labels, and their certainty, without
// the enlarged logits.

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "conv_act.cuh"

namespace fassd::cuda {

namespace {

constexpr int block_threads = argmax_threads;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 1000
constexpr int resident_blocks = 5;  // for which the compiler is told to limit registers
#else
constexpr int resident_blocks = 4;
#endif
constexpr int64_t most_blocks = int64_t(1) << 20;  // blocks walk more pixels in strides

unsigned blocks_of(int64_t items) {
  return static_cast<unsigned>(std::min(divide_up(items, block_threads), most_blocks));
}

// Few calls are too large for a division of 32 bits, which takes a quarter of the time.
__device__ __forceinline__ int64_t quotient(uint64_t value, unsigned divisor) {
  return value >> 32 == 0 ? unsigned(value) / divisor : value / divisor;
}

// A thread takes eight channels of one pixel of the result.
template <typename T>
__global__ void __launch_bounds__(block_threads, resident_blocks)
    upsample_kernel(Source source, Target out, int height, int width, bool align_corners,
                    int64_t items) {
  ptx::wait_for_previous_kernels();
  const int parts = (source.channels + lanes - 1) / lanes;
  const int64_t step = int64_t(gridDim.x) * block_threads;
  for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < items; i += step) {
    const int64_t pixel = quotient(i, parts);
    const int channel = static_cast<int>(i - pixel * parts) * lanes;
    const int64_t row = quotient(pixel, width), n = quotient(row, height);
    const int x = static_cast<int>(pixel - row * width), y = static_cast<int>(row - n * height);
    float values[lanes];
    load_resized<T>(source, n, neighbours_of(y, source.height, height, align_corners),
                    neighbours_of(x, source.width, width, align_corners), channel, values);
    store_lanes<T>(out, n * out.stride_n + y * out.stride_h + x * out.stride_w, channel, values);
  }
}

// The label of one pixel. As in the reference, values are rounded to the input's type, the first of
// the largest wins, and NaN is larger than anything.
template <typename T>
__device__ __forceinline__ uint8_t label_of(const Source& source, int64_t n, const Neighbours& rows,
                                            const Neighbours& columns) {
  float best = 0.0f;
  int label = -1;
#pragma unroll 1
  for (int channel = 0; channel < source.channels; channel += lanes) {
    float values[lanes];
    load_resized<T>(source, n, rows, columns, channel, values);
#pragma unroll
    for (int k = 0; k < lanes; k++) {
      const float value = to_float(from_float<T>(values[k]));
      if (channel + k < source.channels &&
          (label < 0 || value > best || (value != value && best == best))) {
        best = value;
        label = channel + k;
      }
    }
  }
  return static_cast<uint8_t>(label);
}

// A thread takes one pixel and all its channels.
template <typename T>
__global__ void __launch_bounds__(block_threads, 4)
    upsample_argmax_kernel(Source source, uint8_t* labels, int height, int width,
                           bool align_corners, int64_t pixels) {
  ptx::wait_for_previous_kernels();
  const int64_t step = int64_t(gridDim.x) * block_threads;
  for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < pixels; i += step) {
    const int64_t row = quotient(i, width), n = quotient(row, height);
    const int y = static_cast<int>(row - n * height), x = static_cast<int>(i - row * width);
    labels[i] = label_of<T>(source, n, neighbours_of(y, source.height, height, align_corners),
                            neighbours_of(x, source.width, width, align_corners));
  }
}

// The probabilities of one pixel's channels, eight at a time: their sum, and the sum of each times
// its exponent, relative to the largest so far.
struct Softmax {
  float best = 0.0f, second = -std::numeric_limits<float>::infinity();
  float sum = 0.0f, mean = 0.0f;
  int label = -1;

  __device__ __forceinline__ void offer(const float (&values)[lanes], int channel, int channels,
                                        float scale) {
    const float before = best;
    const bool first = label < 0;
#pragma unroll
    for (int k = 0; k < lanes; k++) {
      const float value = values[k];
      if (channel + k >= channels) {
        break;
      }
      if (label < 0 || value > best || (value != value && best == best)) {
        second = label < 0 ? second : best;
        best = value;
        label = channel + k;
      } else {
        second = value > second ? value : second;
      }
    }
    const float moved = first ? 0.0f : exponent(before, scale);
    const float factor = __expf(moved);
    mean = factor * (mean + moved * sum);
    sum *= factor;
#pragma unroll
    for (int k = 0; k < lanes; k++) {
      if (channel + k < channels) {
        const float below = exponent(values[k], scale), e = __expf(below);
        sum += e;
        mean += e * below;
      }
    }
  }

  __device__ __forceinline__ uint8_t certainty(Measure measure, float scale, int channels) const {
    if (!(fabsf(best) <= std::numeric_limits<float>::max())) {
      return 0;
    }
    float value = 1.0f / sum;
    if (measure == Measure::margin) {
      value *= 1.0f - __expf(exponent(second, scale));
    } else if (measure == Measure::entropy) {
      const float most = logf(static_cast<float>(channels > 2 ? channels : 2));
      value = 1.0f - (logf(sum) - mean / sum) / most;
    }
    const float level = 255.0f * value + 0.5f;
    return static_cast<uint8_t>(level < 0.0f ? 0.0f : level > 255.0f ? 255.0f : level);
  }

 private:
  // The difference of equal infinities would be NaN.
  __device__ __forceinline__ float exponent(float value, float scale) const {
    const float below = value == best ? 0.0f : (value - best) * scale;
    return below < -87.0f ? -87.0f : below;
  }
};

// A thread takes one pixel and all its channels. Values are rounded as for labels alone.
template <typename T>
__global__ void __launch_bounds__(block_threads, 4)
    upsample_confidence_kernel(Source source, uint8_t* out, int height, int width,
                               bool align_corners, Measure measure, float scale, int64_t pixels) {
  ptx::wait_for_previous_kernels();
  const int64_t step = int64_t(gridDim.x) * block_threads, plane = int64_t(height) * width;
  for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < pixels; i += step) {
    const int64_t row = quotient(i, width), n = quotient(row, height);
    const int y = static_cast<int>(row - n * height), x = static_cast<int>(i - row * width);
    const Neighbours rows = neighbours_of(y, source.height, height, align_corners);
    const Neighbours columns = neighbours_of(x, source.width, width, align_corners);
    Softmax softmax;
#pragma unroll 1
    for (int channel = 0; channel < source.channels; channel += lanes) {
      float values[lanes];
      load_resized<T>(source, n, rows, columns, channel, values);
#pragma unroll
      for (int k = 0; k < lanes; k++) {
        values[k] = to_float(from_float<T>(values[k]));
      }
      softmax.offer(values, channel, source.channels, scale);
    }
    uint8_t* const to = out + n * plane + i;
    to[0] = static_cast<uint8_t>(softmax.label);
    to[plane] = softmax.certainty(measure, scale, source.channels);
  }
}

constexpr int group = 4;                        // channels at a time
constexpr int cell_rows = 4, cell_columns = 5;  // pixels at a time

// The largest of the channels offered for one pixel, the first if several are equal; only numbers
// above minus infinity. For 16 bits, even and odd channels are compared at the same time.
template <typename T>
struct Largest {
  using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
  Pair values;
  unsigned channels;  // of the even one, and of the odd one

  // Channel 0 as `offer` takes it, and the step from one channel to the next.
  static constexpr unsigned first_channel = 0x10000, one = 0x10001;

  __device__ __forceinline__ void clear() {
    const T least = from_float<T>(-std::numeric_limits<float>::infinity());
    values = {least, least};
    channels = 0;
  }

  __device__ __forceinline__ void offer(const float (&offered)[group], unsigned channel) {
#pragma unroll
    for (int k = 0; k < group; k += 2) {
      const Pair pair = pair_of(offered[k], offered[k + 1]);
      const unsigned larger = larger_ones(pair, values);
      values = pair_of(ptx::select_bits(larger, bits(pair), bits(values)));
      channels = ptx::select_bits(larger, channel + k * one, channels);
    }
  }

  __device__ __forceinline__ uint8_t label() const {
    const float even = to_float(values.x), odd = to_float(values.y);
    const unsigned at_even = channels & 0xFFFF, at_odd = channels >> 16;
    const unsigned first = at_even < at_odd ? at_even : at_odd;
    return static_cast<uint8_t>(even > odd ? at_even : odd > even ? at_odd : first);
  }

 private:
  static __device__ __forceinline__ Pair pair_of(float even, float odd) {
    if constexpr (std::is_same_v<T, __half>) {
      return __floats2half2_rn(even, odd);
    } else {
      return __floats2bfloat162_rn(even, odd);
    }
  }
  // All ones if the first is larger.
  static __device__ __forceinline__ unsigned larger_ones(const Pair& a, const Pair& b) {
#if __CUDA_ARCH__ < 900  // which cannot compare two values of bfloat16 at a time
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      return (to_float(a.x) > to_float(b.x) ? 0xFFFFu : 0) |
             (to_float(a.y) > to_float(b.y) ? 0xFFFF0000u : 0);
    }
#endif
    return __hgt2_mask(a, b);
  }
  static __device__ __forceinline__ Pair pair_of(unsigned bits) {
    Pair pair;
    memcpy(&pair, &bits, sizeof(pair));
    return pair;
  }
  static __device__ __forceinline__ unsigned bits(const Pair& pair) {
    unsigned bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
  }
};

template <>
struct Largest<float> {
  float value;
  unsigned channel;

  static constexpr unsigned first_channel = 0, one = 1;

  __device__ __forceinline__ void clear() {
    value = -std::numeric_limits<float>::infinity();
    channel = 0;
  }
  __device__ __forceinline__ void offer(const float (&offered)[group], unsigned first) {
#pragma unroll
    for (int k = 0; k < group; k++) {
      const bool larger = offered[k] > value;
      value = larger ? offered[k] : value;
      channel = larger ? first + k : channel;
    }
  }
  __device__ __forceinline__ uint8_t label() const { return static_cast<uint8_t>(channel); }
};

// The pixels of an axis of the result that are at or after element `index` of the source and before
// the next one: [first, end). The i-th of them is at (rest + i * (size - 1)) / (out_size - 1) after
// it, exactly as in `neighbours_of`.
struct Cell {
  int before, after;
  int first, end;
  unsigned rest;
};

// For an axis that does not shrink; empty after its last element.
__device__ __forceinline__ Cell cell_of(int index, int size, int out_size) {
  const bool last = index >= size - 1;
  const unsigned steps = out_size - 1, element = size > 1 ? size - 1 : 1;
  Cell cell;
  cell.before = last ? size - 1 : index;
  cell.after = last || size == out_size ? cell.before : index + 1;
  const uint64_t position = uint64_t(cell.before) * steps;
  cell.first = static_cast<int>(quotient(position + element - 1, element));
  cell.rest = static_cast<unsigned>(uint64_t(cell.first) * (size - 1) - position);
  cell.end = index >= size ? cell.first
             : last        ? out_size
                           : cell.first + static_cast<int>((steps - cell.rest - 1) / element) + 1;
  return cell;
}

// The next four channels of a pixel, adjacent.
template <typename T>
__device__ __forceinline__ void load_group(const T* from, float (&values)[group]) {
  struct alignas(group * sizeof(T)) Loaded {
    T values[group];
  };
  const Loaded loaded = *reinterpret_cast<const Loaded*>(from);
#pragma unroll
  for (int k = 0; k < group; k++) {
    values[k] = to_float(loaded.values[k]);
  }
}

// The same with a distance between channels, and only `count` of them: the last one is followed by
// the smallest number, which is never the first of the largest.
template <typename T>
__device__ __forceinline__ void load_group(const T* from, int64_t stride, int count,
                                           float (&values)[group]) {
  const float least = std::is_same_v<T, __half>          ? -65504.0f
                      : std::is_same_v<T, __nv_bfloat16> ? -0x1.FEp127f
                                                         : -std::numeric_limits<float>::max();
#pragma unroll
  for (int k = 0; k < group; k++) {
    values[k] = k < count ? to_float(from[k * stride]) : least;
  }
}

// The same for a picture that grows. A thread takes the pixels between two rows and two columns of
// the source, which have the same four neighbours, and a few of their channels at a time: these are
// loaded and subtracted once for 4 x 5 pixels. value = a + w * (b - a) is exact if there is nothing
// to blend; if a difference is not a number, `label_of` decides.
template <typename T>
__global__ void __launch_bounds__(block_threads, 2)
    upsample_argmax_cell_kernel(Source source, uint8_t* labels, int height, int width,
                                unsigned parts) {
  ptx::wait_for_previous_kernels();
  const unsigned row = blockIdx.x / parts, n = row / source.height;
  const int column = (blockIdx.x - row * parts) * block_threads + threadIdx.x;
  if (column - static_cast<int>(threadIdx.x % 32) >= source.width) {
    return;  // together with its whole warp
  }
  const Cell rows = cell_of(row - n * source.height, source.height, height);
  const Cell columns = cell_of(column, source.width, width);
  const T* corner = static_cast<const T*>(source.data) + n * source.stride_n +
                    rows.before * source.stride_h + columns.before * source.stride_w;
  const int64_t down = (rows.after - rows.before) * source.stride_h;
  const int64_t right = (columns.after - columns.before) * source.stride_w;
  const float row_step = 1.0f / static_cast<float>(height > 1 ? height - 1 : 1);
  const float column_step = 1.0f / static_cast<float>(width > 1 ? width - 1 : 1);
#pragma unroll 1
  for (int y = rows.first; y < rows.end; y += cell_rows) {
#pragma unroll 1
    for (int x = columns.first; __any_sync(~0u, x < columns.end); x += cell_columns) {
      float row_weights[cell_rows], column_weights[cell_columns];
      bool there[cell_columns];  // for any thread of the warp
      Largest<T> largest[cell_rows][cell_columns];
#pragma unroll
      for (int r = 0; r < cell_rows; r++) {
        const unsigned rest = rows.rest + (y - rows.first + r) * (source.height - 1);
        row_weights[r] = static_cast<float>(rest) * row_step;
#pragma unroll
        for (int c = 0; c < cell_columns; c++) {
          largest[r][c].clear();
        }
      }
#pragma unroll
      for (int c = 0; c < cell_columns; c++) {
        const unsigned rest = columns.rest + (x - columns.first + c) * (source.width - 1);
        column_weights[c] = static_cast<float>(rest) * column_step;
        there[c] = __any_sync(~0u, x + c < columns.end);
      }
      float blendable = 0.0f;  // NaN as soon as a difference is not a number
      const T* from[4] = {corner, corner + right, corner + down, corner + down + right};
      unsigned channel = Largest<T>::first_channel;
#pragma unroll 1
      for (int left = source.channels; left > 0; left -= group) {
        float corners[4][group];
        if (source.vectors && left >= group) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            load_group<T>(from[i], corners[i]);
          }
        } else {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            load_group<T>(from[i], source.stride_c, left, corners[i]);
          }
        }
        float across[group], down[group], both[group];
#pragma unroll
        for (int k = 0; k < group; k++) {
          across[k] = corners[1][k] - corners[0][k];
          down[k] = corners[2][k] - corners[0][k];
          both[k] = corners[3][k] - corners[2][k] - across[k];
          blendable = fmaf(down[k], 0.0f, fmaf(both[k], 0.0f, blendable));
        }
#pragma unroll
        for (int r = 0; r < cell_rows; r++) {
          if (y + r >= rows.end) {
            break;
          }
          float begin[group], slope[group];
#pragma unroll
          for (int k = 0; k < group; k++) {
            begin[k] = fmaf(row_weights[r], down[k], corners[0][k]);
            slope[k] = fmaf(row_weights[r], both[k], across[k]);
          }
#pragma unroll
          for (int c = 0; c < cell_columns; c++) {
            if (there[c]) {
              float values[group];
#pragma unroll
              for (int k = 0; k < group; k++) {
                values[k] = fmaf(column_weights[c], slope[k], begin[k]);
              }
              largest[r][c].offer(values, channel);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
          from[i] += source.vectors ? group : group * source.stride_c;
        }
        channel += group * Largest<T>::one;
      }
      uint8_t* to = labels + (int64_t(n) * height + y) * width + x;
      if (blendable != 0.0f) {
#pragma unroll 1
        for (int i = 0; i < cell_rows * cell_columns; i++) {
          const int r = i / cell_columns, c = i - r * cell_columns;
          if (y + r < rows.end && x + c < columns.end) {
            to[int64_t(r) * width + c] =
                label_of<T>(source, n, neighbours_of(y + r, source.height, height),
                            neighbours_of(x + c, source.width, width));
          }
        }
        continue;
      }
#pragma unroll
      for (int r = 0; r < cell_rows; r++) {
#pragma unroll
        for (int c = 0; c < cell_columns; c++) {
          if (y + r < rows.end && x + c < columns.end) {
            to[c] = largest[r][c].label();
          }
        }
        to += width;
      }
    }
  }
}

}  // namespace

Tensor upsample(const Tensor& input, const Integers& size, bool align_corners) {
  const ImageSize result = check_upsample(input, size, align_corners).size;
  const Context context("upsample", input, false);
  const int height = position_count("upsample", result.height);
  const int width = position_count("upsample", result.width);
  Tensor out =
      torch::stable::empty(result.sizes(), input.scalar_type(), std::nullopt, input.device(),
                           std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  if (result.numel() == 0) {
    return out;
  }
  const Source source = source_of("upsample", input);
  const Target target = target_of(out, 0, result.channels);
  const int64_t items =
      result.batch * result.height * result.width * divide_up(result.channels, lanes);
  with_type("upsample", context.dtype, [&](auto type) {
    context.queue.launch(&upsample_kernel<decltype(type)>, dim3(blocks_of(items)),
                         dim3(block_threads), 0, source, target, height, width, align_corners,
                         items);
  });
  return out;
}

Tensor upsample_argmax(const Tensor& input, const Integers& size, bool align_corners) {
  const ImageSize result = check_upsample_argmax(input, size, align_corners).size;
  const Context context("upsample_argmax", input, false);
  const int height = position_count("upsample_argmax", result.height);
  const int width = position_count("upsample_argmax", result.width);
  Tensor out = torch::stable::empty({result.batch, result.height, result.width}, ScalarType::Byte,
                                    std::nullopt, input.device(), std::nullopt, std::nullopt);
  const int64_t pixels = out.numel();
  if (pixels == 0) {
    return out;
  }
  const Source source = source_of("upsample_argmax", input);
  uint8_t* labels = static_cast<uint8_t*>(out.mutable_data_ptr());
  const ArgmaxPlan plan =
      plan_argmax(result.batch, source.height, source.width, height, width, align_corners);
  with_type("upsample_argmax", context.dtype, [&](auto type) {
    using T = decltype(type);
    if (plan.by_cells) {
      context.queue.launch(&upsample_argmax_cell_kernel<T>, dim3(unsigned(plan.blocks)),
                           dim3(block_threads), 0, source, labels, height, width,
                           unsigned(plan.parts));
    } else {
      context.queue.launch(&upsample_argmax_kernel<T>, dim3(blocks_of(pixels)), dim3(block_threads),
                           0, source, labels, height, width, align_corners, pixels);
    }
  });
  return out;
}

Tensor upsample_confidence(const Tensor& input, const Integers& size, const std::string& measure,
                           double temperature, bool align_corners) {
  const char* op = "upsample_confidence";
  const Checked checked =
      check_upsample_confidence(input, size, measure, temperature, align_corners);
  const ImageSize& result = checked.size;
  const Context context(op, input, false);
  const int height = position_count(op, result.height), width = position_count(op, result.width);
  Tensor out =
      torch::stable::empty({result.batch, 2, result.height, result.width}, ScalarType::Byte,
                           std::nullopt, input.device(), std::nullopt, std::nullopt);
  const int64_t pixels = out.numel() / 2;
  if (pixels == 0) {
    return out;
  }
  const Source source = source_of(op, input);
  with_type(op, context.dtype, [&](auto type) {
    context.queue.launch(
        &upsample_confidence_kernel<decltype(type)>, dim3(blocks_of(pixels)), dim3(block_threads),
        0, source, static_cast<uint8_t*>(out.mutable_data_ptr()), height, width, align_corners,
        checked.measure, static_cast<float>(sharpness(temperature)), pixels);
  });
  return out;
}

}  // namespace fassd::cuda
