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

// Copies fewer values than a vector holds. In powers of two, because a memcpy of unknown length is
// a call, which the narrow layers (31, 59, 63 channels) would make for every pixel.
template <typename T>
inline void copy_tail(const T* from, T* to, int64_t count) {
#pragma GCC unroll 4
  for (int step = lanes<T> / 2; step > 0; step /= 2) {
    if (count & step) {
      std::memcpy(to, from, step * sizeof(T));
      from += step;
      to += step;
    }
  }
}

template <typename T>
inline Vector<T> load_vector(const T* from, int64_t count) {
  if (count >= lanes<T>) {
    return load_vector(from);
  }
  T values[lanes<T>] = {};
  copy_tail(from, values, count);
  return load_vector(values);
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
inline void accumulate(const Segment<T>* segments, int64_t count, const T* weights, T* sums) {
  constexpr int width = vectors * lanes<T>;
  Vector<T> sum[tile_pixels][vectors] = {};
  for (int64_t s = 0; s < count; s++) {
    const Segment<T>& segment = segments[s];
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

// The output pixels of a tile. A short tile, at the end, repeats its last pixel.
template <typename T>
struct Tile {
  int64_t count;  // of different pixels
  Pixel at[tile_pixels];
  int64_t out[tile_pixels];        // offset in the destination
  const T* residual[tile_pixels];  // null where there is none
  const T* addend[tile_pixels];
};

template <typename T>
inline Tile<T> tile_of(const Conv<T>& conv, int64_t n, int64_t begin, int64_t end) {
  Tile<T> tile;
  tile.count = smaller(tile_pixels, end - begin);
  Pixel at = {begin / conv.out_width, begin % conv.out_width};
  for (int p = 0; p < tile_pixels; p++) {
    tile.at[p] = at;
    tile.out[p] = conv.out.offset(n, at.y, at.x);
    const Epilogue<T>& epilogue = conv.epilogue;
    tile.residual[p] = epilogue.residual ? epilogue.residual->pixel(n, at.y, at.x) : nullptr;
    tile.addend[p] = epilogue.addend ? epilogue.addend->pixel(n, at.y, at.x) : nullptr;
    if (p + 1 < tile.count && ++at.x == conv.out_width) {
      at = {at.y + 1, 0};
    }
  }
  return tile;
}

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
    v += load_vector(addend + channel, count);
  }
  if (epilogue.scale) {
    v = v * load_vector(epilogue.scale + channel) + load_vector(epilogue.shift + channel);
    v = prelu<T>(v, load_vector(epilogue.final_slope + channel));
  }
  return v;
}

// Finishes and writes the sums of a tile, `channels` of them from `channel` on.
template <typename T, typename Out>
void write_tile(const Conv<T>& conv, const Tile<T>& tile, const T* sums, int64_t width,
                int64_t channel, int64_t channels) {
  for (int64_t p = 0; p < tile.count; p++) {
    Out* out = static_cast<Out*>(conv.out.data) + tile.out[p] + channel;
    for (int64_t c = 0; c < channels; c += lanes<T>, out += lanes<T>) {
      const int64_t left = smaller(lanes<T>, channels - c);
      const Vector<T> v = finish(conv.epilogue, load_vector(sums + p * width + c), channel + c,
                                 tile.residual[p], tile.addend[p], left);
      T values[lanes<T>];
      store_vector(values, v);
      if constexpr (!std::is_same_v<Out, T>) {
        store_as(values, out, left);
      } else if (left == lanes<T>) {
        store_vector(out, v);
      } else {
        copy_tail(values, out, left);
      }
    }
  }
}

// For a tile, every (tap, input) that is not padding for all its pixels; returns how many.
template <typename T>
int64_t gather(const Conv<T>& conv, int64_t n, const Tile<T>& tile, Segment<T>* segments) {
  const int64_t pad_h = conv.dilation_h * (conv.kernel_h / 2);
  const int64_t pad_w = conv.dilation_w * (conv.kernel_w / 2);
  const int64_t height = conv.inputs[0].height, width = conv.inputs[0].width;
  const bool one_row = tile.at[0].y == tile.at[tile_pixels - 1].y && tile.count == tile_pixels;
  int64_t count = 0, weight_row = 0;
  for (int64_t tap_h = 0; tap_h < conv.kernel_h; tap_h++) {
    for (int64_t tap_w = 0; tap_w < conv.kernel_w; tap_w++) {
      const int64_t down = tap_h * conv.dilation_h - pad_h, right = tap_w * conv.dilation_w - pad_w;
      const int64_t y = tile.at[0].y * conv.stride_h + down;
      const int64_t x = tile.at[0].x * conv.stride_w + right;
      const int64_t last_x = x + (tile_pixels - 1) * conv.stride_w;
      if (one_row && y >= 0 && y < height && x >= 0 && last_x < width) {
        for (int64_t i = 0; i < conv.input_count; i++) {
          const Image<T>& input = conv.inputs[i];
          const int64_t step = conv.stride_w * input.stride_w;
          const T* const first = input.pixel(n, y, x);
          segments[count].channels = input.channels;
          segments[count].weight_row = weight_row;
          for (int p = 0; p < tile_pixels; p++) {
            segments[count].pixels[p] = first + p * step;
          }
          count++;
          weight_row += input.channels;
        }
        continue;
      }
      Pixel at[tile_pixels];
      bool inside[tile_pixels], any = false;
      for (int p = 0; p < tile_pixels; p++) {
        at[p].y = tile.at[p].y * conv.stride_h + down;
        at[p].x = tile.at[p].x * conv.stride_w + right;
        inside[p] = at[p].y >= 0 && at[p].y < height && at[p].x >= 0 && at[p].x < width;
        any |= inside[p];
      }
      for (int64_t i = 0; i < conv.input_count; i++) {
        const Image<T>& input = conv.inputs[i];
        if (any) {
          segments[count].channels = input.channels;
          segments[count].weight_row = weight_row;
          for (int p = 0; p < tile_pixels; p++) {
            segments[count].pixels[p] = inside[p] ? input.pixel(n, at[p].y, at[p].x) : conv.zeros;
          }
          count++;
        }
        weight_row += input.channels;
      }
    }
  }
  return count;
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
  std::vector<Segment<T>> segments(conv.kernel_h * conv.kernel_w * conv.input_count);
  alignas(64) T sums[tile_pixels * block];
  for (int64_t first = 0; first < conv.out_channels; first += group) {
    const int64_t last = smaller(first + group, conv.out_channels);
    for (int64_t q = begin; q < end; q += tile_pixels) {
      const Tile<T> tile = tile_of(conv, n, q, end);
      const int64_t count = gather(conv, n, tile, segments.data());
      for (int64_t channel = first; channel < last; channel += block) {
        const int64_t channels = smaller(block, conv.out_channels - channel);
        const T* weights = conv.weights + channel * rows;
        const int64_t width = channels > lanes<T> ? block : lanes<T>;
        if (channels > lanes<T>) {
          accumulate<T, 2>(segments.data(), count, weights, sums);
        } else {
          accumulate<T, 1>(segments.data(), count, weights, sums);
        }
        with_dtype(conv.out.dtype, [&](auto* type) {
          using Out = std::remove_pointer_t<decltype(type)>;
          write_tile<T, Out>(conv, tile, sums, width, channel, channels);
        });
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
