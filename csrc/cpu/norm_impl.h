// Batch norm with an activation, as training does it. Part of kernels_impl.h.
//
// An image is read as one row of values that repeats every `period` values: in channels_last a
// multiple of the channels and of a vector, so that vectors are full whatever the channels are; in
// a plane of one channel any multiple of a vector. Per-channel vectors and sums are laid out along
// the period.

// The values of a vector: all of it, or fewer at the end of a row.
struct Whole {};

template <typename T, typename In>
inline Vector<T> take(const In* from, Whole) {
  return load_wide<T>(from);
}
template <typename T, typename In>
inline Vector<T> take(const In* from, int64_t count) {
  return load_part<T>(from, count);
}
template <typename T, typename Out>
inline void put(Out* to, Vector<T> v, Whole) {
  store_narrow<T>(to, v);
}
template <typename T, typename Out>
inline void put(Out* to, Vector<T> v, int64_t count) {
  store_part<T>(to, v, count);
}
template <typename T, typename Width>
inline void add(T* sums, Vector<T> v, Width width) {
  put<T>(sums, take<T>(static_cast<const T*>(sums), width) + v, width);
}

// Calls f(index, index within the period, width) for the vectors of `count` values in turn.
template <typename T, typename F>
inline void for_periods(int64_t count, int64_t period, const F& f) {
  for (int64_t first = 0; first < count; first += period) {
    const int64_t here = smaller(period, count - first);
    int64_t at = 0;
    for (; at + lanes<T> <= here; at += lanes<T>) {
      f(first + at, at, Whole());
    }
    if (at < here) {
      f(first + at, at, here - at);
    }
  }
}

template <typename T>
void sum_values(const void* in, ScalarType dtype, int64_t count, int64_t period, T* sums) {
  with_dtype<T>(dtype, [&](auto* type) {
    const auto* from = static_cast<const std::remove_pointer_t<decltype(type)>*>(in);
    for_periods<T>(count, period, [&](int64_t i, int64_t at, auto width) {
      add<T>(sums + at, take<T>(from + i, width), width);
    });
  });
}

template <typename T>
void sum_squares(const void* in, ScalarType dtype, int64_t count, int64_t period, const T* mean,
                 T* sums) {
  with_dtype<T>(dtype, [&](auto* type) {
    const auto* from = static_cast<const std::remove_pointer_t<decltype(type)>*>(in);
    for_periods<T>(count, period, [&](int64_t i, int64_t at, auto width) {
      const Vector<T> centered = take<T>(from + i, width) - load_vector(mean + at);
      add<T>(sums + at, centered * centered, width);
    });
  });
}

template <Activation activation>
struct Fixed {
  static constexpr Activation value = activation;
};

// Calls f with a constant for the activation.
template <typename F>
inline void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::relu:
      return f(Fixed<Activation::relu>());
    case Activation::prelu:
      return f(Fixed<Activation::prelu>());
    default:
      return f(Fixed<Activation::none>());
  }
}

template <typename T>
void normalize_row(const void* in, ScalarType dtype, int64_t count, const NormRow<T>& norm,
                   void* out) {
  with_dtype<T>(dtype, [&](auto* type) {
    using In = std::remove_pointer_t<decltype(type)>;
    const In* from = static_cast<const In*>(in);
    In* to = static_cast<In*>(out);
    with_activation(norm.activation, [&](auto activation) {
      for_periods<T>(count, norm.period, [&](int64_t i, int64_t at, auto width) {
        const Vector<T> centered = take<T>(from + i, width) - load_vector(norm.mean + at);
        Vector<T> v = centered * load_vector(norm.scale + at) + load_vector(norm.shift + at);
        if constexpr (activation.value == Activation::relu) {
          v = relu<T>(v);
        } else if constexpr (activation.value == Activation::prelu) {
          v = prelu<T>(v, load_vector(norm.slope + at));
        }
        put<T>(to + i, v, width);
      });
    });
  });
}

// The gradient of what the activation took: `v`, of which `gradient` is the activation's.
template <typename T, typename A>
inline Vector<T> before_activation(A activation, const NormRow<T>& norm, int64_t at, Vector<T> v,
                                   Vector<T> gradient) {
  if constexpr (A::value == Activation::relu) {
    return v > 0 ? gradient : Vector<T>{};
  } else if constexpr (A::value == Activation::prelu) {
    return v > 0 ? gradient : gradient * load_vector(norm.slope + at);
  } else {
    return gradient;
  }
}

template <typename T>
void sum_gradients(const void* in, const void* gradient, ScalarType dtype, int64_t count,
                   const NormRow<T>& norm, T* sums, T* products, T* slopes) {
  with_dtype<T>(dtype, [&](auto* type) {
    using In = std::remove_pointer_t<decltype(type)>;
    const In *from = static_cast<const In*>(in), *back = static_cast<const In*>(gradient);
    with_activation(norm.activation, [&](auto activation) {
      for_periods<T>(count, norm.period, [&](int64_t i, int64_t at, auto width) {
        const Vector<T> centered = take<T>(from + i, width) - load_vector(norm.mean + at);
        const Vector<T> v = centered * load_vector(norm.scale + at) + load_vector(norm.shift + at);
        const Vector<T> outer = take<T>(back + i, width);
        const Vector<T> inner = before_activation<T>(activation, norm, at, v, outer);
        add<T>(sums + at, inner, width);
        add<T>(products + at, inner * centered, width);
        if constexpr (activation.value == Activation::prelu) {
          add<T>(slopes + at, v > 0 ? Vector<T>{} : v * outer, width);
        }
      });
    });
  });
}

template <typename T>
void norm_gradient(const void* in, const void* gradient, ScalarType dtype, int64_t count,
                   const NormRow<T>& norm, const T* offset, const T* factor, void* out) {
  with_dtype<T>(dtype, [&](auto* type) {
    using In = std::remove_pointer_t<decltype(type)>;
    const In *from = static_cast<const In*>(in), *back = static_cast<const In*>(gradient);
    In* to = static_cast<In*>(out);
    with_activation(norm.activation, [&](auto activation) {
      for_periods<T>(count, norm.period, [&](int64_t i, int64_t at, auto width) {
        const Vector<T> centered = take<T>(from + i, width) - load_vector(norm.mean + at);
        const Vector<T> scale = load_vector(norm.scale + at);
        const Vector<T> v = centered * scale + load_vector(norm.shift + at);
        const Vector<T> inner =
            before_activation<T>(activation, norm, at, v, take<T>(back + i, width));
        const Vector<T> rest = load_vector(offset + at) + centered * load_vector(factor + at);
        put<T>(to + i, inner * scale + rest, width);
      });
    });
  });
}
