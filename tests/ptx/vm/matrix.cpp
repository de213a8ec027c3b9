// Matrices spread over a warp, and products of a warpgroup. (PTX ISA, "Warp Level Matrix
// Instructions: ldmatrix, stmatrix, mma", "Asynchronous Warpgroup Level Matrix Instructions";
// layouts: "Matrix Fragments for mma.m16n8k16" and so on, with g = lane / 4 and t = lane % 4 as in
// its figures, "Shared Memory Matrix Layout", "Matrix Descriptor Format".)

#include "memory.h"
#include "translate.h"

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
  const auto put = [&](int lane, uint8_t* row) { std::memcpy(row, matrices[0] + 8 * lane, 16); };
  access(warp, i, addressing(i.inputs), 16, Use::write, put,
         reinterpret_cast<const uint8_t (*)[16]>(matrices));
}

template <Type type>
double factor(uint32_t word, int half) {
  return decode(type == Type::tf32 ? word : word >> (16 * half) & 0xFFFF, type);
}

// A (16 x depth): registers hold rows g and g + 8 in turns.
template <Type type>
void load_left(Warp& warp, const uint32_t* registers, int depth, double* a) {
  constexpr int values = type == Type::tf32 ? 1 : 2;  // of a register
  for (int r = 0; r < depth / 2 / values; ++r) {
    const uint32_t* words = warp.lanes<uint32_t>(registers[r]);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int half = 0; half < values; ++half) {
        const int row = lane / 4 + 8 * (r & 1);
        const int column = values * (lane % 4) + half + 4 * values * (r >> 1);
        a[row * depth + column] = factor<type>(words[lane], half);
      }
    }
  }
}

// The sums of a lane, `count` of them, in a matrix of `n` columns: calls f(place in it, register).
template <typename F>
void each_sum(const uint32_t* registers, int count, int n, Warp& warp, F f) {
  for (int k = 0; k < count; ++k) {
    float* values = warp.lanes<float>(registers[k]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4 + 8 * (k >> 1 & 1), column = 8 * (k >> 2) + 2 * (lane % 4) + (k & 1);
      f(row * n + column, values[lane]);
    }
  }
}

// D (16 x n) += A (16 x depth) B (depth x n), in double: each product is exact, the sum is rounded
// when it is stored.
void multiply_add(const double* a, const double* b, double* d, int depth, int n) {
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < depth; ++k) {
      for (int column = 0; column < n; ++column) {
        d[row * n + column] += a[row * depth + k] * b[k * n + column];
      }
    }
  }
}

// D (16 x 8) = A (16 x K) B (K x 8) + C.
template <int K, Type type>
void multiply(Warp& warp, const Instruction& i, uint32_t) {
  constexpr int values = type == Type::tf32 ? 1 : 2, left = K / 2 / values, right = left / 2;
  double a[16 * K], b[K * 8], d[16 * 8];
  load_left<type>(warp, i.from, K, a);
  for (int r = 0; r < right; ++r) {
    const uint32_t* words = warp.lanes<uint32_t>(i.from[left + r]);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int half = 0; half < values; ++half) {
        const int row = values * (lane % 4) + half + 4 * values * r;
        b[row * 8 + lane / 4] = factor<type>(words[lane], half);
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
    {"mma", "sync aligned m16n8k8 row col f32 tf32 tf32 f32", "=4*4 4*4 4*2 4*4",
     multiply<8, Type::tf32>, kAligned},
});

// ---- wgmma

// Sources of wgmma.mma_async behind A: a descriptor in one register, or a fragment in four.
enum { kRight, kScaleD, kScaleA, kScaleB, kMajorA };
bool has_left_in_registers(const Instruction& i) {
  return i.choices[0];
}
int behind_left(const Instruction& i) {
  return has_left_in_registers(i) ? 4 : 1;
}

// Calls put(mn, k, value) for elements `first` and on, `count` of them, by all k, mn being m of A
// or n of B. `contiguous_mn`: those along mn lie side by side, 16 bytes of them at least.
template <typename Put>
void read_factor(Warp& warp, const Instruction& i, uint64_t descriptor, bool contiguous_mn,
                 int first, int count, Put put) {
  const auto field = [&](int bit) { return int(descriptor >> bit & 0x3FFF) << 4; };
  const int start = field(0), leading = field(16), stride = field(32);
  const int mode = int(descriptor >> 62);       // 0 none, 1 128 bytes, 2 64, 3 32
  const int wide = mode == 0 ? 1 : 16 >> mode;  // units of 16 bytes in a row
  const int bytes = bytes_of(i.type), per = 16 / bytes, depth = 32 / bytes;
  for (int mn = first; mn < first + count; mn += contiguous_mn ? per : 1) {
    for (int k = 0; k < depth; k += contiguous_mn ? 1 : per) {
      const int unit = (contiguous_mn ? mn : k) / per, row = contiguous_mn ? k : mn;
      const int at = start + row % 8 * wide * 16 +
                     (!contiguous_mn ? row / 8 * stride + unit * (wide > 1 ? 16 : leading)
                      : wide > 1     ? unit % wide * 16 + unit / wide * leading + row / 8 * stride
                                     : unit * stride + row / 8 * leading);
      const uint32_t address = swizzled(uint32_t(at), uint32_t(wide));
      const uint8_t* place = shared_range(warp, i, 0, address, 16);
      note_shared(warp, i, 0, address, 16, Use::read);
      for (int e = 0; e < per; ++e) {
        uint32_t bits = 0;
        std::memcpy(&bits, place + e * bytes, size_t(bytes));
        put(mn + (contiguous_mn ? e : 0), k + (contiguous_mn ? 0 : e), decode(bits, i.type));
      }
    }
  }
}

