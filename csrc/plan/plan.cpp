#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>

#include "rounding.h"
#include "work.h"

namespace fassd::cuda {

namespace {

// Rates of one multiprocessor per clock, from tuning guides and published microbenchmarks; the
// model has to rank plans, and reports scale it to measurements.
constexpr double shared_bytes_per_cycle = 128;
constexpr double loaded_bytes_per_cycle = 32;  // from the last cache, all multiprocessors active
constexpr double launch_cycles = 2500;         // start, first loads, writing the result
constexpr double chunk_cycles = 60;            // barrier and addresses of one chunk

// A multiprocessor has four schedulers, each of which issues at most one instruction per clock.
// Assumed, not measured: with three warps or more, one of them can issue in 0.7 of all clocks; with
// fewer, in proportionally fewer clocks, because a warp waits four clocks for what it has just
// computed, longer for shared memory, and only sometimes has an independent instruction.
constexpr double schedulers = 4, issue_efficiency = 0.7, busy_warps = 3;
// Of two plans that take equally long, the one with fewer instructions leaves more to the next
// launch, which begins before this one has ended: this share of their time counts as well.
constexpr double issue_share = 1.0;

// Multiply-accumulates of one multiprocessor per clock.
double rate_of(Arithmetic arithmetic, int capability) {
  const double tensor = capability >= 90 ? 1300 : capability == 80 ? 1024 : 512;
  switch (arithmetic) {
    case Arithmetic::half:
      return tensor;
    case Arithmetic::tf32:
      return tensor / 2;
    default:
      return capability == 80 ? 64 : 128;
  }
}

// Returns true if tap `index` of a kernel of `count` reads a pixel anywhere.
bool reaches(int index, int count, int size, int out_size, int stride, int dilation) {
  const int64_t shift = int64_t(index - count / 2) * dilation;
  return shift >= 0 ? shift < size : int64_t(out_size - 1) * stride + shift >= 0;
}

// The slots for `extent` results in a row.
Axis axis_of(int kernel, int extent, int size, int out_size, int stride, int dilation) {
  Axis axis;
  axis.middle = kernel / 2;
  axis.step = std::min(stride, size);  // a longer one reaches nothing either
  axis.size = size;
  axis.dilation = std::min(dilation, size);  // a larger one reaches nothing either
  int last = axis.middle;
  axis.first_tap = axis.middle;
  while (axis.first_tap > 0 &&
         reaches(axis.first_tap - 1, kernel, size, out_size, stride, dilation)) {
    axis.first_tap--;
  }
  while (last + 1 < kernel && reaches(last + 1, kernel, size, out_size, stride, dilation)) {
    last++;
  }
  axis.groups = last - axis.first_tap + 1;
  const int64_t run = int64_t(extent - 1) * axis.step + 1;
  const int64_t pitch = std::min<int64_t>(axis.dilation, run);
  const int64_t slots = run + (axis.groups - 1) * pitch;
  const bool apart = axis.groups * extent < slots;
  axis.pitch = apart ? extent : int(pitch);
  axis.resize(apart ? axis.groups * extent : int(slots));
  axis.slot_step = apart ? 1 : axis.step;
  axis.shift = (axis.first_tap - axis.middle) * axis.dilation;
  axis.adjacent = !apart && (axis.groups == 1 || axis.pitch == axis.dilation);
  return axis;
}

Taps taps_of(const Axis& rows, const Axis& columns, int kernel_w) {
  Taps taps;
  for (int row = 0; row < rows.groups; row++) {
    for (int column = 0; column < columns.groups; column++) {
      taps.index[taps.count] =
          static_cast<int8_t>((rows.first_tap + row) * kernel_w + columns.first_tap + column);
      taps.row[taps.count] = static_cast<int8_t>(row);
      taps.column[taps.count] = static_cast<int8_t>(column);
      taps.count++;
    }
  }
  return taps;
}

// The number of boxes of a chunk's pixels if an engine copies them: one, or one for each group of
// rows. 0 if they are not boxes, or the taps' weights are not.
int boxes_of(const Axis& rows, const Axis& columns, const std::vector<const Taps*>& taps,
             int slot_bytes, const DeviceLimits& limits) {
  const char* asked = std::getenv(copies_variable);
  if (limits.capability < 90 || (asked != nullptr && std::string(asked) == "threads")) {
    return 0;
  }
  for (const Taps* some : taps) {
    if (some->count > 0 && some->index[some->count - 1] - some->index[0] != some->count - 1) {
      return 0;
    }
  }
  const bool row_groups = rows.slot_step == rows.step && rows.slots == rows.groups * rows.pitch &&
                          rows.pitch * columns.slots * slot_bytes % box_alignment == 0;
  if (!columns.adjacent || columns.slots > most_box_elements || !(rows.adjacent || row_groups)) {
    return 0;
  }
  const int boxes = rows.adjacent ? 1 : rows.groups;
  return rows.slots / boxes <= most_box_elements ? boxes : 0;
}

// Shared memory of the stages, of the sums staged for output, in the same place or apart, and of
// the edges.
SharedLayout layout_of(int slots, int chunk, int weight_rows, int n, int stages, int itemsize,
                       int staging_bytes, int middle_bytes, int edges = 0, bool apart = false) {
  SharedLayout layout;
  layout.stages =
      round_up(positions_at + std::max(slots * position_bytes, edges * edge_bytes), box_alignment);
  layout.weights = round_up(slots * (chunk * itemsize + slot_padding), box_alignment);
  layout.stage_bytes =
      round_up(layout.weights + weight_rows * weight_row(n) * itemsize, box_alignment);
  const int end = layout.stages + stages * layout.stage_bytes;
  layout.staging = apart ? end : layout.stages;
  layout.middle = std::max(end, layout.staging + staging_bytes);
  layout.total = layout.middle + middle_bytes;
  return layout;
}

// Instructions per clock that a multiprocessor with that many warps issues.
double issue_rate(double warps) {
  return schedulers * issue_efficiency * std::min(1.0, warps / (schedulers * busy_warps));
}

// Predicted clocks of a launch: every block waits for its first loads, and other resident blocks
// fill that time; then the slowest of products, shared memory, loads and issue counts. A block
// alone is issued more slowly than among others. A block that computes several tiles waits for its
// first loads once.
void predict(Cost& cost, int warps, int chunks, int stages, Arithmetic arithmetic,
             const DeviceLimits& limits, bool several = false) {
  const double waves = std::ceil(double(cost.blocks) / (double(limits.multiprocessors)));
  // The resident blocks overlap their waiting, but share the rates.
  const int together = int(std::min<double>(cost.resident, waves));
  const double moved = std::max({cost.products / rate_of(arithmetic, limits.capability),
                                 cost.shared_bytes / shared_bytes_per_cycle,
                                 (cost.loaded_bytes + cost.stored_bytes) / loaded_bytes_per_cycle});
  const double busy = std::max(moved, cost.instructions / issue_rate(double(warps) * together));
  // With one stage, nothing is loaded while another is multiplied.
  const double alone = (chunks - 1) * (stages == 1 ? launch_cycles : chunk_cycles) +
                       std::max(moved, cost.instructions / issue_rate(warps));
  const double turns = waves / together;
  cost.cycles = std::max(waves * busy, turns * alone + launch_cycles * (several ? 1.0 : turns));
  cost.rank = cost.cycles + issue_share * waves * cost.instructions / schedulers;
}

int resident_of(int shared_bytes, int threads, int registers, const DeviceLimits& limits) {
  const int by_shared = (limits.shared_bytes + 1024) / (shared_bytes + 1024);
  const int by_threads = (limits.capability >= 90 || limits.capability == 80 ? 2048
                          : limits.capability == 75                          ? 1024
                                                                             : 1536) /
                         threads;
  const int by_registers = 65536 / (registers * threads);
  return std::max(1, std::min({by_shared, by_threads, by_registers, 16}));
}

// Approximate registers that the compiler uses for these accumulators
// (tests/install/cuda_budget.json).
int registers_of(const Variant& variant) {
  const int sums = 4 * variant.m_tiles * variant.n_tiles;
  const int weights = variant.sliding ? 6 * variant.n_tiles : 0;
  return std::min(255, std::max(128, 64 + sums + weights));
}

// The plan with the lowest predicted cost among those offered; a requested one takes precedence.
template <typename Kind>
struct Cheapest {
  Kind best;
  bool found = false;

