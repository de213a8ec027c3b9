// Vectors of one instruction set: loads and stores of every dtype, whole and in part, and the
// transposition of a square of them. Part of kernels_impl.h.

constexpr int vector_bytes = FASSD_VECTOR_BYTES;

template <typename T>
constexpr int lanes = vector_bytes / int(sizeof(T));

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}
inline int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}
// Rounded towards minus infinity; b is positive.
inline int64_t floor_div(int64_t a, int64_t b) {
  return a >= 0 ? a / b : -((b - 1 - a) / b);
}
inline int64_t ceil_div(int64_t a, int64_t b) {
  return -floor_div(-a, b);
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
inline void store_vector(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}

template <typename T>
inline Vector<T> broadcast(T value) {
  return value - Vector<T>{};
}

// Copies fewer than `most` values. In powers of two, because a memcpy of unknown length is a call,
// which the narrow layers (31, 59, 63 channels) would make for every pixel.
template <int most, typename T>
inline void copy_tail(const T* from, T* to, int64_t count) {
#pragma GCC unroll 4
  for (int step = most / 2; step > 0; step /= 2) {
    if (count & step) {
      std::memcpy(to, from, step * sizeof(T));
      from += step;
      to += step;
    }
  }
}

// Comparisons are false for NaN, which therefore stays, as in torch.relu and torch.prelu.
template <typename T>
inline Vector<T> relu(Vector<T> v) {
#if defined(FASSD_AVX512)
  if constexpr (sizeof(T) == 4) {
    return Vector<T>(_mm512_max_ps(_mm512_setzero_ps(), __m512(v)));  // the second where one is NaN
  }
#endif
  return v < 0 ? Vector<T>{} : v;
}

template <typename T>
inline Vector<T> prelu(Vector<T> v, Vector<T> slope) {
  return v > 0 ? v : v * slope;
}

// min(max(v, 0), 6).
template <typename T>
inline Vector<T> up_to_six(Vector<T> v) {
  return v > 6 ? broadcast<T>(6) : relu<T>(v);
}

// e^v. Of floats within two units in the last place, 0 up to -88 and infinite from 88.4 on: v is
// n log(2) and a rest of at most log(2) / 2, whose series is cut off after the sixth power and its
// coefficients fitted anew.
template <typename T>
inline Vector<T> exponential(Vector<T> v) {
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < lanes<T>; i++) {
      v[i] = __builtin_exp(v[i]);
    }
    return v;
  } else {
    constexpr T log2_e = 1.44269504f, log_2_high = 0.693359375f, log_2_low = -2.12194440e-4f;
    constexpr T shift = 12582912.0f;  // added to n, its last bits are those of n
    v = v < -88 ? broadcast<T>(-88) : v;
    v = v > 89 ? broadcast<T>(89) : v;
    const Vector<T> shifted = v * log2_e + shift, n = shifted - shift;
    const Vector<T> rest = v - n * log_2_high - n * log_2_low;
    Vector<T> sum = rest * 0.00138144672f + 0.00836878084f;
    sum = sum * rest + 0.0416683927f;
    sum = sum * rest + 0.166665196f;
    sum = sum * rest + 0.499999940f;
    sum = sum * rest * rest + rest + 1;
    return sum * Vector<T>((Vector<uint32_t>(shifted) + 127) << 23);
  }
}

// ln v of normal numbers above 0, of floats within 2e-5: of m = v / 2^k in [1, 2), the series of
// 2 artanh((m - 1) / (m + 1)).
template <typename T>
inline Vector<T> logarithm(Vector<T> v) {
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < lanes<T>; i++) {
      v[i] = __builtin_log(v[i]);
    }
    return v;
  } else {
    const Vector<int32_t> bits = Vector<int32_t>(v);
    const Vector<T> power = __builtin_convertvector((bits >> 23) - 127, Vector<T>);
    const Vector<T> m = Vector<T>((bits & 0x7FFFFF) | 0x3F800000);
    const Vector<T> s = (m - 1) / (m + 1), square = s * s;
    const Vector<T> series = ((square * (1.0f / 7) + 0.2f) * square + 1.0f / 3) * square + 1;
    return power * 0.693147181f + 2 * s * series;
  }
}

// erfc(v) of v >= 0, floats within a few units in the last place: e^(-v v) t p(t), t = 1 / (1 + 0.4
// v), where the polynomial p is fitted to what erfcx(v) / t is up to v = 10.
template <typename T>
inline Vector<T> complementary_error(Vector<T> v) {
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < lanes<T>; i++) {
      v[i] = __builtin_erfc(v[i]);
    }
    return v;
  } else {
    const Vector<T> t = 1 / (v * 0.4f + 1);
    Vector<T> sum = t * 0.0412530415f - 0.140319243f;
    sum = sum * t + 0.0839873031f;
    sum = sum * t + 0.0879643261f;
    sum = sum * t + 0.0797564983f;
    sum = sum * t + 0.193393201f;
    sum = sum * t + 0.201887593f;
    sum = sum * t + 0.226443112f;
    sum = sum * t + 0.225634232f;
    return sum * t * exponential<T>(-v * v);
  }
}

