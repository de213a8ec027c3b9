// Asynchronous copies. (PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy",
// "Tensors", "Parallel Synchronization and Communication Instructions: mbarrier".)

#include "async.h"

#include <algorithm>
#include <cstring>

#include "memory.h"
#include "translate.h"

namespace ptx {
namespace {

bool arrives_now() {
  return settings().arrival == Arrival::early ||
         (settings().arrival == Arrival::random && dice()() & 1);
}

// ---- cp.async: 4, 8 or 16 bytes of a lane, which waits for groups of them

void complete(Warp& warp, const Copy& copy) {
  uint8_t* to = warp.block->shared + copy.to;
  std::memcpy(to, copy.from, copy.given);
  std::memset(to + copy.given, 0, copy.bytes - copy.given);
}

void start_copy(Warp& warp, const Instruction& i, uint32_t mask) {
  const uint32_t bytes = i.option;
  if (settings().banks) {
    count_passes(warp, i, i.address, mask, bytes);
  }
  each(mask, [&](int lane) {
    const uint64_t to = address_of(warp, i.address, lane);
    const uint64_t from = address_of(warp, i.address2, lane);
    uint32_t given = bytes;
    if (i.option2 == 1) {  // the number of bytes, or a predicate that says to ignore the source
      given = warp.lanes<uint32_t>(i.from[0])[lane];
    } else if (i.option2 == 2) {
      given = warp.predicate(i.from[0]) >> lane & 1 ? 0 : bytes;
    }
    if (given > bytes) {
      fault(warp, i, lane, "src-size " + std::to_string(given) + " is larger than cp-size");
    }
    uint8_t* at = locate(warp, i, Space::shared, to, lane, bytes, bytes, Use::write);
    if (from % bytes) {
      fault(warp, i, lane, "the source is not aligned to " + std::to_string(bytes) + " bytes");
    }
    if (given) {
      locate(warp, i, Space::global, from, lane, given, 1, Use::read);
    }
    const Copy copy{uint8_t(lane), warp.committed[lane] + 1,
                    uint32_t(at - warp.block->shared), bytes,
                    reinterpret_cast<const uint8_t*>(from), given, &i};
    if (arrives_now()) {
      complete(warp, copy);
    } else {
      std::memset(at, 0xFF, bytes);  // until it has arrived
      warp.copies.push_back(copy);
    }
  });
}

void wait_for_copies(Warp& warp, const Instruction& i, uint32_t mask) {
  const auto arrived = [&](const Copy& copy) {
    const bool waited = mask >> copy.lane & 1 &&
                        (i.immediate < 0 ||  // wait_all: also for what is in no group yet
                         int64_t(copy.group) <= int64_t(warp.committed[copy.lane]) - i.immediate);
    if (waited) {
      complete(warp, copy);
      if (settings().races) {  // from here on it is the lane's own write
        note_shared(warp, *copy.instruction, copy.lane, copy.to, copy.bytes, Use::write);
      }
    }
    return waited;
  };
  warp.copies.erase(std::remove_if(warp.copies.begin(), warp.copies.end(), arrived),
                    warp.copies.end());
}

// ---- mbarrier: arrivals and bytes that a phase waits for

PhaseBarrier& barrier_at(Warp& warp, const Instruction& i, int lane, uint64_t address) {
  const uint8_t* at = shared_range(warp, i, lane, address, 8);
  const uint32_t offset = uint32_t(at - warp.block->shared);
  const auto found = warp.block->phase_barriers.find(offset);
  if (found == warp.block->phase_barriers.end()) {
    fault(warp, i, lane, "no mbarrier was initialised at " + std::to_string(offset));
  }
  return found->second;
}

void complete_phase(Block& block, PhaseBarrier& barrier) {
  if (barrier.arrivals == 0 && barrier.bytes == 0) {
    ++barrier.phase;
    barrier.arrivals = barrier.expected;
    for (Warp& warp : block.warps) {  // those that polled in vain try again
      warp.yielded = false;
    }
  }
}

// A lane's doings so far are known to whoever waits for the phase.
void release(Warp& warp, PhaseBarrier& barrier) {
  if (settings().races) {
    ++warp.clocks[warp.index];
    join(barrier.clocks, warp.clocks);
  }
}

enum Act : uint8_t { act_init, act_inval, act_expect, act_arrive, act_arrive_expect, act_complete };

void act(Warp& warp, const Instruction& i, uint32_t mask) {
  each(mask, [&](int lane) {
    const uint64_t address = address_of(warp, i.address, lane);
    const auto operand = [&](int k) { return warp.lanes<uint32_t>(i.from[k])[lane]; };
    if (i.option == act_init) {
      uint8_t* at = locate(warp, i, i.address.space, address, lane, 8, 8, Use::write);
      PhaseBarrier barrier;
      barrier.expected = barrier.arrivals = operand(0);
      warp.block->phase_barriers[uint32_t(at - warp.block->shared)] = barrier;
      return;
    }
    PhaseBarrier& barrier = barrier_at(warp, i, lane, address);
    const uint32_t phase = barrier.phase;
    switch (Act(i.option)) {
      case act_inval:
        warp.block->phase_barriers.erase(
            uint32_t(shared_range(warp, i, lane, address, 8) - warp.block->shared));
        return;
      case act_expect:
        barrier.bytes += operand(0);
        break;
      case act_complete:
        barrier.bytes -= operand(0);
        break;
      default: {
        const uint32_t count = i.option == act_arrive && i.inputs ? operand(0) : 1;
        barrier.bytes += i.option == act_arrive_expect ? operand(0) : 0;
        if (count > barrier.arrivals) {
          fault(warp, i, lane, "more arrivals than the mbarrier expects");
        }
        release(warp, barrier);
        barrier.arrivals -= count;
      }
    }
    complete_phase(*warp.block, barrier);
    if (i.outputs) {
      warp.lanes<uint64_t>(i.to[0])[lane] = phase;
    }
  });
}

// Whether the phase of a state, or that of a parity, is complete.
void test(Warp& warp, const Instruction& i, uint32_t mask) {
  uint32_t complete = 0;
  each(mask, [&](int lane) {
    PhaseBarrier& barrier = barrier_at(warp, i, lane, address_of(warp, i.address, lane));
    const bool done = i.option2 ? (barrier.phase & 1) != (warp.lanes<uint32_t>(i.from[0])[lane] & 1)
                                : barrier.phase != warp.lanes<uint64_t>(i.from[0])[lane];
    complete |= uint32_t(done) << lane;
    if (done && settings().races) {
      join(warp.clocks, barrier.clocks);
      ++warp.step;
    }
  });
  warp.set_predicate(i.to[0], complete, mask);
  warp.yielded = complete != mask;
}

void bind_barrier(Binding& b) {
  Instruction& i = b.instruction;
  const int kind = b.required(
      {"arrive", "init", "inval", "expect_tx", "complete_tx", "test_wait", "try_wait"});
  b.choice({"relaxed", "acquire", "release"});
  b.choice({"cta", "cluster"});
  const bool expects = kind == 0 && b.flag("expect_tx");
  i.option2 = kind >= 5 && b.flag("parity");
  const Space space = b.space();
  b.type();
  size_t k = 0;
  if (kind >= 5) {
    b.expect(3, 4);  // the last is a hint of how long to wait
    i.to[i.outputs++] = b.predicate(b.operands[k++]);
    i.address = b.address(b.operands[k++], space);
    b.add_source(b.operands[k], i.option2 ? 4 : 8);
    i.flow = Flow::poll;
    i.run = test;
    return;
  }
  constexpr Act kActs[] = {act_arrive, act_init, act_inval, act_expect, act_complete};
  i.option = expects ? act_arrive_expect : kActs[kind];
  if (kind == 0) {
    b.add_target(b.operands.at(k++), 8);
  }
  i.address = b.address(b.operands.at(k++), space);
  if (k < b.operands.size()) {
    b.add_source(b.operands[k++], 4);
  } else if (i.option != act_inval && i.option != act_arrive) {
    throw Fault("a count is missing");
  }
  b.expect(k);
  i.run = act;
}

// ---- bulk copies: ranges of bytes, and tiles of tensors (TMA)

uint32_t swizzled(uint32_t address, uint32_t swizzle) {
  const uint32_t wide = swizzle / 16;
  return wide > 1 ? address ^ ((address >> 7 & (wide - 1)) << 4) : address;
}

void issue(Warp& warp, BulkCopy copy) {
  Block& block = *warp.block;
  for (const BulkCopy::Part& part : copy.parts) {
    const Use use = copy.to_shared ? Use::write : Use::read;
    note_copy(warp, *copy.instruction, copy.lane, part.shared, part.bytes, use);
    if (copy.to_shared) {
      std::memset(block.shared + part.shared, 0xFF, part.bytes);
    }
  }
  block.copies.push_back(std::move(copy));
  if (arrives_now()) {
    arrive(block, block.copies.size() - 1);
  }
}

void start_bulk(Warp& warp, const Instruction& i, uint32_t mask) {
  each(mask, [&](int lane) {
    const uint64_t to = address_of(warp, i.address, lane);
    const uint64_t from = address_of(warp, i.address2, lane);
    const uint32_t bytes = warp.lanes<uint32_t>(i.from[0])[lane];
    if (bytes % 16 || to % 16 || from % 16) {
      fault(warp, i, lane, "addresses and size of a bulk copy are multiples of 16");
    }
    BulkCopy copy;
    copy.instruction = &i;
    copy.warp = warp.index;
    copy.lane = lane;
    copy.bytes = bytes;
    copy.to_shared = i.option;
    const uint8_t* shared = shared_range(warp, i, lane, i.option ? to : from, bytes);
    copy.parts = {{uint32_t(shared - warp.block->shared),
                   global_range(warp, i, lane, i.option ? from : to, bytes), bytes}};
    if (i.option) {
      const uint64_t barrier = warp.lanes<uint32_t>(i.from[1])[lane];
      barrier_at(warp, i, lane, barrier);
      copy.barrier = uint32_t(barrier);
    } else {
      copy.group = warp.bulk_committed[lane] + 1;
    }
    issue(warp, std::move(copy));
  });
}

// The rows of a box, a row being what lies side by side, each at its place in shared memory.
void start_tile(Warp& warp, const Instruction& i, uint32_t mask) {
  each(mask, [&](int lane) {
    TensorMap map;
    const uint64_t at = address_of(warp, i.address2, lane);
    std::memcpy(&map, locate(warp, i, Space::generic, at, lane, 128, 64, Use::read), sizeof map);
    if (map.magic != TensorMap::kMagic || int(map.rank) != int(i.option2)) {
      fault(warp, i, lane, "no tensor map of rank " + std::to_string(i.option2));
    }
    const uint64_t shared = address_of(warp, i.address, lane);
    if (shared % (map.swizzle ? 128 : 16)) {
      fault(warp, i, lane, "the tile in shared memory is not aligned");
    }
    BulkCopy copy;
    copy.instruction = &i;
    copy.warp = warp.index;
    copy.lane = lane;
    copy.to_shared = i.option;
    uint64_t elements = 1;
    for (uint32_t d = 0; d < map.rank; ++d) {
      elements *= map.box[d];
    }
    copy.bytes = elements * map.bytes;
    shared_range(warp, i, lane, shared, copy.bytes);
    const uint32_t first = uint32_t(shared);
    std::array<int64_t, 5> corner = {};
    for (uint32_t d = 0; d < map.rank; ++d) {
      corner[d] = int32_t(warp.lanes<uint32_t>(i.from[2 + d])[lane]);
    }
    // By units of 16 bytes, or elements where those are what a unit is cut into at the edge.
    for (uint64_t k = 0; k < elements; ++k) {
      uint64_t rest = k, offset = 0;
      bool inside = true;
      for (uint32_t d = 0; d < map.rank; ++d) {
        const int64_t place = corner[d] + int64_t(rest % map.box[d]);
        rest /= map.box[d];
        inside &= place >= 0 && place < int64_t(map.size[d]);
        offset += uint64_t(place) * (d == 0 ? map.bytes : map.stride[d - 1]);
      }
      const uint32_t place = swizzled(first + uint32_t(k * map.bytes), map.swizzle);
      uint8_t* global = inside ? global_range(warp, i, lane, map.address + offset, map.bytes)
                               : nullptr;
      BulkCopy::Part* last = copy.parts.empty() ? nullptr : &copy.parts.back();
      if (last && last->shared + last->bytes == place && bool(last->global) == inside &&
          (!inside || last->global + last->bytes == global)) {
        last->bytes += map.bytes;
      } else {
        copy.parts.push_back({place, global, map.bytes});
      }
    }
    if (i.option) {
      const uint64_t barrier = warp.lanes<uint32_t>(i.from[1])[lane];
      barrier_at(warp, i, lane, barrier);
      copy.barrier = uint32_t(barrier);
    } else {
      copy.group = warp.bulk_committed[lane] + 1;
    }
    issue(warp, std::move(copy));
  });
}

void wait_for_bulk(Warp& warp, const Instruction& i, uint32_t mask) {
  Block& block = *warp.block;
  each(mask, [&](int lane) {
    for (size_t k = 0; k < block.copies.size();) {
      const BulkCopy& copy = block.copies[k];
      if (!copy.to_shared && copy.warp == warp.index && copy.lane == lane &&
          int64_t(copy.group) <= int64_t(warp.bulk_committed[lane]) - i.immediate) {
        arrive(block, k);
      } else {
        ++k;
      }
    }
    if (settings().races) {
      warp.clocks.back() = block.copies_clock;
    }
  });
}

// cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [to], [from], size, [barrier];
// cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::... [to], [map, {x, y}], [barrier];
// and from shared to global memory, .bulk_group, without a barrier.
void bind_bulk(Binding& b) {
  Instruction& i = b.instruction;
  if (b.flag("commit_group")) {
    i.run = [](Warp& warp, const Instruction&, uint32_t mask) {
      each(mask, [&](int lane) { ++warp.bulk_committed[lane]; });
    };
    return b.expect(0);
  }
  if (b.flag("wait_group")) {
    b.flag("read");
    b.expect(1);
    i.immediate = b.constant(b.operands[0]);
    i.run = wait_for_bulk;
    return;
  }
  const bool tensor = b.flag("tensor");
  i.option2 = tensor ? uint8_t(b.required({"1d", "2d", "3d", "4d", "5d"}) + 1) : 0;
  const bool from_shared = b.flag("shared::cta") && b.flag("global");
  if (!from_shared) {
    b.required({"shared::cluster", "global"});
    b.flag("global");
    b.required({"mbarrier::complete_tx::bytes"});
  } else {
    b.required({"bulk_group"});
  }
  i.option = !from_shared;
  b.flag("tile");
  if (b.flag("L2::cache_hint")) {
    b.operands.pop_back();
  }
  const auto barrier = [&](const Operand& operand) {
    if (operand.kind != Operand::address || operand.parts[0].offset) {
      throw Fault("the address of an mbarrier in a register is expected");
    }
    return b.source(operand.parts[0], 4);
  };
  if (!tensor) {
    b.expect(from_shared ? 3 : 4);
    i.address = b.address(b.operands[0], from_shared ? Space::global : Space::shared);
    i.address2 = b.address(b.operands[1], from_shared ? Space::shared : Space::global);
    i.from[0] = b.source(b.operands[2], 4);
    if (!from_shared) {
      i.from[1] = barrier(b.operands[3]);
    }
    i.run = start_bulk;
    return;
  }
  b.expect(from_shared ? 2 : 3);
  const Operand& map = b.operands[from_shared ? 0 : 1];
  if (map.kind != Operand::address || map.parts.size() != 2 ||
      map.parts[1].kind != Operand::vector || map.parts[1].parts.size() != i.option2) {
    throw Fault("[map, {coordinates}] is expected");
  }
  i.address = b.address(b.operands[from_shared ? 1 : 0], Space::shared);
  i.address2 = b.address(map, Space::generic);
  for (size_t d = 0; d < i.option2; ++d) {
    i.from[2 + d] = b.source(map.parts[1].parts[d], 4);
  }
  if (!from_shared) {
    i.from[1] = barrier(b.operands[2]);
  }
  i.run = start_tile;
}

void bind_copy(Binding& b) {
  Instruction& i = b.instruction;
  b.required({"async"});
  if (b.flag("bulk")) {
    return bind_bulk(b);
  }
  if (b.flag("commit_group")) {
    i.run = [](Warp& warp, const Instruction&, uint32_t mask) {
      each(mask, [&](int lane) { ++warp.committed[lane]; });
    };
    return b.expect(0);
  }
  if (b.flag("wait_all") || b.flag("wait_group")) {
    i.immediate = b.operands.empty() ? -1 : b.constant(b.operands[0]);
    i.run = wait_for_copies;
    return;
  }
  const bool cached = b.required({"ca", "cg"}) == 0;
  b.required({"shared", "shared::cta"});
  b.required({"global"});
  b.choice({"L2::64B", "L2::128B", "L2::256B"});
  if (b.flag("L2::cache_hint")) {
    b.operands.pop_back();
  }
  b.expect(3, 4);
  i.address = b.address(b.operands[0], Space::shared);
  i.address2 = b.address(b.operands[1], Space::global);
  i.option = uint8_t(b.constant(b.operands[2]));
  if (i.option != 16 && !(cached && (i.option == 4 || i.option == 8))) {
    throw Fault("a copy of " + std::to_string(i.option) + " bytes");
  }
  if (b.operands.size() > 3) {
    const Operand& given = b.operands[3];
    try {
      i.from[0] = b.source(given, 4);
      i.option2 = 1;
    } catch (const Fault&) {
      i.from[0] = b.predicate(given);
      i.option2 = 2;
    }
  }
  i.run = start_copy;
}

const bool kAdded = add_opcodes({{"cp", bind_copy}, {"mbarrier", bind_barrier}});

}  // namespace

void arrive(Block& block, size_t index) {
  const BulkCopy copy = block.copies[index];
  block.copies.erase(block.copies.begin() + long(index));
  ++block.copies_clock;
  for (const BulkCopy::Part& part : copy.parts) {
    uint8_t* shared = block.shared + part.shared;
    if (!copy.to_shared) {
      if (part.global) {
        std::memcpy(part.global, shared, part.bytes);
      }
    } else if (part.global) {
      std::memcpy(shared, part.global, part.bytes);
    } else {
      std::memset(shared, 0, part.bytes);
    }
  }
  if (!copy.to_shared) {
    return;
  }
  PhaseBarrier& barrier = block.phase_barriers.at(copy.barrier);
  if (settings().races) {
    std::vector<uint32_t> clocks(block.warps.size() + 1);
    clocks.back() = block.copies_clock;
    join(barrier.clocks, clocks);
  }
  barrier.bytes -= int64_t(copy.bytes);
  complete_phase(block, barrier);
}

}  // namespace ptx
