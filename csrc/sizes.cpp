#include "sizes.h"

#include <torch/headeronly/util/Exception.h>

namespace fassd {

namespace {

// The product, or -1 if it does not fit into 64 bits.
int64_t product_or_nothing(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  bool fits = true;
  for (int64_t factor : factors) {
    if (factor == 0) {
      return 0;
    }
    fits = fits && !__builtin_mul_overflow(product, factor, &product);
  }
  return fits ? product : -1;
}

}  // namespace

std::string list_name(const std::vector<int64_t>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); i++) {
    text += (i ? ", " : "") + std::to_string(values[i]);
  }
  return text + "]";
}

int64_t checked_sum(int64_t a, int64_t b) {
  int64_t sum = 0;
  STD_TORCH_CHECK(!__builtin_add_overflow(a, b, &sum), "fassd_kernels: sizes ", list_name({a, b}),
                  ", added, do not fit into memory");
  return sum;
}

int64_t checked_product(std::initializer_list<int64_t> factors) {
  const int64_t product = product_or_nothing(factors);
  STD_TORCH_CHECK(product >= 0, "fassd_kernels: sizes ", list_name(factors),
                  ", multiplied, do not fit into memory");
  return product;
}

int64_t ImageSize::numel() const {
  constexpr int64_t bytes = 8;  // of the widest element
  const int64_t product = product_or_nothing({bytes, batch, channels, height, width});
  STD_TORCH_CHECK(product >= 0, "a result of shape (", batch, ", ", channels, ", ", height, ", ",
                  width, ") does not fit into memory");
  return product / bytes;
}

std::string shape_name(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); i++) {
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  }
  return text + (tensor.dim() == 1 ? ",)" : ")");
}

std::string place_name(const Tensor& tensor) {
  return tensor.is_cpu()    ? "cpu"
         : tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index())
                            : "another kind of device";
}

const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::Bool:
      return "torch.bool";
    default:
      return "another type";
  }
}

bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

}  // namespace fassd
