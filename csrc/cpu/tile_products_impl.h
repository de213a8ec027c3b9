// What multiplies tiles: 16 pixels x 64 bytes of terms by these terms x 16 outputs, added to one of
// four tiles of sums: 32 terms of bfloat16, summed up in float32, or 64 of bytes without a sign by
// weights with one, summed up exactly in 32 bits. Part of kernels_impl.h.

#if defined(FASSD_AVX512) && defined(FASSD_AMX)
// The registers of this CPU: sums in 0 to 3, pixels in 4 and 5, weights in 6 and 7. The compiler's
// own functions take their numbers as literals only.
template <typename Element_>
struct TileRegisters {
  using Element = Element_;
  using Sum = std::conditional_t<sizeof(Element) == 1, int32_t, float>;
  static constexpr bool native = true;

  static void begin() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const all{};
    __asm__ volatile("" : : "r"(&all) : "memory");  // all of it is read, which GCC does not know
    _tile_loadconfig(&all);
  }
  static void end() { _tile_release(); }

  void limit(int64_t) {}
  void zero(int64_t) {
    // What was stored to memory is there before it is loaded as a tile.
    __asm__ volatile("" ::: "memory");
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  template <int i>
  void load_pixels(const Element* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(4 + i));
  }
  template <int j>
  void load_weights(const Element* from) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(int64_t(64)), "i"(6 + j));
  }
  template <int sum, int i, int j>
  void multiply() {
    if constexpr (sizeof(Element) == 1) {
      __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(4 + i), "i"(6 + j));
    } else {
      __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                       :
                       : "i"(sum), "i"(4 + i), "i"(6 + j));
    }
  }
  template <int sum>
  void store(Sum* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(to), "r"(stride), "i"(sum)
                     : "memory");
  }
};
#endif

#if defined(FASSD_AVX512)
// Products of bytes by AVX512-VNNI, which a CPU of AVX-512 may have without tiles: four terms of a
// pixel by those of 16 outputs. Written out, since only what is compiled for this may have it.
struct ByteVectors {
  using Element = uint8_t;
  using Sum = int32_t;
  static constexpr bool native = false;

  static void begin() {}
  static void end() {}

  void zero(int64_t) { std::memset(sums_, 0, sizeof(sums_)); }
  // Terms from there on are zero.
  void limit(int64_t terms) { terms_ = smaller(terms, 64); }
  template <int i>
  void load_pixels(const uint8_t* from, int64_t stride) {
    pixels_[i] = from;
    stride_ = stride;
  }
  template <int j>
  void load_weights(const uint8_t* from) {
    weights_[j] = from;
  }
  template <int sum, int i, int j>
  void multiply() {
    __m512i sums[16];
#pragma GCC unroll 16
    for (int p = 0; p < 16; p++) {
      sums[p] = sums_[sum][p];
    }
    // Four pixels by one address each, which leaves the registers that the others' would take.
    const int64_t stride = stride_, three = 3 * stride_;
    const uint8_t* at[4];
    for (int q = 0; q < 4; q++) {
      at[q] = pixels_[i] + 4 * q * stride;
    }
    const uint8_t* weight = weights_[j];
    const uint8_t* const end = weight + 16 * terms_;
#pragma GCC unroll 1
    for (; weight < end; weight += 64) {
      const __m512i weights = _mm512_loadu_si512(weight);
#pragma GCC unroll 4
      for (int q = 0; q < 4; q++) {
        add(sums[4 * q], at[q], weights);
        add(sums[4 * q + 1], at[q] + stride, weights);
        add(sums[4 * q + 2], at[q] + 2 * stride, weights);
        add(sums[4 * q + 3], at[q] + three, weights);
        at[q] += 4;
      }
    }
#pragma GCC unroll 16
    for (int p = 0; p < 16; p++) {
      sums_[sum][p] = sums[p];
    }
  }
  template <int sum>
  void store(int32_t* to, int64_t stride) const {
    for (int p = 0; p < 16; p++) {
      _mm512_storeu_si512(reinterpret_cast<char*>(to) + p * stride, sums_[sum][p]);
    }
  }

 private:
  // A pixel's four terms times those of 16 outputs.
  [[gnu::always_inline]] static inline void add(__m512i& sums, const uint8_t* pixel,
                                                __m512i weights) {
    int32_t terms;
    std::memcpy(&terms, pixel, sizeof(terms));
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(_mm512_set1_epi32(terms)), "v"(weights));
  }

  __m512i sums_[4][16];
  const uint8_t *pixels_[2], *weights_[2];
  int64_t stride_, terms_;
};
#endif

#if defined(FASSD_NEON) && defined(FASSD_BF16)
// Products of matrices of Armv8.6, which some CPUs of Armv8.2 have: 2 pixels x 4 terms by 4 terms x
// 2 outputs. Sums lie in memory, as 2 x 2 of every pair of pixels and pair of outputs; those of 8
// pixels x 8 outputs are in registers for 32 terms.
struct TileMatrices {
  using Element = uint16_t;
  using Sum = float;
  static constexpr bool native = false;

  static void begin() {}
  static void end() {}

