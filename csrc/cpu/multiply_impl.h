// The matrix product that everything else is there to feed. Part of kernels_impl.h.
//
// A tile is up to FASSD_TILE_OUTPUTS output channels by two vectors of adjacent pixels; its sums
// stay in registers while the loop runs over taps and input channels:
//
//     for every tap:                    x = that tap's planes, shifted to the tile's pixels
//       for every input channel c:
//         x0, x1 = x[c]                 two vector loads
//         for every output channel o:
//           w = weights[tap][c][o]      one broadcast
//           sum[o][0] += w * x0;  sum[o][1] += w * x1
//
// 12 x 2 fused multiply-adds (AVX-512) stand against 14 loads, where cores sustain two of each per
// cycle: the multipliers are the limit, and stay it when the vector loads straddle cache lines.
// NEON's multiply-adds take a lane of a register for the weight: a vector of weights is one load,
// and 12 x 2 of them stand against 5 loads.

constexpr int tile_outputs = FASSD_TILE_OUTPUTS;
constexpr int tile_vectors = 2;

template <typename T>
constexpr int64_t tile_pixels = tile_vectors * lanes<T>;

// One tap: where its planes are, and the first of its rows of weights, of which there is one for
// every tap and input channel.
template <typename T>
struct Tap {
  const T* planes;
  int64_t row;
};

// Whether weights, `values` per pair of channels, come from the third level of the cache.
template <typename T>
inline bool has_many_weights(const Conv<T>& conv, int64_t values) {
  constexpr int64_t bytes = 256 * 1024;
  return conv.out_channels * conv.in_channels * values * int64_t(sizeof(T)) > bytes;
}

// sum[o][v] += w[o] * value[v].
#if defined(FASSD_NEON)
// The vector of weights that has output `o`: the last one ends at the last weight, and what it has
// twice is not used.
template <typename T, int outputs, int o>
constexpr int first_of_weights =
    o / lanes<T> * lanes<T> + lanes<T> <= outputs ? o / lanes<T> * lanes<T> : outputs - lanes<T>;

template <typename T, int lane>
[[gnu::always_inline]] inline Vector<T> add_product(Vector<T> sum, Vector<T> value,
                                                    Vector<T> weights) {
  if constexpr (sizeof(T) == 8) {
    return Vector<T>(
        vfmaq_laneq_f64(float64x2_t(sum), float64x2_t(value), float64x2_t(weights), lane));
  } else {
    return Vector<T>(
        vfmaq_laneq_f32(float32x4_t(sum), float32x4_t(value), float32x4_t(weights), lane));
  }
}

template <typename T, int outputs, int vectors, int o>
[[gnu::always_inline]] inline void add_products_of(const T* w, const Vector<T>* value,
                                                   Vector<T> (*sum)[vectors]) {
  if constexpr (outputs < lanes<T>) {
    for (int v = 0; v < vectors; v++) {
      sum[o][v] += broadcast(w[o]) * value[v];
    }
  } else {
    constexpr int first = first_of_weights<T, outputs, o>;
    const Vector<T> weights = load_vector(w + first);
    for (int v = 0; v < vectors; v++) {
      sum[o][v] = add_product<T, o - first>(sum[o][v], value[v], weights);
    }
  }
}

template <typename T, int outputs, int vectors, int... o>
[[gnu::always_inline]] inline void add_products(const T* w, const Vector<T>* value,
                                                Vector<T> (*sum)[vectors],
                                                std::integer_sequence<int, o...>) {
  (add_products_of<T, outputs, vectors, o>(w, value, sum), ...);
}
#else
template <typename T, int outputs, int vectors, typename All>
inline void add_products(const T* w, const Vector<T>* value, Vector<T> (*sum)[vectors], All) {
#pragma GCC unroll 16
  for (int o = 0; o < outputs; o++) {
    const Vector<T> weight = broadcast(w[o]);
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
      sum[o][v] += weight * value[v];
    }
  }
}
#endif

// out[o][x] for `outputs` channels and `vectors` vectors of pixels, or what is to be added to it.
// Many weights are asked for 4 KB
// ahead, since the hardware's prefetchers begin anew in every page (512 to 512 channels at 16x32 by
// Winograd's method, one core: 8.9 ms, from 14.0).
template <typename T, int outputs, int vectors, bool many>
void multiply_tile(const Tap<T>* taps, int64_t count, int64_t channels, int64_t pitch,
                   const T* weights, T* out, int64_t out_pitch, bool add) {
  constexpr int64_t ahead = 4096 / sizeof(T);
  Vector<T> sum[outputs][vectors] = {};
  for (int64_t t = 0; t < count; t++) {
    const T* x = taps[t].planes;
    const T* w = weights + taps[t].row * outputs;
    for (int64_t c = 0; c < channels; c++) {
      Vector<T> value[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; v++) {
        value[v] = load_vector(x + v * lanes<T>);
      }
      add_products<T, outputs, vectors>(w, value, sum, std::make_integer_sequence<int, outputs>());
      if constexpr (many) {
        __builtin_prefetch(w + ahead, 0, 2);
      }
      x += pitch;
      w += outputs;
    }
  }
#pragma GCC unroll 16
  for (int o = 0; o < outputs; o++) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
      T* const to = out + o * out_pitch + v * lanes<T>;
      store_vector(to, add ? sum[o][v] + load_vector(to) : sum[o][v]);
    }
  }
}

template <typename T>
using Multiply = void (*)(const Tap<T>*, int64_t, int64_t, int64_t, const T*, T*, int64_t, bool);

template <typename T, int vectors, bool many, int... outputs>
inline Multiply<T> pick_multiply(int64_t wanted, std::integer_sequence<int, outputs...>) {
  static constexpr Multiply<T> table[] = {multiply_tile<T, outputs + 1, vectors, many>...};
  return table[wanted - 1];
}

// The product for 1 to tile_outputs output channels, and 1 or 2 vectors of pixels.
template <typename T>
inline Multiply<T> multiply_for(int64_t outputs, int64_t vectors, bool many) {
  constexpr auto all = std::make_integer_sequence<int, tile_outputs>();
  if (many) {
    return vectors == 1 ? pick_multiply<T, 1, true>(outputs, all)
                        : pick_multiply<T, 2, true>(outputs, all);
  }
  return vectors == 1 ? pick_multiply<T, 1, false>(outputs, all)
                      : pick_multiply<T, 2, false>(outputs, all);
}

// Output channels are cut into blocks of nearly equal size: f(first channel, channels) for each.
// packing.h lays weights out in the same blocks.
template <typename F>
inline void for_output_blocks(int64_t out_channels, const F& f) {
  const int64_t blocks = (out_channels + tile_outputs - 1) / tile_outputs;
  for (int64_t b = 0, first = 0; b < blocks; b++) {
    const int64_t count = out_channels / blocks + (b < out_channels % blocks ? 1 : 0);
    f(first, count);
    first += count;
  }
}
