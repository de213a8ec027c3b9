#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "../operators.h"

namespace fassd::cpu {

namespace {

// Odd, and half of their bits set.
constexpr uint64_t keys[4] = {0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
                              0x85EBCA77C2B2AE63};

// A product of which every bit depends on every bit of both factors.
uint64_t folded_product(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return uint64_t(product) ^ uint64_t(product >> 64);
}

uint64_t mix(uint64_t sum, uint64_t value) {
  return folded_product(sum ^ keys[0], value ^ keys[1]);
}

// Four chains of products, 16 bytes of each line in each: reads 20 GB/s on one core of an EPYC,
// where adding up reads 22.
uint64_t checksum_of(const char* bytes, int64_t count, uint64_t sum) {
  uint64_t chains[4] = {sum, sum, sum, sum};
  uint64_t line[8];
  const auto add_line = [&](const char* from, int64_t size) {
    std::memcpy(line, from, size);
    for (int i = 0; i < 4; i++) {
      chains[i] = folded_product(line[2 * i] ^ keys[i], line[2 * i + 1] ^ chains[i]);
    }
  };
  constexpr int64_t width = sizeof(line);
  int64_t at = 0;
  for (; at + width <= count; at += width) {
    add_line(bytes + at, width);
  }
  std::fill(line, line + 8, 0);
  add_line(bytes + at, count - at);
  return std::accumulate(chains, chains + 4, sum, mix);
}

void check_storage(const Tensor& tensor, int64_t extent) {
  int64_t held = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &held));
  const int64_t end = (tensor.storage_offset() + extent) * int64_t(tensor.element_size());
  STD_TORCH_CHECK(end <= held, "checksum: a tensor of ", tensor.numel(),
                  " values has a storage of ", held, " bytes");
}

uint64_t add_tensor(uint64_t sum, const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  sum = mix(sum, uint64_t(tensor.scalar_type()));
  // Dimensions by stride; values that follow each other are read in one go.
  std::vector<std::pair<int64_t, int64_t>> outer;
  for (size_t i = 0; i < sizes.size(); i++) {
    sum = mix(mix(sum, sizes[i]), strides[i]);
    if (sizes[i] != 1) {
      outer.emplace_back(strides[i], sizes[i]);
    }
  }
  if (tensor.numel() == 0) {
    return sum;
  }
  std::sort(outer.begin(), outer.end());
  int64_t extent = 1, run = 1;
  for (const auto& [stride, size] : outer) {
    extent += stride * (size - 1);
  }
  check_storage(tensor, extent);
  size_t inner = 0;
  while (inner < outer.size() && outer[inner].first == run) {
    run *= outer[inner++].second;
  }
  outer.erase(outer.begin(), outer.begin() + inner);

  const int64_t width = int64_t(tensor.element_size());
  const char* const data = static_cast<const char*>(tensor.const_data_ptr());
  for (int64_t i = 0; i < tensor.numel() / run; i++) {
    int64_t rest = i, offset = 0;
    for (const auto& [stride, size] : outer) {
      offset += rest % size * stride;
      rest /= size;
    }
    sum = checksum_of(data + offset * width, run * width, sum);
  }
  return sum;
}

}  // namespace

int64_t checksum(const Tensors& tensors) {
  return int64_t(std::accumulate(tensors.begin(), tensors.end(), uint64_t(0), add_tensor));
}

}  // namespace fassd::cpu
