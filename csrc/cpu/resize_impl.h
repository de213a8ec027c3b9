// Conversion of rows, bilinear resizing, argmax and pooling. Part of kernels_impl.h.

// Vectors of channels [0, channels) in turn: f(first channel, channels in the vector).
template <typename T, typename F>
inline void for_channels(int64_t channels, const F& f) {
  int64_t c = 0;
  for (; c + lanes<T> <= channels; c += lanes<T>) {
    f(c, int64_t(lanes<T>));
  }
  if (c < channels) {
    f(c, channels - c);
  }
}

template <typename T>
void load(const void* in, ScalarType dtype, int64_t stride, T* out, int64_t out_stride,
          int64_t count) {
  with_dtype<T>(dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(const_cast<void*>(in));
    int64_t i = 0;
    if (stride == 1 && out_stride == 1) {
      for (; i + lanes<T> <= count; i += lanes<T>) {
        store_vector(out + i, load_wide<T>(from + i));
      }
    }
    for (; i < count; i++) {
      out[i * out_stride] = widen<T>(from[i * stride]);
    }
  });
}

template <typename T>
void store(const T* in, void* out, ScalarType dtype, int64_t count) {
  with_dtype<T>(dtype, [&](auto* type) {
    auto* to = static_cast<decltype(type)>(out);
    int64_t i = 0;
    for (; i + lanes<T> <= count; i += lanes<T>) {
      store_narrow<T>(to + i, load_vector(in + i));
    }
    for (; i < count; i++) {
      to[i] = narrow<std::remove_pointer_t<decltype(type)>>(in[i]);
    }
  });
}

template <typename T>
void interpolate(const T* top, const T* bottom, int64_t stride_w, const int64_t* left,
                 const int64_t* right, const T* weight_right, T weight_bottom, int64_t begin,
                 int64_t end, int64_t channels, T* out, int64_t out_stride) {
  const T weight_top = 1 - weight_bottom;
  for (int64_t x = begin; x < end; x++, out += out_stride) {
    const T a = (1 - weight_right[x]) * weight_top, b = weight_right[x] * weight_top;
    const T c = (1 - weight_right[x]) * weight_bottom, d = weight_right[x] * weight_bottom;
    const T *top_left = top + left[x] * stride_w, *top_right = top + right[x] * stride_w;
    const T *bottom_left = bottom + left[x] * stride_w,
            *bottom_right = bottom + right[x] * stride_w;
    for_channels<T>(channels, [&](int64_t i, int64_t count) {
      const Vector<T> v =
          load_some<T>(top_left + i, count) * a + load_some<T>(top_right + i, count) * b +
          load_some<T>(bottom_left + i, count) * c + load_some<T>(bottom_right + i, count) * d;
      store_some<T>(out + i, v, count);
    });
  }
}

template <typename T>
void row_to_planes(const void* row, ScalarType dtype, int64_t stride_w, int64_t width,
                   int64_t channels, T* planes, int64_t plane) {
  constexpr int64_t n = lanes<T>;
  with_dtype<T>(dtype, [&](auto* type) {
    const auto* from = static_cast<const std::remove_pointer_t<decltype(type)>*>(row);
    for (int64_t x = 0; x < width; x += n, from += n * stride_w) {
      const int64_t pixels = smaller(n, width - x);
      for_channels<T>(channels, [&](int64_t c, int64_t count) {
        Vector<T> v[n] = {};
        for (int64_t p = 0; p < pixels; p++) {
          v[p] = load_some<T>(from + p * stride_w + c, count);
        }
        transpose<T>(v);
        for (int64_t q = 0; q < count; q++) {
          store_vector(planes + (c + q) * plane + x, v[q]);
        }
      });
    }
  });
}

template <typename T>
void blend(const T* top, const T* bottom, T weight, int64_t count, T* out) {
  const T weight_top = 1 - weight;
  for (int64_t i = 0; i < count; i += lanes<T>) {
    store_vector(out + i, load_vector(top + i) * weight_top + load_vector(bottom + i) * weight);
  }
}

