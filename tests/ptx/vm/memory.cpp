#include "memory.h"

#include <algorithm>
#include <cstring>
#include <mutex>
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

bool find_allocation(uint64_t address, uint64_t bytes, uint64_t& low, uint64_t& high) {
  Allocations& all = allocations();
  const std::lock_guard<std::mutex> lock(all.mutex);
  auto next = all.ends.upper_bound(address);
  if (next == all.ends.begin()) {
    return false;
  }
  --next;
  if (address > next->second || bytes > next->second - address) {
    return false;
  }
  low = next->first;
  high = next->second;
  return true;
}

std::string hexadecimal(uint64_t address) {
  char text[32];
  std::snprintf(text, sizeof text, "%#llx", static_cast<unsigned long long>(address));
  return text;
}

std::string range_text(const char* what, uint64_t address, uint64_t bytes, uint64_t end) {
  return std::string(what) + " address " + std::to_string(address) + " + " +
         std::to_string(bytes) + " beyond " + std::to_string(end);
}

// Blocks that touched a byte of global memory, number + 1; readers of several blocks: kSeveral.
constexpr uint32_t kSeveral = ~0u;
struct Touch {
  uint32_t writer = 0, reader = 0;
  bool atomic = false;
};
std::unordered_map<uint64_t, Touch>& touches() {
  static auto* all = new std::unordered_map<uint64_t, Touch>;
  return *all;
}

void note_global(Warp& warp, const Instruction& instruction, int lane, uint64_t address,
                 uint32_t bytes, Use use) {
  const uint32_t block = uint32_t(warp.block->number) + 1;
  for (uint64_t at = address; at < address + bytes; ++at) {
    Touch& touch = touches()[at];
    const bool both_atomic = use == Use::atomic && touch.atomic;
    if (touch.writer && touch.writer != block && !both_atomic) {
      fault(warp, instruction, lane,
            "race: global byte " + hexadecimal(at) + " was written by block " +
                std::to_string(touch.writer - 1) + " of this launch");
    }
    if (use == Use::read) {
      touch.reader = touch.reader == 0 || touch.reader == block ? block : kSeveral;
      continue;
    }
    if (touch.reader && touch.reader != block && !both_atomic) {
      fault(warp, instruction, lane,
            "race: global byte " + hexadecimal(at) + " was read by another block of this launch");
    }
    touch.writer = block;
    touch.atomic = use == Use::atomic;
  }
}

// Whether what was done before is known to the lane that does something now.
bool is_ordered(const Access& before, const Warp& warp, int lane) {
  if (before.warp < 0) {
    return true;
  }
  if (before.warp != warp.index) {
    return warp.clocks[before.warp] > before.clock;
  }
  return before.lane == lane || warp.step > before.step;
}

// The last reader of a warp, or all of its lanes, where several read in one step: a lane that writes
// then is in a race with the others.
void add_reader(Access& last, const Access& now) {
  const bool several = last.warp == now.warp && last.step == now.step && last.lane != now.lane;
  last = now;
  last.lane = several ? kLanes : now.lane;
}

std::string who(const Access& access, size_t warps) {
  return size_t(access.warp) == warps
             ? std::string("a copy on its way")
             : "warp " + std::to_string(access.warp) +
                   (access.lane == kLanes ? "" : " lane " + std::to_string(access.lane));
}

void note(Warp& warp, const Instruction& instruction, int lane, uint32_t address, uint32_t bytes,
          Use use, Access now) {
  Block& block = *warp.block;
  const size_t warps = block.warps.size();
  const auto race = [&](const Access& before, uint32_t at, const char* how) {
    fault(warp, instruction, lane,
          "race: shared byte " + std::to_string(at) + " was " + how + " by " + who(before, warps) +
              ", and nothing orders it before this");
  };
  const auto ordered = [&](const Access& before) {
    return (before.atomic && now.atomic) || is_ordered(before, warp, lane);
  };
  for (uint32_t at = address; at < address + bytes; ++at) {
    History& history = block.history[at];
    if (!ordered(history.write)) {
      race(history.write, at, "written");
    }
    if (use == Use::read) {
      if (history.more >= 0) {
        add_reader(block.readers[history.more][now.warp], now);
      } else if (history.read.warp < 0 || history.read.warp == now.warp) {
        add_reader(history.read, now);
      } else {
        history.more = int32_t(block.readers.size());
        block.readers.emplace_back(warps + 1);
        block.readers.back()[history.read.warp] = history.read;
        block.readers.back()[now.warp] = now;
      }
      continue;
    }
    if (!ordered(history.read)) {
      race(history.read, at, "read");
    }
    if (history.more >= 0) {
      for (const Access& reader : block.readers[history.more]) {
        if (!ordered(reader)) {
          race(reader, at, "read");
        }
      }
    }
    history = History{now, Access{}, -1};
  }
}

}  // namespace

void add_allocation(uint64_t address, uint64_t bytes) {
  Allocations& all = allocations();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.ends[address] = address + bytes;
}

bool is_allocation(uint64_t address) {
  Allocations& all = allocations();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return all.ends.count(address) != 0;
}

bool drop_allocation(uint64_t address) {
  Allocations& all = allocations();
  std::map<uint64_t, uint64_t>::node_type dropped;  // freed without the lock: free() comes here too
  const std::lock_guard<std::mutex> lock(all.mutex);
  dropped = all.ends.extract(address);
  return !dropped.empty();
}

uint64_t address_of(Warp& warp, const Address& address, int lane) {
  if (!address.based) {
    return uint64_t(address.offset);
  }
  if (address.wide) {
    return warp.lanes<uint64_t>(address.base)[lane] + uint64_t(address.offset);
  }
  return uint32_t(warp.lanes<uint32_t>(address.base)[lane] + uint32_t(address.offset));
}