  void limit(int64_t) {}
  void zero(int64_t outputs) {
    outputs_ = outputs;
    std::memset(sums_, 0, sizeof(sums_));
  }
  template <int i>
  void load_pixels(const uint16_t* from, int64_t stride) {
    pixels_[i] = from;
    stride_ = stride / 2;
  }
  template <int j>
  void load_weights(const uint16_t* from) {
    weights_[j] = from;
  }
  template <int sum, int i, int j>
  void multiply() {
    for (int64_t first = 0; first < smaller(16, outputs_ - 16 * j); first += 8) {
      multiply_block(pixels_[i], weights_[j] + 2 * first, &sums_[sum][0][first / 2]);
      multiply_block(pixels_[i] + 8 * stride_, weights_[j] + 2 * first, &sums_[sum][4][first / 2]);
    }
  }
  template <int sum>
  void store(float* to, int64_t stride) const {
    for (int p = 0; p < 8; p++) {
      for (int o = 0; o < 8; o += 2) {
        const float64x2_t a = vreinterpretq_f64_f32(sums_[sum][p][o]);
        const float64x2_t b = vreinterpretq_f64_f32(sums_[sum][p][o + 1]);
        float* const even = to + 2 * p * (stride / int64_t(sizeof(float))) + 2 * o;
        vst1q_f32(even, vreinterpretq_f32_f64(vzip1q_f64(a, b)));
        vst1q_f32(even + stride / sizeof(float), vreinterpretq_f32_f64(vzip2q_f64(a, b)));
      }
    }
  }

 private:
  // Terms [0, 32) of 8 pixels by 8 outputs: [pair of terms][output][term of the pair], 16 outputs.
  __attribute__((target("arch=armv8.2-a+bf16"), noinline)) void multiply_block(
      const uint16_t* pixels, const uint16_t* weights, float32x4_t* sums) const {
    float32x4_t sum[4][4];
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
#pragma GCC unroll 4
      for (int o = 0; o < 4; o++) {
        sum[p][o] = sums[8 * p + o];
      }
    }
    // Four terms at a time. Unrolled, the loop would need more registers than there are.
#pragma GCC unroll 1
    for (int k = 0; k < 8; k++, pixels += 4, weights += 2 * 32) {
      bfloat16x8_t two[4], pair[4];  // two pixels' terms, two outputs'
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) {
        const uint16_t* const from = pixels + 2 * p * stride_;
        two[p] = vreinterpretq_bf16_u16(vcombine_u16(vld1_u16(from), vld1_u16(from + stride_)));
      }
#pragma GCC unroll 2
      for (int o = 0; o < 4; o += 2) {
        const uint32x4_t first = vreinterpretq_u32_u16(vld1q_u16(weights + 4 * o));
        const uint32x4_t second = vreinterpretq_u32_u16(vld1q_u16(weights + 4 * o + 32));
        pair[o] = vreinterpretq_bf16_u32(vzip1q_u32(first, second));
        pair[o + 1] = vreinterpretq_bf16_u32(vzip2q_u32(first, second));
      }
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) {
#pragma GCC unroll 4
        for (int o = 0; o < 4; o++) {
          sum[p][o] = vbfmmlaq_f32(sum[p][o], two[p], pair[o]);
        }
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
#pragma GCC unroll 4
      for (int o = 0; o < 4; o++) {
        sums[8 * p + o] = sum[p][o];
      }
    }
  }

  float32x4_t sums_[4][8][8];
  const uint16_t *pixels_[2], *weights_[2];
  int64_t stride_, outputs_;
};
#endif

// The same in plain C++, where there is no such CPU: it proves the kernels, and multiplies bytes.
template <typename Element_>
struct TileEmulation {
  using Element = Element_;
  using Sum = std::conditional_t<sizeof(Element) == 1, int32_t, float>;
  static constexpr bool native = false;
  static constexpr int terms = 64 / sizeof(Element), group = 4 / sizeof(Element);

  // In this order: at the same place in both, GCC 12 folds their functions, and warns of the
  // bounds.
  Sum weights[2][terms][16], sums[4][16][16];
  const Element* pixels[2];
  int64_t apart;  // bytes from pixel to pixel
  int64_t count;  // terms that are not zero

  static void begin() {}
  static void end() {}

  static float value(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float v;
    std::memcpy(&v, &wide, sizeof(v));
    return v;
  }
  static int32_t value(uint8_t byte) { return byte; }
  static float weight(uint16_t bits) { return value(bits); }
  static int32_t weight(uint8_t byte) { return int8_t(byte); }

  void zero(int64_t) { std::memset(sums, 0, sizeof(sums)); }
  void limit(int64_t given) { count = smaller(given, terms); }
  template <int i>
  void load_pixels(const Element* from, int64_t stride) {
    pixels[i] = from;
    apart = stride;
  }
  template <int j>
  void load_weights(const Element* from) {
    for (int t = 0; t < terms; t++) {
      for (int o = 0; o < 16; o++) {
        weights[j][t][o] = weight(from[(t / group * 16 + o) * group + t % group]);
      }
    }
  }
  template <int sum, int i, int j>
  void multiply() {
    for (int p = 0; p < 16; p++) {
      const Element* const pixel = pixels[i] + p * apart / int64_t(sizeof(Element));
      for (int64_t t = 0; t < count; t++) {
        const Sum x = value(pixel[t]);
        for (int o = 0; o < 16; o++) {
          sums[sum][p][o] += x * weights[j][t][o];
        }
      }
    }
  }
  template <int sum>
  void store(Sum* to, int64_t stride) {
    for (int p = 0; p < 16; p++) {
      std::memcpy(reinterpret_cast<char*>(to) + p * stride, sums[sum][p], 64);
    }
  }
};
