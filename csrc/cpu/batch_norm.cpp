#include "batch_norm.h"

#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "memory.h"

namespace fassd::cpu {

namespace {

// Bytes of an image that are read once for the mean and again, from the cache, for the squares.
constexpr int64_t piece_bytes = 256 * 1024;
// Vectors that a sum goes through before it comes to the same lanes again.
constexpr int64_t vectors_between = 8;

// An image without gaps as rows of pixels: channels_last is one row of all its channels, NCHW has a
// row of one channel for each plane. Pieces of rows are what threads take, and sums are made of,
// whatever the number of threads.
struct Rows {
  int64_t channels, own;  // of the image, of a row
  int64_t count, values;  // rows, values of each
  int64_t period, piece;  // values
  int64_t pieces;         // of each row

  int64_t items() const { return count * pieces; }
  int64_t channel(int64_t item) const { return own == 1 ? item / pieces % channels : 0; }
  int64_t first(int64_t item) const { return item / pieces * values + item % pieces * piece; }
  int64_t length(int64_t item) const { return std::min(piece, values - item % pieces * piece); }
};

Rows rows_of(const Tensor& image) {
  Rows rows{};
  rows.channels = image.size(1);
  const bool last = is_channels_last(image);
  rows.own = last ? rows.channels : 1;
  rows.count = last ? 1 : image.size(0) * rows.channels;
  rows.values = image.numel() / rows.count;
  const int64_t common = std::lcm(rows.own, channel_padding);
  constexpr int64_t wanted = vectors_between * channel_padding;
  rows.period = (wanted + common - 1) / common * common;
  const int64_t cached = piece_bytes / element_size(image.scalar_type());
  rows.piece = std::max<int64_t>(1, cached / rows.period) * rows.period;
  rows.pieces = (rows.values + rows.piece - 1) / rows.piece;
  return rows;
}

// Values per channel, one of all channels or one for each.
template <typename T>
std::vector<T> per_channel(const OptionalTensor& vector, int64_t channels, T otherwise) {
  std::vector<T> values(channels, otherwise);
  if (vector) {
    kernels<T>().load(vector->const_data_ptr(), vector->scalar_type(),
                      vector->numel() == 1 ? 0 : vector->stride(0), values.data(), 1, channels);
  }
  return values;
}

// The values of a row's channels, over and over along the period.
template <typename T>
const T* spread(const std::vector<T>& values, const Rows& rows, int64_t item, T* to) {
  std::memcpy(to, values.data() + rows.channel(item), rows.own * sizeof(T));
  for (int64_t filled = rows.own; filled < rows.period; filled *= 2) {
    std::memcpy(to + filled, to, std::min(filled, rows.period - filled) * sizeof(T));
  }
  return to;
}

// Sums along the period to those of a row's channels.
template <typename T>
void fold(const T* sums, const Rows& rows, T* to) {
  std::memcpy(to, sums, rows.own * sizeof(T));
  for (int64_t first = rows.own; first < rows.period; first += rows.own) {
    for (int64_t c = 0; c < rows.own; c++) {
      to[c] += sums[first + c];
    }
  }
}

const char* at(const Tensor& image, int64_t index) {
  return static_cast<const char*>(image.const_data_ptr()) +
         index * element_size(image.scalar_type());
}

char* at(Tensor& image, int64_t index) {
  return static_cast<char*>(image.mutable_data_ptr()) + index * element_size(image.scalar_type());
}

// What a channel is normalised with: act((v - mean) * scale + shift).
template <typename T>
struct Norm {
  std::vector<T> mean, scale, shift, slope;
  Activation activation;

  static constexpr int64_t vectors = 4;

