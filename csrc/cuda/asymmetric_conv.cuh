// A 3x1 convolution, an activation and a 1x3 convolution in one kernel: the values in between stay
// in shared memory.
//
// A block computes a rectangle of the result, all channels. First it computes the middle, at the
// rectangle's columns and at the neighbouring ones that the 1x3 reads (which the neighbouring block
// computes as well), unless the rectangle has whole rows: then taps beside the picture read a pixel
// of zeros. Both convolutions take their chunks from one ring of stages, so that the second's
// weights are being loaded while the first is computed.

#pragma once

#include "conv_act.cuh"
#include "convolution_kernel.cuh"

namespace fassd::cuda {

// Without a second convolution (no taps), the middle is the result.
struct Pair {
  Source source;
  Weight first_weight, second_weight;
  Taps first, second;
  Axis rows, columns;
  Tile tile;
  bool whole_rows = false;
  int chunk = 16;
  int first_chunks = 1, chunks = 1;  // of the first convolution, of both
  int stage_count = 2;
  int boxes = 0;  // of a chunk's pixels; 0 if threads copy them
  SharedLayout layout;
  int64_t blocks = 0;           // other pairs of the launch may have more
  const void* bias = nullptr;   // of the first convolution
  const void* slope = nullptr;  // of its activation, which is the epilogue's
  Epilogue epilogue;            // of the second
};

struct Pairs {
  Pair pair[most_pairs];
};

// Like Boxes, for each pair.
struct PairBoxes {
  CUtensorMap source[most_pairs], first_weight[most_pairs], second_weight[most_pairs];
};

// The host's description of a pair; `second` has no value if there is only the first convolution.
struct PairCall {
  Source input;
  Filter first;
  std::optional<Filter> second;
  int64_t batch = 1;
  int dilation = 1;
  const void* bias = nullptr;
  const void* slope = nullptr;
  Epilogue epilogue;
};

// Launches pairs on inputs of the same size: in one kernel if that pays, or else one convolution at
// a time. Scratch is allocated on the device of `like`.
void run_pairs(const Context& context, const Tensor& like, const std::vector<PairCall>& calls);

// Like launch_convolution; the plans have the same variant.
template <typename T>
void launch_pairs(const Context& context, const std::vector<PairPlan>& plans, const Pairs& pairs,
                  const PairBoxes& boxes);

// --- the kernel ----------------------------------------------------------------------------------

// Like least_blocks: for 16 warps, or 8 if the accumulators take most of the registers.
template <typename Math>
constexpr int least_pair_blocks(int warps, int n_tiles) {
  const int sums = 4 * pair_m_tiles * n_tiles * (Math::splits_sums ? 2 : 1);
  return (sums > 64 ? 8 : 16) / warps;
}

template <typename Math, int warps, int n_tiles>
__global__ void __launch_bounds__(warps * 32, least_pair_blocks<Math>(warps, n_tiles))
    pair_kernel(const __grid_constant__ Pairs pairs, const __grid_constant__ PairBoxes boxes) {
  using T = typename Math::T;
  constexpr int threads = warps * 32, n = n_tiles * 8;
  constexpr int middle_pitch = n * int(sizeof(T)) + slot_padding;
  const Pair& pair = pairs.pair[blockIdx.y];
  const Tile& tile = pair.tile;
  const SharedLayout& layout = pair.layout;
  unsigned char* shared = ptx::dynamic_shared();
  int* pixels = reinterpret_cast<int*>(shared + positions_at);

  if (blockIdx.x >= pair.blocks) {
    return;
  }
  const int tile_width = 1 << tile.width_log2, middle_width = pair.columns.slots;
  const Place place = place_of(blockIdx.x, tile);
  const int picture = place.picture;
  const int x = place.across << tile.width_log2, y = place.down * tile.height;

  const int slots = pair.rows.slots * middle_width, middle_pixels = tile.height * middle_width;
  const int zeros = layout.middle + (middle_pixels + 15) / 16 * 16 * middle_pitch;
  const int pitch = slot_bytes<Math>(pair.chunk);
  const int tap_bytes = pair.chunk * weight_row_bytes<Math, n>;
  const ptx::SharedAddress base = ptx::shared_address(shared);
  Ring ring = {layout, pair.stage_count, pair.chunks, pair.boxes > 0, base};
  const int first_chunks = pair.first_chunks, chunks = pair.chunks;
  const auto second_boxes = [&](int chunk, int to, ptx::SharedAddress barrier) {
    ptx::expect_bytes(barrier, pair.second.count * tap_bytes);
    ptx::copy_box(base + to + layout.weights, boxes.second_weight[blockIdx.y], barrier, 0,
                  (chunk - first_chunks) * pair.chunk, pair.second.index[0]);
  };
  const auto begin_boxes = [&](int chunk, int to, ptx::SharedAddress barrier) {
    if (chunk >= first_chunks) {
      second_boxes(chunk, to, barrier);
      return;
    }
    const int first = chunk * pair.chunk;
    ptx::expect_bytes(barrier, slots * pitch + pair.first.count * tap_bytes);
    copy_boxes(base + to, boxes.source[blockIdx.y], barrier, pair.rows, pair.columns, picture, y, x,
               first, pair.boxes, pair.columns.slots * pitch);
    ptx::copy_box(base + to + layout.weights, boxes.first_weight[blockIdx.y], barrier, 0, first,
                  pair.first.index[0]);
  };
  Share<T, threads> share;
  bool outside = false;
  if (!ring.boxes) {
    share.divide(pair.chunk);
    outside = locate_slots<threads>(pixels, pair.rows, pair.columns, y, x);
  } else if (threadIdx.x == 0) {
    ring.begin(begin_boxes);
  }
  for (int i = threadIdx.x; i < middle_pitch / 4; i += threads) {
    reinterpret_cast<uint32_t*>(shared + zeros)[i] = 0;
  }
  const Axis no_columns;
  const unsigned live = live_taps(pair.first, pair.rows, no_columns, y, 0, tile.height, 1);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Rows<Math, 1> rows[pair_m_tiles];
#pragma unroll
  for (int i = 0; i < pair_m_tiles; i++) {
#pragma unroll
    for (int address = 0; address < Math::addresses; address++) {
      const int pixel = (warp + i * warps) * 16 + lane_row<Math>(lane, address);
      rows[i].offset[0][address] =
          (pixel < middle_pixels ? pixel : 0) * pitch + lane_bytes<Math>(lane);
    }
  }
  if (ring.boxes) {
    __syncthreads();
  } else if (__syncthreads_or(outside)) {
    clear_outside<threads>(shared, layout, pair.stage_count, pixels, slots, pitch);
  }
  ptx::wait_for_previous_kernels();

  const auto copy_second = [&](int chunk, int to) {
    const int first = (chunk - first_chunks) * pair.chunk;
    copy_weights<Math, n, threads>(base + to + layout.weights, pair.second_weight, pair.second,
                                   first, pair.second_weight.in_channels - first, pair.chunk, 0);
  };
  const auto begin_copy = [&](int chunk, int to) {
    if (chunk >= first_chunks) {
      copy_second(chunk, to);
      return;
    }
    const int first = chunk * pair.chunk;
    copy_pixels<T, threads>(base + to, pixels, slots, pair.source, picture, first, share, pitch);
    copy_weights<Math, n, threads>(base + to + layout.weights, pair.first_weight, pair.first, first,
                                   pair.source.channels - first, pair.chunk, 0);
  };
  {
    Accumulators<Math, 1, n_tiles> acc[pair_m_tiles];
#pragma unroll
    for (int i = 0; i < pair_m_tiles; i++) {
      acc[i].clear();
    }
    for (int chunk = ring.first(); chunk < first_chunks; chunk++) {
      const int at = ring.next(chunk, begin_copy, begin_boxes);
      if (chunk < 0) {
        continue;
      }
#pragma unroll
      for (int i = 0; i < pair_m_tiles; i++) {
        if ((warp + i * warps) * 16 < middle_pixels) {
          multiply_taps(shared, rows[i], at, at + layout.weights, pair.first, live, tap_bytes,
                        pair.chunk, acc[i]);
        }
      }
    }
    // The 1x3 pads with zeros, not with the 3x1's result for padding.
    const int channels = pair.first_weight.out_channels;
    const T* bias = static_cast<const T*>(pair.bias);
    const T* slope = static_cast<const T*>(pair.slope);
    int to[pair_m_tiles][2];
    bool inside[pair_m_tiles][2];
#pragma unroll
    for (int i = 0; i < pair_m_tiles; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int pixel = (warp + i * warps) * 16 + lane / 4 + 8 * half;
        to[i][half] = pixel < middle_pixels ? layout.middle + pixel * middle_pitch : -1;
        inside[i][half] = holds(pair.columns, position(pair.columns, x, pixel % middle_width));
      }
    }
    const auto store = [&](auto activation) {
#pragma unroll
      for (int j = 0; j < n_tiles; j++) {
        const int channel = j * 8 + lane % 4 * 2;
        float added[2], factor[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
          const bool there = channel + k < channels;
          added[k] = there && bias != nullptr ? to_float(bias[channel + k]) : 0.0f;
          factor[k] = there && slope != nullptr ? to_float(slope[channel + k]) : 1.0f;
        }
#pragma unroll
        for (int i = 0; i < pair_m_tiles; i++) {
#pragma unroll
          for (int half = 0; half < 2; half++) {
            if (to[i][half] < 0) {
              continue;
            }
            float values[2];
#pragma unroll
            for (int k = 0; k < 2; k++) {
              const float value = activate(acc[i].sums[0][j][2 * half + k] + added[k],
                                           decltype(activation)::value, factor[k]);
              values[k] = inside[i][half] && channel + k < channels ? value : 0.0f;
            }
            store_two<T>(shared + to[i][half] + channel * int(sizeof(T)), values[0], values[1]);
          }
        }
      }
    };
    if (pair.epilogue.activation == Activation::relu) {
      store(std::integral_constant<Activation, Activation::relu>());
    } else {  // without an activation, of slope 1
      store(std::integral_constant<Activation, Activation::prelu>());
    }
  }
  __syncthreads();