// The activations by the exponential function. Not inlined: the loops of the others keep their
// registers.
template <typename T>
[[gnu::noinline]] Vector<T> curve(Vector<T> v, Activation activation) {
  if (activation == Activation::gelu) {
    const Vector<T> tail =
        complementary_error<T>((v < 0 ? -v : v) * T(0.70710678118654752)) * T(0.5);
    return v * (v < 0 ? tail : 1 - tail);
  }
  if (activation == Activation::gelu_tanh) {  // (1 + tanh(u)) / 2 = sigmoid(2 u)
    const Vector<T> u = v * (v * v * T(0.044715) + 1) * T(0.79788456080286536);
    return v / (exponential<T>(-2 * u) + 1);
  }
  const Vector<T> weight = exponential<T>(-v) + 1;
  return (activation == Activation::silu ? v : broadcast<T>(1)) / weight;
}

template <typename T>
inline Vector<T> activate(Vector<T> v, Activation activation, Vector<T> slope) {
  switch (activation) {
    case Activation::none:
      return v;
    case Activation::relu:
      return relu<T>(v);
    case Activation::prelu:
      return prelu<T>(v, slope);
    case Activation::relu6:
      return up_to_six<T>(v);
    case Activation::hardsigmoid:
      return up_to_six<T>(v + 3) * T(1.0 / 6);
    case Activation::hardswish:
      return v * (up_to_six<T>(v + 3) * T(1.0 / 6));
    default:
      return curve<T>(v, activation);
  }
}

// The larger of a and |b|, lane by lane; NaN counts as larger than all else. As integers, the bits
// of magnitudes are in their order, with infinity and then NaN at the end.
template <typename T>
inline Vector<T> larger_magnitude(Vector<T> a, Vector<T> b) {
  using Bits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  const Vector<Bits> magnitude = Vector<Bits>(b) & ~(Bits(1) << (8 * sizeof(T) - 1));
  const Vector<Bits> so_far = Vector<Bits>(a);
  return Vector<T>(magnitude > so_far ? magnitude : so_far);
}

// --- dtypes in memory ----------------------------------------------------------------------------

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Scalars.
template <typename T>
inline T widen(float v) {
  return v;
}
template <typename T>
inline T widen(double v) {
  return T(v);
}
template <typename T>
inline T widen(uint8_t v) {
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

#if defined(FASSD_AVX512)
// Sixteen bfloat16 are the upper halves of as many floats; back, rounded to the nearest, ties to
// even, and NaN kept from becoming infinite.
inline __m512 from_bfloat16(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
inline __m256i to_bfloat16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q),
                                  _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
#elif defined(FASSD_F16C)
inline __m256 from_bfloat16(__m128i v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
inline __m128i to_bfloat16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v), one = _mm256_set1_epi32(1);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256 kept = _mm256_blendv_ps(_mm256_castsi256_ps(rounded),
                                       _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)),
                                       _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(kept), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
#elif defined(FASSD_NEON)
inline float32x4_t from_bfloat16(uint16x4_t v) {
  return vreinterpretq_f32_u32(vshll_n_u16(v, 16));
}
inline uint16x4_t to_bfloat16(float32x4_t v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, vdupq_n_u32(0x7fc00000)), 16);
}
#endif

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

// A vector of T from as many adjacent values of In.
template <typename T, typename In>
inline Vector<T> load_wide(const In* from) {
  if constexpr (std::is_same_v<T, In>) {
    return load_vector(from);
#if defined(FASSD_AVX512)
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<In, Half>) {
    return Vector<T>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<In, BFloat16>) {
    return Vector<T>(from_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<In, uint8_t>) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return Vector<T>(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
#elif defined(FASSD_F16C)
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<In, Half>) {
    return Vector<T>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<In, BFloat16>) {
    return Vector<T>(from_bfloat16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<In, uint8_t>) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return Vector<T>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
#elif defined(FASSD_NEON)
  } else if constexpr (std::is_same_v<T, float> && sizeof(In) == 2) {
    const uint16x4_t bits = vld1_u16(reinterpret_cast<const uint16_t*>(from));
    if constexpr (std::is_same_v<In, Half>) {
      return Vector<T>(vcvt_f32_f16(vreinterpret_f16_u16(bits)));
    } else {
      return Vector<T>(from_bfloat16(bits));
    }
#endif
  } else {
    T values[lanes<T>];
    for (int i = 0; i < lanes<T>; i++) {
      values[i] = widen<T>(from[i]);
    }
    return load_vector(values);
  }
}

// The same of `count` values, fewer than a vector holds; the other lanes are zero.
template <typename T, typename In>
inline Vector<T> load_part(const In* from, int64_t count) {
#if defined(FASSD_AVX512)
  const __mmask16 mask = __mmask16((1u << count) - 1);
  if constexpr (std::is_same_v<T, float> && std::is_same_v<In, float>) {
    return Vector<T>(_mm512_maskz_loadu_ps(mask, from));
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<In, Half>) {
    return Vector<T>(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from)));
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<In, BFloat16>) {
    return Vector<T>(from_bfloat16(_mm256_maskz_loadu_epi16(mask, from)));
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<In, uint8_t>) {
    return Vector<T>(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, from))));
  }
