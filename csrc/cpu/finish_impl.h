// From sums back to pixels of images: what follows the products, and writing. Part of
// kernels_impl.h.

// Writes a vector's first values, from -2^21 to 2^21, rounded, halves to even, plus `zero`: as
// bytes, of which they are the last ones.
template <typename T>
inline void store_rounded(uint8_t* to, Vector<T> v, int32_t zero, int64_t count) {
#if defined(FASSD_AVX512)
  if constexpr (sizeof(T) == 4) {
    const __m512i bytes = _mm512_add_epi32(_mm512_cvtps_epi32(__m512(v)), _mm512_set1_epi32(zero));
    _mm_mask_storeu_epi8(to, __mmask16((1u << count) - 1), _mm512_cvtepi32_epi8(bytes));
    return;
  }
#endif
  // Added to this, small numbers are rounded, and end up in its last bits.
  constexpr T shift = sizeof(T) == 8 ? T(6755399441055744.0) : T(12582912.0);
  using Bits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  const auto bits = Vector<Bits>(v + shift) + zero;
  for (int64_t i = 0; i < count; i++) {
    to[i] = uint8_t(bits[i]);
  }
}

// Values to bytes: the nearest to value / scale + zero, halves to even, and zero for NaN.
template <typename T>
class Quantizer {
 public:
  Quantizer(float scale, int32_t zero)
      : inverse_(broadcast<T>(1 / T(scale))),
        low_(broadcast<T>(T(-zero))),
        high_(broadcast<T>(T(255 - zero))),
        zero_(zero) {}

  // Writes a vector's first values.
  void store(uint8_t* to, Vector<T> v, int64_t count) const {
    v *= inverse_;
#if defined(FASSD_AVX512)
    if constexpr (sizeof(T) == 4) {
      // NaN is the second of a pair, which is kept, and becomes a whole number of which the last
      // byte is 0.
      const __m512 level = _mm512_min_ps(__m512(high_), _mm512_max_ps(__m512(low_), __m512(v)));
      return store_rounded<T>(to, Vector<T>(level), zero_, count);
    }
#endif
    v = v < low_ ? low_ : v > high_ ? high_ : v == v ? v : Vector<T>{};
    store_rounded<T>(to, v, zero_, count);
  }

 private:
  Vector<T> inverse_, low_, high_;
  int32_t zero_;
};

// A vector, or a part of one.
template <typename T, typename In>
inline Vector<T> load_some(const In* from, int64_t count) {
  return count == lanes<T> ? load_wide<T>(from) : load_part<T>(from, count);
}

template <typename T, typename Out>
inline void store_some(Out* to, Vector<T> v, int64_t count) {
  if (count == lanes<T>) {
    store_narrow<T>(to, v);
  } else {
    store_part<T>(to, v, count);
  }
}

// Writes a vector's first channels. `native`: the CPU has AVX512-BF16.
template <typename T, bool native, typename Out>
inline void store_channels(Out* to, Vector<T> value, int64_t channels) {
#if defined(FASSD_AVX512) && defined(FASSD_AMX)
  if constexpr (native && std::is_same_v<Out, BFloat16>) {
    const __m256i narrow = __m256i(_mm512_cvtneps_pbh(__m512(value)));
    _mm256_mask_storeu_epi16(to, __mmask16((1u << channels) - 1), narrow);
    return;
  }
#endif
  if (channels == lanes<T>) {
    store_narrow<T>(to, value);
  } else {
    store_part<T>(to, value, channels);
  }
}

// What is done to the sums of a vector of channels, from `c` on, of pixels of row y of image n.
// Sums of bytes' products are of 32 bits, and what they are added to and written as may be bytes.
template <typename T, bool native = false, typename Sum = T>
class Finish {
 public:
  static constexpr bool bytes = !std::is_same_v<Sum, T>;

  Finish(const Conv<T>& conv, int64_t n, int64_t y, int64_t c)
      : channels_(smaller(lanes<T>, conv.out_channels - c)),
        factor_(from(conv.epilogue.factor, c)),
        quantizer_(conv.out.scale, conv.out.zero),
        activation_(conv.epilogue.activation),
        residual_(conv.epilogue.residual, n, y, c),
        addend_(conv.epilogue.addend, n, y, c),
        bias_(from(conv.epilogue.bias, c)),
        slope_(from(conv.epilogue.slope, c)),
        scaled_(conv.epilogue.scale != nullptr),
        scale_(from(conv.epilogue.scale, c)),
        shift_(from(conv.epilogue.shift, c)),
        final_slope_(from(conv.epilogue.final_slope, c)) {}

