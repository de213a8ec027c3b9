// One convolution: by the method that was chosen for it. Part of kernels_impl.h.

template <typename T>
int64_t conv_scratch(const Conv<T>& conv) {
  int64_t directly = 0;
  for (const Conv<T>* each = &conv; each; each = each->next) {
    directly = larger(directly, direct_scratch(*each));
  }
  switch (conv.method) {
    case Method::winograd2:
      return directly + WinogradPlan<T, 2>(conv).total();
    case Method::winograd4:
      return directly + WinogradPlan<T, 4>(conv).total();
    case Method::lines:
      return directly + LinePlan<T>(conv).total(conv);
    case Method::tiles:
      return TilePlan<uint16_t>(conv).total(conv);
    case Method::bytes:
      return TilePlan<uint8_t>(conv).total(conv);
    default:
      return directly;
  }
}

// `Tiles` is what multiplies tiles of bfloat16, void where nothing does; `Bytes`, those of bytes.
template <typename T, typename Tiles, typename Bytes>
void conv(const Conv<T>& conv, const Part& part, T* scratch) {
  if constexpr (sizeof(T) == 4) {
    if constexpr (!std::is_void_v<Tiles>) {
      if (conv.method == Method::tiles) {
        return convolve_by_tiles<Tiles>(conv, part, scratch);
      }
    }
    if (conv.method == Method::bytes) {
      return convolve_by_tiles<Bytes>(conv, part, scratch);
    }
    if (conv.method == Method::winograd2) {
      return convolve_by_winograd<2>(conv, part, scratch);
    }
    if (conv.method == Method::winograd4) {
      return convolve_by_winograd<4>(conv, part, scratch);
    }
    if (conv.method == Method::lines) {
      return fills_lines(conv)
                 ? convolve_lines(conv, part, scratch)
                 : convolve_directly(conv, conv.direct_weights(conv.owner), part, scratch);
    }
  }
  convolve_directly(conv, conv.weights, part, scratch);
}
