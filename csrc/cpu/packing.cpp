#include "packing.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>

namespace fassd::cpu {

namespace {

// The header of packed weights, as values of T (whole numbers below 2^24 are exact in float).
enum Field {
  method_field,
  outputs_field,
  out_field,
  in_field,
  height_field,
  width_field,
  layout_field,
  type_field,
  fields
};
constexpr int64_t header = 16;  // values; keeps the weights behind it aligned
constexpr int layout = 3;  // changes with whatever is behind the header: packed weights are stored

template <typename T>
std::array<T, fields> header_of(const Tensor& weight, Method method) {
  return {T(int(method)),    T(kernels<T>().outputs),     T(weight.size(0)),
          T(weight.size(1)), T(weight.size(2)),           T(weight.size(3)),
          T(layout),         T(int(weight.scalar_type()))};
}

template <typename Element>
TileLayout<Element> tile_layout(const Tensor& weight) {
  return {weight.size(1), weight.size(3)};
}

// Values of Winograd's form that stand for a kernel.
constexpr int64_t winograd_values(Method method) {
  const int64_t reach = tile_side(method) + 2;
  return method == Method::lines ? reach : reach * reach;
}

// All values that do. Behind those of lines are the taps, for rows that lines do not fill.
constexpr int64_t values_per_kernel(Method method, int64_t taps) {
  return method == Method::direct  ? taps
         : method == Method::lines ? winograd_values(method) + taps
                                   : winograd_values(method);
}

// Bytes of weights for products of tiles.
template <typename Element>
int64_t tile_bytes(const Tensor& weight) {
  using Layout = TileLayout<Element>;
  const int64_t panels = (weight.size(0) + Layout::outputs - 1) / Layout::outputs;
  const Layout tiles = tile_layout<Element>(weight);
  return checked_product({panels, weight.size(2), tiles.columns, tiles.steps, Layout::values,
                          int64_t(sizeof(Element))});
}

// Values of T that a packed weight has behind its header.
template <typename T>
int64_t packed_values(const Tensor& weight, Method method) {
  if (method == Method::tiles) {
    return tile_bytes<uint16_t>(weight) / int64_t(sizeof(T));
  }
  if (method == Method::bytes) {
    return tile_bytes<uint8_t>(weight) / int64_t(sizeof(T));
  }
  const int64_t taps = weight.size(2) * weight.size(3);
  return checked_product({weight.size(0), weight.size(1), values_per_kernel(method, taps)});
}

// G of Winograd's F(2, 3) and F(4, 3), a row per value.
constexpr double g2[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
constexpr double g4[6][3] = {{1, 0, 0},
                             {1. / 3, 1. / 3, 1. / 3},
                             {-1. / 3, 1. / 3, -1. / 3},
                             {-16. / 15, -8. / 15, -4. / 15},
                             {1. / 15, -2. / 15, 4. / 15},
                             {0, 0, 1}};

// Value k of G g G^T, or of G g; in double, rounded once.
double transformed(Method method, const double g[3][3], int64_t k) {
  const double (*const of)[3] = method == Method::winograd2 ? g2 : g4;
  const int64_t reach = tile_side(method) + 2, i = k / reach, j = k % reach;
  if (method == Method::lines) {
    return of[k][0] * g[0][0] + of[k][1] * g[0][1] + of[k][2] * g[0][2];
  }
  double sum = 0;
  for (int a = 0; a < 3; a++) {
    for (int b = 0; b < 3; b++) {
      sum += of[i][a] * g[a][b] * of[j][b];
    }
  }
  return sum;
}

// The header of packed weights, wherever their bytes lie.
template <typename T>
std::array<T, fields> read_header(const Tensor& packed) {
  std::array<T, fields> found;
  std::memcpy(found.data(), packed.const_data_ptr(), sizeof(found));
  return found;
}

template <typename T>
Method packed_method(const Tensor& packed) {
  return Method(int(read_header<T>(packed)[method_field]));
}

// Whether a convolution has a form of Winograd's of that kind. Of lines, those of a column are cut
// at every fourth row, so that strips of a picture round alike; those of a row may lie apart.
bool fits_winograd(Method method, const Tensor& weight, const Integers& stride,
                   const Integers& dilation) {
  const int64_t height = weight.size(2), width = weight.size(3);
  if (stride != Integers{1, 1}) {
    return false;
  }
  if (method == Method::lines) {
    const int64_t d = dilation[1];
    const bool apart = d == 1 || d == 2 || d == 4 || d == 8 || d == 16;
    return (height == 3 && width == 1 && dilation[0] == 1) || (height == 1 && width == 3 && apart);
  }
  return height == 3 && width == 3 && dilation == Integers{1, 1};
}

// Whether `packed` is what `pack` gives for such a convolution, on whatever instruction set and in
// whatever version, which may have chosen another method.
template <typename T>
bool is_packed(const Tensor& packed, const Tensor& weight, const Integers& stride,
               const Integers& dilation) {
  if (packed.scalar_type() != ScalarType::Byte || packed.dim() != 1 || !packed.is_contiguous() ||
      !packed.is_cpu() || packed.numel() < header * int64_t(sizeof(T))) {
    return false;
  }
  const auto found = read_header<T>(packed);
  if (!(found[method_field] >= 0 && found[method_field] <= T(int(Method::bytes)))) {
    return false;
  }
  const Method method = packed_method<T>(packed);
  const bool tiles = method == Method::tiles || method == Method::bytes;
  const bool bytes = weight.scalar_type() == ScalarType::Char;
  const bool fits = bytes || method == Method::bytes ? bytes && method == Method::bytes
                    : method == Method::tiles ? weight.scalar_type() == ScalarType::BFloat16
                                              : method == Method::direct ||
                                                    fits_winograd(method, weight, stride, dilation);
  // Other versions' tiles are other in number.
  const bool counted = !tiles || found[layout_field] == T(layout);
  if (!fits ||
      (counted && packed.numel() !=
                      checked_product({int64_t(sizeof(T)),
                                       checked_sum(header, packed_values<T>(weight, method))}))) {
    return false;
  }
  auto told = header_of<T>(weight, method);
  told[outputs_field] = found[outputs_field];
  told[layout_field] = found[layout_field];
  if (found[layout_field] != T(layout)) {
    told[type_field] = found[type_field];  // which older ones do not tell
  }
  return told == found;
}

// Whether its method is `chosen`, or direct as where a value of that was not finite, its blocks are
// as wide as this instruction set's, its layout is this version's, and its values are aligned.
template <typename T>
bool is_packed_here(const Tensor& packed, Method chosen) {
  const auto found = read_header<T>(packed);
  const Method method = packed_method<T>(packed);
  return (method == chosen || method == Method::direct) &&
         found[outputs_field] == T(kernels<T>().outputs) && found[layout_field] == T(layout) &&
         reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % alignof(T) == 0;
}

}  // namespace

template <typename T>
Method method_for(const Tensor& weight, const Integers& stride, const Integers& dilation) {
  if (weight.scalar_type() == ScalarType::Char) {
    return Method::bytes;
  }
  // Products of tiles read whole rows, however far apart the columns are that count.
  constexpr int64_t far = 512;
  const bool near = stride[1] <= far / 64 && (weight.size(3) == 1 || dilation[1] <= far);
  if (kernels<T>().tiles && near && weight.size(1) > 0 &&
      weight.scalar_type() == ScalarType::BFloat16) {
    return Method::tiles;
  }
  // The transformations are paid per input and per output channel: with few of one, the products
  // of the other do not earn them back. In double nothing asks for speed.
  const bool pays = weight.size(0) >= 6 && weight.size(1) >= 6;
  if (sizeof(T) == 8 || !pays) {
    return Method::direct;
  }
  // Of lines fewer products are saved.
  if (fits_winograd(Method::lines, weight, stride, dilation)) {
    const bool many = weight.size(0) >= 24 && weight.size(1) >= 24;
    return many ? Method::lines : Method::direct;
  }
  if (!fits_winograd(Method::winograd4, weight, stride, dilation)) {
    return Method::direct;
  }
  // Weights of very many channels take longer to come than to be multiplied, and F(4, 3) has more
  // than twice as many of them (512 to 512 at 8x16, one core: 4.7 ms, F(2, 3) 2.5).
  const bool heavy = weight.size(0) * weight.size(1) > 1 << 17;
  return heavy ? Method::winograd2 : Method::winograd4;
}

// From plain[tap][in][out] to blocks of output channels; false where a value of Winograd's is not
// finite.
template <typename T>
bool fill_blocks(const T* plain, const Tensor& weight, Method method, T* panels) {
  const int64_t out = weight.size(0), in = weight.size(1);
  const int64_t taps = weight.size(2) * weight.size(3);
  const int64_t rows = method == Method::direct ? taps : winograd_values(method);
  const int64_t blocks = (out + kernels<T>().outputs - 1) / kernels<T>().outputs;
  std::atomic<bool> finite = true;
  parallel(blocks, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      const int64_t count = out / blocks + (b < out % blocks ? 1 : 0);
      const int64_t first = b * (out / blocks) + std::min(b, out % blocks);
      T* const block = panels + first * in * rows;
      for (int64_t c = 0; c < in; c++) {
        for (int64_t o = 0; o < count; o++) {
          const auto put = [&](int64_t row, T value) { block[(row * in + c) * count + o] = value; };
          const auto tap_value = [&](int64_t tap) {
            return plain[(tap * in + c) * out + first + o];
          };
          if (method == Method::direct) {
            for (int64_t tap = 0; tap < taps; tap++) put(tap, tap_value(tap));
            continue;
          }
          double g[3][3];
          for (int tap = 0; tap < taps; tap++) g[tap / 3][tap % 3] = tap_value(tap);
          for (int64_t k = 0; k < rows; k++) {
            const T value = T(transformed(method, g, k));
            put(k, value);
            if (!std::isfinite(value)) {
              finite.store(false, std::memory_order_relaxed);
            }
          }
        }
      }
    }
  });
  return finite;
}