#if defined(FASSD_AVX512) || defined(FASSD_F16C) || defined(FASSD_NEON)
#define FASSD_PERMUTE
// values[index], lane by lane.
inline Vector<float> permute(Vector<float> values, Vector<int32_t> index) {
#if defined(FASSD_AVX512)
  return Vector<float>(_mm512_permutexvar_ps(__m512i(index), __m512(values)));
#elif defined(FASSD_NEON)
  const Vector<int32_t> bytes = index * 0x04040404 + 0x03020100;  // four of each value
  return Vector<float>(vqtbl1q_u8(uint8x16_t(values), uint8x16_t(bytes)));
#else
  return Vector<float>(_mm256_permutevar8x32_ps(__m256(values), __m256i(index)));
#endif
}
#endif

// NaN counts as the largest, and the first of equals wins, as in torch.argmax.
template <typename T>
void argmax_pixel(const T* row, int64_t plane, int64_t left, int64_t right, T weight_right,
                  int64_t channels, uint8_t* label) {
  T best = 0;
  for (int64_t c = 0; c < channels; c++) {
    const T* values = row + c * plane;
    const T v = values[left] * (1 - weight_right) + values[right] * weight_right;
    if (c == 0 || v > best || (v != v && best == best)) {
      best = v;
      *label = uint8_t(c);
    }
  }
}

// Enlarged, as logits are, the neighbours of a vector of pixels lie within one vector of the row,
// and are picked out of it by a permutation.
template <typename T>
void argmax_row(const T* row, int64_t plane, const int32_t* left, const int32_t* right,
                const T* weight_right, int64_t width, int64_t channels, uint8_t* labels) {
  int64_t x = 0;
#if defined(FASSD_PERMUTE)
  if constexpr (std::is_same_v<T, float>) {
    constexpr int64_t n = lanes<float>;
    for (; x + n <= width; x += n) {
      const int32_t base = left[x];
      if (right[x + n - 1] - base >= n) {
        for (int64_t p = x; p < x + n; p++) {
          argmax_pixel(row, plane, left[p], right[p], weight_right[p], channels, labels + p);
        }
        continue;
      }
      const Vector<int32_t> before = load_vector(left + x) - base;
      const Vector<int32_t> after = load_vector(right + x) - base;
      const Vector<float> w = load_vector(weight_right + x), u = 1.0f - w;
      Vector<float> best{};
      Vector<int32_t> label{};
      for (int64_t c = 0; c < channels; c++) {
        const Vector<float> values = load_vector(row + c * plane + base);
        const Vector<float> v = permute(values, before) * u + permute(values, after) * w;
        if (c == 0) {
          best = v;
          continue;
        }
        const Vector<int32_t> better = (v > best) | ((v != v) & (best == best));
        best = better ? v : best;
        label = better ? Vector<int32_t>{} + int32_t(c) : label;
      }
      int32_t found[n];
      store_vector(found, label);
      for (int64_t p = 0; p < n; p++) {
        labels[x + p] = uint8_t(found[p]);
      }
    }
  }
#endif
  for (; x < width; x++) {
    argmax_pixel(row, plane, left[x], right[x], weight_right[x], channels, labels + x);
  }
}

// Of up to a vector's width of pixels: all channels, resized along the row, a vector each.
template <typename T>
void resize_planes(const T* row, int64_t plane, const int32_t* left, const int32_t* right,
                   const T* weight_right, int64_t count, int64_t channels, T* values) {
  constexpr int64_t n = lanes<T>;
#if defined(FASSD_PERMUTE)
  if constexpr (std::is_same_v<T, float>) {
    const int32_t base = left[0];
    if (count == n && right[n - 1] - base < n) {
      const Vector<int32_t> before = load_vector(left) - base, after = load_vector(right) - base;
      const Vector<float> w = load_vector(weight_right), u = 1.0f - w;
      for (int64_t c = 0; c < channels; c++) {
        const Vector<float> from = load_vector(row + c * plane + base);
        store_vector(values + c * n, permute(from, before) * u + permute(from, after) * w);
      }
      return;
    }
  }
#endif
  for (int64_t c = 0; c < channels; c++, row += plane) {
    for (int64_t p = 0; p < count; p++) {
      values[c * n + p] = row[left[p]] * (1 - weight_right[p]) + row[right[p]] * weight_right[p];
    }
    std::fill(values + c * n + count, values + (c + 1) * n, T(0));
  }
}

