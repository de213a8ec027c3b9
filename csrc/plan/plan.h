// The division of a convolution into blocks: kernel, tile, shared memory, and predicted cost. Plain
// C++ that does not depend on CUDA: the kernels are launched with these plans, and launches.cpp
// answers with the same ones for a GPU that this machine need not have.

#pragma once

#include <cstdint>
#include <vector>

namespace fassd::cuda {

// The properties of a GPU that a plan depends on.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // available to one block
  int capability;    // compute capability times ten
};

// The way of multiplying: 16-bit values on tensor cores, float32 rounded to TF32 there, float32.
enum class Arithmetic { half, tf32, float32 };

// The arithmetic of an operator's call.
Arithmetic arithmetic_of(bool is_float32, bool allow_tf32, const DeviceLimits& limits);

constexpr int most_taps = 9;
constexpr int64_t most_tiles = int64_t(1) << 31;
constexpr int most_sources = 8;  // inputs of one launch; more are joined first

// i * inverse_of(d) >> inverse_log2 is i / d as long as i * d is below 2^20.
constexpr int inverse_log2 = 20;
constexpr uint32_t inverse_of(int divisor) {
  return (1u << inverse_log2) / divisor + 1;
}

// One axis of the pixels that a tile reads: `groups` runs of pixels, one for each live tap,
// `dilation` apart; where runs overlap they are stored once. In shared memory they are `pitch`
// slots apart.
struct Axis {
  int first_tap = 0;  // first live tap, counted from the first of the kernel
  int groups = 1;     // live taps
  int middle = 0;     // the tap that reads the pixel itself
  int dilation = 1;
  int pitch = 1;
  int slots = 1;
  int step = 1;          // the convolution's stride
  int slot_step = 1;     // slots from one result to the next: the stride, or 1 if runs only contain
                         // the pixels that are read
  int size = 1;          // of the picture
  int shift = 0;         // from a tile's start in the picture to its first slot
  bool adjacent = true;  // slots are a run of adjacent pixels
  uint32_t inverse = inverse_of(1);  // of the slots

  // With that many slots.
  void resize(int count) {
    slots = count;
    inverse = inverse_of(count);
  }
};

// The live taps, which do not include those that read only padding.
struct Taps {
  int count = 0;
  int8_t index[most_taps] = {};  // in the weight
  int8_t row[most_taps] = {};    // counted from the first live one
  int8_t column[most_taps] = {};
  int offset[most_taps] = {};       // of the pixels that it reads, in bytes from the stage
  int64_t weights[most_taps] = {};  // bytes before its weights
};

// A block's part of the result.
struct Tile {
  int width_log2 = 0;  // pixels
  int height = 1;
  int across = 1, down = 1;  // tiles in a picture
  int columns = 1;           // blocks of output channels
  // 2^32 over these numbers, rounded up, if blocks are so few that the upper half of their product
  // with it is the quotient; otherwise 0.
  uint32_t inverse_across = 0, inverse_down = 0, inverse_columns = 0;

  void invert(int64_t blocks) {
    const auto inverse = [&](int64_t divisor) {
      const int64_t whole = int64_t(1) << 32;
      return uint32_t(divisor > 1 && blocks * divisor < whole ? (whole + divisor - 1) / divisor
                                                              : 0);
    };
    inverse_across = inverse(across);
    inverse_down = inverse(down);
    inverse_columns = inverse(columns);
  }
};

// A kernel, by its template's parameters.
struct Variant {
  int warps = 1, m_tiles = 1, n_tiles = 1;
  // Only for a plain 3x3: a warp's pixels are 16 columns of m_tiles rows below each other, and a
  // row that is loaded is used for the three rows of the result that it contributes to.
  bool sliding = false;
  // Sets of warps with the same pixels that divide each chunk's channels among them: if there are
  // few pixels, more warps keep a multiprocessor busy. Their sums are added at the end.
  int splits = 1;
  int pixel_warps() const { return warps / splits; }
  int pixels() const { return pixel_warps() * m_tiles * 16; }
  int channels() const { return n_tiles * 8; }
  bool operator==(const Variant& other) const {
    return warps == other.warps && m_tiles == other.m_tiles && n_tiles == other.n_tiles &&
           sliding == other.sliding && splits == other.splits;
  }
};

// Offsets in a block's shared memory, in bytes. It begins with the barriers of the stages, followed
// by positions of the slots.
struct SharedLayout {
  int stages = 0;       // offset of the first
  int stage_bytes = 0;  // from stage to stage
  int weights = 0;      // of a stage, after its pixels
  int staging = 0;      // of staged sums: in place of the stages, or after them
  int middle = 0;       // asymmetric pairs only: the values between the convolutions
  int total = 0;
};

// The processing of sums besides bias and activation: the result is written to a second place as
// well; a residual is added, or one that is enlarged first; an addend is added, and a batch norm
// and PReLU follow.
enum class Ending { plain, copied, residual, resized, addend };

