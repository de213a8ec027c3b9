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
  Taps odd_taps, even_taps;  // all nine: which of them read padding does not matter, it is zeros
  int height = 0, width = 0;
  Tile tile;
  int chunk = 16;
  // Of the predecessor, which both layers read; of all inputs; and the odd layer's behind them.
  int both_chunks = 1, outside_chunks = 1, chunks = 1;
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
  int* pixels = reinterpret_cast<int*>(shared);
  const SharedLayout& layout = couple.layout;

  const Place place = place_of(blockIdx.x, couple.tile);
  const int picture = place.picture, column = place.columns * n;
  const int x = place.across * tile_columns, y = place.down * tile_rows;
  const int pitch = slot_bytes<Math>(couple.chunk);
  const int tap_bytes = couple.chunk * weight_row_bytes<Math, n>;
  const int odd_tap_bytes = couple.chunk * weight_row_bytes<Math, odd_n>;

  bool outside = false;
  for (int slot = threadIdx.x; slot < slots; slot += threads) {
    const int at_y = y - 2 + slot / in_columns, at_x = x - 2 + slot % in_columns;
    const bool inside = at_y >= 0 && at_y < couple.height && at_x >= 0 && at_x < couple.width;
    pixels[slot] = inside ? at_y * couple.width + at_x : -1;
    outside |= !inside;
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
  if (__syncthreads_or(outside)) {
    clear_outside<threads>(shared, layout, couple.stage_count, pixels, slots, pitch);
  }
  ptx::wait_for_previous_kernels();

  const int both = couple.both_chunks, outside_odd = couple.outside_chunks;
  const int odd_channels = couple.odd.out_channels;
  const ptx::SharedAddress base = ptx::shared_address(shared);
  Ring ring = {layout, couple.stage_count, couple.chunks};
  // The weights of the odd layer's own channels, the last chunks.
  const auto copy_own = [&](int chunk, int to) {
    const int first = (chunk - outside_odd) * couple.chunk;
    copy_weights<Math, n, threads>(base + to + layout.weights, couple.even, couple.even_taps, first,
                                   odd_channels - first, couple.chunk, column);
  };
  const Share<T, threads> share(couple.chunk);
  Cursor ahead;
  const auto begin_copy = [&](int chunk, int to) {
    if (chunk >= outside_odd) {
      copy_own(chunk, to);
      return;
    }
    const Source& source = ahead.next(couple.sources, couple.chunk);
    copy_pixels<T, threads>(base + to, pixels, slots, source, picture, source.channels - ahead.left,
                            share, pitch);
    copy_weights<Math, n, threads>(base + to + layout.weights, couple.even, couple.even_taps,
                                   odd_channels + ahead.channel, ahead.left, couple.chunk, column);
    if (chunk < both) {
      copy_weights<Math, odd_n, threads>(base + to + couple.odd_weights, couple.odd,
                                         couple.odd_taps, ahead.channel, ahead.left, couple.chunk,
                                         0);
    }
  };

  Accumulators<Math, couple_rows, even_tiles> acc;
  acc.clear();
  // Of the source that a chunk is of, and what of it is in the chunk, in whole products.
  Cursor now;
  const auto depth_of = [&](int left) {
    const int rest = (left + 15) / 16 * 16;
    return rest < couple.chunk ? rest : couple.chunk;
  };
  const auto add_even = [&](int at) {
    multiply_sliding<T, couple_rows, even_tiles>(shared, at + even_at, in_columns * pitch, pitch,
                                                 at + layout.weights, tap_bytes, depth_of(now.left),
                                                 acc);
  };
  {
    Accumulators<Math, 1, odd_tiles> odd[turns];
#pragma unroll
    for (int i = 0; i < turns; i++) {
      odd[i].clear();
    }
    for (int chunk = 1 - couple.stage_count; chunk < both; chunk++) {
      const int at = ring.next(chunk, begin_copy);
      if (chunk < 0) {
        continue;
      }
      now.next(couple.sources, couple.chunk);
      const int depth = depth_of(now.left);
#pragma unroll
      for (int i = 0; i < turns; i++) {
        if ((warp + i * warps) * 16 < odd_pixels) {
          int weights = at + couple.odd_weights;
          for (int y = 0; y < 3; y++) {
            Rows<Math, 1> row;
            row.offset[0][0] = odd_at[i] + y * in_columns * pitch;
#pragma unroll 1
            for (int x = 0; x < 3; x++, weights += odd_tap_bytes) {
              multiply(Math(), shared, row, at, weights, depth, odd[i]);
              row.offset[0][0] += pitch;
            }
          }
        }
      }
      add_even(at);
    }
    // The even layer pads with zeros, not with what the odd one makes of padding.
    const T* bias = static_cast<const T*>(couple.odd_bias);
#pragma unroll
    for (int j = 0; j < odd_depth / 8; j++) {
      const int channel = j * 8 + lane % 4 * 2;
      const float first = channel < odd_channels ? to_float(bias[channel]) : 0.0f;
      const float second = channel + 1 < odd_channels ? to_float(bias[channel + 1]) : 0.0f;
#pragma unroll
      for (int i = 0; i < turns; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int pixel = (warp + i * warps) * 16 + lane / 4 + 8 * half;
          if (pixel >= odd_pixels) {
            continue;
          }
          const int slot = (pixel / odd_columns + 1) * in_columns + pixel % odd_columns + 1;
          uint32_t values = 0;
          if (j < odd_tiles && pixels[slot] >= 0 && channel < odd_channels) {
            const float (&sums)[4] = odd[i].sums[0][j < odd_tiles ? j : 0];
            values =
                ptx::round_to_halves<T, true>(sums[2 * half] + first, sums[2 * half + 1] + second);
            values = channel + 1 < odd_channels ? values : values & 0xffff;
          }
          *reinterpret_cast<uint32_t*>(shared + layout.middle + pixel * odd_pitch + channel * 2) =
              values;
        }
      }
    }
  }
  for (int chunk = both; chunk < outside_odd; chunk++) {
    now.next(couple.sources, couple.chunk);
    add_even(ring.next(chunk, begin_copy));
  }
  const int middle_at = layout.middle + (couple_rows * warp * odd_columns + lane % 16) * odd_pitch +
                        lane_bytes<Math>(lane);
  for (int chunk = outside_odd; chunk < couple.chunks; chunk++) {
    const int first = (chunk - outside_odd) * couple.chunk;
    multiply_sliding<T, couple_rows, even_tiles>(shared, middle_at + first * int(sizeof(T)),
                                                 odd_columns * odd_pitch, odd_pitch,
                                                 ring.next(chunk, copy_own) + layout.weights,
                                                 tap_bytes, depth_of(odd_channels - first), acc);
  }
  end_copies();
  ptx::let_next_kernel_start();

  if (column == 0) {  // the others compute the odd layer too, and do not write it
    constexpr int parts = odd_depth / lanes, step = threads / parts;
    const Target& out = couple.odd_out;
    const int channel = threadIdx.x % parts * lanes;
    char* to = picture_of<T>(out, picture, channel);
    for (int pixel = threadIdx.x / parts; pixel < tile_rows * tile_columns; pixel += step) {
      const int row = pixel / tile_columns, at = pixel % tile_columns;
      if (y + row >= couple.height || x + at >= couple.width) {
        continue;
      }
      const unsigned char* from =
          shared + layout.middle + ((row + 1) * odd_columns + at + 1) * odd_pitch + channel * 2;
      char* there = ptx::element(to, (y + row) * couple.width + x + at, out.pixel_bytes);
      if (out.pairs) {
        store_pairs(there, *reinterpret_cast<const uint4*>(from), out.lanes - channel);
      } else {
        for (int k = 0; k < lanes && channel + k < out.lanes; k++) {
          reinterpret_cast<T*>(there)[k] = reinterpret_cast<const T*>(from)[k];
        }
      }
    }
  }
  float* staging = reinterpret_cast<float*>(shared + layout.stages);
  stage_sums<Math, couple_rows, even_tiles>(staging, acc, couple_rows * warp * tile_columns,
                                            tile_columns);
  __syncthreads();
  write_tile<T, even_tiles, threads>(staging, nullptr, couple.epilogue,
                                     {couple_columns_log2, tile_rows, picture, y, x, column,
                                      couple.even.out_channels, couple.height, couple.width});
}

// As launch_convolution, of 16-bit values.
template <typename T>
void launch_couple(const Context& context, const CouplePlan& plan, const Couple& couple);

}  // namespace fassd::cuda
