#include "memory.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <set>
#include <unordered_map>

namespace ptx {
namespace {

struct Allocations {
  std::mutex mutex;
  std::map<uint64_t, uint64_t> ends;  // by begin
};
Allocations& allocations() {
  static Allocations* all = new Allocations;  // outlives every other static object
  return *all;
}

std::string hexadecimal(uint64_t address) {
  return joined("0x", std::hex, address);
}

// Blocks that touched a byte of global memory, number + 1; readers of several blocks: kSeveral.
constexpr uint32_t kSeveral = ~0u;
struct Touch {
  uint32_t writer = 0, reader = 0;
  bool atomic = false;
};
std::unordered_map<uint64_t, std::array<Touch, 32>> touches;  // by 32 bytes

void note_global(Warp& warp, const Instruction& i, int lane, uint64_t address, uint32_t bytes,
                 Use use) {
  const uint32_t block = uint32_t(warp.block->number) + 1;
  std::array<Touch, 32>& around = touches[address / 32];  // an access is aligned, and lies in them
  for (uint64_t at = address; at < address + bytes; ++at) {
    Touch& touch = around[at % 32];
    const bool both_atomic = use == Use::atomic && touch.atomic;
    if (touch.writer && touch.writer != block && !both_atomic) {
      fault(warp, i, lane, "race: global byte ", hexadecimal(at), " was written by block ",
            touch.writer - 1, " of this launch");
    }
    if (use == Use::read) {
      touch.reader = touch.reader == 0 || touch.reader == block ? block : kSeveral;
      continue;
    }
    if (touch.reader && touch.reader != block && !both_atomic) {
      fault(warp, i, lane, "race: global byte ", hexadecimal(at),
            " was read by another block of this launch");
    }
    touch.writer = block;
    touch.atomic = use == Use::atomic;
  }
}

// The last reader of a warp, or all of its lanes where several read in one step: one that writes
// then is in a race with the others.
void add_reader(Access& last, const Access& now) {
  const bool several = last.warp == now.warp && last.step == now.step && last.lane != now.lane;
  last = now;
  last.lane = several ? kLanes : now.lane;
}

[[noreturn]] void race(Warp& warp, const Instruction& i, int lane, const Access& before,
                       uint32_t at, const char* how) {
  const bool is_copy = size_t(before.warp) == warp.block->warps.size();
  fault(warp, i, lane, "race: shared byte ", at, " was ", how, " by ",
        is_copy                 ? std::string("a copy on its way")
        : before.lane == kLanes ? joined("warp ", before.warp)
                                : joined("warp ", before.warp, " lane ", int(before.lane)),
        ", and nothing orders it before this");
}

// `lane` of `warp` meets what was done to bytes of shared memory before.
void note(Warp& warp, const Instruction& i, int lane, uint32_t address, uint32_t bytes, Use use,
          Access now, const uint8_t* value = nullptr) {
  Block& block = *warp.block;
  const size_t warps = block.warps.size();
  const auto check = [&](const Access& before, uint32_t at, const char* how) {
    const bool is_ordered =
        before.warp < 0 || (before.atomic && now.atomic) ||
        (before.warp != warp.index ? warp.clocks[size_t(before.warp)] > before.clock
                                   : before.lane == lane || warp.step > before.step);
    if (!is_ordered) {
      race(warp, i, lane, before, at, how);
    }
  };
  for (uint32_t at = address; at < address + bytes; ++at) {
    History& history = block.history[at];
    // Who writes what is there already does no harm: Triton's threads do so where several hold one
    // value.
    if (!value || block.shared[at] != value[at - address]) {
      check(history.write, at, "written");
    }
    if (use != Use::read) {
      check(history.read, at, "read");
      if (history.more >= 0) {
        for (const Access& reader : block.readers[size_t(history.more)]) {
          check(reader, at, "read");
        }
      }
      history = History{now, Access{}, -1};
    } else if (history.more >= 0) {
      add_reader(block.readers[size_t(history.more)][size_t(now.warp)], now);
    } else if (history.read.warp < 0 || history.read.warp == now.warp) {
      add_reader(history.read, now);
    } else {
      history.more = int32_t(block.readers.size());
      std::vector<Access>& readers = block.readers.emplace_back(warps + 1);
      readers[size_t(history.read.warp)] = history.read;
      readers[size_t(now.warp)] = now;
    }
  }
}

void check_range(Warp& warp, const Instruction& i, int lane, const char* what, uint64_t address,
                 uint64_t bytes, uint64_t end) {
  fault_if(address > end || bytes > end - address, warp, i, lane, what, " address ", address, " + ",
           bytes, " beyond ", end);
}

}  // namespace

void add_allocation(uint64_t address, uint64_t bytes) {
  const std::lock_guard<std::mutex> lock(allocations().mutex);
  allocations().ends[address] = address + bytes;
}

bool is_allocation(uint64_t address) {
  const std::lock_guard<std::mutex> lock(allocations().mutex);
  return allocations().ends.count(address) != 0;
}

void drop_allocation(uint64_t address) {
  std::map<uint64_t, uint64_t>::node_type dropped;  // freed without the lock: free() comes here too
  const std::lock_guard<std::mutex> lock(allocations().mutex);
  dropped = allocations().ends.extract(address);
}

uint8_t* global_range(Warp& warp, const Instruction& i, int lane, uint64_t address,
                      uint64_t bytes) {
  const auto is_inside = [&] {
    return address >= i.low && address <= i.high && bytes <= i.high - address;
  };
  if (!is_inside()) {
    {
      const std::lock_guard<std::mutex> lock(allocations().mutex);
      const auto next = allocations().ends.upper_bound(address);
      if (next != allocations().ends.begin()) {
        std::tie(i.low, i.high) = *std::prev(next);
      }
    }
    if (!is_inside()) {  // without the lock: free() takes it
      fault(warp, i, lane, "global address ", hexadecimal(address), " + ", bytes,
            " is in no allocation");
    }
  }
  return reinterpret_cast<uint8_t*>(address);
}

uint8_t* shared_range(Warp& warp, const Instruction& i, int lane, uint64_t address,
                      uint64_t bytes) {
  address = address >> 56 == 1 ? address - kSharedWindow : address;
  check_range(warp, i, lane, "shared", address, bytes, warp.block->shared_bytes);
  return warp.block->shared + address;
}

uint8_t* locate(Warp& warp, const Instruction& i, Space space, uint64_t address, int lane,
                uint32_t bytes, uint32_t alignment, Use use, const uint8_t* value) {
  if (space == Space::generic) {
    const uint64_t window = address >> 56;
    space = window == 1   ? Space::shared
            : window == 2 ? Space::local
            : window == 3 ? Space::param
                          : Space::global;
    address -= space == Space::global ? 0 : window << 56;
  }
  if (address & (alignment - 1)) {
    fault(warp, i, lane, "address ", hexadecimal(address), " is not aligned to ", alignment,
          " bytes");
  }
  fault_if(use != Use::read && (space == Space::param || space == Space::constant), warp, i, lane,
           "parameters and constants are not written");
  switch (space) {
    case Space::shared: {
      uint8_t* at = shared_range(warp, i, lane, address, bytes);
      note_shared(warp, i, lane, uint32_t(at - warp.block->shared), bytes, use, value);
      return at;
    }
    case Space::local:
      check_range(warp, i, lane, "local", address, bytes, warp.kernel->local_bytes);
      return warp.local.data() + size_t(lane) * warp.kernel->local_bytes + address;
    case Space::param:
      check_range(warp, i, lane, "parameter", address, bytes, warp.kernel->parameter_bytes);
      return warp.block->grid->parameters.data() + address;
    default: {
      uint8_t* at = global_range(warp, i, lane, address, bytes);
      if (settings.races && space != Space::constant) {
        note_global(warp, i, lane, address, bytes, use);
      }
      return at;
    }
  }
}

void note_shared(Warp& warp, const Instruction& i, int lane, uint32_t address, uint32_t bytes,
                 Use use, const uint8_t* value) {
  uint8_t* written = warp.block->written.data() + address;
  if (use == Use::write) {
    std::memset(written, 1, bytes);
  } else if (std::memchr(written, 0, bytes)) {
    fault(warp, i, lane, "shared address ", address, " + ", bytes, " holds what nothing wrote");
  }
  if (settings.races) {
    note(warp, i, lane, address, bytes, use,
         {int16_t(warp.index), uint8_t(lane), use == Use::atomic, warp.clocks[size_t(warp.index)],
          warp.step},
         value);
  }
}

void note_copy(Warp& warp, const Instruction& i, int lane, uint32_t address, uint32_t bytes) {
  Block& block = *warp.block;
  std::memset(block.written.data() + address, 1, bytes);
  if (settings.races) {
    note(warp, i, lane, address, bytes, Use::write,
         {int16_t(block.warps.size()), 0, false, block.copies_clock, 0});
  }
}

void count_passes(Warp& warp, const Instruction& i, uint32_t mask, uint32_t bytes) {
  // 32 banks of 4 bytes serve 32, 16 or 8 lanes at a time, of 4, 8 or 16 bytes each.
  const int together = bytes >= 16 ? 8 : bytes == 8 ? 16 : 32;
  for (int first = 0; first < kLanes; first += together) {
    std::array<std::set<uint32_t>, 32> banks;
    size_t most = 0;
    for (int lane = first; lane < first + together; ++lane) {
      const uint64_t at = address_of(warp, i.address[0], lane);
      const Space space = i.address[0].space;
      if (!(mask >> lane & 1)) {
        continue;
      }
      if (space != Space::shared && (space != Space::generic || at >> 56 != 1)) {
        return;
      }
      const uint32_t begin = uint32_t(at) / 4;
      for (uint32_t word = begin; word < begin + std::max(1u, bytes / 4); ++word) {
        banks[word % 32].insert(word);
        most = std::max(most, banks[word % 32].size());
      }
    }
    i.count.passes += most;
    i.count.least_passes += most > 0;
  }
}

void join(Clocks& clocks, const Clocks& other) {
  clocks.resize(std::max(clocks.size(), other.size()));
  for (size_t i = 0; settings.races && i < other.size(); ++i) {
    clocks[i] = std::max(clocks[i], other[i]);
  }
}

void release(Warp& warp, Clocks& clocks) {
  ++warp.clocks[size_t(warp.index)];
  join(clocks, warp.clocks);
}

void forget_global_accesses() {
  touches.clear();
}

}  // namespace ptx