struct ConvolutionShape {
  int64_t batch = 1;
  int height = 1, width = 1;          // of the inputs
  int out_height = 1, out_width = 1;  // before pooling
  std::vector<int> channels;          // of the inputs
  int out_channels = 1;
  int kernel_h = 1, kernel_w = 1;
  int stride_h = 1, stride_w = 1;
  int dilation_h = 1, dilation_w = 1;
  int pool = 1;
  bool prologue = false;  // a batch norm and PReLU before it
  Ending ending = Ending::plain;
  Arithmetic arithmetic = Arithmetic::half;
};

// The work of a launch's blocks, for the time model. Bytes are those requested from the last cache,
// once for each block.
struct Cost {
  int64_t blocks = 0;       // tiles, if blocks compute several
  int resident = 1;         // blocks of a multiprocessor at a time
  double products = 0;      // multiply-accumulates of a block, padding included
  double shared_bytes = 0;  // that a block reads from shared memory; a pass over the banks that
                            // conflicts with another counts as additional bytes
  double loaded_bytes = 0;  // that a block loads to shared memory
  double stored_bytes = 0;
  double instructions = 0;  // executed by a block's warps
  double cycles = 0;        // of the whole launch, predicted
  double rank = 0;          // for comparing plans: cycles, plus time taken from other launches
};

// The division of a launch into blocks, whatever it computes.
struct Plan {
  Variant variant;
  Tile tile;
  int chunk = 16;    // channels at a time
  int stages = 2;    // chunks in shared memory
  int boxes = 0;     // of a chunk's pixels, if an engine copies them; otherwise 0
  int tiles = 1;     // computed by a block, one after the other, or one less
  int64_t grid = 0;  // blocks, if they compute several tiles
  int live_taps = 0;
  SharedLayout layout;
  Cost cost;
};

struct ConvolutionPlan : Plan {
  Axis rows, columns;
  Taps taps;
};

// Clocks in which all multiprocessors issue these warp instructions, each with that many warps.
double issue_cycles(double instructions, double warps, const DeviceLimits& limits);

// The environment's settings for plans, read every time; they are part of the key in memo.h. The
// copies are `threads` if no engine shall copy boxes.
constexpr const char* variant_variable = "FASSD_KERNELS_CUDA_VARIANT";
constexpr const char* fusion_variable = "FASSD_KERNELS_CUDA_FUSION";
constexpr const char* copies_variable = "FASSD_KERNELS_CUDA_COPIES";
constexpr const char* plan_variables[] = {variant_variable, fusion_variable, copies_variable};

// The plan with the lowest predicted cost, or of equal ones that with the widest tile. The
// environment variable FASSD_KERNELS_CUDA_VARIANT, as in "4,2,8,1" (warps, m_tiles, n_tiles,
// sliding, and splits if there are any), names the kernel to use wherever it fits; for pairs it is
// "4,2,8,0".
ConvolutionPlan plan_convolution(const ConvolutionShape& shape, const DeviceLimits& limits);

// Number of taps that reach the picture.
int live_taps(const ConvolutionShape& shape);

// Returns true for a convolution of a picture's three channels, which has a kernel of its own
// (stem.cuh). It has no prologue: a convolution with one is not a stem.
bool is_stem(const ConvolutionShape& shape);

constexpr int stem_warps = 8, stem_m_tiles = 2, stem_channels = 3;
// With this number, three blocks fit on a multiprocessor.
constexpr int stem_blocks = 3, stem_registers = 80;
constexpr int stem_pixels = stem_warps * stem_m_tiles * 16;
constexpr int stem_depth = 48;  // of the products: three rows of four pixels of four channels
constexpr int stem_group = 4;   // pixels of the picture that a thread loads
// i * (2^20 / groups + 1) >> 20 is i / groups as long as i * groups is below 2^20.
constexpr int stem_inverse_log2 = 20;

struct StemPlan : Plan {
  int patch_rows = 0, patch_groups = 0;   // under a tile: rows of the picture, pixels by four
  int zeros = 0, weights = 0, table = 0;  // offsets in shared memory
};

StemPlan plan_stem(const ConvolutionShape& shape, const DeviceLimits& limits);

// A 3x1 and a 1x3 in one kernel: `width` channels between them and after them.
struct PairShape {
  int64_t batch = 1;
  int height = 1, width = 1;
  int in_channels = 1, middle_channels = 1, out_channels = 1;
  int dilation = 1;
  bool single = false;  // only the first, a 1x1: a branch beside others that are pairs
  Ending ending = Ending::plain;
  Arithmetic arithmetic = Arithmetic::half;
};

struct PairPlan : Plan {
  bool possible = false;  // otherwise it is two launches
  Axis rows;              // of the input, at the first convolution's taps
  Axis columns;           // of the middle, at the second's
  Taps first, second;
  bool whole_rows = false;  // a tile holds rows from end to end: no column is computed twice
};

PairPlan plan_pair(const PairShape& shape, const DeviceLimits& limits);

