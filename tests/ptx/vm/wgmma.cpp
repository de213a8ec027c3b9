// Products of a warpgroup, from shared memory. (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Instructions"; layouts: "Shared Memory Matrix Layout", "Matrix Descriptor Format".)

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>

#include "matrix.h"
#include "memory.h"

namespace ptx {
namespace {

constexpr uint8_t kLeftMajorM = 1, kRightMajorN = 2, kNegatedScale = 4, kLeftInRegisters = 8;

// The byte in shared memory of element (mn, k), mn being m of A or n of B. `contiguous_mn`: the
// elements along mn lie side by side.
uint32_t element_address(uint64_t descriptor, bool contiguous_mn, int bytes, int mn, int k) {
  const auto field = [&](int bit) { return uint32_t(descriptor >> bit & 0x3FFF) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  const int mode = int(descriptor >> 62);  // 0 none, 1 128 bytes, 2 64, 3 32
  const int wide = mode == 1 ? 8 : mode == 2 ? 4 : mode == 3 ? 2 : 1;  // 16-byte units of a row
  const int per = 16 / bytes;
  uint32_t at = start;
  if (!contiguous_mn) {
    at += uint32_t(mn % 8 * wide * 16) + uint32_t(mn / 8) * stride + uint32_t(k % per * bytes);
    at += uint32_t(k / per) * (wide > 1 ? 16 : leading);
  } else if (wide > 1) {
    at += uint32_t(mn / per % wide * 16) + uint32_t(mn / per / wide) * leading;
    at += uint32_t(k % 8 * wide * 16) + uint32_t(k / 8) * stride + uint32_t(mn % per * bytes);
  } else {
    at += uint32_t(mn / per) * stride + uint32_t(k % 8 * 16) + uint32_t(k / 8) * leading;
    at += uint32_t(mn % per * bytes);
  }
  return at ^ ((at >> 7 & uint32_t(wide - 1)) << 4);
}

uint64_t descriptor_of(Warp& warp, const Instruction& i, uint32_t offset) {
  const uint64_t* values = warp.lanes<uint64_t>(offset);
  for (int lane = 1; lane < kLanes; ++lane) {
    if (values[lane] != values[0]) {
      fault(warp, i, lane, "descriptors differ between lanes");
    }
  }
  return values[0];
}

// Row and column of sum k of a lane, in the 16 rows of its warp.
int sum_row(int lane, int k) { return lane / 4 + 8 * (k >> 1 & 1); }
int sum_column(int lane, int k) { return 8 * (k >> 2) + 2 * (lane % 4) + (k & 1); }

// D (64 x N) = A (64 x K) B (K x N) + D, of which a warp has 16 rows.
void multiply(Warp& warp, const Instruction& i, const std::vector<uint64_t>& descriptors,
              bool accumulate) {
  const int n = int(i.immediate), bytes = i.type == Type::tf32 ? 4 : 2, depth = 32 / bytes;
  const int sums = n / 2, first_row = warp.index % 4 * 16;
  const auto element = [&](uint64_t descriptor, bool contiguous_mn, int mn, int k) {
    const uint32_t address = element_address(descriptor, contiguous_mn, bytes, mn, k);
    uint32_t bits = 0;
    std::memcpy(&bits, shared_range(warp, i, 0, address, uint64_t(bytes)), size_t(bytes));
    note_shared(warp, i, 0, address, uint32_t(bytes), Use::read);
    return matrix_value(bits, i.type);
  };
  std::vector<double> a(16 * size_t(depth)), b(size_t(depth) * n), d(16 * size_t(n));
  if (i.option & kLeftInRegisters) {
    const auto registers = [&](int k) { return warp.lanes<uint32_t>(i.registers[sums + k]); };
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int k = 0; k < depth / 2; ++k) {
        if (bytes == 4) {
          a[(g + 8 * (k & 1)) * depth + t + 4 * (k >> 1)] =
              matrix_value(registers(k)[lane], i.type);
        } else {
          a[fragment_row(g, k) * depth + fragment_column(t, k)] =
              matrix_value(registers(k / 2)[lane] >> (16 * (k & 1)) & 0xFFFF, i.type);
        }
      }
    }
  } else {
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < depth; ++k) {
        a[row * depth + k] = element(descriptors[0], i.option & kLeftMajorM, first_row + row, k);
      }
    }
  }
  for (int k = 0; k < depth; ++k) {
    for (int column = 0; column < n; ++column) {
      b[k * n + column] = element(descriptors[1], i.option & kRightMajorN, column, k);
    }
  }
  for (int lane = 0; lane < kLanes && accumulate; ++lane) {
    for (int k = 0; k < sums; ++k) {
      d[sum_row(lane, k) * n + sum_column(lane, k)] = warp.lanes<float>(i.registers[k])[lane];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < depth; ++k) {
      for (int column = 0; column < n; ++column) {
        d[row * n + column] += a[row * depth + k] * b[k * n + column];
      }
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int k = 0; k < sums; ++k) {
      warp.lanes<float>(i.registers[k])[lane] =
          rounded_sum(d[sum_row(lane, k) * n + sum_column(lane, k)]);
    }
  }
}