  if (pair.second.count == 0) {
    ptx::let_next_kernel_start();
    const Target& out = pair.epilogue.out;
    const int channel = threadIdx.x % n_tiles * lanes;
    for (int pixel = threadIdx.x / n_tiles; pixel < middle_pixels; pixel += threads / n_tiles) {
      const int row = pixel / middle_width;
      const int at_y = y + row, at_x = x + pixel - row * middle_width;
      if (at_y < pair.rows.size && at_x < pair.columns.size) {
        float values[lanes];
        load_eight<T>(shared + layout.middle + pixel * middle_pitch + channel * int(sizeof(T)),
                      values);
        store_lanes<T>(out, picture * out.stride_n + at_y * out.stride_h + at_x * out.stride_w,
                       channel, values);
      }
    }
    return;
  }

  Accumulators<Math, 1, n_tiles> acc;
  acc.clear();
  for (int chunk = first_chunks; chunk < chunks; chunk++) {
    const int weights = ring.next(chunk, copy_second, second_boxes) + layout.weights;
    const int channel_bytes = (chunk - first_chunks) * pair.chunk * int(sizeof(T));
    const auto each = [&](Accumulators<Math, 1, n_tiles>& sums) {
      for (int tap = 0; tap < pair.second.count; tap++) {
        Rows<Math, 1> at;
#pragma unroll
        for (int address = 0; address < Math::addresses; address++) {
          const int pixel = warp * 16 + lane_row<Math>(lane, address);
          const int row = pixel >> tile.width_log2, column = pixel & (tile_width - 1);
          int slot = column + pair.second.column[tap] * pair.columns.pitch;
          bool beside = false;
          if (pair.whole_rows) {
            slot =
                column + (pair.columns.first_tap + pair.second.column[tap] - pair.columns.middle) *
                             pair.columns.dilation;
            beside = !holds(pair.columns, slot);
          }
          at.offset[0][address] =
              (beside ? zeros : layout.middle + (row * middle_width + slot) * middle_pitch) +
              lane_bytes<Math>(lane);
        }
        multiply(Math(), shared, at, channel_bytes, weights + tap * tap_bytes, pair.chunk, sums);
      }
    };
    if constexpr (Math::splits_sums) {
      Accumulators<Math, 1, n_tiles> part;
      part.clear();
      each(part);
      acc.add(part);
    } else {
      each(acc);
    }
  }
  __syncthreads();  // the sums are staged in the memory of the chunks
  ptx::let_next_kernel_start();

  float* staging = reinterpret_cast<float*>(shared + layout.stages);
  stage_sums<Math, 1, n_tiles>(staging, acc, warp * 16, 16);
  __syncthreads();
  write_tile<T, n_tiles, threads, true>(
      staging, nullptr, pair.epilogue,
      {tile.width_log2, tile.height, picture, y, x, 0, pair.second_weight.out_channels,
       pair.rows.size, pair.columns.size});
}

}  // namespace fassd::cuda