// The same to tiles, of values that are bfloat16's, or whole numbers of a byte.
template <typename Element, typename T>
bool fill_tiles(const T* plain, const Tensor& weight, T* packed) {
  using Layout = TileLayout<Element>;
  const Layout tiles = tile_layout<Element>(weight);
  constexpr int64_t outputs = Layout::outputs, terms = Layout::terms, group = Layout::group;
  auto* to = reinterpret_cast<Element*>(packed);
  const int64_t out = weight.size(0), columns = weight.size(2) * tiles.columns;
  const int64_t count = tiles.taps * weight.size(1);  // terms of a column
  bool finite = true;
  for (int64_t first = 0; first < out; first += outputs) {
    for (int64_t column = 0; column < columns; column++) {
      for (int64_t term = 0; term < tiles.steps * terms; term++) {
        for (int64_t o = 0; o < outputs; o++) {
          const bool there = term < count && first + o < out;
          // Taps and channels are in the order of terms.
          const float value = there ? plain[(column * count + term) * out + first + o] : 0;
          finite = finite && std::isfinite(value);
          uint32_t bits;
          std::memcpy(&bits, &value, sizeof(bits));
          to[(term / group * outputs + o) * group + term % group] =
              sizeof(Element) == 1 ? Element(int8_t(value)) : Element(bits >> 16);
        }
      }
      to += tiles.steps * Layout::values;
    }
  }
  return finite;
}