  NormRow<T> row(const Rows& rows, int64_t item, T* scratch) const {
    NormRow<T> row;
    row.period = rows.period;
    row.mean = spread(mean, rows, item, scratch);
    row.scale = spread(scale, rows, item, scratch + rows.period);
    row.shift = spread(shift, rows, item, scratch + 2 * rows.period);
    row.activation = activation;
    row.slope = spread(slope, rows, item, scratch + 3 * rows.period);
    return row;
  }
};

// Mean and variance, by Chan, Golub and LeVeque's pairwise rule: those of each piece are found in
// two passes over the cache, so that nothing cancels where the mean is large.
template <typename T>
void find_statistics(const Tensor& input, const Rows& rows, double eps, T* statistics) {
  const Kernels<T>& kernel = kernels<T>();
  const ScalarType dtype = input.scalar_type();
  const int64_t own = rows.own, channels = rows.channels;
  std::vector<T> parts(2 * own * rows.items());
  parallel_items<T>(rows.items(), 2 * rows.period, [&](T* scratch, int64_t item) {
    T *sums = scratch, *means = scratch + rows.period;
    const char* const from = at(input, rows.first(item));
    const int64_t length = rows.length(item);
    T* const mean = parts.data() + 2 * own * item;
    T* const squares = mean + own;
    std::fill_n(sums, rows.period, T(0));
    kernel.sum_values(from, dtype, length, rows.period, sums);
    fold(sums, rows, mean);
    const T pixels = T(length / own);
    std::transform(mean, squares, mean, [&](T sum) { return sum / pixels; });
    const std::vector<T> found(mean, squares);
    Rows same = rows;
    same.channels = own;
    spread(found, same, 0, means);
    std::fill_n(sums, rows.period, T(0));
    kernel.sum_squares(from, dtype, length, rows.period, means, sums);
    fold(sums, rows, squares);
  });
  const double total = double(input.numel() / channels);
  std::vector<double> mean(channels), squares(channels);
  for (int64_t item = 0; item < rows.items(); item++) {
    const T* const part = parts.data() + 2 * own * item;
    const double share = double(rows.length(item) / own) / total;
    for (int64_t c = 0; c < own; c++) {
      mean[rows.channel(item) + c] += share * double(part[c]);
    }
  }
  for (int64_t item = 0; item < rows.items(); item++) {
    const T* const part = parts.data() + 2 * own * item;
    const double pixels = double(rows.length(item) / own);
    for (int64_t c = 0; c < own; c++) {
      const double off = double(part[c]) - mean[rows.channel(item) + c];
      squares[rows.channel(item) + c] += double(part[own + c]) + pixels * off * off;
    }
  }
  for (int64_t c = 0; c < channels; c++) {
    statistics[c] = T(mean[c]);
    statistics[channels + c] = T(1 / std::sqrt(squares[c] / total + eps));
    statistics[2 * channels + c] = T(squares[c] / (total - 1));
  }
}

template <typename T>
Norm<T> norm_of(const T* statistics, int64_t channels, const OptionalTensor& weight,
                const OptionalTensor& bias, const OptionalTensor& slope, Activation activation) {
  Norm<T> norm;
  norm.mean.assign(statistics, statistics + channels);
  norm.scale = per_channel<T>(weight, channels, T(1));
  for (int64_t c = 0; c < channels; c++) {
    norm.scale[c] *= statistics[channels + c];
  }
  norm.shift = per_channel<T>(bias, channels, T(0));
  norm.slope = per_channel<T>(slope, channels, T(0));
  norm.activation = activation;
  return norm;
}

template <typename T>
void find_gradients(const Tensor& gradient, const Tensor& input, const Norm<T>& norm,
                    const T* statistics, T* sums, Tensor& out) {
  const Kernels<T>& kernel = kernels<T>();
  const Rows rows = rows_of(input);
  const ScalarType dtype = input.scalar_type();
  const int64_t own = rows.own, channels = rows.channels, period = rows.period;
  const int64_t vectors = norm.vectors * period;
  std::vector<T> parts(3 * own * rows.items());
  parallel_items<T>(rows.items(), vectors + 3 * period, [&](T* scratch, int64_t item) {
    T* const found = scratch + vectors;
    std::fill_n(found, 3 * period, T(0));
    const int64_t first = rows.first(item);
    kernel.sum_gradients(at(input, first), at(gradient, first), dtype, rows.length(item),
                         norm.row(rows, item, scratch), found, found + period, found + 2 * period);
    for (int64_t i = 0; i < 3; i++) {
      fold(found + i * period, rows, parts.data() + (3 * item + i) * own);
    }
  });
  std::vector<double> totals(3 * channels);
  for (int64_t item = 0; item < rows.items(); item++) {
    for (int64_t i = 0; i < 3; i++) {
      for (int64_t c = 0; c < own; c++) {
        totals[i * channels + rows.channel(item) + c] += double(parts[(3 * item + i) * own + c]);
      }
    }
  }
  // With s = 1 / sqrt(variance + eps): scale * (g - mean of g - s^2 (v - mean) mean of g (v -
  // mean)).
  const double pixels = double(input.numel() / channels);
  std::vector<T> offset(channels), factor(channels);
  for (int64_t c = 0; c < channels; c++) {
    const double inverse = double(statistics[channels + c]), scale = double(norm.scale[c]);
    offset[c] = T(-scale * totals[c] / pixels);
    factor[c] = T(-scale * inverse * inverse * totals[channels + c] / pixels);
    sums[c] = T(totals[channels + c] * inverse);
    sums[channels + c] = T(totals[c]);
    sums[2 * channels + c] = T(totals[2 * channels + c]);
  }
  parallel_items<T>(rows.items(), vectors + 2 * period, [&](T* scratch, int64_t item) {
    const int64_t first = rows.first(item);
    const NormRow<T> row = norm.row(rows, item, scratch);
    kernel.norm_gradient(at(input, first), at(gradient, first), dtype, rows.length(item), row,
                         spread(offset, rows, item, scratch + vectors),
                         spread(factor, rows, item, scratch + vectors + period), at(out, first));
  });
}

void check_image(const char* op, const char* name, const Tensor& image) {
  STD_TORCH_CHECK(image.dim() == 4 && image.numel() > 0, op, ": ", name, " has shape ",
                  shape_name(image), "; expected four dimensions, N x C x H x W, none of them 0");
  STD_TORCH_CHECK(is_floating(image.scalar_type()), op, ": ", name, " has dtype ",
                  dtype_name(image.scalar_type()),
                  "; expected float32, float16, bfloat16 or float64");
  STD_TORCH_CHECK(is_channels_last(image) || is_dense(image, {0, 1, 2, 3}), op, ": ", name,
                  " has gaps; expected channels_last or contiguous");
  check_storage(op, name, image);
}

void check_vector(const char* op, const char* name, const OptionalTensor& vector, int64_t channels,
                  bool one = false) {
  if (!vector) {
    return;
  }
  STD_TORCH_CHECK(
      vector->dim() == 1 && (vector->size(0) == channels || (one && vector->size(0) == 1)), op,
      ": ", name, " has shape ", shape_name(*vector), "; expected (", channels, ",)");
  STD_TORCH_CHECK(is_floating(vector->scalar_type()) && vector->is_cpu(), op, ": ", name,
                  " has dtype ", dtype_name(vector->scalar_type()),
                  "; expected a floating one, on the CPU");
  check_storage(op, name, *vector);
}

Activation check_arguments(const char* op, const Tensor& input, const OptionalTensor& weight,
                           const OptionalTensor& bias, const OptionalTensor& slope,
                           const std::string& activation) {
  check_image(op, "input", input);
  check_vector(op, "weight", weight, input.size(1));
  check_vector(op, "bias", bias, input.size(1));
  check_vector(op, "slope", slope, input.size(1), true);
  STD_TORCH_CHECK(activation == "none" || activation == "relu" || activation == "prelu", op,
                  ": activation is '", activation, "'; expected one of none, relu, prelu");
  STD_TORCH_CHECK(slope.has_value() == (activation == "prelu"), op, ": activation is '", activation,
                  "' and slope is ", slope ? "given" : "missing",
                  "; 'prelu' needs slope, the others take none");
  return activation == "relu"    ? Activation::relu
         : activation == "prelu" ? Activation::prelu
                                 : Activation::none;
}

Tensor empty_sums(const Tensor& input) {
  const bool precise = input.scalar_type() == ScalarType::Double;
  return torch::stable::empty({3, input.size(1)}, precise ? ScalarType::Double : ScalarType::Float);
}

}  // namespace

std::tuple<Tensor, Tensor> batch_norm_act(const Tensor& input, const OptionalTensor& weight,
                                          const OptionalTensor& bias, const OptionalTensor& slope,
                                          double eps, const std::string& activation) {
  const Activation kind = check_arguments("batch_norm_act", input, weight, bias, slope, activation);
  STD_TORCH_CHECK(input.numel() > input.size(1), "batch_norm_act: input has shape ",
                  shape_name(input), "; expected more than one value per channel");
  Tensor out = empty_like_image(input), statistics = empty_sums(input);
  with_arithmetic(input.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Rows rows = rows_of(input);
    T* const found = static_cast<T*>(statistics.mutable_data_ptr());
    find_statistics(input, rows, eps, found);
    const Norm<T> norm = norm_of(found, rows.channels, weight, bias, slope, kind);
    parallel_items<T>(rows.items(), norm.vectors * rows.period, [&](T* scratch, int64_t item) {
      const int64_t first = rows.first(item);
      kernels<T>().normalize_row(at(input, first), input.scalar_type(), rows.length(item),
                                 norm.row(rows, item, scratch), at(out, first));
    });
  });
  return {out, statistics};
}