// 2^v of v from -126 to 0; of floats within 5e-6, which a result of eight bits does not show.
template <typename T>
inline Vector<T> power_of_two(Vector<T> v) {
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < lanes<T>; i++) {
      v[i] = __builtin_exp2(v[i]);
    }
    return v;
  } else {
    constexpr T shift = 12582912.0f;  // added to n, its last bits are those of n
    const Vector<T> shifted = v + shift, rest = v - (shifted - shift);
    Vector<T> sum = rest * 0.00961813f + 0.05550411f;  // Taylor's series of e^(rest ln 2)
    sum = ((sum * rest + 0.24022651f) * rest + 0.69314718f) * rest + 1;
    return sum * Vector<T>((Vector<uint32_t>(shifted) + 127) << 23);
  }
}

// By two looks at the resized channels: the first finds the two largest, the second sums up.
template <typename T>
void confidence_row(const T* row, int64_t plane, const int32_t* left, const int32_t* right,
                    const T* weight_right, int64_t width, int64_t channels, Measure measure,
                    T scale, uint8_t* labels, uint8_t* certainties) {
  constexpr int64_t n = lanes<T>;
  alignas(64) T values[max_labels * n];
  constexpr double log_2 = 0.69314718055994531;
  const T sharp = T(scale / log_2);                               // of powers of two
  const T equal = T(__builtin_log(double(larger(channels, 2))));  // entropy of equal probabilities
  for (int64_t x = 0; x < width; x += n) {
    const int64_t count = smaller(n, width - x);
    resize_planes(row, plane, left + x, right + x, weight_right + x, count, channels, values);
    Vector<T> best = load_vector(values), second = broadcast<T>(-__builtin_inf());
    decltype(best == best) label{}, here{};
    for (int64_t c = 1; c < channels; c++) {
      here += 1;
      const Vector<T> v = load_vector(values + c * n);
      const auto better = (v > best) | ((v != v) & (best == best));
      second = better ? best : v > second ? v : second;
      best = better ? v : best;
      label = better ? here : label;
    }
    Vector<T> sum{}, mean{};
    for (int64_t c = 0; c < channels; c++) {
      const Vector<T> v = load_vector(values + c * n);
      Vector<T> below = (v - best) * sharp;
      below = below < -126 ? broadcast<T>(-126) : below;
      const Vector<T> e = power_of_two<T>(below);
      sum += e;
      if (measure == Measure::entropy) {
        mean += e * below;
      }
    }
    Vector<T> certainty = 1 / sum;
    if (measure == Measure::margin) {
      const Vector<T> below = (second - best) * sharp;
      certainty *= 1 - power_of_two<T>(below < -126 ? broadcast<T>(-126) : below);
    } else if (measure == Measure::entropy) {
      certainty = 1 - (logarithm<T>(sum) - mean * T(log_2) / sum) / equal;
    }
    // 0 where the largest is NaN or infinite.
    certainty = best - best == 0 ? certainty * 255 + T(0.5) : Vector<T>{};
    for (int64_t p = 0; p < count; p++) {
      labels[x + p] = uint8_t(label[p]);
      certainties[x + p] = uint8_t(certainty[p] < 0 ? 0 : certainty[p] > 255 ? 255 : certainty[p]);
    }
  }
}

