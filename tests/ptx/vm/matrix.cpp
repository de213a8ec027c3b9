// Matrices spread over a warp. (PTX ISA, "Warp Level Matrix Instructions: ldmatrix, stmatrix,
// mma".) With g = lane / 4 and t = lane % 4 as in the ISA's figures.

#include <cmath>
#include <cstring>

#include "matrix.h"
#include "memory.h"

namespace ptx {
namespace {

// Lanes whose addresses count: 8 for each matrix.
uint32_t addressing(int matrices) { return matrices == 4 ? kAllLanes : (1u << (8 * matrices)) - 1; }

void load_matrices(Warp& warp, const Instruction& i, uint32_t) {
  if (settings().banks) {
    count_passes(warp, i, i.address, addressing(i.outputs), 16);
  }
  std::array<std::array<uint32_t, kLanes>, 4> results;
  for (int k = 0; k < i.outputs; ++k) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * k + row;
      const uint64_t address = address_of(warp, i.address, lane);
      std::memcpy(matrix[row],
                  locate(warp, i, i.address.space, address, lane, 16, 16, Use::read), 16);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint32_t low = i.option ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint32_t high = i.option ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      results[k][lane] = low | high << 16;
    }
  }
  for (int k = 0; k < i.outputs; ++k) {  // the address may lie in a register that is written
    std::memcpy(warp.lanes<uint32_t>(i.to[k]), results[k].data(), sizeof results[k]);
  }
}

void store_matrices(Warp& warp, const Instruction& i, uint32_t) {
  if (settings().banks) {
    count_passes(warp, i, i.address, addressing(i.inputs), 16);
  }
  for (int k = 0; k < i.inputs; ++k) {
    uint16_t matrix[8][8];
    const uint32_t* values = warp.lanes<uint32_t>(i.from[k]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      (i.option ? matrix[2 * t][g] : matrix[g][2 * t]) = uint16_t(values[lane]);
      (i.option ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1]) = uint16_t(values[lane] >> 16);
    }
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * k + row;
      const uint64_t address = address_of(warp, i.address, lane);
      std::memcpy(locate(warp, i, i.address.space, address, lane, 16, 16, Use::write,
                         reinterpret_cast<const uint8_t*>(matrix[row])),
                  matrix[row], 16);
    }
  }
}

template <bool loads>
void bind_matrices(Binding& b) {
  Instruction& i = b.instruction;
  b.required({"sync"});
  b.required({"aligned"});
  b.required({"m8n8"});
  const int count = 1 << b.required({"x1", "x2", "x4"});
  i.option = b.flag("trans");
  const Space space = b.space();
  if (b.type() != Type::b16) {
    throw Fault("only matrices of .b16 are supported");
  }
  b.expect(2);
  const Operand& listed = b.operands[loads ? 0 : 1];
  const std::vector<Operand> values =
      listed.kind == Operand::vector ? listed.parts : std::vector<Operand>{listed};
  if (int(values.size()) != count) {
    throw Fault(std::to_string(values.size()) + " registers for " + std::to_string(count) +
                " matrices");
  }
  for (const Operand& value : values) {
    loads ? b.add_target(value, 4) : b.add_source(value, 4);
  }
  i.address = b.address(b.operands[loads ? 1 : 0], space);
  i.flow = Flow::aligned;
  i.run = loads ? load_matrices : store_matrices;
}

