// Two consecutive layers of a HarDBlock in one kernel.
//
// An odd layer reads its predecessor alone, and the even layer behind it reads the odd one, that
// predecessor, and others. So a block computes 16 columns of the even layer's result, two rows for
// each warp, and the odd layer's at these and one pixel around them, in shared memory. Chunks of
// the predecessor are brought once and multiplied for both; then come the chunks that the even
// layer alone reads; then the odd layer's own. Nothing of the odd layer is read back from memory,
// and it is written once, to its place in the block's result.
//
//     pixels of the inputs   (rows + 4) x 20      pixels of the odd layer   (rows + 2) x 18

#pragma once

#include "conv_act.cuh"
#include "convolution_kernel.cuh"

namespace fassd::cuda {

struct Couple {
  Source sources[most_sources];  // the predecessor first
  int source_count = 0;
  Weight odd, even;
  Taps taps;  // all nine: which of them read padding does not matter, it is zeros
  int height = 0, width = 0;
  int across = 1, down = 1, columns = 1;  // tiles of a picture, blocks of output channels
  int chunk = 16;
  int stage_count = 2;
  SharedLayout layout;
  int odd_weights = 0;  // of a stage, behind the even layer's
  const void* odd_bias = nullptr;
  Target odd_out;
  Epilogue epilogue;  // of the even layer
};

template <typename T, int warps, int odd_tiles, int even_tiles>
__global__ void __launch_bounds__(warps * 32, 1)
    couple_kernel(const __grid_constant__ Couple couple) {
  using Math = HalfMath<T>;
  constexpr int threads = warps * 32, n = even_tiles * 8, odd_n = odd_tiles * 8;
  constexpr int tile_rows = couple_rows * warps, tile_columns = couple_columns;
  constexpr int odd_rows = tile_rows + 2, odd_columns = tile_columns + 2;
  constexpr int in_columns = tile_columns + 4, slots = (tile_rows + 4) * in_columns;
  constexpr int odd_pixels = odd_rows * odd_columns;
  constexpr int turns = (odd_pixels + warps * 16 - 1) / (warps * 16);
  constexpr int odd_depth = (odd_n + 15) / 16 * 16;
  constexpr int odd_pitch = odd_depth * 2 + slot_padding;
  unsigned char* shared = ptx::dynamic_shared();
  int2* positions = reinterpret_cast<int2*>(shared);
  const SharedLayout& layout = couple.layout;

  const Place place = place_of(blockIdx.x, couple.across, couple.down, couple.columns);
  const int picture = place.picture, column = place.columns * n;
  const int x = place.across * tile_columns, y = place.down * tile_rows;
  const int pitch = slot_bytes<Math>(couple.chunk);
  const int tap_bytes = couple.chunk * weight_row_bytes<Math, n>;
  const int odd_tap_bytes = couple.chunk * weight_row_bytes<Math, odd_n>;

  for (int slot = threadIdx.x; slot < slots; slot += threads) {
    const int at_y = y - 2 + slot / in_columns, at_x = x - 2 + slot % in_columns;
    const bool inside = at_y >= 0 && at_y < couple.height && at_x >= 0 && at_x < couple.width;
    positions[slot] = make_int2(inside ? at_y : -1, at_x);
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // The odd layer's pixels in the order of its rows; those behind the last one repeat the first.
  int odd_at[turns];
#pragma unroll
  for (int i = 0; i < turns; i++) {
    int pixel = (warp + i * warps) * 16 + lane % 16;
    pixel = pixel < odd_pixels ? pixel : 0;
    odd_at[i] =
        (pixel / odd_columns * in_columns + pixel % odd_columns) * pitch + lane_bytes<Math>(lane);
  }
  const int even_at =
      ((couple_rows * warp + 1) * in_columns + 1 + lane % 16) * pitch + lane_bytes<Math>(lane);
  __syncthreads();
  ptx::wait_for_previous_kernels();

  const int both = (couple.sources[0].channels + couple.chunk - 1) / couple.chunk;
  const int outside = chunks_of(couple.sources, couple.source_count, couple.chunk);
  const int odd_channels = couple.odd.out_channels;
  const int chunks = outside + (odd_channels + couple.chunk - 1) / couple.chunk;
  Cursor next;
  const auto begin_copy = [&](int chunk, int stage) {
    const int to = layout.stages + stage * layout.stage_bytes;
    if (chunk >= outside) {
      copy_weights<Math, n>(shared, to + layout.weights, couple.even, couple.taps, ~0u, 0,
                            (chunk - outside) * couple.chunk, odd_channels, couple.chunk, column,
                            threads);
      return;
    }
    const Source& source = couple.sources[next.source];
    copy_pixels<T>(shared, to, positions, slots, source, picture, next.first, couple.chunk, pitch,
                   threads);
    copy_weights<Math, n>(shared, to + layout.weights, couple.even, couple.taps, ~0u,
                          odd_channels + next.before, next.first, source.channels, couple.chunk,
                          column, threads);
    if (chunk < both) {
      copy_weights<Math, odd_n>(shared, to + couple.odd_weights, couple.odd, couple.taps, ~0u, 0,
                                next.first, source.channels, couple.chunk, 0, threads);
    }
    next.advance(couple.sources, couple.chunk);
  };
  for (int stage = 0; stage < couple.stage_count - 1; stage++) {
    if (stage < chunks) {
      begin_copy(stage, stage);
    }
    ptx::copy_async_commit();
  }
  int stage = 0, free_stage = couple.stage_count - 1;
  const auto next_stage = [&](int chunk) {
    wait_for_stage(couple.stage_count);
    __syncthreads();
    if (chunk + couple.stage_count - 1 < chunks) {
      begin_copy(chunk + couple.stage_count - 1, free_stage);
    }
    ptx::copy_async_commit();
    const int at = layout.stages + stage * layout.stage_bytes;
    stage = stage + 1 == couple.stage_count ? 0 : stage + 1;
    free_stage = free_stage + 1 == couple.stage_count ? 0 : free_stage + 1;
    return at;
  };

  Accumulators<Math, couple_rows, even_tiles> acc;
  acc.clear();
  // Of the source that a chunk is of, and what of it is in the chunk, in whole products.
  Cursor now;
  const auto depth_of = [&](int channels, int first) {
    const int rest = (channels - first + 15) / 16 * 16;
    return rest < couple.chunk ? rest : couple.chunk;
  };
  const auto add_even = [&](int at) {
    multiply_sliding<T, couple_rows, even_tiles>(
        shared, at + even_at, in_columns * pitch, pitch, at + layout.weights, tap_bytes,
        depth_of(couple.sources[now.source].channels, now.first), acc);
  };
  {
    Accumulators<Math, 1, odd_tiles> odd[turns];
#pragma unroll
    for (int i = 0; i < turns; i++) {
      odd[i].clear();
    }
    for (int chunk = 0; chunk < both; chunk++) {
      const int at = next_stage(chunk);
      const int depth = depth_of(couple.sources[0].channels, now.first);
#pragma unroll
      for (int i = 0; i < turns; i++) {
        if ((warp + i * warps) * 16 < odd_pixels) {
#pragma unroll 1
          for (int tap = 0; tap < 9; tap++) {
            Rows<Math, 1> row;
            row.offset[0][0] = odd_at[i] + (tap / 3 * in_columns + tap % 3) * pitch;
            multiply(Math(), shared, row, at, at + couple.odd_weights + tap * odd_tap_bytes, depth,
                     odd[i]);
          }
        }
      }
      add_even(at);
      now.advance(couple.sources, couple.chunk);
    }
    // The even layer pads with zeros, not with what the odd one makes of padding.
    const T* bias = static_cast<const T*>(couple.odd_bias);
#pragma unroll
    for (int i = 0; i < turns; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int pixel = (warp + i * warps) * 16 + lane / 4 + 8 * half;
        if (pixel >= odd_pixels) {
          continue;
        }
        const int2 at = positions[(pixel / odd_columns + 1) * in_columns + pixel % odd_columns + 1];
        T* to = reinterpret_cast<T*>(shared + layout.middle + pixel * odd_pitch);
#pragma unroll
        for (int j = 0; j < odd_depth / 8; j++) {
#pragma unroll
          for (int k = 0; k < 2; k++) {
            const int channel = j * 8 + lane % 4 * 2 + k;
            float value = 0.0f;
            if (j < odd_tiles && at.x >= 0 && channel < odd_channels) {
              value = odd[i].sums[0][j < odd_tiles ? j : 0][2 * half + k] + to_float(bias[channel]);
              value = activate(value, couple.epilogue.activation, 0.0f);
            }
            to[channel] = from_float<T>(value);
          }
        }
      }
    }
  }
  for (int chunk = both; chunk < outside; chunk++) {
    add_even(next_stage(chunk));
    now.advance(couple.sources, couple.chunk);
  }
  __syncthreads();  // the odd layer is there
  const int middle_at = layout.middle + (couple_rows * warp * odd_columns + lane % 16) * odd_pitch +
                        lane_bytes<Math>(lane);
  for (int chunk = outside; chunk < chunks; chunk++) {
    const int first = (chunk - outside) * couple.chunk;
    multiply_sliding<T, couple_rows, even_tiles>(
        shared, middle_at + first * int(sizeof(T)), odd_columns * odd_pitch, odd_pitch,
        next_stage(chunk) + layout.weights, tap_bytes, depth_of(odd_channels, first), acc);
  }
  ptx::copy_async_wait<0>();
  __syncthreads();
  ptx::let_next_kernel_start();

  if (column == 0) {  // the others compute the odd layer too, and do not write it
    constexpr int parts = odd_depth / lanes;
    for (int i = threadIdx.x; i < tile_rows * tile_columns * parts; i += threads) {
      const int pixel = i / parts, channel = (i - pixel * parts) * lanes;
      const int row = pixel / tile_columns, at = pixel % tile_columns;
      if (y + row < couple.height && x + at < couple.width && channel < couple.odd_out.lanes) {
        const Source middle = {shared + layout.middle, 0, 0, 0, 1, 0, 0, odd_depth, true};
        float values[lanes];
        load_lanes<T>(middle, ((row + 1) * odd_columns + at + 1) * (odd_pitch / int(sizeof(T))),
                      channel, values);
        const Target& out = couple.odd_out;
        store_lanes<T>(out,
                       picture * out.stride_n + (y + row) * out.stride_h + (x + at) * out.stride_w,
                       channel, values);
      }
    }
  }
  float* staging = reinterpret_cast<float*>(shared + layout.stages);
  stage_sums<Math, couple_rows, even_tiles>(staging, acc, couple_rows * warp * tile_columns,
                                            tile_columns);
  __syncthreads();
  write_tile<T, even_tiles>(staging, couple.epilogue, couple_columns_log2, tile_rows, picture, y, x,
                            column, couple.even.out_channels, couple.height, couple.width, threads);
}

// As launch_convolution, of 16-bit values.
template <typename T>
void launch_couple(const Context& context, const CouplePlan& plan, const Couple& couple);

}  // namespace fassd::cuda
