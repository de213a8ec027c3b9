// Plans as numbers, for reports: fassd/bench/costs/cuda.py reads them, in this order.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace fassd::cuda {

// shape: batch, height, width, out_height, out_width, out_channels, kernel_h, kernel_w, stride_h,
// stride_w, dilation_h, dilation_w, pool, arithmetic. gpu: multiprocessors, shared bytes,
// capability. Returns, as float64: warps, m_tiles, n_tiles, tile width, tile height, live taps,
// chunk, stages, shared bytes, blocks, resident, then of a block: products, shared bytes read,
// bytes loaded, bytes stored; and the launch's cycles.
torch::stable::Tensor convolution_plan(const std::vector<int64_t>& shape,
                                       const std::vector<int64_t>& channels,
                                       const std::vector<int64_t>& gpu);

// shape: batch, height, width, in_channels, middle_channels, out_channels, dilation, single,
// arithmetic. As above; of no numbers where the pair cannot be one kernel.
torch::stable::Tensor pair_plan(const std::vector<int64_t>& shape, const std::vector<int64_t>& gpu);

// shape: batch, height, width, odd_channels, even_channels, arithmetic; channels of the inputs,
// that of the odd layer first. As above; of no numbers where they cannot be one kernel.
torch::stable::Tensor couple_plan(const std::vector<int64_t>& shape,
                                  const std::vector<int64_t>& channels,
                                  const std::vector<int64_t>& gpu);

// The kernels that are compiled for an arithmetic: rows of warps, m_tiles, n_tiles, sliding.
torch::stable::Tensor convolution_variants(int64_t arithmetic);

}  // namespace fassd::cuda
