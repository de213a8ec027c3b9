// Matrices spread over a warp. (PTX ISA, "Warp Level Matrix Instructions: ldmatrix, stmatrix,
// mma".)

#include "matrix.h"

namespace ptx {
namespace {

// Lanes whose addresses count: 8 for each matrix, with a row each.
uint32_t addressing(int matrices) {
  return matrices == 4 ? kAllLanes : (1u << (8 * matrices)) - 1;
}

// Where the lower half of a lane's register lies in rows of 8, and how far behind it the upper one.
int place_in_matrix(int lane, bool transposed) {
  return transposed ? lane % 4 * 16 + lane / 4 : lane / 4 * 8 + lane % 4 * 2;
}

void load_matrices(Warp& warp, const Instruction& i, uint32_t) {
  uint16_t matrices[4][64];
  access(warp, i, addressing(i.outputs), 16, Use::read,
         [&](int lane, uint8_t* row) { std::memcpy(matrices[0] + 8 * lane, row, 16); });
  for (int k = 0; k < i.outputs; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint16_t* low = matrices[k] + place_in_matrix(lane, i.choices[1]);
      warp.lanes<uint32_t>(i.to[k])[lane] = low[0] | uint32_t(low[i.choices[1] ? 8 : 1]) << 16;
    }
  }
}

void store_matrices(Warp& warp, const Instruction& i, uint32_t) {
  uint16_t matrices[4][64];
  for (int k = 0; k < i.inputs; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t value = warp.lanes<uint32_t>(i.from[k])[lane];
      uint16_t* low = matrices[k] + place_in_matrix(lane, i.choices[1]);
      low[0] = uint16_t(value);
      low[i.choices[1] ? 8 : 1] = uint16_t(value >> 16);
    }
  }
  access(warp, i, addressing(i.inputs), 16, Use::write,
         [&](int lane, uint8_t* row) { std::memcpy(row, matrices[0] + 8 * lane, 16); });
}

// D (16 x 8) = A (16 x K) B (K x 8) + C.
template <int K, Type type>
void multiply(Warp& warp, const Instruction& i, uint32_t) {
  constexpr int values = type == Type::tf32 ? 1 : 2, left = K / 2 / values, right = left / 2;
  double a[16 * K], b[K * 8], d[16 * 8];
  load_left(warp, i.from, type, K, a);
  for (int r = 0; r < right; ++r) {
    const uint32_t* words = warp.lanes<uint32_t>(i.from[left + r]);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int half = 0; half < values; ++half) {
        const int row = values * (lane % 4) + half + 4 * values * r;
        b[row * 8 + lane / 4] = factor(words[lane], half, type);
      }
    }
  }
  each_sum(i.from + left + right, 4, 8, warp, [&](int at, float value) { d[at] = value; });
  multiply_add(a, b, d, K, 8);
  each_sum(i.to, 4, 8, warp, [&](int at, float& value) { value = rounded_sum(d[at]); });
}

constexpr const char* kMatrices = "x1|x2|x4 [trans] sync aligned m8n8 S b16";
constexpr Flow kAligned = Flow::aligned;
const bool kAdded = add_forms({
    {"ldmatrix", kMatrices, "=4* m", load_matrices, kAligned},
    {"stmatrix", kMatrices, "m 4*", store_matrices, kAligned},
    {"mma", "sync aligned m16n8k16 row col f32 f16 f16 f32", "=4*4 4*4 4*2 4*4",
     multiply<16, Type::f16>, kAligned},
    {"mma", "sync aligned m16n8k16 row col f32 bf16 bf16 f32", "=4*4 4*4 4*2 4*4",
     multiply<16, Type::bf16>, kAligned},
    {"mma", "sync aligned m16n8k8 row col f32 f16 f16 f32", "=4*4 4*2 4*1 4*4",
     multiply<8, Type::f16>, kAligned},
    {"mma", "sync aligned m16n8k8 row col f32 bf16 bf16 f32", "=4*4 4*2 4*1 4*4",
     multiply<8, Type::bf16>, kAligned},
    {"mma", "sync aligned m16n8k8 row col f32 tf32 tf32 f32", "=4*4 4*4 4*2 4*4",
     multiply<8, Type::tf32>, kAligned},
    {"mma", "sync aligned m16n8k4 row col f32 tf32 tf32 f32", "=4*4 4*2 4*1 4*4",
     multiply<4, Type::tf32>, kAligned},
});

}  // namespace
}  // namespace ptx
