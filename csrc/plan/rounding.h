// Whole numbers of steps, chunks and vectors, rounded up like in the kernels.

#pragma once

#include <vector>

#include "plan.h"

namespace fassd::cuda {

inline int itemsize_of(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::half ? 2 : 4;
}

// Channels of one product.
inline int step_of(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::half ? 16 : arithmetic == Arithmetic::tf32 ? 8 : 4;
}

inline int64_t divide_up(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

inline int round_up(int value, int multiple) {
  return int(divide_up(value, multiple)) * multiple;
}

inline int chunks_of(const std::vector<int>& channels, int chunk) {
  int chunks = 0;
  for (int count : channels) {
    chunks += int(divide_up(count, chunk));
  }
  return chunks;
}

// Channels in whole products: each input's channels are padded separately.
inline int depth_of(const std::vector<int>& channels, int step) {
  int depth = 0;
  for (int count : channels) {
    depth += round_up(count, step);
  }
  return depth;
}

}  // namespace fassd::cuda
