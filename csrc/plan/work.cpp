// The work of a block, from its plan: the same sums as in the kernels' loops.

#include "work.h"

#include <algorithm>

#include "rounding.h"

namespace fassd::cuda {

namespace {

double warps_of(int64_t items) {
  return double(divide_up(items, 32));
}

// Instructions of a warp's m_tiles x n_tiles products over one step of channels, with the loads
// from shared memory and the rounding before them (multiply.cuh).
double instructions_of_products(Arithmetic arithmetic, int m, int n) {
  switch (arithmetic) {
    case Arithmetic::half:
      return m + (n + 1) / 2 + m * n;
    case Arithmetic::tf32:
      return 5 * m + 4 * n + m * n;
    default:
      return 2 * m + 4 * n + 16 * m * n;
  }
}

// The same for a sliding warp and one column of taps.
double instructions_of_sliding(int m, int n) {
  return m + 2 + 3 * ((n + 1) / 2) + 3 * m * n;
}

// Products of `warps` warps, tap by tap, over these steps and chunks.
void add_products(Work& work, Arithmetic arithmetic, double warps, int taps, int steps, int chunks,
                  int m, int n) {
  work.steps += warps * taps * steps;
  work.loads += warps * taps * steps * (m + (n + 1) / 2);
  work.products += warps * taps * steps * instructions_of_products(arithmetic, m, n);
  if (arithmetic == Arithmetic::float32) {
    work.products += warps * chunks * 4 * m * n;  // sums of a chunk are added to the previous ones
  }
}

void add_sliding(Work& work, double warps, int steps, int chunks, int m, int n) {
  work.sliding_steps += warps * 3 * steps;
  work.sliding_columns += warps * 3 * chunks;
  work.products += warps * 3 * steps * instructions_of_sliding(m, n);
}

// Weights of `rows` rows of n channels, chunk by chunk.
double weight_vectors(int chunks, int rows, int n, int elements) {
  return chunks * warps_of(int64_t(rows) * (n / elements));
}

// The work of copying boxes by the engine, chunk by chunk: nearly none.
void add_boxes(Work& work, double warps, int chunks, int boxes) {
  work.boxes += boxes;
  work.box_chunks += warps * chunks;
  work.box_warps += warps;
  work.box_tiles += warps;
}

// The number of a tile's pixels inside the picture.
double inside_of(const Tile& tile, int height, int width) {
  return double(height) / (double(tile.down) * tile.height) * width /
         (double(tile.across) * (1 << tile.width_log2));
}

// The processing of the sums of a tile of the result.
void add_epilogue(Work& work, const Variant& variant, const Tile& tile, int height, int width,
                  Ending ending, int pool = 1) {
  const int64_t pixels = int64_t(tile.height) << tile.width_log2;
  const double vectors =
      inside_of(tile, height, width) * warps_of(pixels * variant.n_tiles / (pool * pool));
  work.epilogues += variant.warps;
  work.staged += double(pixels) / 16 * variant.n_tiles * variant.splits;
  work.pooled_vectors += vectors * (pool * pool - 1);
  (ending == Ending::plain      ? work.plain_vectors
   : ending == Ending::copied   ? work.copied_vectors
   : ending == Ending::residual ? work.residual_vectors
   : ending == Ending::resized  ? work.resized_vectors
                                : work.addend_vectors) += vectors;
}

}  // namespace

Work work_of(const ConvolutionPlan& plan, const ConvolutionShape& shape) {
  const Variant& variant = plan.variant;
  const int elements = 16 / itemsize_of(shape.arithmetic), step = step_of(shape.arithmetic);
  const int chunks = chunks_of(shape.channels, plan.chunk);
  const int steps = depth_of(shape.channels, step) / step;
  const int slots = plan.rows.slots * plan.columns.slots;
  const double warps = variant.warps;
  Work work;
  const double pixel_vectors = chunks * warps_of(int64_t(slots) * (plan.chunk / elements));
  work.transformed_vectors = shape.prologue ? pixel_vectors : 0;
  work.slots = shape.prologue || plan.boxes == 0 ? warps_of(slots) : 0;
  if (plan.boxes > 0) {
    add_boxes(work, warps, chunks, chunks * (plan.boxes + 1));
    work.box_warps *= double(plan.grid) / double(plan.cost.blocks);
  } else {
    work.pixel_vectors = pixel_vectors;
    work.weight_vectors =
        weight_vectors(chunks, plan.taps.count * plan.chunk, variant.channels(), elements);
    work.copies = work.chunks = warps * chunks;
    work.warps = warps;
  }
  if (variant.sliding) {
    add_sliding(work, variant.pixel_warps(), steps, chunks, variant.m_tiles, variant.n_tiles);
  } else {
    add_products(work, shape.arithmetic, variant.pixel_warps(), plan.taps.count, steps, chunks,
                 variant.m_tiles, variant.n_tiles);
    work.taps = warps * plan.taps.count * chunks;
    work.checked_taps = warps * plan.taps.count;
  }
  add_epilogue(work, variant, plan.tile, shape.out_height, shape.out_width, shape.ending,
               shape.pool);
  return work;
}

Work work_of(const PairPlan& plan, const PairShape& shape) {
  const int n_tiles = plan.variant.n_tiles, n = plan.variant.channels();
  const int elements = 16 / itemsize_of(shape.arithmetic), step = step_of(shape.arithmetic);
  const int first = int(divide_up(shape.in_channels, plan.chunk));
  const int second = shape.single ? 0 : int(divide_up(shape.middle_channels, plan.chunk));
  const int slots = plan.rows.slots * plan.columns.slots;
  const int middle = plan.tile.height * plan.columns.slots;  // pixels
  const double warps = plan.variant.warps, groups = double(divide_up(middle, 16));
  Work work;
  if (plan.boxes > 0) {
    add_boxes(work, warps, first + second, first * (plan.boxes + 1) + second);
  } else {
    work.pixel_vectors = first * warps_of(int64_t(slots) * (plan.chunk / elements));
    work.weight_vectors = weight_vectors(first, plan.first.count * plan.chunk, n, elements) +
                          weight_vectors(second, plan.second.count * plan.chunk, n, elements);
    work.copies = work.chunks = warps * (first + second);
    work.slots = warps_of(slots);
    work.warps = warps;
  }
  add_products(work, shape.arithmetic, groups, plan.first.count, first * plan.chunk / step, first,
               1, n_tiles);
  add_products(work, shape.arithmetic, warps, plan.second.count, second * plan.chunk / step, second,
               1, n_tiles);
  work.taps = groups * plan.first.count * first;
  work.pair_taps = warps * plan.second.count * second;
  work.middles = groups;
  work.pair_middle = groups * n_tiles;
  if (shape.single) {
    work.ready_vectors =
        inside_of(plan.tile, shape.height, shape.width) * warps_of(int64_t(middle) * n_tiles);
  } else {
    add_epilogue(work, plan.variant, plan.tile, shape.height, shape.width, shape.ending);
  }
  work.checked_taps = warps * plan.first.count;
  return work;
}

Work work_of(const StemPlan& plan, const ConvolutionShape& shape) {
  Work work;
  work.stem_warps = stem_warps;
  work.products = stem_warps * stem_depth / 16 *
                  instructions_of_products(Arithmetic::half, stem_m_tiles, plan.variant.n_tiles);
  add_epilogue(work, plan.variant, plan.tile, shape.out_height, shape.out_width, shape.ending,
               shape.pool);
  return work;
}

Work work_of(const ArgmaxPlan& plan, int64_t batch, int channels, int height, int width) {
  const double groups = double(divide_up(channels, 4));
  const double pixels = double(batch * height) * warps_of(width);
  Work work;
  if (!plan.by_cells) {
    work.enlarged_vectors = pixels * double(divide_up(channels, 8));
    return work;
  }
  work.argmax_warps = double(plan.blocks) * argmax_threads / 32;
  work.argmax_groups = work.argmax_warps * groups;
  work.argmax_channels = pixels * groups;
  return work;
}

}  // namespace fassd::cuda