// D (16 x 8) = A (16 x K) B (K x 8) + C.
template <int K, Type type>
void multiply(Warp& warp, const Instruction& i, uint32_t) {
  double a[16][K], b[K][8], sums[16][8];
  const auto registers = [&](int k) { return warp.lanes<uint32_t>(i.from[k]); };
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    if constexpr (type == Type::tf32) {
      for (int k = 0; k < K / 2; ++k) {  // a0 (g, t), a1 (g + 8, t), a2 (g, t + 4), ...
        a[g + 8 * (k & 1)][t + 4 * (k >> 1)] = matrix_value(registers(k)[lane], type);
      }
      for (int k = 0; k < K / 4; ++k) {
        b[t + 4 * k][g] = matrix_value(registers(4 + k)[lane], type);
      }
    } else {
      for (int k = 0; k < K / 2; ++k) {
        a[fragment_row(g, k)][fragment_column(t, k)] =
            matrix_value(registers(k / 2)[lane] >> (16 * (k & 1)) & 0xFFFF, type);
      }
      for (int k = 0; k < K / 4; ++k) {
        b[2 * t + (k & 1) + 8 * (k >> 1)][g] =
            matrix_value(registers(4 + k / 2)[lane] >> (16 * (k & 1)) & 0xFFFF, type);
      }
    }
    for (int k = 0; k < 4; ++k) {
      sums[g + 8 * (k >> 1)][2 * t + (k & 1)] = warp.lanes<float>(i.from[8 + k])[lane];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < K; ++k) {
      for (int column = 0; column < 8; ++column) {
        sums[row][column] += a[row][k] * b[k][column];
      }
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int k = 0; k < 4; ++k) {
      warp.lanes<float>(i.to[k])[lane] =
          rounded_sum(sums[lane / 4 + 8 * (k >> 1)][2 * (lane % 4) + (k & 1)]);
    }
  }
}

struct Shape {
  std::string_view name;
  Type type;
  Handler handler;
  size_t a, b;  // registers
};
const Shape kShapes[] = {
    {"m16n8k16", Type::f16, multiply<16, Type::f16>, 4, 2},
    {"m16n8k16", Type::bf16, multiply<16, Type::bf16>, 4, 2},
    {"m16n8k8", Type::f16, multiply<8, Type::f16>, 2, 1},
    {"m16n8k8", Type::bf16, multiply<8, Type::bf16>, 2, 1},
    {"m16n8k8", Type::tf32, multiply<8, Type::tf32>, 4, 2},
    {"m16n8k4", Type::tf32, multiply<4, Type::tf32>, 2, 1},
};

// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 d, a, b, c;
void bind_multiply(Binding& b) {
  Instruction& i = b.instruction;
  b.required({"sync"});
  b.required({"aligned"});
  const std::string_view name = b.next();
  b.required({"row"});
  b.required({"col"});
  const Type sum = b.type(), right = b.type(), left = b.type(), result = b.type();
  if (sum != Type::f32 || result != Type::f32 || left != right) {
    throw Fault("only sums in .f32 of factors of one type are supported");
  }
  b.expect(4);
  for (const Shape& shape : kShapes) {
    if (shape.name != name || shape.type != left) {
      continue;
    }
    const auto place = [&](const Operand& operand, size_t count, size_t first, bool target) {
      const std::vector<Operand> parts =
          operand.kind == Operand::vector ? operand.parts : std::vector<Operand>{operand};
      if (parts.size() != count) {
        throw Fault(std::to_string(parts.size()) + " registers; expected are " +
                    std::to_string(count));
      }
      for (size_t k = 0; k < count; ++k) {
        (target ? i.to : i.from)[first + k] = target ? b.target(parts[k], 4) : b.source(parts[k], 4);
      }
    };
    place(b.operands[0], 4, 0, true);
    place(b.operands[1], shape.a, 0, false);
    place(b.operands[2], shape.b, 4, false);
    place(b.operands[3], 4, 8, false);
    i.outputs = 4;
    i.inputs = 12;
    i.type = left;
    i.flow = Flow::aligned;
    i.run = shape.handler;
    return;
  }
  throw Fault("the shape " + std::string(name) + " is not supported for this type");
}

const bool kAdded = add_opcodes({
    {"ldmatrix", bind_matrices<true>},
    {"stmatrix", bind_matrices<false>},
    {"mma", bind_multiply},
});

}  // namespace

double matrix_value(uint32_t bits, Type type) {
  return type == Type::f16    ? half_to_float(uint16_t(bits))
         : type == Type::bf16 ? bfloat16_to_float(uint16_t(bits))
                              : tf32_read(bits);
}

float rounded_sum(double sum) {
  return to_float(sum, settings().truncate_products ? Rounding::zero : Rounding::nearest);
}

}  // namespace ptx