bool is_shared(Space space, uint64_t address) {
  return space == Space::shared || (space == Space::generic && address >> 56 == 1);
}

uint8_t* global_range(Warp& warp, const Instruction& instruction, int lane, uint64_t address,
                      uint64_t bytes) {
  if (address < instruction.low || address > instruction.high ||
      bytes > instruction.high - address) {
    if (!find_allocation(address, bytes, instruction.low, instruction.high)) {
      fault(warp, instruction, lane,
            "global address " + hexadecimal(address) + " + " + std::to_string(bytes) +
                " is in no allocation");
    }
  }
  return reinterpret_cast<uint8_t*>(address);
}

uint8_t* shared_range(Warp& warp, const Instruction& instruction, int lane, uint64_t address,
                      uint64_t bytes) {
  const uint32_t end = warp.block->shared_bytes;
  address = address >> 56 == 1 ? address & kWindowOffset : address;
  if (address > end || bytes > end - address) {
    fault(warp, instruction, lane, range_text("shared", address, bytes, end));
  }
  return warp.block->shared + address;
}

uint8_t* locate(Warp& warp, const Instruction& instruction, Space space, uint64_t address, int lane,
                uint32_t bytes, uint32_t alignment, Use use) {
  if (space == Space::generic) {
    switch (address >> 56) {
      case 1:
        space = Space::shared;
        break;
      case 2:
        space = Space::local;
        break;
      case 3:
        space = Space::param;
        break;
      default:
        space = Space::global;
    }
    address &= space == Space::global ? ~0ull : kWindowOffset;
  }
  if (address & (alignment - 1)) {
    fault(warp, instruction, lane,
          "address " + hexadecimal(address) + " is not aligned to " + std::to_string(alignment) +
              " bytes");
  }
  switch (space) {
    case Space::shared: {
      uint8_t* at = shared_range(warp, instruction, lane, address, bytes);
      note_shared(warp, instruction, lane, uint32_t(at - warp.block->shared), bytes, use);
      return at;
    }
    case Space::local: {
      const uint32_t end = warp.kernel->local_bytes;
      if (address > end || bytes > end - address) {
        fault(warp, instruction, lane, range_text("local", address, bytes, end));
      }
      return warp.local.data() + size_t(lane) * end + address;
    }
    case Space::param: {
      std::vector<uint8_t>& parameters = warp.block->grid->parameters;
      const uint64_t end = warp.kernel->parameter_bytes;
      if (use != Use::read) {
        fault(warp, instruction, lane, "a parameter is written");
      }
      if (address > end || bytes > end - address) {
        fault(warp, instruction, lane, range_text("parameter", address, bytes, end));
      }
      return parameters.data() + address;
    }
    default: {
      uint8_t* at = global_range(warp, instruction, lane, address, bytes);
      if (space == Space::constant && use != Use::read) {
        fault(warp, instruction, lane, "constant memory is written");
      }
      if (settings().races && space != Space::constant) {
        note_global(warp, instruction, lane, address, bytes, use);
      }
      return at;
    }
  }
}

void note_shared(Warp& warp, const Instruction& instruction, int lane, uint32_t address,
                 uint32_t bytes, Use use) {
  uint8_t* written = warp.block->written.data() + address;
  if (use == Use::write) {
    std::memset(written, 1, bytes);
  } else if (std::memchr(written, 0, bytes)) {
    fault(warp, instruction, lane,
          "shared address " + std::to_string(address) + " + " + std::to_string(bytes) +
              " holds what nothing wrote");
  }
  if (settings().races) {
    const Access now{int16_t(warp.index), uint8_t(lane), use == Use::atomic,
                     warp.clocks[warp.index], warp.step};
    note(warp, instruction, lane, address, bytes, use, now);
  }
}

void note_copy(Warp& warp, const Instruction& instruction, int lane, uint32_t address,
               uint32_t bytes, Use use) {
  Block& block = *warp.block;
  if (use == Use::write) {
    std::memset(block.written.data() + address, 1, bytes);
  }
  if (settings().races) {
    const Access now{int16_t(block.warps.size()), 0, false, block.copies_clock, 0};
    note(warp, instruction, lane, address, bytes, use, now);
  }
}

void count_passes(Warp& warp, const Instruction& instruction, const Address& address, uint32_t mask,
                  uint32_t bytes) {
  // 32 banks of 4 bytes serve 32, 16 or 8 lanes at a time, of 4, 8 or 16 bytes each.
  const int together = bytes >= 16 ? 8 : bytes == 8 ? 16 : 32;
  const uint32_t words = std::max(1u, bytes / 4);
  for (int first = 0; first < kLanes; first += together) {
    std::array<std::vector<uint32_t>, 32> banks;
    size_t most = 0;
    for (int lane = first; lane < first + together; ++lane) {
      if (!(mask >> lane & 1)) {
        continue;
      }
      const uint64_t at = address_of(warp, address, lane);
      if (!is_shared(address.space, at)) {
        return;
      }
      for (uint32_t word = uint32_t(at) / 4; word < uint32_t(at) / 4 + words; ++word) {
        std::vector<uint32_t>& bank = banks[word % 32];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) {
          bank.push_back(word);
          most = std::max(most, bank.size());
        }
      }
    }
    instruction.count.passes += most;
    instruction.count.least_passes += most > 0;
  }
}

void join(std::vector<uint32_t>& clocks, const std::vector<uint32_t>& other) {
  clocks.resize(std::max(clocks.size(), other.size()));
  for (size_t i = 0; i < other.size(); ++i) {
    clocks[i] = std::max(clocks[i], other[i]);
  }
}

void forget_global_accesses() { touches().clear(); }

}  // namespace ptx