  // Finishes the sums of the columns, `apart` values from each other, and writes them `step` apart;
  // of as many adjacent vectors of channels as there are `parts`. What most layers do is a loop of
  // its own, in which no question is left.
  template <int vectors, typename Out>
  static void columns(const Finish (&parts)[vectors], const Sum* sums, int64_t apart,
                      const Columns& columns, Out* to, int64_t step) {
    const Finish& all = parts[0];
    const auto write = [&](const auto& finished) {
      write_columns(parts, sums, apart, columns, to, step, finished);
    };
    const auto add_and_write = [&](const auto& add) {
      if (all.activation_ == Activation::relu) {
        write([&](const Finish& part, Vector<T> v, int64_t i) {
          return relu<T>(add(part, v + part.bias_, i));
        });
      } else if (all.activation_ == Activation::prelu) {
        write([&](const Finish& part, Vector<T> v, int64_t i) {
          return prelu<T>(add(part, v + part.bias_, i), part.slope_);
        });
      } else {
        write([&](const Finish& part, Vector<T> v, int64_t i) {
          return add(part, v + part.bias_, i);
        });
      }
    };
    const Activation kind = all.activation_;
    const bool few =
        kind == Activation::none || kind == Activation::relu || kind == Activation::prelu;
    const bool added = all.addend_.data != nullptr;
    // [&]: without a capture these would also be functions, which GCC warns return wide vectors.
    if (kind == Activation::prelu && added && all.scaled_ && !all.residual_.data) {
      with_dtype<T>(all.addend_.dtype, [&](auto* type) {
        using In = std::remove_pointer_t<decltype(type)>;
        write([&](const Finish& part, Vector<T> v, int64_t i) {
          v = prelu<T>(v + part.bias_, part.slope_) +
              part.addend_.template load<In>(i, part.channels_);
          return prelu<T>(v * part.scale_ + part.shift_, part.final_slope_);
        });
      });
    } else if (!few || added || all.scaled_) {
      write([&](const Finish& part, Vector<T> v, int64_t i) { return part.finish(v, i); });
    } else if (!all.residual_.data) {
      add_and_write([&](const Finish&, Vector<T> v, int64_t) { return v; });
    } else if (bytes && all.residual_.dtype != ScalarType::Byte) {
      write([&](const Finish& part, Vector<T> v, int64_t i) { return part.finish(v, i); });
    } else {
      all.residual_.with_type([&](auto* type) {
        using In = std::remove_pointer_t<decltype(type)>;
        add_and_write([&](const Finish& part, Vector<T> v, int64_t i) {
          return v + part.residual_.template load<In>(i, part.channels_);
        });
      });
    }
  }

 private:
  template <int vectors, typename Out, typename F>
  static void write_columns(const Finish (&parts)[vectors], const Sum* sums, int64_t apart,
                            const Columns& columns, Out* to, int64_t step, const F& finished) {
    const int64_t end = columns.first + columns.count * columns.step;
    const int64_t channels = parts[vectors - 1].channels_;
    int64_t x = columns.first;
#if defined(FASSD_AVX512) && defined(FASSD_AMX)
    if constexpr (native && vectors == 2 && std::is_same_v<Out, BFloat16>) {
      const __mmask32 mask = __mmask32((uint64_t(1) << (lanes<T> + channels)) - 1);
      for (; x < end; x += columns.step, sums += apart, to += step) {
        const Vector<T> low = finished(parts[0], parts[0].sum(sums), x);
        const Vector<T> high = finished(parts[1], parts[1].sum(sums + lanes<T>), x);
        _mm512_mask_storeu_epi16(to, mask, __m512i(_mm512_cvtne2ps_pbh(__m512(high), __m512(low))));
      }
      return;
    }
#endif
    for (; x < end; x += columns.step, sums += apart, to += step) {
#pragma GCC unroll 2
      for (int k = 0; k < vectors - 1; k++) {
        const Vector<T> v = finished(parts[k], parts[k].sum(sums + k * lanes<T>), x);
        parts[k].store(to + k * lanes<T>, v, lanes<T>);
      }
      constexpr int64_t last = (vectors - 1) * lanes<T>;
      const Vector<T> v = finished(parts[vectors - 1], parts[vectors - 1].sum(sums + last), x);
      parts[vectors - 1].store(to + last, v, channels);
    }
  }

  [[gnu::always_inline]] inline Vector<T> sum(const Sum* at) const {
    if constexpr (bytes) {
      return __builtin_convertvector(load_vector(at), Vector<T>) * factor_;
    } else {
      return load_vector(at);
    }
  }