template <typename T>
Tensor pack(const Tensor& weight, Method method) {
  const int64_t out = weight.size(0), in = weight.size(1);
  const int64_t taps = weight.size(2) * weight.size(3), kernel_w = weight.size(3);
  const int64_t values = checked_sum(header, packed_values<T>(weight, method));
  // Bytes, so that nothing converts them: not `half()`, not autocast.
  Tensor packed =
      torch::stable::empty({checked_product({values, int64_t(sizeof(T))})}, ScalarType::Byte);
  T* const to = static_cast<T*>(packed.mutable_data_ptr());
  std::fill(to, to + header, T(0));
  const auto told = header_of<T>(weight, method);
  std::copy(told.begin(), told.end(), to);

  // As [tap][in][out] first, whatever the weight's strides.
  const int64_t size = element_size(weight.scalar_type());
  const char* const from = static_cast<const char*>(weight.const_data_ptr());
  const Buffer<T> plain(checked_product({taps, in, out}));
  for (int64_t tap = 0; tap < taps; tap++) {
    for (int64_t c = 0; c < in; c++) {
      const int64_t at = c * weight.stride(1) + tap / kernel_w * weight.stride(2) +
                         tap % kernel_w * weight.stride(3);
      T* const row = plain.data() + (tap * in + c) * out;
      if (method != Method::bytes) {
        kernels<T>().load(from + at * size, weight.scalar_type(), weight.stride(0), row, 1, out);
        continue;
      }
      for (int64_t o = 0; o < out; o++) {
        row[o] = T(reinterpret_cast<const int8_t*>(from)[at + o * weight.stride(0)]);
      }
    }
  }
  const bool finite =
      method == Method::tiles   ? fill_tiles<uint16_t>(plain.data(), weight, to + header)
      : method == Method::bytes ? fill_tiles<uint8_t>(plain.data(), weight, to + header)
                                : fill_blocks<T>(plain.data(), weight, method, to + header);
  if (method == Method::lines) {
    fill_blocks<T>(plain.data(), weight, Method::direct,
                   to + header + out * in * winograd_values(method));
  }
  // Infinite weights would spread over whole tiles, as NaN.
  return finite ? packed : pack<T>(weight, Method::direct);
}

