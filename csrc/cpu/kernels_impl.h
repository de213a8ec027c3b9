// The vector kernels, written once and compiled once per instruction set.
//
// Convolution: an implicit matrix product. A tile is FASSD_TILE_PIXELS output pixels by two vectors
// of output channels; its sums stay in registers while the loop runs over taps, inputs and input
// channels:
//
//     for every (tap, input):          pointers[p]: where pixel p's input channels start,
//       for every input channel k:                  or a row of zeros where the tap is outside
//         w0, w1 = weights[k]          two vector loads
//         for every pixel p:
//           a = broadcast(pointers[p][k])
//           sum[p][0] += a * w0;  sum[p][1] += a * w1
//
// so 6 x 2 fused multiply-adds (AVX2) stand against 8 loads, below the two loads per cycle that
// the cores sustain. A (tap, input) that lies in the padding for the whole tile is left out.

// No include guard: a translation unit includes this once, with its macros set. Everything here is
// local to it, and nothing of the standard library that could be shared with other translation
// units is instantiated here, lest the linker keep a copy that needs AVX-512.

namespace fassd::cpu::FASSD_INSTRUCTION_SET {
namespace {

constexpr int tile_pixels = FASSD_TILE_PIXELS;

template <typename T>
constexpr int lanes = FASSD_VECTOR_BYTES / int(sizeof(T));

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(FASSD_VECTOR_BYTES)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
inline Vector<T> load_vector(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename T>
inline Vector<T> load_vector(const T* from, int64_t count) {
  Vector<T> v = {};
  std::memcpy(&v, from, count * sizeof(T));
  return v;
}

template <typename T>
inline void store_vector(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}

// Comparisons are false for NaN, which therefore stays, as in torch.relu and torch.prelu.
template <typename T>
inline Vector<T> relu(Vector<T> v) {
  return v < 0 ? Vector<T>{} : v;
}

template <typename T>
inline Vector<T> prelu(Vector<T> v, Vector<T> slope) {
  return v > 0 ? v : v * slope;
}

// --- dtypes in memory ----------------------------------------------------------------------------

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename T>
inline T widen(float v) {
  return v;
}
template <typename T>
inline T widen(double v) {
  return T(v);
}
template <typename T>
inline T widen(BFloat16 v) {
  const uint32_t bits = uint32_t(v.x) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
template <typename T>
inline T widen(Half v) {
#if defined(FASSD_F16C)
  return _cvtsh_ss(v.x);
#else
  return float(v);
#endif
}

template <typename Out, typename T>
inline Out narrow(T v) {
  return Out(v);
}
#if defined(FASSD_F16C)
template <>
inline Half narrow<Half, float>(float v) {
  return Half(_cvtss_sh(v, 0), Half::from_bits());
}
#endif

// Calls f with a null pointer of the type that `dtype` names.
template <typename F>
inline void with_dtype(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return f(static_cast<double*>(nullptr));
    case ScalarType::Half:
      return f(static_cast<Half*>(nullptr));
    default:
      return f(static_cast<BFloat16*>(nullptr));
  }
}

template <typename T>
void load(const void* in, ScalarType dtype, int64_t stride, T* out, int64_t out_stride,
          int64_t count) {
  with_dtype(dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(const_cast<void*>(in));
    for (int64_t i = 0; i < count; i++) {
      out[i * out_stride] = widen<T>(from[i * stride]);
    }
  });
}

template <typename T, typename Out>
inline void store_as(const T* in, Out* out, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    out[i] = narrow<Out>(in[i]);
  }
}

template <typename T>
void store(const T* in, void* out, ScalarType dtype, int64_t count) {
  with_dtype(dtype, [&](auto* type) { store_as(in, static_cast<decltype(type)>(out), count); });
}

// --- convolution ---------------------------------------------------------------------------------

// One tap of one input, for a tile.
template <typename T>
struct Segment {
  int64_t channels;
  int64_t weight_row;  // of the packed weights' input-channel axis
  const T* pixels[tile_pixels];
};

// Sums of a tile for `vectors` vectors of output channels, into sums[pixel][channel].
template <typename T, int vectors>
inline void accumulate(const std::vector<Segment<T>>& segments, const T* weights, T* sums) {
  constexpr int width = vectors * lanes<T>;
  Vector<T> sum[tile_pixels][vectors] = {};
  for (const Segment<T>& segment : segments) {
    const T* pixel[tile_pixels];
#pragma GCC unroll 16
    for (int p = 0; p < tile_pixels; p++) {
      pixel[p] = segment.pixels[p];
    }
    const T* weight = weights + segment.weight_row * width;
    for (int64_t k = 0; k < segment.channels; k++, weight += width) {
      Vector<T> w[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; v++) {
        w[v] = load_vector(weight + v * lanes<T>);
      }
#pragma GCC unroll 16
      for (int p = 0; p < tile_pixels; p++) {
        const Vector<T> a = pixel[p][k] - Vector<T>{};  // broadcast
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
          sum[p][v] += a * w[v];
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < tile_pixels; p++) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
      store_vector(sums + p * width + v * lanes<T>, sum[p][v]);
    }
  }
}

struct Pixel {
  int64_t y, x;
};

template <typename T>
inline Vector<T> finish(const Epilogue<T>& epilogue, Vector<T> v, int64_t channel,
                        const T* residual, const T* addend, int64_t count) {
  if (epilogue.bias) {
    v += load_vector(epilogue.bias + channel);
  }
  if (residual) {
    v += count == lanes<T> ? load_vector(residual + channel)
                           : load_vector(residual + channel, count);
  }
  if (epilogue.activation == Activation::relu) {
    v = relu<T>(v);
  } else if (epilogue.activation == Activation::prelu) {
    v = prelu<T>(v, load_vector(epilogue.slope + channel));
  }
  if (addend) {
    v += count == lanes<T> ? load_vector(addend + channel) : load_vector(addend + channel, count);
  }
  if (epilogue.scale) {
    v = v * load_vector(epilogue.scale + channel) + load_vector(epilogue.shift + channel);
    v = prelu<T>(v, load_vector(epilogue.final_slope + channel));
  }
  return v;
}

// Finishes and writes the sums of `count` pixels and `channels` channels from `channel` on.
template <typename T>
void write_tile(const Conv<T>& conv, int64_t n, const Pixel* pixels, int64_t count, const T* sums,
                int64_t width, int64_t channel, int64_t channels) {
  const Epilogue<T>& epilogue = conv.epilogue;
  for (int64_t p = 0; p < count; p++) {
    const auto [y, x] = pixels[p];
    const T* residual = epilogue.residual ? epilogue.residual->pixel(n, y, x) : nullptr;
    const T* addend = epilogue.addend ? epilogue.addend->pixel(n, y, x) : nullptr;
    T row[2 * lanes<T>] = {};
    for (int64_t c = 0; c < channels; c += lanes<T>) {
      const int64_t left = smaller(lanes<T>, channels - c);
      const Vector<T> v = load_vector(sums + p * width + c);
      store_vector(row + c, finish(epilogue, v, channel + c, residual, addend, left));
    }
    const int64_t offset = conv.out.offset(n, y, x) + channel;
    with_dtype(conv.out.dtype, [&](auto* type) {
      auto* out = static_cast<decltype(type)>(conv.out.data) + offset;
      if constexpr (std::is_same_v<decltype(out), T*>) {
        std::memcpy(out, row, channels * sizeof(T));
      } else {
        store_as(row, out, channels);
      }
    });
  }
}

// For a tile, every (tap, input) that is not padding for all its pixels.
template <typename T>
void gather(const Conv<T>& conv, int64_t n, const Pixel* pixels,
            std::vector<Segment<T>>& segments) {
  segments.clear();
  const int64_t pad_h = conv.dilation_h * (conv.kernel_h / 2);
  const int64_t pad_w = conv.dilation_w * (conv.kernel_w / 2);
  const int64_t height = conv.inputs[0].height, width = conv.inputs[0].width;
  int64_t weight_row = 0;
  for (int64_t tap_h = 0; tap_h < conv.kernel_h; tap_h++) {
    for (int64_t tap_w = 0; tap_w < conv.kernel_w; tap_w++) {
      Pixel at[tile_pixels];
      bool inside[tile_pixels], any = false;
      for (int p = 0; p < tile_pixels; p++) {
        at[p].y = pixels[p].y * conv.stride_h + tap_h * conv.dilation_h - pad_h;
        at[p].x = pixels[p].x * conv.stride_w + tap_w * conv.dilation_w - pad_w;
        inside[p] = at[p].y >= 0 && at[p].y < height && at[p].x >= 0 && at[p].x < width;
        any |= inside[p];
      }
      for (int64_t i = 0; i < conv.input_count; i++) {
        const Image<T>& input = conv.inputs[i];
        if (any) {
          Segment<T> segment = {input.channels, weight_row, {}};
          for (int p = 0; p < tile_pixels; p++) {
            segment.pixels[p] = inside[p] ? input.pixel(n, at[p].y, at[p].x) : conv.zeros;
          }
          segments.push_back(segment);
        }
        weight_row += input.channels;
      }
    }
  }
}

// Weights that a group of channel blocks may take, so that they stay in the L2 cache (0.5 to 2 MB a
// core) while the tiles pass by.
constexpr int64_t cached_weight_bytes = 384 * 1024;

template <typename T>
void conv(const Conv<T>& conv, int64_t n, int64_t begin, int64_t end) {
  constexpr int64_t block = 2 * lanes<T>;
  int64_t rows = 0;  // input channels times taps
  for (int64_t i = 0; i < conv.input_count; i++) {
    rows += conv.inputs[i].channels * conv.kernel_h * conv.kernel_w;
  }
  const int64_t block_bytes = rows * block * sizeof(T) + 1;
  const int64_t group = (cached_weight_bytes / block_bytes + 1) * block;
  std::vector<Segment<T>> segments;
  alignas(64) T sums[tile_pixels * block];
  for (int64_t first = 0; first < conv.out_channels; first += group) {
    const int64_t last = smaller(first + group, conv.out_channels);
    for (int64_t q = begin; q < end; q += tile_pixels) {
      Pixel pixels[tile_pixels];
      const int64_t count = smaller(tile_pixels, end - q);
      for (int64_t p = 0; p < tile_pixels; p++) {
        const int64_t at = q + smaller(p, count - 1);  // a short tile repeats its last pixel
        pixels[p] = {at / conv.out_width, at % conv.out_width};
      }
      gather(conv, n, pixels, segments);
      for (int64_t channel = first; channel < last; channel += block) {
        const int64_t channels = smaller(block, conv.out_channels - channel);
        const T* weights = conv.weights + channel * rows;
        if (channels > lanes<T>) {
          accumulate<T, 2>(segments, weights, sums);
          write_tile(conv, n, pixels, count, sums, block, channel, channels);
        } else {
          accumulate<T, 1>(segments, weights, sums);
          write_tile(conv, n, pixels, count, sums, block / 2, channel, channels);
        }
      }
    }
  }
}

// --- elementwise and resizing --------------------------------------------------------------------

template <typename T>
void affine_prelu(const T* in, int64_t in_stride, T* out, int64_t out_stride, int64_t pixels,
                  int64_t channels, const T* scale, const T* shift, const T* slope) {
  for (int64_t p = 0; p < pixels; p++, in += in_stride, out += out_stride) {
    int64_t c = 0;
    for (; c + lanes<T> <= channels; c += lanes<T>) {
      const Vector<T> v = load_vector(in + c) * load_vector(scale + c) + load_vector(shift + c);
      store_vector(out + c, prelu<T>(v, load_vector(slope + c)));
    }
    for (; c < channels; c++) {
      const T v = in[c] * scale[c] + shift[c];
      out[c] = v > 0 ? v : v * slope[c];
    }
  }
}

template <typename T>
void interpolate(const T* top, const T* bottom, int64_t stride_w, const int64_t* left,
                 const int64_t* right, const T* weight_right, T weight_bottom, int64_t begin,
                 int64_t end, int64_t channels, T* out, int64_t out_stride) {
  const T weight_top = 1 - weight_bottom;
  for (int64_t x = begin; x < end; x++, out += out_stride) {
    const T a = (1 - weight_right[x]) * weight_top, b = weight_right[x] * weight_top;
    const T c = (1 - weight_right[x]) * weight_bottom, d = weight_right[x] * weight_bottom;
    const T* top_left = top + left[x] * stride_w;
    const T* top_right = top + right[x] * stride_w;
    const T* bottom_left = bottom + left[x] * stride_w;
    const T* bottom_right = bottom + right[x] * stride_w;
    int64_t i = 0;
    for (; i + lanes<T> <= channels; i += lanes<T>) {
      store_vector(out + i, load_vector(top_left + i) * a + load_vector(top_right + i) * b +
                                load_vector(bottom_left + i) * c +
                                load_vector(bottom_right + i) * d);
    }
    for (; i < channels; i++) {
      out[i] = top_left[i] * a + top_right[i] * b + bottom_left[i] * c + bottom_right[i] * d;
    }
  }
}

template <typename T>
void argmax_row(const T* row, int64_t plane, const int64_t* left, const int64_t* right,
                const T* weight_right, int64_t width, int64_t channels, T* best, uint8_t* labels) {
  for (int64_t x = 0; x < width; x++) {
    best[x] = row[left[x]] * (1 - weight_right[x]) + row[right[x]] * weight_right[x];
    labels[x] = 0;
  }
  for (int64_t c = 1; c < channels; c++) {
    const T* values = row + c * plane;
    for (int64_t x = 0; x < width; x++) {
      const T v = values[left[x]] * (1 - weight_right[x]) + values[right[x]] * weight_right[x];
      // NaN counts as the largest, and the first of equals wins, as in torch.argmax.
      const bool better = v > best[x] || (v != v && best[x] == best[x]);
      best[x] = better ? v : best[x];
      labels[x] = better ? uint8_t(c) : labels[x];
    }
  }
}

}  // namespace

#define FASSD_TABLE(T) \
  {lanes<T>, conv<T>, affine_prelu<T>, interpolate<T>, argmax_row<T>, load<T>, store<T>}

const Kernels<float> float_kernels = FASSD_TABLE(float);
const Kernels<double> double_kernels = FASSD_TABLE(double);

}  // namespace fassd::cpu::FASSD_INSTRUCTION_SET
