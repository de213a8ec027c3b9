#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

// Called for every module of every picture, so by its address: the dispatcher would take longer to
// pass the tensors than it takes to read them.

namespace {

// Odd, and half of their bits set.
constexpr uint64_t keys[4] = {0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
                              0x85EBCA77C2B2AE63};

// A product of which every bit depends on every bit of both factors.
uint64_t folded_product(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return uint64_t(product) ^ uint64_t(product >> 64);
}

uint64_t mix(uint64_t sum, uint64_t value) {
  return folded_product(sum ^ keys[0], value ^ keys[1]);
}

constexpr int64_t line_bytes = 64;

// Four chains of products, 16 bytes of each line in each.
uint64_t checksum_of(const char* data, int64_t bytes) {
  // Not small numbers: one that met its like in a tensor would give a factor of 0.
  uint64_t chains[4] = {~keys[0], ~keys[1], ~keys[2], ~keys[3]};
  const auto add = [&](const char* from, int64_t count) {
    uint64_t line[line_bytes / sizeof(uint64_t)] = {};
    std::memcpy(line, from, count);
    for (int i = 0; i < 4; i++) {
      chains[i] = folded_product(line[2 * i] ^ keys[i], line[2 * i + 1] ^ chains[i]);
    }
  };
  int64_t at = 0;
  for (; at + line_bytes <= bytes; at += line_bytes) {
    add(data + at, line_bytes);
  }
  add(data + at, bytes - at);
  return std::accumulate(chains, chains + 4, uint64_t(bytes), mix);
}

}  // namespace

// A checksum of `count` pieces of memory, each an address and a number of bytes; two that differ in
// a value have equal ones one time in 2^64. Threads share blocks of the pieces: one alone reads at
// half of the rate that two do.
extern "C" __attribute__((visibility("default"))) uint64_t
fassd_kernels_checksum(const int64_t* pieces, int64_t count) noexcept {
  constexpr int64_t block = 256 * 1024;
  struct Block {
    const char* data;
    int64_t bytes;
    uint64_t sum;
  };
  std::vector<Block> blocks;
  for (int64_t i = 0; i < count; i++) {
    const char* const data = reinterpret_cast<const char*>(pieces[2 * i]);
    for (int64_t at = 0; at < pieces[2 * i + 1]; at += block) {
      blocks.push_back({data + at, std::min(block, pieces[2 * i + 1] - at), 0});
    }
  }
  torch::stable::parallel_for(0, blocks.size(), 8, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      blocks[b].sum = checksum_of(blocks[b].data, blocks[b].bytes);
    }
  });
  return std::accumulate(blocks.begin(), blocks.end(), uint64_t(count),
                         [](uint64_t sum, const Block& each) { return mix(sum, each.sum); });
}