std::tuple<Tensor, Tensor> batch_norm_act_backward(const Tensor& gradient, const Tensor& input,
                                                   const Tensor& statistics,
                                                   const OptionalTensor& weight,
                                                   const OptionalTensor& bias,
                                                   const OptionalTensor& slope,
                                                   const std::string& activation) {
  const char* const op = "batch_norm_act_backward";
  const Activation kind = check_arguments(op, input, weight, bias, slope, activation);
  check_image(op, "gradient", gradient);
  const auto sizes = input.sizes(), given = gradient.sizes();
  STD_TORCH_CHECK(std::equal(sizes.begin(), sizes.end(), given.begin()) &&
                      gradient.scalar_type() == input.scalar_type() &&
                      is_channels_last(gradient) == is_channels_last(input),
                  op, ": gradient has shape ", shape_name(gradient), " and dtype ",
                  dtype_name(gradient.scalar_type()), "; expected the input's, and its layout");
  Tensor out = empty_like_image(input), sums = empty_sums(input);
  const int64_t channels = input.size(1);
  STD_TORCH_CHECK(statistics.dim() == 2 && statistics.size(0) == 3 &&
                      statistics.size(1) == channels && statistics.is_contiguous() &&
                      statistics.scalar_type() == sums.scalar_type(),
                  op, ": statistics has shape ", shape_name(statistics), "; expected those of ",
                  "batch_norm_act");
  check_storage(op, "statistics", statistics);
  with_arithmetic(input.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* const found = static_cast<const T*>(statistics.const_data_ptr());
    const Norm<T> norm = norm_of(found, channels, weight, bias, slope, kind);
    find_gradients(gradient, input, norm, found, static_cast<T*>(sums.mutable_data_ptr()), out);
  });
  return {out, sums};
}

}  // namespace fassd::cpu
