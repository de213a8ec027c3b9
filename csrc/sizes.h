// Sizes that fit into memory; and texts of shapes, lists and types for error messages.

#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "operators.h"

namespace fassd {

// Sums and products of sizes, none of them negative. They throw if the result does not fit into 64
// bits: memory that is allocated or stepped over is never less than the sizes require.
int64_t checked_sum(int64_t a, int64_t b);
int64_t checked_product(std::initializer_list<int64_t> factors);

// Shape of the result, N x C x H x W.
struct ImageSize {
  int64_t batch, channels, height, width;
  std::vector<int64_t> sizes() const { return {batch, channels, height, width}; }
  // Throws if there are more elements than memory can hold.
  int64_t numel() const;
};

std::string shape_name(const Tensor& tensor);
std::string place_name(const Tensor& tensor);
std::string list_name(const std::vector<int64_t>& values);
const char* dtype_name(ScalarType dtype);
bool is_floating(ScalarType dtype);

}  // namespace fassd