  template <typename Out>
  [[gnu::always_inline]] inline void store(Out* to, Vector<T> value, int64_t channels) const {
    if constexpr (std::is_same_v<Out, uint8_t>) {
      quantizer_.store(to, value, channels);
    } else {
      store_channels<T, native>(to, value, channels);
    }
  }

  [[gnu::always_inline]] inline Vector<T> finish(Vector<T> value, int64_t x) const {
    value += bias_;
    if (residual_.data) {
      value += residual_.at(x, channels_);
    }
    value =
        activation_ == Activation::relu ? relu<T>(value) : activate<T>(value, activation_, slope_);
    if (addend_.data) {
      value += addend_.at(x, channels_);
    }
    if (scaled_) {
      value = prelu<T>(value * scale_ + shift_, final_slope_);
    }
    return value;
  }

  // A row of an image that is added.
  struct Row {
    const void* data = nullptr;
    ScalarType dtype = ScalarType::Float;
    int64_t first = 0, stride = 0;
    T scale = 1, zero = 0;

    Row(const Image* image, int64_t n, int64_t y, int64_t c) {
      if (image) {
        data = image->data;
        dtype = image->dtype;
        first = image->offset(n, y) + c;
        stride = image->stride_w;
        scale = image->scale;
        zero = image->zero;
      }
    }
    template <typename In>
    Vector<T> load(int64_t x, int64_t channels) const {
      const Vector<T> v = load_some<T>(static_cast<const In*>(data) + first + x * stride, channels);
      return std::is_same_v<In, uint8_t> ? (v - zero) * scale : v;
    }
    // Calls f with a null pointer of the type that is read fast.
    template <typename F>
    void with_type(const F& f) const {
      if constexpr (bytes) {
        f(static_cast<uint8_t*>(nullptr));
      } else {
        with_dtype<T>(dtype, f);
      }
    }
    [[gnu::always_inline]] inline Vector<T> at(int64_t x, int64_t channels) const {
      if constexpr (bytes) {
        if (dtype == ScalarType::Byte) {
          return load<uint8_t>(x, channels);
        }
      }
      return load_channels<T>(data, dtype, first + x * stride, channels);
    }
  };

  static Vector<T> from(const T* values, int64_t c) {
    return values ? load_vector(values + c) : Vector<T>{};
  }

  const int64_t channels_;
  const Vector<T> factor_;
  const Quantizer<T> quantizer_;
  const Activation activation_;
  const Row residual_, addend_;
  const Vector<T> bias_, slope_;
  const bool scaled_;
  const Vector<T> scale_, shift_, final_slope_;
};

// Finishes and writes `count` pixels of row y, columns `first`, first + step, ...; their sums are
// planes[channel * pitch + i], which have room up to a whole vector of channels and pixels.
template <typename T, typename Out>
void write_pixels(const Conv<T>& conv, int64_t n, int64_t y, int64_t first, int64_t step,
                  int64_t count, const T* planes, int64_t pitch) {
  constexpr int64_t width = lanes<T>;
  const int64_t out_step = step * conv.out.stride_w;
  for (int64_t i = 0; i < count; i += width) {
    const int64_t pixels = smaller(width, count - i);
    const int64_t x = first + i * step;
    Out* const out = static_cast<Out*>(conv.out.data) + conv.out.offset(n, y, x);
    for (int64_t c = 0; c < conv.out_channels; c += width) {
      // Stores wait for lines of the second level of the cache one after the other; so asked for,
      // they come while the square is transposed (a fifth of the time of writing).
      for (int64_t p = 0; p < pixels; p++) {
        __builtin_prefetch(out + c + p * out_step, 1);
      }
      Vector<T> v[width];
#pragma GCC unroll 16
      for (int q = 0; q < width; q++) {
        v[q] = load_vector(planes + (c + q) * pitch + i);
      }
      transpose<T>(v);
      T sums[width * width];
#pragma GCC unroll 16
      for (int p = 0; p < width; p++) {
        store_vector(sums + p * width, v[p]);
      }
      const Finish<T> parts[] = {Finish<T>(conv, n, y, c)};
      Finish<T>::columns(parts, sums, width, {x, step, pixels}, out + c, out_step);
    }
  }
}

template <typename T>
inline void write_row(const Conv<T>& conv, int64_t n, int64_t y, int64_t first, int64_t step,
                      int64_t count, const T* planes, int64_t pitch) {
  with_dtype<T>(conv.out.dtype, [&](auto* type) {
    write_pixels<T, std::remove_pointer_t<decltype(type)>>(conv, n, y, first, step, count, planes,
                                                           pitch);
  });
}