// D (64 x N) = A (64 x K) B (K x N) + D, of which a warp has 16 rows.
void multiply_group(Warp& warp, const Instruction& i, const std::array<uint64_t, 2>& descriptors,
                    bool accumulate) {
  const int n = i.immediate, depth = 32 / bytes_of(i.type), first_row = warp.index % 4 * 16;
  const int next = behind_left(i);
  const auto is_set = [&](int k) { return k < i.inputs && *warp.lanes<uint32_t>(i.from[k]) != 0; };
  std::vector<double> a(16 * size_t(depth)), b(size_t(depth * n)), d(16 * size_t(n));
  if (has_left_in_registers(i)) {
    const auto load = i.type == Type::f16    ? load_left<Type::f16>
                      : i.type == Type::bf16 ? load_left<Type::bf16>
                                             : load_left<Type::tf32>;
    load(warp, i.from, depth, a.data());
  } else {
    read_factor(warp, i, descriptors[0], is_set(next + kMajorA), first_row, 16,
                [&](int m, int k, double x) { a[size_t((m - first_row) * depth + k)] = x; });
  }
  const bool is_transposed = is_set(next + kMajorA + !has_left_in_registers(i));
  read_factor(warp, i, descriptors[1], is_transposed, 0, n,
              [&](int column, int k, double x) { b[size_t(k * n + column)] = x; });
  if (accumulate) {
    each_sum(i.sums.data(), n / 2, n, warp, [&](int at, float x) { d[size_t(at)] = x; });
  }
  multiply_add(a.data(), b.data(), d.data(), depth, n);
  each_sum(i.sums.data(), n / 2, n, warp,
           [&](int at, float& x) { x = rounded_sum(d[size_t(at)]); });
}

// The operands are read, and the sums written, when the product arrives: at the latest when its
// group is waited for. Until then the registers hold NaNs.
void start_product(Warp& warp, const Instruction& i, uint32_t) {
  const int next = behind_left(i);
  const auto descriptor = [&](int source) {
    const uint64_t* values = warp.lanes<uint64_t>(i.from[source]);
    fault_if(std::count(values, values + kLanes, values[0]) != kLanes, warp, i, 0,
             "descriptors differ between lanes");
    return values[0];
  };
  const uint32_t scale = warp.predicate(i, next + kScaleD);
  fault_if(scale != 0 && scale != kAllLanes, warp, i, 0, "scale-d differs between lanes");
  for (int k : {next + kScaleA, next + kScaleB}) {
    fault_if(*warp.lanes<uint32_t>(i.from[k]) != 1, warp, i, 0,
             "negated factors are not supported");
  }
  Product product{&i,
                  warp.products_committed + 1,
                  scale != 0,
                  {has_left_in_registers(i) ? 0 : descriptor(0), descriptor(next + kRight)},
                  {}};
  if (warp.products.empty() && arrives_now()) {  // else behind those that have not arrived
    return multiply_group(warp, i, product.descriptors, product.accumulate);
  }
  const bool chained =
      std::any_of(warp.products.begin(), warp.products.end(),
                  [&](const Product& before) { return before.instruction->sums == i.sums; });
  if (!chained) {
    for (const uint32_t offset : i.sums) {
      float* values = warp.lanes<float>(offset);
      product.sums.insert(product.sums.end(), values, values + kLanes);
      std::fill_n(values, kLanes, std::numeric_limits<float>::quiet_NaN());
    }
  }
  warp.products.push_back(std::move(product));
}

void wait_for_products(Warp& warp, const Instruction& i, uint32_t) {
  const uint32_t pending = *warp.lanes<uint32_t>(i.from[0]);
  size_t done = 0;
  for (; done < warp.products.size(); ++done) {
    const Product& product = warp.products[done];
    const Instruction& issued = *product.instruction;
    if (product.group + pending > warp.products_committed) {
      break;
    }
    for (size_t k = 0; k * kLanes < product.sums.size(); ++k) {
      std::copy_n(product.sums.begin() + long(k * kLanes), kLanes,
                  warp.lanes<float>(issued.sums[k]));
    }
    multiply_group(warp, issued, product.descriptors, product.accumulate);
  }
  warp.products.erase(warp.products.begin(), warp.products.begin() + long(done));
}

Handler pick_product(Instruction& i) {
  const bool is_wide = i.type == Type::tf32;
  fault_if(i.type != i.type2 || (!is_wide && i.type != Type::f16 && i.type != Type::bf16),
           "only sums in .f32 of .f16, .bf16 or .tf32 are supported");
  fault_if(i.immediate % 8 || i.immediate > 256 || int(i.sums.size()) != i.immediate / 2,
           i.sums.size(), " sums; expected are ", i.immediate / 2);
  i.choices[0] = i.inputs >= 8;  // A in registers
  const int expected = behind_left(i) + kMajorA + (is_wide ? 0 : has_left_in_registers(i) ? 1 : 2);
  fault_if(i.inputs != expected, i.inputs, " sources; expected are ", expected);
  return start_product;
}

// {d...}, a, b-descriptor, scale-d, scale-a, scale-b, and which factors are transposed.
constexpr const char* kProduct = "mma_async sync aligned f32 T T N";
const bool kAddedGroup = add_forms({
    {"wgmma", "fence sync aligned", "", nothing, kAligned},
    {"wgmma", "commit_group sync aligned", "",
     [](Warp& warp, const Instruction&, uint32_t) { ++warp.products_committed; }, kAligned},
    {"wgmma", "wait_group sync aligned", "4", wait_for_products, kAligned},
    {"wgmma", kProduct, "+ 4*4 8 p 4 4 4?", pick_product, kAligned},
    {"wgmma", kProduct, "+ 8 8 p 4 4 4? 4?", pick_product, kAligned},
});

}  // namespace
}  // namespace ptx