template <typename T>
void pool_rows(const T* top, const T* bottom, int64_t stride_w, int64_t width, int64_t channels,
               void* out, ScalarType dtype, int64_t out_stride) {
  with_dtype<T>(dtype, [&](auto* type) {
    auto* to = static_cast<decltype(type)>(out);
    for (int64_t x = 0; x < width; x++, to += out_stride) {
      const T *a = top + 2 * x * stride_w, *b = bottom + 2 * x * stride_w;
      for_channels<T>(channels, [&](int64_t c, int64_t count) {
        const Vector<T> upper = load_some<T>(a + c, count) + load_some<T>(a + stride_w + c, count);
        const Vector<T> lower = load_some<T>(b + c, count) + load_some<T>(b + stride_w + c, count);
        store_some<T>(to + c, (upper + lower) * T(0.25), count);
      });
    }
  });
}

// Windows overlap, but what is read again comes from the cache: of 3x3 at stride 2, a pixel is
// written for four that come from memory.
template <typename T, typename In, typename Out>
void max_pool_row(const Image& image, const Window& window, const Destination& out,
                  int64_t out_width, int64_t n, int64_t y) {
  const int64_t top = y * window.stride_h - window.padding_h;
  const int64_t first_row = larger(top, 0);
  const int64_t last_row = smaller(top + window.kernel_h, image.height);
  const In* const base = static_cast<const In*>(image.data) + image.offset(n, first_row);
  Out* to = static_cast<Out*>(out.data) + out.offset(n, y, 0);
  for (int64_t x = 0; x < out_width; x++, to += out.stride_w) {
    const int64_t left = x * window.stride_w - window.padding_w;
    const int64_t first = larger(left, 0), last = smaller(left + window.kernel_w, image.width);
    const In* const corner = base + first * image.stride_w;
    for_channels<T>(image.channels, [&](int64_t c, int64_t count) {
      Vector<T> largest = load_some<T>(corner + c, count);
      const In* row = corner + c;
      for (int64_t i = first_row; i < last_row; i++, row += image.stride_h) {
        const In* from = row;
        for (int64_t j = first; j < last; j++, from += image.stride_w) {
          const Vector<T> value = load_some<T>(from, count);
          largest = (value > largest) | (value != value) ? value : largest;
        }
      }
      store_some<T>(to + c, largest, count);
    });
  }
}

template <typename T>
void max_pool(const Image& image, const Window& window, const Destination& out, int64_t out_width,
              int64_t n, int64_t y) {
  with_types<T>(image.dtype, out.dtype, [&](auto* in, auto* to) {
    using In = std::remove_pointer_t<decltype(in)>;
    using Out = std::remove_pointer_t<decltype(to)>;
    max_pool_row<T, In, Out>(image, window, out, out_width, n, y);
  });
}

template <typename T>
void add_scaled(const void* in, ScalarType dtype, int64_t count, T factor, T* sums) {
  with_dtype<T>(dtype, [&](auto* type) {
    const auto* from = static_cast<const std::remove_pointer_t<decltype(type)>*>(in);
    int64_t i = 0;
    for (; i + lanes<T> <= count; i += lanes<T>) {
      store_vector(sums + i, load_vector(sums + i) + load_wide<T>(from + i) * factor);
    }
    if (i < count) {
      store_some<T>(sums + i,
                    load_some<T>(sums + i, count - i) + load_part<T>(from + i, count - i) * factor,
                    count - i);
    }
  });
}

template <typename T>
void spread_row(const T* row, const int64_t* left, const int64_t* right, const T* weight_right,
                int64_t width, int64_t channels, T* out) {
  for (int64_t x = 0; x < width; x++, row += channels) {
    T *first = out + left[x] * channels, *second = out + right[x] * channels;
    const T b = weight_right[x], a = 1 - b;
    for_channels<T>(channels, [&](int64_t i, int64_t count) {
      const Vector<T> v = load_some<T>(row + i, count);
      store_some<T>(first + i, load_some<T>(first + i, count) + v * a, count);
      store_some<T>(second + i, load_some<T>(second + i, count) + v * b, count);
    });
  }
}