// H of both, a row per tap: H (G g) = g.
constexpr double taps_of2[3][4] = {{1, 0, 0, 0}, {0, 1, -1, 0}, {0, 0, 0, 1}};
constexpr double taps_of4[3][6] = {{1, 0, 0, 0, 0, 0}, {0, 1.5, 1.5, 0, 0, 0}, {0, 0, 0, 0, 0, 1}};

// The tap [i][j] of values t = G g G^T: its own but for the last bit of the largest tap. A tap of
// zero stays one, for zero times infinity is NaN.
template <typename T>
double tap_of(Method method, const T* t, int64_t step, int64_t i, int64_t j) {
  const double* const rows = method == Method::winograd4 ? taps_of4[i] : taps_of2[i];
  const double* const columns = method == Method::winograd4 ? taps_of4[j] : taps_of2[j];
  const int64_t reach = tile_side(method) + 2;
  double sum = 0, magnitude = 0;
  for (int64_t a = 0; a < reach; a++) {
    for (int64_t b = 0; b < reach; b++) {
      const double term = rows[a] * columns[b] * t[(a * reach + b) * step];
      sum += term;
      magnitude += std::abs(term);
    }
  }
  constexpr double rounding = 1. / (1 << 23);
  return std::abs(sum) > rounding * magnitude ? sum : 0;
}

