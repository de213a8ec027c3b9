// Images of bytes: quantisation, resizing and weighted sums. Part of kernels_impl.h.

template <typename T>
void quantize(const void* in, ScalarType dtype, float scale, int32_t zero, uint8_t* out,
              int64_t count) {
  const Quantizer<T> quantizer(scale, zero);
  with_dtype<T>(dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(const_cast<void*>(in));
    for_channels<T>(count, [&](int64_t i, int64_t some) {
      quantizer.store(out + i, load_some<T>(from + i, some), some);
    });
  });
}

// out = top + (bottom - top) * weight of rows of bytes.
template <typename T>
void blend_bytes(const uint8_t* top, const uint8_t* bottom, T weight, int64_t count, T* out) {
  for_channels<T>(count, [&](int64_t i, int64_t some) {
    const Vector<T> a = load_some<T>(top + i, some), b = load_some<T>(bottom + i, some);
    store_some<T>(out + i, a + (b - a) * weight, some);
  });
}

template <typename T>
void resize_to_bytes(const T* row, const int64_t* left, const int64_t* right, const T* weight_right,
                     int64_t width, int64_t channels, uint8_t* out) {
  for (int64_t x = 0; x < width; x++, out += channels) {
    const T *const before = row + left[x] * channels, *const after = row + right[x] * channels;
    for_channels<T>(channels, [&](int64_t i, int64_t some) {
      const Vector<T> a = load_some<T>(before + i, some), b = load_some<T>(after + i, some);
      store_rounded<T>(out + i, a + (b - a) * weight_right[x], 0, some);
    });
  }
}

// Row y of image n of act(sum of inputs times factors + bias).
template <typename T>
void weighted_sum(const WeightedSum<T>& sum, int64_t n, int64_t y) {
  const Quantizer<T> quantizer(sum.out.scale, sum.out.zero);
  const Image& first = sum.inputs[0];
  const Image& last = sum.inputs[sum.count - 1];
  bool few = sum.count <= 2;
  for (int64_t i = 0; i < sum.count; i++) {
    few = few && sum.inputs[i].dtype == ScalarType::Byte;
  }
  for_channels<T>(first.channels, [&](int64_t c, int64_t some) {
    uint8_t* to = static_cast<uint8_t*>(sum.out.data) + sum.out.offset(n, y, 0) + c;
    const Vector<T> bias = load_vector(sum.bias + c);
    const Vector<T> slope = sum.slope ? load_vector(sum.slope + c) : Vector<T>{};
    const auto factor = [&](int64_t i) { return load_vector(sum.factors + i * sum.pitch + c); };
    const auto write = [&](const auto& value) {
      for (int64_t x = 0; x < first.width; x++, to += sum.out.stride_w) {
        const Vector<T> v = value(x);
        quantizer.store(to,
                        sum.activation == Activation::prelu ? prelu<T>(v, slope)
                                                            : activate<T>(v, sum.activation, slope),
                        some);
      }
    };
    if (few) {
      const auto* const a = static_cast<const uint8_t*>(first.data) + first.offset(n, y) + c;
      const auto* const b = static_cast<const uint8_t*>(last.data) + last.offset(n, y) + c;
      const Vector<T> of_a = factor(0), of_b = factor(sum.count - 1);
      if (sum.count == 1) {
        write([&](int64_t x) { return load_some<T>(a + x * first.stride_w, some) * of_a + bias; });
      } else {
        write([&](int64_t x) {
          return load_some<T>(a + x * first.stride_w, some) * of_a +
                 load_some<T>(b + x * last.stride_w, some) * of_b + bias;
        });
      }
      return;
    }
    write([&](int64_t x) {
      Vector<T> v = bias;
      for (int64_t i = 0; i < sum.count; i++) {
        const Image& image = sum.inputs[i];
        with_result<T, sizeof(T) == 4>(image.dtype, [&](auto* type) {
          const auto* const from = static_cast<decltype(type)>(const_cast<void*>(image.data));
          v += load_some<T>(from + image.offset(n, y) + x * image.stride_w + c, some) * factor(i);
        });
      }
      return v;
    });
  });
}
