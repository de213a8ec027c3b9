// From sums to pixels of bytes, four vectors at a time. Part of kernels_impl.h.

#if defined(FASSD_AVX512)
// What Finish does to `width` vectors of channels from `first` on, where the result is of bytes:
// two instructions pack four vectors, where narrowing takes eight. They saturate, which bounds the
// bytes, and rounded values are known to fit 32 bits.
template <int width>
class FinishBytes {
 public:
  static bool serves(const Conv<float>& conv) {
    const auto& epilogue = conv.epilogue;
    return epilogue.bounded && !epilogue.addend && !epilogue.scale &&
           epilogue.activation <= Activation::prelu &&
           (!epilogue.residual || epilogue.residual->dtype == ScalarType::Byte);
  }

  FinishBytes(const Conv<float>& conv, int64_t n, int64_t y, int64_t first)
      : channels_(smaller(16 * width, conv.out_channels - first)),
        prelu_(conv.epilogue.activation == Activation::prelu),
        zero_(_mm512_set1_epi16(int16_t(conv.out.zero))),
        least_(_mm512_set1_epi8(
            char(conv.epilogue.activation == Activation::relu ? conv.out.zero : 0))) {
    const float inverse = 1 / conv.out.scale;
    float added = 0;
    if (const Image* const image = conv.epilogue.residual) {
      residual_ = static_cast<const uint8_t*>(image->data) + image->offset(n, y) + first;
      stride_ = image->stride_w;
      residual_scale_ = _mm512_set1_ps(image->scale * inverse);
      added = -image->scale * inverse * float(image->zero);
    }
    for (int k = 0; k < width; k++) {
      const int64_t c = first + 16 * k;
      const __m512 scale = _mm512_set1_ps(inverse);
      factor_[k] = _mm512_mul_ps(_mm512_loadu_ps(conv.epilogue.factor + c), scale);
      bias_[k] =
          _mm512_fmadd_ps(_mm512_loadu_ps(conv.epilogue.bias + c), scale, _mm512_set1_ps(added));
      slope_[k] = prelu_ ? _mm512_loadu_ps(conv.epilogue.slope + c) : _mm512_setzero_ps();
    }
  }

  // Columns [x, x + count), whose sums have 16 * width values each, `step` bytes apart.
  void write(const int32_t* sums, int64_t x, int64_t count, uint8_t* to, int64_t step) const {
    const auto write = [&](auto prelu, auto residual) {
      write_columns<prelu, residual>(sums, x, count, to, step);
    };
    if (prelu_) {
      residual_ ? write(std::true_type(), std::true_type())
                : write(std::true_type(), std::false_type());
    } else {
      residual_ ? write(std::false_type(), std::true_type())
                : write(std::false_type(), std::false_type());
    }
  }

 private:
  template <bool prelu, bool residual>
  void write_columns(const int32_t* sums, int64_t x, int64_t count, uint8_t* to,
                     int64_t step) const {
    constexpr int64_t pixels = 4 / width;
    const FinishBytes all = *this;  // which no byte written can be a part of
    // Packing leaves the four vectors in turns of four bytes.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t p = 0; p < count; p += pixels, sums += 4 * 16) {
      __m512i v[4];
#pragma GCC unroll 4
      for (int q = 0; q < 4; q++) {
        const int64_t column = x + smaller(p + q / width, count - 1);
        v[q] = all.level<prelu, residual>(sums + 16 * q, column, q % width);
      }
      const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), all.zero_);
      const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), all.zero_);
      const __m512i packed = _mm512_max_epu8(_mm512_packus_epi16(low, high), all.least_);
      all.store(_mm512_permutexvar_epi32(order, packed), to, smaller(count - p, pixels), step);
      to += pixels * step;
    }
  }

  // A vector of values over the scale, rounded.
  template <bool prelu, bool residual>
  [[gnu::always_inline]] inline __m512i level(const int32_t* sums, int64_t column, int k) const {
    __m512 v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sums)), factor_[k], bias_[k]);
    if constexpr (residual) {
      const auto mask = __mmask16((1u << smaller(16, channels_ - 16 * k)) - 1);
      const __m128i bytes = _mm_maskz_loadu_epi8(mask, residual_ + column * stride_ + 16 * k);
      v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), residual_scale_, v);
    }
    if constexpr (prelu) {
      const __mmask16 negative = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ);
      v = _mm512_mask_mul_ps(v, negative, v, slope_[k]);
    }
    return _mm512_cvtps_epi32(v);
  }

  // The bytes of up to 4 / width pixels.
  [[gnu::always_inline]] inline void store(__m512i bytes, uint8_t* to, int64_t count,
                                           int64_t step) const {
    if constexpr (width == 2) {
      const auto mask = __mmask32((uint64_t(1) << channels_) - 1);
      _mm256_mask_storeu_epi8(to, mask, _mm512_castsi512_si256(bytes));
      if (count > 1) {
        _mm256_mask_storeu_epi8(to + step, mask, _mm512_extracti64x4_epi64(bytes, 1));
      }
    } else {
      const auto mask = __mmask16((1u << channels_) - 1);
      _mm_mask_storeu_epi8(to, mask, _mm512_castsi512_si128(bytes));
      if (count > 1) {
        _mm_mask_storeu_epi8(to + step, mask, _mm512_extracti32x4_epi32(bytes, 1));
      }
      if (count > 2) {
        _mm_mask_storeu_epi8(to + 2 * step, mask, _mm512_extracti32x4_epi32(bytes, 2));
      }
      if (count > 3) {
        _mm_mask_storeu_epi8(to + 3 * step, mask, _mm512_extracti32x4_epi32(bytes, 3));
      }
    }
  }

  const int64_t channels_;
  const bool prelu_;
  const __m512i zero_, least_;
  __m512 factor_[width], bias_[width], slope_[width], residual_scale_;
  const uint8_t* residual_ = nullptr;
  int64_t stride_ = 0;
};
#endif
