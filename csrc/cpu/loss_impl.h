// Cross entropy of pixels, and its gradient. Part of kernels_impl.h.
//
// As many pixels as a vector has lanes are turned into planes, a vector per class, so that maxima
// and sums run over classes without leaving their lane.

// The logits of up to a vector's width of pixels, as planes; those missing are zero.
template <typename T>
inline void load_planes(const void* logits, ScalarType dtype, const LabelledPixels& pixels,
                        int64_t first, int64_t count, T* planes) {
  with_dtype<T>(dtype, [&](auto* type) {
    using In = std::remove_pointer_t<decltype(type)>;
    const In* from = static_cast<const In*>(logits) + first * pixels.classes;
    for (int64_t p = 0; p < count; p++, from += pixels.classes) {
      for (int64_t c = 0; c < pixels.classes; c++) {
        planes[c * lanes<T> + p] = widen<T>(from[c]);
      }
    }
  });
  for (int64_t p = count; p < lanes<T>; p++) {
    for (int64_t c = 0; c < pixels.classes; c++) {
      planes[c * lanes<T> + p] = 0;
    }
  }
}

template <typename T>
inline Vector<T> largest_of(const T* planes, int64_t classes) {
  Vector<T> largest = load_vector(planes);
  for (int64_t c = 1; c < classes; c++) {
    const Vector<T> v = load_vector(planes + c * lanes<T>);
    largest = v > largest ? v : largest;
  }
  return largest;
}

// Of one pixel of a group: the largest logit of its classes, and the sum of e^(logit - largest).
template <typename T>
inline void sum_group(const T* plane, const bool* allowed, int64_t classes, T* largest, T* sum) {
  *largest = -__builtin_inf();
  for (int64_t c = 0; c < classes; c++) {
    if (allowed[c] && !(plane[c * lanes<T>] <= *largest)) {
      *largest = plane[c * lanes<T>];
    }
  }
  *sum = 0;
  for (int64_t c = 0; c < classes; c++) {
    if (allowed[c]) {
      *sum += T(__builtin_exp(plane[c * lanes<T>] - *largest));
    }
  }
}

template <typename T>
void pixel_losses(const void* logits, ScalarType dtype, const LabelledPixels& pixels, int64_t begin,
                  int64_t end, T* planes, T* losses) {
  const int64_t classes = pixels.classes;
  for (int64_t first = begin; first < end; first += lanes<T>) {
    const int64_t count = smaller(lanes<T>, end - first);
    load_planes(logits, dtype, pixels, first, count, planes);
    const Vector<T> largest = largest_of(planes, classes);
    Vector<T> sum{};
    for (int64_t c = 0; c < classes; c++) {
      sum += exponential<T>(load_vector(planes + c * lanes<T>) - largest);
    }
    for (int64_t p = 0; p < count; p++) {
      const int64_t label = pixels.labels[first + p];
      T loss = 0;
      if (label != pixels.ignored) {
        loss = T(__builtin_log(sum[p]));
        if (label < classes) {
          loss -= planes[label * lanes<T> + p] - largest[p];
        } else {
          T most, members;
          sum_group(planes + p, pixels.groups + (label - classes) * classes, classes, &most,
                    &members);
          loss -= T(__builtin_log(members)) + (most - largest[p]);
        }
      }
      losses[first + p] = loss;
    }
  }
}

template <typename T>
void pixel_gradients(const void* logits, ScalarType dtype, const LabelledPixels& pixels,
                     const T* weights, int64_t begin, int64_t end, T* planes, void* out) {
  const int64_t classes = pixels.classes;
  T* const rows = planes + classes * lanes<T>;
  for (int64_t first = begin; first < end; first += lanes<T>) {
    const int64_t count = smaller(lanes<T>, end - first);
    T wanted[lanes<T>] = {};
    bool any = false;
    for (int64_t p = 0; p < count; p++) {
      wanted[p] = pixels.labels[first + p] == pixels.ignored ? T(0) : weights[first + p];
      any = any || wanted[p] != 0;
    }
    if (!any) {
      std::memset(rows, 0, count * classes * sizeof(T));
    } else {
      load_planes(logits, dtype, pixels, first, count, planes);
      const Vector<T> largest = largest_of(planes, classes);
      T most[lanes<T>], members[lanes<T>];
      for (int64_t p = 0; p < count; p++) {
        const int64_t group = pixels.labels[first + p] - classes;
        if (wanted[p] != 0 && group >= 0) {
          sum_group(planes + p, pixels.groups + group * classes, classes, most + p, members + p);
        }
      }
      // The members' part of the gradient, which needs the logits, in the rows; then the softmax.
      for (int64_t p = 0; p < count; p++) {
        const int64_t label = pixels.labels[first + p];
        T* const row = rows + p * classes;
        std::memset(row, 0, classes * sizeof(T));
        if (wanted[p] != 0 && label < classes) {
          row[label] = -1;
        } else if (wanted[p] != 0) {
          const bool* const allowed = pixels.groups + (label - classes) * classes;
          for (int64_t c = 0; c < classes; c++) {
            if (allowed[c]) {
              row[c] = -T(__builtin_exp(planes[c * lanes<T> + p] - most[p])) / members[p];
            }
          }
        }
      }
      Vector<T> sum{};
      for (int64_t c = 0; c < classes; c++) {
        const Vector<T> e = exponential<T>(load_vector(planes + c * lanes<T>) - largest);
        store_vector(planes + c * lanes<T>, e);
        sum += e;
      }
      for (int64_t p = 0; p < count; p++) {
        T* const row = rows + p * classes;
        const T inverse = 1 / sum[p];
        for (int64_t c = 0; c < classes; c++) {
          // What does not count gets none, whatever its logits are.
          row[c] =
              wanted[p] == 0 ? T(0) : (planes[c * lanes<T> + p] * inverse + row[c]) * wanted[p];
        }
      }
    }
    with_dtype<T>(dtype, [&](auto* type) {
      auto* const to = static_cast<decltype(type)>(out) + first * classes;
      store<T>(rows, to, dtype, count * classes);
    });
  }
}