// The convolutions of a pair: two, or the single one.
std::vector<ConvolutionShape> convolutions_of(const PairShape& shape);

constexpr int most_pairs = 4;  // of one launch

// Pairs on the same input.
struct PairsPlan {
  bool together = false;  // one launch; otherwise one for each convolution
  std::vector<PairPlan> pairs;
  double cycles = 0, rank = 0;  // of the one launch
};

PairsPlan plan_pairs(const std::vector<PairShape>& shapes, const DeviceLimits& limits);

// Time from launch to launch within a CUDA graph, in clocks: it is saved as well when one kernel
// replaces two.
constexpr double launch_gap_cycles = 2500;

// Returns true if one launch replaces several: if its rank is not higher. The environment variable
// FASSD_KERNELS_CUDA_FUSION, `always` or `never`, overrides that for tests and tuning.
bool fuses(bool possible, double together, double apart);

// The launch of upsample_argmax. If the picture does not shrink and corners are aligned, a thread
// takes the pixels between two rows and two columns of the source: `parts` blocks for each of its
// rows.
struct ArgmaxPlan {
  bool by_cells = false;
  int64_t parts = 0, blocks = 0;
};

constexpr int argmax_threads = 256;

ArgmaxPlan plan_argmax(int64_t batch, int in_height, int in_width, int height, int width,
                       bool align_corners);

// The launch of grouped_conv_act. For depthwise convolutions a thread takes eight channels of
// `grouped_run` adjacent pixels, a block eight such vectors; for all others a thread takes one
// pixel, one output channel after the other.
struct GroupedPlan {
  bool depthwise = false;
  int64_t across = 0;  // runs in a row
  int64_t runs = 0;    // of the result
  int64_t blocks = 0, parts = 0;
};

constexpr int grouped_threads = 256, grouped_vectors = 8, grouped_run = 4;

GroupedPlan plan_grouped(int64_t batch, int height, int width, int out_height, int out_width,
                         int channels, int out_channels, int side, int64_t groups);

// --- shared by the kernels and the plan ---

constexpr int pair_m_tiles = 2;  // of the first convolution of a pair; the second has one

// All compiled kernels: of convolutions and of pairs (which ignore sliding), for 16-bit values and
// for float32.
inline constexpr Variant half_variants[] = {
    {8, 2, 8},           {8, 2, 7},           {8, 2, 6},           {8, 2, 5},
    {8, 2, 4},           {8, 2, 3},           {4, 1, 8},           {4, 1, 7},
    {4, 1, 5},           {4, 1, 4},           {4, 1, 3},           {4, 1, 2},
    {8, 4, 4, true},     {8, 4, 3, true},     {8, 4, 2, true},     {4, 4, 6, true},
    {4, 4, 4, true},     {4, 4, 3, true},     {4, 4, 2, true},     {4, 2, 3, true},
    {4, 2, 2, true},     {8, 1, 8, false, 2}, {8, 1, 6, false, 2}, {8, 1, 4, false, 2},
    {8, 1, 3, false, 2}, {8, 1, 2, false, 2}, {8, 2, 6, true, 2},  {8, 2, 4, true, 2},
    {8, 2, 3, true, 2},  {8, 2, 2, true, 2},  {8, 1, 3, true, 2},  {8, 1, 2, true, 2},
};
inline constexpr Variant float_variants[] = {{8, 1, 8}, {8, 1, 4}, {8, 1, 2}, {4, 1, 4}};
inline constexpr Variant half_pairs[] = {
    {8, pair_m_tiles, 4}, {8, pair_m_tiles, 16}, {4, pair_m_tiles, 4}, {4, pair_m_tiles, 16}};
inline constexpr Variant float_pairs[] = {{8, pair_m_tiles, 4}};

std::vector<Variant> variants_of(Arithmetic arithmetic);
std::vector<Variant> pairs_of(Arithmetic arithmetic);

// Bytes after a slot's channels, elements in a row of n weights, and floats of a pixel's n staged
// sums: chosen so that simultaneous accesses of a warp are in different banks. Eight rows of
// weights are read at a time, 16 bytes each, so their distance is an odd multiple of 16 bytes.
constexpr int slot_padding = 16;
constexpr int weight_row(int n) {
  return n / 8 % 2 == 1 ? n : n + 8;
}
constexpr int staging_row(int n) {
  return n / 8 % 2 == 1 ? n + 16 : n + 8;
}
// Maximum elements of a box on an axis, and alignment of its target address.
constexpr int most_box_elements = 256, box_alignment = 128;
// Bytes of a stage's barrier, and maximum number of stages; positions and edges follow.
constexpr int barrier_bytes = 8, most_stages = 3, positions_at = 32;
static_assert(most_stages * barrier_bytes <= positions_at && positions_at % 16 == 0);
// Bytes for a slot's pixel, and for the position that a row or column of an enlarged residual
// reads.
constexpr int position_bytes = 4, edge_bytes = 16;

}  // namespace fassd::cuda