#endif
  In values[lanes<T>] = {};
  copy_tail<lanes<T>>(from, values, count);
  return load_wide<T>(static_cast<const In*>(values));
}

template <typename T, typename Out>
inline void store_narrow(Out* to, Vector<T> v) {
  if constexpr (std::is_same_v<T, Out>) {
    store_vector(to, v);
#if defined(FASSD_AVX512)
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<Out, Half>) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(__m512(v), 0));
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<Out, BFloat16>) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bfloat16(__m512(v)));
#elif defined(FASSD_F16C)
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<Out, Half>) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(__m256(v), 0));
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<Out, BFloat16>) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), to_bfloat16(__m256(v)));
#elif defined(FASSD_NEON)
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<Out, Half>) {
    vst1_u16(reinterpret_cast<uint16_t*>(to), vreinterpret_u16_f16(vcvt_f16_f32(float32x4_t(v))));
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<Out, BFloat16>) {
    vst1_u16(reinterpret_cast<uint16_t*>(to), to_bfloat16(float32x4_t(v)));
#endif
  } else {
    T values[lanes<T>];
    store_vector(values, v);
    for (int i = 0; i < lanes<T>; i++) {
      to[i] = narrow<Out>(values[i]);
    }
  }
}

template <typename T, typename Out>
inline void store_part(Out* to, Vector<T> v, int64_t count) {
#if defined(FASSD_AVX512)
  const __mmask16 mask = __mmask16((1u << count) - 1);
  if constexpr (std::is_same_v<T, float> && std::is_same_v<Out, float>) {
    _mm512_mask_storeu_ps(to, mask, __m512(v));
    return;
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<Out, Half>) {
    _mm256_mask_storeu_epi16(to, mask, _mm512_cvtps_ph(__m512(v), 0));
    return;
  } else if constexpr (std::is_same_v<T, float> && std::is_same_v<Out, BFloat16>) {
    _mm256_mask_storeu_epi16(to, mask, to_bfloat16(__m512(v)));
    return;
  }
#endif
  Out values[lanes<T>];
  store_narrow<T>(values, v);
  copy_tail<lanes<T>>(values, to, count);
}

// Calls f with a null pointer of the type that `dtype` names, among those that are computed in T:
// double alone in double, the others in float.
template <typename T, typename F>
inline void with_dtype(ScalarType dtype, const F& f) {
  if constexpr (sizeof(T) == 8) {
    return f(static_cast<double*>(nullptr));
  } else {
    switch (dtype) {
      case ScalarType::Half:
        return f(static_cast<Half*>(nullptr));
      case ScalarType::BFloat16:
        return f(static_cast<BFloat16*>(nullptr));
      default:
        return f(static_cast<float*>(nullptr));
    }
  }
}

// The same of a result, which may also be of bytes.
template <typename T, bool bytes, typename F>
inline void with_result(ScalarType dtype, const F& f) {
  if constexpr (bytes) {
    if (dtype == ScalarType::Byte) {
      return f(static_cast<uint8_t*>(nullptr));
    }
  }
  with_dtype<T>(dtype, f);
}

// The same of what is read and what is written: both of one type, or what is read is a copy in T.
template <typename T, typename F>
inline void with_types(ScalarType in, ScalarType out, const F& f) {
  with_dtype<T>(in, [&](auto* from) {
    using In = std::remove_pointer_t<decltype(from)>;
    with_dtype<T>(out, [&](auto* to) {
      using Out = std::remove_pointer_t<decltype(to)>;
      if constexpr (std::is_same_v<In, Out> || std::is_same_v<In, T>) {
        f(static_cast<In*>(nullptr), to);
      }
    });
  });
}

template <typename T>
inline Vector<T> load_channels(const void* base, ScalarType dtype, int64_t offset, int64_t count) {
  Vector<T> v{};
  with_dtype<T>(dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(const_cast<void*>(base)) + offset;
    v = count < lanes<T> ? load_part<T>(from, count) : load_wide<T>(from);
  });
  return v;
}

