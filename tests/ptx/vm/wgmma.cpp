// Products of a warpgroup, from shared memory. (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Instructions"; layouts: "Shared Memory Matrix Layout", "Matrix Descriptor Format".)

#include "async.h"
#include "matrix.h"

namespace ptx {
namespace {

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
void multiply(Warp& warp, const Instruction& i, const std::array<uint64_t, 2>& descriptors,
              bool accumulate) {
  const int n = i.immediate, depth = 32 / bytes_of(i.type), first_row = warp.index % 4 * 16;
  const int next = behind_left(i);
  const auto is_set = [&](int k) { return k < i.inputs && *warp.lanes<uint32_t>(i.from[k]) != 0; };
  std::vector<double> a(16 * size_t(depth)), b(size_t(depth * n)), d(16 * size_t(n));
  if (has_left_in_registers(i)) {
    load_left(warp, i.from, i.type, depth, a.data());
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
void start(Warp& warp, const Instruction& i, uint32_t) {
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
    return multiply(warp, i, product.descriptors, product.accumulate);
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

void wait(Warp& warp, const Instruction& i, uint32_t) {
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
    multiply(warp, issued, product.descriptors, product.accumulate);
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
  return start;
}

constexpr Flow kAligned = Flow::aligned;
// {d...}, a, b-descriptor, scale-d, scale-a, scale-b, and which factors are transposed.
constexpr const char* kProduct = "mma_async sync aligned f32 T T N";
const bool kAdded = add_forms({
    {"wgmma", "fence sync aligned", "", nothing, kAligned},
    {"wgmma", "commit_group sync aligned", "",
     [](Warp& warp, const Instruction&, uint32_t) { ++warp.products_committed; }, kAligned},
    {"wgmma", "wait_group sync aligned", "4", wait, kAligned},
    {"wgmma", kProduct, "+ 4*4 8 p 4 4 4?", pick_product, kAligned},
    {"wgmma", kProduct, "+ 8 8 p 4 4 4? 4?", pick_product, kAligned},
});

}  // namespace
}  // namespace ptx