// Winograd's weights for direct products: those of a picture's few tiles that are not finite.
template <typename T>
Buffer<T> to_direct(const T* panels, const Tensor& weight, Method method) {
  const int64_t out = weight.size(0), in = weight.size(1), reach = tile_side(method) + 2;
  Buffer<T> direct(checked_product({out, in, 9}));
  const int64_t blocks = (out + kernels<T>().outputs - 1) / kernels<T>().outputs;
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t count = out / blocks + (b < out % blocks ? 1 : 0);
    const int64_t first = b * (out / blocks) + std::min(b, out % blocks);
    const T* const from = panels + first * in * reach * reach;
    T* const to = direct.data() + first * in * 9;
    const int64_t step = in * count;  // from one value, or tap, to the next
    for (int64_t item = 0; item < step; item++) {
      for (int64_t tap = 0; tap < 9; tap++) {
        to[tap * step + item] = T(tap_of(method, from + item, step, tap / 3, tap % 3));
      }
    }
  }
  return direct;
}

template <typename T>
struct Weights<T>::Direct {
  std::once_flag once;
  std::optional<Buffer<T>> values;
};

template <typename T>
Weights<T>::Weights(const char* op, const Tensor& weight, const OptionalTensor& packed,
                    const Integers& stride, const Integers& dilation)
    : weight_(weight),
      packed_(weight),
      stride_(stride),
      dilation_(dilation),
      method_(method_for<T>(weight, stride, dilation)),
      direct_(std::make_shared<Direct>()) {
  const bool given = packed && packed->numel() > 0;
  STD_TORCH_CHECK(
      !given || is_packed<T>(*packed, weight, stride, dilation), op, ": packed weights of shape ",
      shape_name(*packed), " and dtype ", dtype_name(packed->scalar_type()), " are not what ",
      method_ == Method::bytes ? "pack_quantized_weight" : "pack_weight",
      " gives for a weight of shape ", shape_name(weight), ", this stride and dilation");
  // Programs are exported on one machine and run on another.
  const bool here = given && is_packed_here<T>(*packed, method_);
  packed_ = here ? *packed : pack<T>(weight, method_);
  method_ = packed_method<T>(packed_);
}

template <typename T>
const T* Weights<T>::direct(const void* self) {
  const auto& weights = *static_cast<const Weights<T>*>(self);
  const T* const panels = static_cast<const T*>(weights.packed_.const_data_ptr()) + header;
  if (weights.method_ == Method::lines) {
    return panels +
           weights.weight_.size(0) * weights.weight_.size(1) * winograd_values(Method::lines);
  }
  auto& [once, values] = *weights.direct_;
  std::call_once(once, [&] { values = to_direct<T>(panels, weights.weight_, weights.method_); });
  return values->data();
}

template <typename T>
Conv<T> Weights<T>::convolution(const Image* inputs, int64_t count, int64_t height,
                                int64_t width) const {
  Conv<T> conv;
  conv.inputs = inputs;
  conv.input_count = count;
  conv.out_height = height;
  conv.out_width = width;
  conv.method = method_;
  conv.weights = static_cast<const T*>(packed_.const_data_ptr()) + header;
  conv.direct_weights = direct;
  conv.owner = this;
  conv.in_channels = conv.weight_channels = weight_.size(1);
  conv.out_channels = weight_.size(0);
  conv.kernel_h = weight_.size(2);
  conv.kernel_w = weight_.size(3);
  conv.stride_h = stride_[0];
  conv.stride_w = stride_[1];
  conv.dilation_h = dilation_[0];
  conv.dilation_w = dilation_[1];
  return conv;
}

template Method method_for<float>(const Tensor&, const Integers&, const Integers&);
template Method method_for<double>(const Tensor&, const Integers&, const Integers&);
template Tensor pack<float>(const Tensor&, Method);
template Tensor pack<double>(const Tensor&, Method);
template class Weights<float>;
template class Weights<double>;

Tensor pack_weight(const Tensor& weight, const Integers& stride, const Integers& dilation) {
  const Checked checked = check_pack_weight(weight, stride, dilation);
  return with_arithmetic(checked.dtype, [&](auto type) {
    using T = decltype(type);
    return pack<T>(weight, method_for<T>(weight, checked.stride, checked.dilation));
  });
}

}  // namespace fassd::cpu