// --- transposition -------------------------------------------------------------------------------

// result[i] = (a, b)[index[i]], as __builtin_shufflevector.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FASSD_SHUFFLEVECTOR
#endif
#endif

template <typename T, int... index>
inline Vector<T> shuffled(Vector<T> a, Vector<T> b) {
#if defined(FASSD_SHUFFLEVECTOR)
  return __builtin_shufflevector(a, b, index...);
#else
  using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  const Vector<Index> order = {index...};
  return __builtin_shuffle(a, b, order);
#endif
}

// Which of the 2 x lanes values of a pair goes to lane `i`, in the two kinds of steps: interleaving
// runs of `run` values within each 16 bytes, and gathering every other 16 bytes.
template <typename T>
constexpr int interleave_index(int run, bool high, int i) {
  constexpr int quad = 16 / int(sizeof(T));
  const int block = i / quad, within = i % quad;
  const int source = within / run % 2, position = within / (2 * run) * run + within % run;
  return block * quad + position + (high ? quad / 2 : 0) + source * lanes<T>;
}
template <typename T>
constexpr int gather_index(bool odd, int i) {
  constexpr int quad = 16 / int(sizeof(T));
  constexpr int blocks = lanes<T> / quad;
  const int block = 2 * (i / quad) + (odd ? 1 : 0);  // among the blocks of both
  return block % blocks * quad + i % quad + block / blocks * lanes<T>;
}

template <typename T, int run, bool high, int... i>
inline Vector<T> interleaved(Vector<T> a, Vector<T> b, std::integer_sequence<int, i...>) {
  return shuffled<T, interleave_index<T>(run, high, i)...>(a, b);
}
template <typename T, bool odd, int... i>
inline Vector<T> gathered(Vector<T> a, Vector<T> b, std::integer_sequence<int, i...>) {
  return shuffled<T, gather_index<T>(odd, i)...>(a, b);
}

// Transposes rows[0 .. lanes) in place. In each 16 bytes by interleaving; then the 16-byte blocks
// among rows, by taking all even and all odd ones of two rows, as often as a row has halves.
template <typename T>
inline void transpose(Vector<T>* rows) {
  constexpr int n = lanes<T>;
  constexpr int quad = 16 / int(sizeof(T));
  constexpr auto all = std::make_integer_sequence<int, n>();
  Vector<T> t[n];
  if constexpr (quad == 4) {
#pragma GCC unroll 16
    for (int i = 0; i < n; i += 4) {
      const Vector<T> a = interleaved<T, 1, false>(rows[i], rows[i + 1], all);
      const Vector<T> b = interleaved<T, 1, true>(rows[i], rows[i + 1], all);
      const Vector<T> c = interleaved<T, 1, false>(rows[i + 2], rows[i + 3], all);
      const Vector<T> d = interleaved<T, 1, true>(rows[i + 2], rows[i + 3], all);
      t[i] = interleaved<T, 2, false>(a, c, all);
      t[i + 1] = interleaved<T, 2, true>(a, c, all);
      t[i + 2] = interleaved<T, 2, false>(b, d, all);
      t[i + 3] = interleaved<T, 2, true>(b, d, all);
    }
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < n; i += 2) {
      t[i] = interleaved<T, 1, false>(rows[i], rows[i + 1], all);
      t[i + 1] = interleaved<T, 1, true>(rows[i], rows[i + 1], all);
    }
  }
  // Now block k of t[g * quad + j] is column k * quad + j of rows [g * quad, (g + 1) * quad).
  if constexpr (n == quad) {
#pragma GCC unroll 16
    for (int i = 0; i < n; i++) {
      rows[i] = t[i];
    }
  } else if constexpr (n == 2 * quad) {
#pragma GCC unroll 16
    for (int j = 0; j < quad; j++) {
      rows[j] = gathered<T, false>(t[j], t[quad + j], all);
      rows[quad + j] = gathered<T, true>(t[j], t[quad + j], all);
    }
  } else {
#pragma GCC unroll 16
    for (int j = 0; j < quad; j++) {
      const Vector<T> a = t[j], b = t[quad + j], c = t[2 * quad + j], d = t[3 * quad + j];
      const Vector<T> ab_even = gathered<T, false>(a, b, all),
                      ab_odd = gathered<T, true>(a, b, all);
      const Vector<T> cd_even = gathered<T, false>(c, d, all),
                      cd_odd = gathered<T, true>(c, d, all);
      rows[j] = gathered<T, false>(ab_even, cd_even, all);
      rows[2 * quad + j] = gathered<T, true>(ab_even, cd_even, all);
      rows[quad + j] = gathered<T, false>(ab_odd, cd_odd, all);
      rows[3 * quad + j] = gathered<T, true>(ab_odd, cd_odd, all);
    }
  }
}
