// Convolution of bfloat16 by products of tiles (AMX). Part of kernels_impl.h.
//
// A tile register holds 16 rows of 64 bytes. One instruction multiplies 16 pixels x 32 terms by 32
// terms x 16 output channels, and adds to 16 x 16 sums in float32: 8,192 multiply-adds, where the
// vectors' instruction has 16. So that nothing is transposed, a strip's input rows lie in scratch
// memory as images do, all channels of a column side by side:
//
//     row[column][channel], bfloat16, of the virtual concatenation, zero outside the image
//
// A tile of pixels is 16 of its columns, `stride_w` apart, from one term on. Terms that follow each
// other in memory are multiplied together: those of all taps of a row of the kernel, or of one tap
// where they are dilated. What a last tile has beyond them meets weights of zero. Values that are
// not finite would spread that way: rows that have one are convolved directly.

struct TilePlan : TileLayout {
  static constexpr int64_t pixels = 16;
  int64_t width;    // output pixels of a strip
  int64_t columns;  // of the input, that it reads
  int64_t slot;     // values of a row

  template <typename T>
  explicit TilePlan(const Conv<T>& conv)
      : TileLayout(conv.in_channels, conv.kernel_w, conv.dilation_w) {
    // The rows that an output row reads stay in the second level of the cache.
    constexpr int64_t bytes = 256 * 1024, most = 1024;
    const int64_t pixel = conv.kernel_h * conv.stride_w * conv.in_channels * 2;
    width = smaller(larger(bytes / pixel / (2 * pixels), 1), most / (2 * pixels)) * 2 * pixels;
    width = smaller(width, round_up(conv.out_width, 2 * pixels));
    columns = (width - 1) * conv.stride_w + (conv.kernel_w - 1) * conv.dilation_w + 1;
    slot = round_up(columns * conv.in_channels + 2 * terms, terms);
  }

  // Values of float that scratch memory has: rows, and the sums of 32 x 32.
  template <typename T>
  int64_t total(const Conv<T>& conv) const {
    return conv.kernel_h * slot / 2 + 4 * pixels * outputs;
  }
};

#if defined(FASSD_AVX512) && defined(FASSD_AMX)
// The registers of this CPU: sums in 0 to 3, pixels in 4 and 5, weights in 6 and 7. Their numbers
// have to be literals.
struct TileRegisters {
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