// The operands are read, and the sums written, when the product arrives: at the latest when its
// group is waited for. Until then the registers hold NaNs.
void start(Warp& warp, const Instruction& i, uint32_t) {
  std::vector<uint64_t> descriptors(2);
  if (!(i.option & kLeftInRegisters)) {
    descriptors[0] = descriptor_of(warp, i, i.from[0]);
  }
  descriptors[1] = descriptor_of(warp, i, i.from[1]);
  const uint32_t scale = warp.predicate(i.from[2]) ^ (i.option & kNegatedScale ? kAllLanes : 0);
  if (scale != 0 && scale != kAllLanes) {
    fault(warp, i, 0, "scale-d differs between lanes");
  }
  const Arrival arrival = settings().arrival;
  const bool now = arrival == Arrival::early || (arrival == Arrival::random && dice()() & 1);
  // In order: it comes behind those that have not arrived.
  if (now && warp.products.empty()) {
    return multiply(warp, i, descriptors, scale != 0);
  }
  Product product{&i, warp.products_committed + 1, descriptors, scale != 0, {}};
  const size_t sums = size_t(i.immediate / 2);
  const bool chained = std::any_of(
      warp.products.begin(), warp.products.end(), [&](const Product& before) {
        return before.instruction->immediate == i.immediate &&
               std::equal(i.registers.begin(), i.registers.begin() + long(sums),
                          before.instruction->registers.begin());
      });
  if (!chained) {
    for (size_t k = 0; k < sums; ++k) {
      float* values = warp.lanes<float>(i.registers[k]);
      product.sums.insert(product.sums.end(), values, values + kLanes);
      std::fill_n(values, kLanes, std::numeric_limits<float>::quiet_NaN());
    }
  }
  warp.products.push_back(std::move(product));
}

void finish(Warp& warp, Product& product) {
  for (size_t k = 0; k * kLanes < product.sums.size(); ++k) {
    std::copy_n(product.sums.begin() + long(k * kLanes), kLanes,
                warp.lanes<float>(product.instruction->registers[k]));
  }
  multiply(warp, *product.instruction, product.descriptors, product.accumulate);
}

void wait(Warp& warp, const Instruction& i, uint32_t) {
  size_t done = 0;
  for (; done < warp.products.size(); ++done) {
    if (int64_t(warp.products[done].group) > int64_t(warp.products_committed) - i.immediate) {
      break;
    }
    finish(warp, warp.products[done]);
  }
  warp.products.erase(warp.products.begin(), warp.products.begin() + long(done));
}

// wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {d...}, a, b-descriptor, scale-d, 1, 1, ...;
void bind(Binding& b) {
  Instruction& i = b.instruction;
  i.flow = Flow::aligned;
  const int kind = b.required({"fence", "commit_group", "wait_group", "mma_async"});
  b.required({"sync"});
  b.required({"aligned"});
  if (kind == 0) {
    i.run = [](Warp&, const Instruction&, uint32_t) {};
    return b.expect(0);
  }
  if (kind == 1) {
    i.run = [](Warp& warp, const Instruction&, uint32_t) { ++warp.products_committed; };
    return b.expect(0);
  }
  if (kind == 2) {
    b.expect(1);
    i.immediate = b.constant(b.operands[0]);
    i.run = wait;
    return;
  }
  const std::string shape(b.next());
  int m = 0, n = 0, k = 0;
  const Type right = b.type(), left = b.type(), sum = b.type();
  if (std::sscanf(shape.c_str(), "m%dn%dk%d", &m, &n, &k) != 3 || m != 64 || n % 8 || n > 256) {
    throw Fault("unknown shape " + shape);
  }
  const bool tf32 = left == Type::tf32;
  if (sum != Type::f32 || left != right || (!tf32 && left != Type::f16 && left != Type::bf16) ||
      k != (tf32 ? 8 : 16)) {
    throw Fault("only sums in .f32 of .f16, .bf16 or .tf32 are supported");
  }
  b.expect(6, 8);
  i.type = left;
  i.immediate = n;
  i.run = start;
  const std::vector<Operand>& operands = b.operands;
  if (int(operands[0].parts.size()) != n / 2) {
    throw Fault(std::to_string(operands[0].parts.size()) + " sums; expected are " +
                std::to_string(n / 2));
  }
  for (const Operand& part : operands[0].parts) {
    i.registers.push_back(b.target(part, 4));
  }
  if (operands[1].kind == Operand::vector) {
    i.option |= kLeftInRegisters;
    if (operands[1].parts.size() != 4) {
      throw Fault("A has four registers");
    }
    for (const Operand& part : operands[1].parts) {
      i.registers.push_back(b.source(part, 4));
    }
  } else {
    i.from[0] = b.source(operands[1], 8);
  }
  i.from[1] = b.source(operands[2], 8);
  i.from[2] = b.predicate(operands[3]);
  i.option |= operands[3].negated ? kNegatedScale : 0;
  if (b.constant(operands[4]) != 1 || b.constant(operands[5]) != 1) {
    throw Fault("negated factors are not supported");
  }
  size_t next = 6;
  const bool has_left = !tf32 && !(i.option & kLeftInRegisters);
  b.expect(6 + (tf32 ? 0 : has_left ? 2 : 1));
  if (has_left && b.constant(operands[next++])) {
    i.option |= kLeftMajorM;
  }
  if (!tf32 && b.constant(operands[next])) {
    i.option |= kRightMajorN;
  }
}

const bool kAdded = add_opcodes({{"wgmma", bind}});

}  // namespace
}  // namespace ptx
