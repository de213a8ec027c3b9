// The kernel of one convolution; conv_act.cu drives it.

#pragma once

#include "convolution.cuh"

namespace fassd::cuda {

// Bits of the `taps` that reach the picture from a tile at (y, x). The others only read padding.
__device__ __forceinline__ unsigned live_taps(const Taps& taps, const Axis& rows,
                                              const Axis& columns, int y, int x, int height,
                                              int width) {
  unsigned live = 0;
  for (int tap = 0; tap < taps.count; tap++) {
    const int top = y * rows.step + (rows.first_tap + taps.row[tap] - rows.middle) * rows.dilation;
    const int left = x * columns.step +
                     (columns.first_tap + taps.column[tap] - columns.middle) * columns.dilation;
    const bool reaches = top < rows.size && top + (height - 1) * rows.step >= 0 &&
                         left < columns.size && left + (width - 1) * columns.step >= 0;
    live |= unsigned(reaches) << tap;
  }
  return live;
}

// Minimum number of blocks per multiprocessor for which registers must suffice: 16 warps, or 12 of
// those with the most accumulators. By default the compiler spills some to make room for 20.
constexpr int least_blocks(int warps, int accumulators) {
  return (accumulators > 64 ? 12 : 16) / warps;
}

template <typename Math, int warps, int m_tiles, int n_tiles, bool sliding, int splits>
__global__ void __launch_bounds__(warps * 32, least_blocks(warps, 4 * m_tiles * n_tiles))
    convolution_kernel(const __grid_constant__ Convolution conv,
                       const __grid_constant__ Boxes boxes) {
  using T = typename Math::T;
  constexpr int threads = warps * 32, n = n_tiles * 8;
  unsigned char* shared = ptx::dynamic_shared();
  int* pixels = reinterpret_cast<int*>(shared + positions_at);
  const Tile& tile = conv.tile;
  const SharedLayout& layout = conv.layout;

  const int slots = conv.rows.slots * conv.columns.slots;
  const int pitch = slot_bytes<Math>(conv.chunk);
  const int tap_bytes = conv.chunk * weight_row_bytes<Math, n>;
  const ptx::SharedAddress base = ptx::shared_address(shared);
  // Tiles of this block: with boxes there may be several, and chunks of the next arrive meanwhile.
  int tiles = 1;
  if (ptx::copies_boxes && conv.tiles > 1) {
    tiles = conv.tiles - (blockIdx.x + (conv.tiles - 1) * gridDim.x >= conv.blocks);
  }
  Ring ring = {layout, conv.stage_count, conv.chunks * tiles, conv.boxes > 0, base};
  Place place = place_of(blockIdx.x, tile);
  int column = place.columns * n;
  int x = place.across << tile.width_log2, y = place.down * tile.height;
  Share<T, threads> share;
  // Position of the copies: their tile, and their place in the concatenation.
  unsigned ahead_block = blockIdx.x;
  Cursor ahead;
  const auto begin_boxes = [&](int, int to, ptx::SharedAddress barrier) {
    const Place there = place_of(ahead_block, tile);
    const Source& source = ahead.next(conv.sources, conv.chunk);
    ptx::expect_bytes(barrier, slots * pitch + conv.taps.count * tap_bytes);
    copy_boxes(base + to, boxes.sources[ahead.source], barrier, conv.rows, conv.columns,
               there.picture, there.down * tile.height, there.across << tile.width_log2,
               source.channels - ahead.left, conv.boxes, conv.columns.slots * pitch);
    ptx::copy_box(base + to + layout.weights, boxes.weight, barrier, there.columns * n,
                  ahead.channel, conv.taps.index[0]);
    if (ahead.source + 1 == conv.source_count && ahead.left <= conv.chunk) {
      ahead = Cursor();
      ahead_block += gridDim.x;
    }
  };
  bool outside = false;
  const bool changes = conv.prologue.scale != nullptr;
  if (!ring.boxes || changes) {
    share.divide(conv.chunk);
    outside = locate_slots<threads>(pixels, conv.rows, conv.columns, y, x);
  }
  if (ring.boxes && threadIdx.x == 0) {
    ring.begin(begin_boxes);
  }

  // The first of a warp's pixels in the tile, and the distance from each 16 of them to the next.
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % (warps / splits);
  const int set = splits > 1 ? threadIdx.x / (32 * warps / splits) : 0;
  int first_pixel = warp * m_tiles * 16, pixel_step = 16;
  if constexpr (sliding) {
    const int across = 1 << (tile.width_log2 - 4), down = warp / across;
    first_pixel = (down * m_tiles << tile.width_log2) + (warp - down * across) * 16;
    pixel_step = 1 << tile.width_log2;
  }
  Rows<Math, m_tiles> rows;
#pragma unroll
  for (int i = 0; i < m_tiles; i++) {
#pragma unroll
    for (int address = 0; address < Math::addresses; address++) {
      const int pixel = first_pixel + i * pixel_step + lane_row<Math>(lane, address);
      const int row = pixel >> tile.width_log2, at = pixel & ((1 << tile.width_log2) - 1);
      rows.offset[i][address] =
          (row * conv.rows.slot_step * conv.columns.slots + at * conv.columns.slot_step) * pitch +
          lane_bytes<Math>(lane);
    }
  }
  if (ring.boxes) {
    __syncthreads();
  } else if (__syncthreads_or(outside)) {
    clear_outside<threads>(shared, layout, conv.stage_count, pixels, slots, pitch);
  }
  ptx::wait_for_previous_kernels();

  const auto begin_copy = [&](int, int to) {
    const Source& source = ahead.next(conv.sources, conv.chunk);
    copy_pixels<T, threads>(base + to, pixels, slots, source, place.picture,
                            source.channels - ahead.left, share, pitch);
    copy_weights<Math, n, threads>(base + to + layout.weights, conv.weight, conv.taps,
                                   ahead.channel, ahead.left, conv.chunk, column);
  };
  Cursor now;
  const auto transform = [&](int at) {
    transform_pixels<T, threads>(shared + at, pixels, slots, conv.sources[0].channels,
                                 conv.prologue, now.channel, share, pitch);
  };
  for (int turn = 0, begun = 0; turn < tiles; turn++, begun += conv.chunks) {
    if (turn > 0) {
      place = place_of(blockIdx.x + turn * gridDim.x, tile);
      column = place.columns * n;
      x = place.across << tile.width_log2;
      y = place.down * tile.height;
    }
    const unsigned live = sliding || (conv.rows.dilation == 1 && conv.columns.dilation == 1)
                              ? ~0u
                              : live_taps(conv.taps, conv.rows, conv.columns, y, x, tile.height,
                                          1 << tile.width_log2);
    Accumulators<Math, m_tiles, n_tiles> acc;
    acc.clear();
    now = Cursor();
    for (int chunk = ring.first(); chunk < conv.chunks; chunk++) {
      if (chunk >= 0) {
        now.next(conv.sources, conv.chunk);
      }
      const int at = ring.next(begun + chunk, begin_copy, begin_boxes, changes, transform);
      if (chunk < 0) {
        continue;
      }
      // The channels of the chunk that its source fills, in whole products.
      const int rest = round_up_to<Math::step>(now.left);
      const int depth = rest < conv.chunk ? rest : conv.chunk;
      if constexpr (sliding) {
        multiply_sliding<T, m_tiles, n_tiles, splits>(
            shared, at + rows.offset[0][0], conv.columns.slots * pitch, pitch, at + layout.weights,
            tap_bytes, depth, acc, set);
      } else {
        multiply_taps<splits>(shared, rows, at, at + layout.weights, conv.taps, live, tap_bytes,
                              depth, acc, set);
      }
    }
    __syncthreads();  // the memory where sums are staged is no longer read
    if (turn + 1 == tiles) {
      ptx::let_next_kernel_start();
    }
    float* staging = reinterpret_cast<float*>(shared + layout.staging);
#pragma unroll
    for (int sets = 0; sets < splits; sets++) {
      if (sets == set) {
        stage_sums<Math, m_tiles, n_tiles>(staging, acc, first_pixel, pixel_step, sets > 0);
      }
      __syncthreads();
    }
    write_tile<T, n_tiles, threads>(staging, reinterpret_cast<Edge*>(shared + positions_at),
                                    conv.epilogue,
                                    {tile.width_log2, tile.height, place.picture, y, x, column,
                                     conv.weight.out_channels, conv.out_height, conv.out_width});
  }
}

}  // namespace fassd::cuda