  void zero(int64_t) {
    // What was stored to memory is there before it is loaded as a tile.
    __asm__ volatile("" ::: "memory");
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  template <int i>
  void load_pixels(const uint16_t* from, int64_t stride) {
    if constexpr (i == 0) {
      _tile_loadd(4, from, stride);
    } else {
      _tile_loadd(5, from, stride);
    }
  }
  template <int j>
  void load_weights(const uint16_t* from) {
    if constexpr (j == 0) {
      _tile_loadd(6, from, 64);
    } else {
      _tile_loadd(7, from, 64);
    }
  }
  template <int i, int j>
  void multiply() {
    if constexpr (i == 0 && j == 0) {
      _tile_dpbf16ps(0, 4, 6);
    } else if constexpr (i == 0) {
      _tile_dpbf16ps(1, 4, 7);
    } else if constexpr (j == 0) {
      _tile_dpbf16ps(2, 5, 6);
    } else {
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  template <int i, int j>
  void store(float* to, int64_t stride) {
    if constexpr (i == 0 && j == 0) {
      _tile_stored(0, to, stride);
    } else if constexpr (i == 0) {
      _tile_stored(1, to, stride);
    } else if constexpr (j == 0) {
      _tile_stored(2, to, stride);
    } else {
      _tile_stored(3, to, stride);
    }
    __asm__ volatile("" ::: "memory");
  }
};
#endif

#if defined(FASSD_NEON) && defined(FASSD_BF16)
// Products of matrices of Armv8.6, which some CPUs of Armv8.2 have: 2 pixels x 4 terms by 4 terms x
// 2 outputs. Sums lie in memory, as 2 x 2 of every pair of pixels and pair of outputs; those of 8
// pixels x 8 outputs are in registers for 32 terms.
struct TileMatrices {
  static constexpr bool native = false;

  static void begin() {}
  static void end() {}

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
  template <int i, int j>
  void multiply() {
    for (int64_t first = 0; first < smaller(16, outputs_ - 16 * j); first += 8) {
      multiply_block(pixels_[i], weights_[j] + 2 * first, &sums_[i][j][0][first / 2]);
      multiply_block(pixels_[i] + 8 * stride_, weights_[j] + 2 * first, &sums_[i][j][4][first / 2]);
    }
  }
  template <int i, int j>
  void store(float* to, int64_t stride) const {
    for (int p = 0; p < 8; p++) {
      for (int o = 0; o < 8; o += 2) {
        const float64x2_t a = vreinterpretq_f64_f32(sums_[i][j][p][o]);
        const float64x2_t b = vreinterpretq_f64_f32(sums_[i][j][p][o + 1]);
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

  float32x4_t sums_[2][2][8][8];
  const uint16_t *pixels_[2], *weights_[2];
  int64_t stride_, outputs_;
};
#endif

// The same in plain C++, which proves the kernel where there is no such CPU.
struct TileEmulation {
  static constexpr bool native = false;

  float sums[2][2][16][16];
  uint16_t pixels[2][16][32], weights[2][16][32];

  static void begin() {}
  static void end() {}

  static float value(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float v;
    std::memcpy(&v, &wide, sizeof(v));
    return v;
  }

  void zero(int64_t) { std::memset(sums, 0, sizeof(sums)); }
  template <int i>
  void load_pixels(const uint16_t* from, int64_t stride) {
    for (int row = 0; row < 16; row++) {
      std::memcpy(pixels[i][row], reinterpret_cast<const char*>(from) + row * stride, 64);
    }
  }
  template <int j>
  void load_weights(const uint16_t* from) {
    std::memcpy(weights[j], from, sizeof(weights[j]));
  }
  template <int i, int j>
  void multiply() {
    for (int p = 0; p < 16; p++) {
      for (int t = 0; t < 32; t++) {
        const float x = value(pixels[i][p][t]);
        for (int o = 0; o < 16; o++) {
          sums[i][j][p][o] += x * value(weights[j][t / 2][2 * o + t % 2]);
        }
      }
    }
  }
  template <int i, int j>
  void store(float* to, int64_t stride) {
    for (int p = 0; p < 16; p++) {
      std::memcpy(reinterpret_cast<char*>(to) + p * stride, sums[i][j][p], 64);
    }
  }
};

template <typename T, typename Tiles>
class TileStrip {
 public:
  TileStrip(const Conv<T>& conv, const TilePlan& plan, const Part& part, int64_t x0, T* scratch)
      : conv_(conv),
        plan_(plan),
        part_(part),
        x0_(x0),
        pixels_(smaller(plan.width, part.last_column - x0)),
        taps_(conv),
        in_place_(reads_in_place(conv) && pixels_ % (2 * TilePlan::pixels) == 0),
        pixel_(in_place_ ? conv.inputs[0].stride_w : conv.stride_w * conv.in_channels),
        sums_(scratch),
        rows_(reinterpret_cast<uint16_t*>(sums_ + 4 * TilePlan::pixels * TilePlan::outputs)),
        rest_(scratch + plan.total(conv)) {}

  void row(int64_t y) {
    if (!gather(y)) {
      // The products' registers keep what they have; other kernels know nothing of them.
      convolve_directly(conv_, conv_.direct_weights(conv_.owner),
                        {part_.n, y, y + 1, x0_, x0_ + pixels_}, rest_);
      return;
    }
    taps_.look_ahead(ahead_, part_, y, x0_, pixels_, plan_.width);
    ahead_.spread(ceil_div(conv_.out_channels, 2 * TilePlan::outputs) *
                  ceil_div(pixels_, 2 * TilePlan::pixels));
    constexpr int64_t n = TilePlan::outputs;
    for (int64_t first = 0; first < conv_.out_channels; first += 2 * n) {
      const bool two = first + n < conv_.out_channels;
      for (int64_t x = 0; x < pixels_; x += 2 * TilePlan::pixels) {
        ahead_.step();
        if (pixels_ - x > TilePlan::pixels) {
          two ? multiply<2, 2>(first, x) : multiply<2, 1>(first, x);
        } else {
          two ? multiply<1, 2>(first, x) : multiply<1, 1>(first, x);
        }
        finish(y, x, first);
      }
    }
  }

 private:
  // A 1x1 on whole tiles of terms needs no copy of its image.
  static bool reads_in_place(const Conv<T>& conv) {
    return conv.kernel_h * conv.kernel_w * conv.stride_h * conv.stride_w == 1 &&
           conv.input_count == 1 && conv.inputs[0].dtype == ScalarType::BFloat16 &&
           conv.inputs[0].stride_c == 1 && conv.in_channels % TilePlan::terms == 0 &&
           !conv.prologue.scale;
  }

  // sums[pixel][output] of so many tiles of pixels and outputs.
  template <int height, int width>
  void multiply(int64_t first, int64_t x) {
    constexpr int64_t tile = TilePlan::values;
    const int64_t across = conv_.kernel_h * plan_.row();  // weights of 16 outputs
    const int64_t stride = pixel_;
    const auto* const panel =
        reinterpret_cast<const uint16_t*>(conv_.weights) + first / TilePlan::outputs * across;
    Tiles tiles;
    tiles.zero(conv_.out_channels - first);  // outputs that count
    for (int64_t t = 0; t < count_; t++) {
      const uint16_t* from = here_[t].planes + x * stride;
      const uint16_t* weights = panel + here_[t].index * plan_.row();
      for (int64_t s = 0; s < plan_.stretches; s++) {
        for (int64_t k = 0; k < plan_.steps; k++, weights += tile) {
          const uint16_t* const at = from + k * TilePlan::terms;
          tiles.template load_weights<0>(weights);
          tiles.template load_pixels<0>(at, 2 * stride);
          tiles.template multiply<0, 0>();
          if constexpr (height > 1) {
            tiles.template load_pixels<1>(at + TilePlan::pixels * stride, 2 * stride);
            tiles.template multiply<1, 0>();
          }
          if constexpr (width > 1) {
            tiles.template load_weights<1>(weights + across);
            tiles.template multiply<0, 1>();
            if constexpr (height > 1) {
              tiles.template multiply<1, 1>();
            }
          }
        }
        from += conv_.dilation_w * conv_.in_channels;
      }
    }
    constexpr int64_t bytes = 2 * TilePlan::outputs * sizeof(float);
    float* const below = sums_ + TilePlan::pixels * 2 * TilePlan::outputs;
    tiles.template store<0, 0>(sums_, bytes);
    if constexpr (width > 1) {
      tiles.template store<0, 1>(sums_ + TilePlan::outputs, bytes);
    }
    if constexpr (height > 1) {
      tiles.template store<1, 0>(below, bytes);
      if constexpr (width > 1) {
        tiles.template store<1, 1>(below + TilePlan::outputs, bytes);
      }
    }
  }

  // Writes outputs [first, first + 32) of pixels from x on.
  void finish(int64_t y, int64_t x, int64_t first) const {
    const int64_t last = smaller(first + 2 * TilePlan::outputs, conv_.out_channels);
    const int64_t count = smaller(2 * TilePlan::pixels, pixels_ - x);
    with_dtype<T>(conv_.out.dtype, [&](auto* type) {
      using Out = std::remove_pointer_t<decltype(type)>;
      Out* const out = static_cast<Out*>(conv_.out.data) + conv_.out.offset(part_.n, y, x0_ + x);
      for (int64_t c = first; c < last; c += lanes<T>) {
        const Finish<T, Tiles::native> finish(conv_, part_.n, y, c);
        const T* from = sums_ + (c - first);
        for (int64_t p = 0; p < count; p++, from += 2 * TilePlan::outputs) {
          finish(load_vector(from), x0_ + x + p, out + p * conv_.out.stride_w + c);
        }
      }
    });
  }

  // Brings the input rows of output row y into their slots; lists those that are not padding.
  // False where one has a value that is not finite.
  bool gather(int64_t y) {
    if (in_place_) {
      const Image& image = conv_.inputs[0];
      const int64_t at = image.offset(part_.n, y) + x0_ * image.stride_w;
      here_[0] = {static_cast<const uint16_t*>(image.data) + at, 0};
      count_ = 1;
      return true;
    }
    count_ = 0;
    bool finite = true;
    for (int64_t tap = 0; tap < conv_.kernel_h; tap++) {
      const int64_t row = taps_.input_row(y, tap);
      if (!taps_.is_there(row)) {
        continue;
      }
      const int64_t slot = taps_.slot_of(row, tap);
      uint16_t* const to = rows_ + slot * plan_.slot;
      if (taps_.row_in_slot[slot] != row) {
        taps_.row_in_slot[slot] = row;
        finite_[slot] = load(row, to);
      }
      finite = finite && finite_[slot];
      here_[count_++] = {to, tap};
    }
    return finite;
  }

  // Columns of row y of all inputs, side by side; whether they are finite.
  bool load(int64_t y, uint16_t* to) const {
    const int64_t channels = conv_.in_channels, width = conv_.inputs[0].width;
    const int64_t left = x0_ * conv_.stride_w - conv_.kernel_w / 2 * conv_.dilation_w;
    const int64_t read =
        (pixels_ - 1) * conv_.stride_w + (conv_.kernel_w - 1) * conv_.dilation_w + 1;
    const int64_t from = smaller(larger(-left, 0), read);
    const int64_t end = larger(from, smaller(read, width - left));
    std::memset(to, 0, from * channels * sizeof(*to));
    bool finite = true;
    int64_t channel = 0;
    for (int64_t i = 0; i < conv_.input_count; i++) {
      const Image& image = conv_.inputs[i];
      finite &=
          load_input(image, y, left + from, end - from, channel, to + from * channels + channel);
      channel += image.channels;
    }
    std::memset(to + end * channels, 0, (plan_.slot - end * channels) * sizeof(*to));
    return finite;
  }

  // `count` columns of one input, to[column * all channels + channel].
  bool load_input(const Image& image, int64_t y, int64_t first, int64_t count, int64_t channel,
                  uint16_t* to) const {
    const int64_t step = conv_.in_channels;
    const Prologue<T> prologue = prologue_from(conv_.prologue, channel);
    const int64_t at = image.offset(part_.n, y) + first * image.stride_w;
    if (image.dtype == ScalarType::BFloat16 && image.stride_c == 1 && !prologue.scale) {
      const auto* from = static_cast<const uint16_t*>(image.data) + at;
      if (image.stride_w == step && image.channels == step) {
        return copy_finite(from, count * step, to);
      }
      bool finite = true;
      for (int64_t x = 0; x < count; x++, from += image.stride_w, to += step) {
        finite &= copy_finite(from, image.channels, to);
      }
      return finite;
    }
    bool finite = true;
    with_dtype<T>(image.dtype, [&](auto* type) {
      using In = std::remove_pointer_t<decltype(type)>;
      const In* from = static_cast<const In*>(image.data) + at;
      for (int64_t x = 0; x < count; x++, from += image.stride_w, to += step) {
        for (int64_t c = 0; c < image.channels; c += lanes<T>) {
          const int64_t some = smaller(lanes<T>, image.channels - c);
          Vector<T> v{};
          if (image.stride_c != 1) {
            for (int64_t i = 0; i < some; i++) {
              v[i] = widen<T>(from[(c + i) * image.stride_c]);
            }
          } else {
            v = some < lanes<T> ? load_part<T>(from + c, some) : load_wide<T>(from + c);
          }
          if (prologue.scale) {
            const Vector<T> moved =
                v * load_vector(prologue.scale + c) + load_vector(prologue.shift + c);
            v = prelu<T>(moved, load_vector(prologue.slope + c));
          }
          auto* const there = reinterpret_cast<c10::BFloat16*>(to) + c;
          some < lanes<T> ? store_part<T>(there, v, some) : store_narrow<T>(there, v);
        }
        finite &= copy_finite(to, image.channels, to);
      }
    });
    return finite;
  }

  // Copies adjacent values, and tells whether all of them are finite.
  static bool copy_finite(const uint16_t* from, int64_t count, uint16_t* to) {
    constexpr uint16_t exponent = 0x7f80;
#if defined(FASSD_AVX512)
    const __m512i bits = _mm512_set1_epi16(exponent);
    __mmask32 bad = 0;
    for (int64_t i = 0; i < count; i += 32) {
      const __mmask32 mask = count - i >= 32 ? ~__mmask32(0) : (__mmask32(1) << (count - i)) - 1;
      const __m512i v = _mm512_maskz_loadu_epi16(mask, from + i);
      _mm512_mask_storeu_epi16(to + i, mask, v);
      bad |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(v, bits), bits);
    }
#else
    bool bad = false;
    for (int64_t i = 0; i < count; i++) {
      to[i] = from[i];
      bad |= (from[i] & exponent) == exponent;
    }
#endif
    return !bad;
  }

  struct TapRow {
    const uint16_t* planes;
    int64_t index;
  };

  const Conv<T>& conv_;
  const TilePlan& plan_;
  const Part& part_;
  const int64_t x0_, pixels_;
  TapRows<T> taps_;
  const bool in_place_;
  const int64_t pixel_;  // values from one output pixel's to the next's
  T* const sums_;
  uint16_t* const rows_;
  T* const rest_;
  bool finite_[most_side];
  TapRow here_[most_side];
  int64_t count_ = 0;
  Ahead ahead_;
};

template <typename Tiles, typename T>
void convolve_by_tiles(const Conv<T>& conv, const Part& part, T* scratch) {
  const TilePlan plan(conv);
  const int64_t step = conv.stride_h == 1 ? conv.dilation_h : 1;
  Tiles::begin();
  for (int64_t x0 = part.first_column; x0 < part.last_column; x0 += plan.width) {
    TileStrip<T, Tiles> strip(conv, plan, part, x0, scratch);
    for_rows(part.first_row, part.last_row, step, [&](int64_t y) { strip.row(y); });
  }
  Tiles::end();
}