  Cheapest() { best.cost.rank = std::numeric_limits<double>::infinity(); }

  void offer(const Kind& plan, bool asked_for) {
    if (asked_for != found ? asked_for : plan.cost.rank < best.cost.rank) {
      best = plan;
      best.tile.invert(plan.cost.blocks);
      found = asked_for;
    }
  }
};

// Passes over the banks of shared memory to read eight neighbouring pixels of a tile, 16 bytes
// each: the largest number of them in the same banks. Rows of the tile are `row` slots apart.
int bank_passes(int width_log2, int slot_step, int row, int slot_bytes) {
  int most = 0, hits[8] = {};
  for (int pixel = 0; pixel < 8; pixel++) {
    const int slot = (pixel >> width_log2) * row + (pixel & ((1 << width_log2) - 1)) * slot_step;
    most = std::max(most, ++hits[slot * (slot_bytes / 16) % 8]);
  }
  return most;
}

// Bytes of shared memory that a block's warps read for one tap and one channel: pixels, in that
// many passes, and weights. A sliding warp reads m_tiles + 2 rows for its three vertical taps.
double bytes_read(const Variant& variant, int itemsize, int passes = 1) {
  const double pixels = variant.sliding ? 16.0 * (variant.m_tiles + 2) / 3 : 16.0 * variant.m_tiles;
  return itemsize * variant.pixel_warps() * (passes * pixels + variant.channels());
}

// Returns true if a warp's pixels can have the arrangement of the variant.
bool fits(const Variant& variant, const ConvolutionShape& shape, int width_log2) {
  if (!variant.sliding) {
    return true;
  }
  const bool plain = shape.kernel_h == 3 && shape.kernel_w == 3 && shape.stride_h == 1 &&
                     shape.stride_w == 1 && shape.dilation_h == 1 && shape.dilation_w == 1 &&
                     shape.height > 1 && shape.width > 1;
  return plain && width_log2 >= 4 && variant.pixel_warps() % (1 << (width_log2 - 4)) == 0;
}

}  // namespace

double issue_cycles(double instructions, double warps, const DeviceLimits& limits) {
  return instructions / (issue_rate(warps) * limits.multiprocessors);
}

Arithmetic arithmetic_of(bool is_float32, bool allow_tf32, const DeviceLimits& limits) {
  return !is_float32                             ? Arithmetic::half
         : allow_tf32 && limits.capability >= 80 ? Arithmetic::tf32
                                                 : Arithmetic::float32;
}

std::vector<Variant> variants_of(Arithmetic arithmetic) {
  if (arithmetic == Arithmetic::half) {
    return {std::begin(half_variants), std::end(half_variants)};
  }
  return {std::begin(float_variants), std::end(float_variants)};
}

std::vector<Variant> pairs_of(Arithmetic arithmetic) {
  if (arithmetic == Arithmetic::half) {
    return {std::begin(half_pairs), std::end(half_pairs)};
  }
  return {std::begin(float_pairs), std::end(float_pairs)};
}

bool is_asked_for(const Variant& variant) {
  // Read every time: tests and tuning request one after the other.
  const char* text = std::getenv(variant_variable);
  Variant asked = {};
  int sliding = 0;
  if (text == nullptr || std::sscanf(text, "%d,%d,%d,%d,%d", &asked.warps, &asked.m_tiles,
                                     &asked.n_tiles, &sliding, &asked.splits) < 4) {
    return true;
  }
  asked.sliding = sliding != 0;
  return variant == asked;
}

ConvolutionPlan plan_convolution(const ConvolutionShape& shape, const DeviceLimits& limits) {
  const int itemsize = itemsize_of(shape.arithmetic);
  const int sources = int(shape.channels.size());
  int largest = 0;
  for (int count : shape.channels) {
    largest = std::max(largest, count);
  }
  Cheapest<ConvolutionPlan> cheapest;
  for (const Variant& variant : variants_of(shape.arithmetic)) {
    const bool asked_for = is_asked_for(variant);
    const int pixels = variant.pixels(), n = variant.channels();
    for (int width_log2 = 6; width_log2 >= 2; width_log2--) {
      if ((1 << width_log2) > pixels / 2 || !fits(variant, shape, width_log2)) {
        continue;
      }
      ConvolutionPlan plan;
      plan.variant = variant;
      plan.tile.width_log2 = width_log2;
      const int width = 1 << width_log2;
      plan.tile.height = pixels / width;
      plan.tile.across = int(divide_up(shape.out_width, width));
      plan.tile.down = int(divide_up(shape.out_height, plan.tile.height));
      plan.tile.columns = int(divide_up(shape.out_channels, n));
      plan.rows = axis_of(shape.kernel_h, plan.tile.height, shape.height, shape.out_height,
                          shape.stride_h, shape.dilation_h);
      plan.columns = axis_of(shape.kernel_w, width, shape.width, shape.out_width, shape.stride_w,
                             shape.dilation_w);
      plan.taps = taps_of(plan.rows, plan.columns, shape.kernel_w);
      plan.live_taps = plan.taps.count;
      const int slots = plan.rows.slots * plan.columns.slots;
      const int staging = pixels * staging_row(n) * 4;
      for (int chunk : {64, 32, 16, 8}) {
        const int fewest_channels = shape.arithmetic == Arithmetic::half ? 16 : 8;
        if (chunk < fewest_channels || (chunk > fewest_channels && chunk >= 2 * largest)) {
          continue;  // too few for products, or half of them without an input
        }
        plan.chunk = chunk;
        plan.boxes = boxes_of(plan.rows, plan.columns, {&plan.taps},
                              chunk * itemsize + slot_padding, limits);
        const int chunks = chunks_of(shape.channels, chunk);
        const double depth =
            double(depth_of(shape.channels, step_of(shape.arithmetic))) * plan.taps.count;
        Cost& cost = plan.cost;
        cost.blocks = shape.batch * plan.tile.across * plan.tile.down * plan.tile.columns;
        cost.products = double(pixels) * n * depth;
        const int passes =
            bank_passes(width_log2, plan.columns.slot_step,
                        plan.rows.slot_step * plan.columns.slots, chunk * itemsize + slot_padding);
        cost.shared_bytes = depth * bytes_read(variant, itemsize, passes) + 2.0 * staging;
        cost.loaded_bytes = depth * itemsize * (double(slots) / plan.taps.count + n);
        if (plan.boxes > 0) {  // boxes include the rest of a slot, but not of a source's last
          cost.loaded_bytes += double(slots) * slot_padding * (chunks - sources);
        }
        cost.stored_bytes = double(pixels) * n * itemsize / (shape.pool * shape.pool);
        // Blocks that compute several tiles load the next one's first chunks while they write one.
        // A prologue is applied to the chunks that have arrived meanwhile, and only in one tile.
        for (const bool several : {false, true}) {
          const int most = several ? most_stages : std::min(chunks, most_stages);
          const int fewest = several || shape.prologue ? 2 : 1;
          for (int stages = std::max(most, fewest); stages >= fewest; stages--) {
            plan.stages = stages;
            plan.layout = layout_of(slots, chunk, plan.taps.count * chunk, n, stages, itemsize,
                                    staging, 0, plan.tile.height + width, several);
            cost.resident =
                resident_of(plan.layout.total, variant.warps * 32, registers_of(variant), limits);
            const int64_t at_once = int64_t(cost.resident) * limits.multiprocessors;
            plan.grid = several ? at_once : cost.blocks;
            plan.tiles = int(divide_up(cost.blocks, plan.grid));
            const bool is_one =
                plan.boxes > 0 && !shape.prologue && plan.tiles > 1 && cost.blocks < most_tiles;
            if (plan.layout.total > limits.shared_bytes || (several && !is_one)) {
              continue;
            }
            cost.instructions = work_of(plan, shape).instructions();
            predict(cost, variant.warps, chunks, stages, shape.arithmetic, limits, several);
            cheapest.offer(plan, asked_for);
          }
        }
      }
    }
  }
  return cheapest.best;
}

PairPlan plan_pair(const PairShape& shape, const DeviceLimits& limits) {
  const int itemsize = itemsize_of(shape.arithmetic);
  Cheapest<PairPlan> cheapest;
  const int widest = std::max(shape.middle_channels, shape.out_channels);
  for (const Variant& variant : pairs_of(shape.arithmetic)) {
    for (int width_log2 = 7; width_log2 >= 3; width_log2--) {
      const int n = variant.channels(), warps = variant.warps;
      const int pixels = warps * 16;
      if (n < widest || (1 << width_log2) > pixels) {
        continue;
      }
      PairPlan plan;
      plan.possible = true;
      plan.variant = variant;
      const bool asked_for = is_asked_for(plan.variant);
      const int width = 1 << width_log2;
      plan.tile.width_log2 = width_log2;
      plan.tile.height = pixels / width;
      plan.tile.across = int(divide_up(shape.width, width));
      plan.tile.down = int(divide_up(shape.height, plan.tile.height));
      plan.whole_rows = plan.tile.across == 1;
      plan.rows = axis_of(shape.single ? 1 : 3, plan.tile.height, shape.height, shape.height, 1,
                          shape.dilation);
      plan.columns =
          axis_of(shape.single ? 1 : 3, width, shape.width, shape.width, 1, shape.dilation);
      if (!shape.single) {
        plan.second = taps_of(axis_of(1, 1, 1, 1, 1, 1), plan.columns, 3);
      }
      if (plan.whole_rows) {
        // The middle is computed inside the picture; taps beside it read one pixel of zeros.
        plan.columns.pitch = 0;
        plan.columns.resize(width);
        plan.columns.shift = 0;
        plan.columns.adjacent = true;
      }
      plan.first = taps_of(plan.rows, axis_of(1, 1, 1, 1, 1, 1), 1);
      plan.live_taps = plan.first.count + plan.second.count;
      const int middle = plan.tile.height * plan.columns.slots;  // pixels
      if (middle > warps * pair_m_tiles * 16) {
        continue;
      }
      const int slots = plan.rows.slots * plan.columns.slots;
      const int staging = pixels * staging_row(n) * 4;
      const int most = std::max(plan.first.count, plan.second.count);
      const int middle_bytes = (round_up(middle, 16) + 1) * (n * itemsize + slot_padding);
      for (int chunk : {32, 16}) {
        plan.chunk = chunk;
        plan.boxes = boxes_of(plan.rows, plan.columns, {&plan.first, &plan.second},
                              chunk * itemsize + slot_padding, limits);
        plan.cost.instructions = work_of(plan, shape).instructions();
        for (int stages : {3, 2}) {
          plan.stages = stages;
          plan.layout =
              layout_of(slots, chunk, most * chunk, n, stages, itemsize, staging, middle_bytes);
          if (plan.layout.total > limits.shared_bytes) {
            continue;
          }
          const int in_chunks = int(divide_up(shape.in_channels, chunk));
          const int middle_chunks =
              int(divide_up(shape.middle_channels, chunk)) * (shape.single ? 0 : 1);
          const double first_depth = double(in_chunks) * chunk * plan.first.count;
          const double second_depth = double(middle_chunks) * chunk * plan.second.count;
          Cost& cost = plan.cost;
          cost.blocks = shape.batch * plan.tile.across * plan.tile.down;
          cost.resident =
              resident_of(plan.layout.total, warps * 32, registers_of(plan.variant), limits);
          // Warps take 16 pixels of the middle at a time: the last turn may have fewer.
          const double turns = double(divide_up(divide_up(middle, 16), warps)) * pixels;
          cost.products = n * (turns * first_depth + pixels * second_depth);
          cost.shared_bytes =
              itemsize * (first_depth * (turns + warps * n) + second_depth * (pixels + warps * n)) +
              2.0 * staging + 2.0 * middle_bytes;
          cost.loaded_bytes = double(itemsize) * (double(in_chunks) * chunk * slots +
                                                  n * (first_depth + second_depth));
          cost.stored_bytes = double(pixels) * n * itemsize;
          predict(cost, warps, in_chunks + middle_chunks, stages, shape.arithmetic, limits);
          cheapest.offer(plan, asked_for);
        }
      }
    }
  }
  return cheapest.best;
}

int live_taps(const ConvolutionShape& shape) {
  return axis_of(shape.kernel_h, 1, shape.height, shape.out_height, shape.stride_h,
                 shape.dilation_h)
             .groups *
         axis_of(shape.kernel_w, 1, shape.width, shape.out_width, shape.stride_w, shape.dilation_w)
             .groups;
}

bool is_stem(const ConvolutionShape& shape) {
  const int largest = 8;  // with more, a tile's pixels would fill shared memory
  return shape.arithmetic == Arithmetic::half && shape.channels.size() == 1 &&
         shape.channels[0] == stem_channels && shape.kernel_h == 3 && shape.kernel_w == 3 &&
         shape.stride_h <= 3 && shape.stride_w <= 3 && shape.dilation_h <= largest &&
         shape.dilation_w <= largest;
}

StemPlan plan_stem(const ConvolutionShape& shape, const DeviceLimits& limits) {
  const auto extent = [](int results, int stride, int dilation) {
    return (results - 1) * stride + 2 * dilation + 1;
  };
  StemPlan plan;
  plan.variant = {stem_warps, stem_m_tiles, shape.out_channels > 16 ? 4 : 2};
  plan.chunk = stem_channels;
  plan.stages = 1;
  plan.live_taps = 9;
  const int n = plan.variant.channels();
  // The tile that loads the smallest part of the picture.
  for (int width_log2 = 3; width_log2 <= 6; width_log2++) {
    const int width = 1 << width_log2, height = stem_pixels / width;
    const int rows = extent(height, shape.stride_h, shape.dilation_h);
    const int groups =
        round_up(extent(width, shape.stride_w, shape.dilation_w), stem_group) / stem_group;
    if (plan.patch_rows == 0 || rows * groups < plan.patch_rows * plan.patch_groups) {
      plan.tile = {width_log2, height, int(divide_up(shape.out_width, width)),
                   int(divide_up(shape.out_height, height)), int(divide_up(shape.out_channels, n))};
      plan.patch_rows = rows;
      plan.patch_groups = groups;
    }
  }
  const int patch_pixels = plan.patch_rows * plan.patch_groups * stem_group;
  const int staging = stem_pixels * staging_row(n) * 4;
  plan.zeros = patch_pixels * 8;
  plan.weights = plan.zeros + 16;
  plan.table = plan.weights + stem_depth * weight_row(n) * 2;
  plan.layout.total = std::max(plan.table + stem_channels * 256 * 2, staging);
  Cost& cost = plan.cost;
  cost.blocks = shape.batch * plan.tile.across * plan.tile.down * plan.tile.columns;
  plan.tile.invert(cost.blocks);
  cost.resident = resident_of(plan.layout.total, stem_warps * 32, stem_registers, limits);
  cost.products = double(stem_pixels) * stem_depth * n;
  cost.shared_bytes =
      8.0 * patch_pixels + 2.0 * stem_depth * (stem_pixels + stem_warps * n) + 2.0 * staging;
  cost.loaded_bytes = 2.0 * (stem_channels * patch_pixels + 9 * stem_channels * n);
  cost.stored_bytes = 2.0 * stem_pixels * n / (shape.pool * shape.pool);
  cost.instructions = work_of(plan, shape).instructions();
  predict(cost, stem_warps, 1, 2, shape.arithmetic, limits);
  return plan;
}

ArgmaxPlan plan_argmax(int64_t batch, int in_height, int in_width, int height, int width,
                       bool align_corners) {
  ArgmaxPlan plan;
  plan.parts = divide_up(in_width, argmax_threads);
  // For batches that exceed any memory, the sum would overflow.
  const bool fits = batch <= (int64_t(1) << 31) / plan.parts / in_height - 1;
  plan.blocks = fits ? batch * in_height * plan.parts : 0;
  plan.by_cells = align_corners && fits && in_height <= height && in_width <= width;
  return plan;
}

GroupedPlan plan_grouped(int64_t batch, int height, int width, int out_height, int out_width,
                         int channels, int out_channels, int side, int64_t groups) {
  constexpr int64_t most_blocks = (int64_t(1) << 31) - 1;
  constexpr int most_side = 1 << 28;  // pixels, so that positions of taps have 32 bits
  GroupedPlan plan;
  const int run = groups == channels && channels == out_channels ? grouped_run : 1;
  plan.across = divide_up(out_width, run);
  plan.parts = divide_up(out_channels, grouped_vectors * 8);
  const int64_t rows = int64_t(out_height) * plan.across;
  const bool fits = batch <= most_blocks / rows;
  plan.runs = fits ? batch * rows : 0;
  plan.blocks = divide_up(plan.runs, grouped_threads / grouped_vectors);
  plan.depthwise =
      run > 1 && side > 1 && fits && plan.parts < (1 << 16) && std::max(height, width) <= most_side;
  return plan;
}

}  // namespace fassd::cuda
