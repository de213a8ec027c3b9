// Asynchronous copies. (PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy",
// "Tensors", "Parallel Synchronization and Communication Instructions: mbarrier".)

#include "memory.h"
#include "translate.h"

namespace ptx {
namespace {

void move(Block& block, const Piece& piece) {
  uint8_t* shared = block.shared + piece.shared;
  std::memcpy(shared, piece.global, piece.given);
  std::memset(shared + piece.given, 0, piece.bytes - piece.given);
}

void commit(Warp& warp, const Instruction&, uint32_t mask) {
  each(mask, [&](int lane) { ++warp.committed[size_t(lane)]; });
}

// ---- cp.async: 4, 8 or 16 bytes of a lane, which waits for groups of them

void start_copy(Warp& warp, const Instruction& i, uint32_t mask) {
  const uint32_t bytes = uint32_t(i.immediate);
  access(warp, i, mask, bytes, Use::write, [&](int lane, uint8_t* to) {
    const uint64_t from = address_of(warp, i.address[1], lane);
    const uint32_t given = i.inputs ? warp.lanes<uint32_t>(i.from[0])[lane] : bytes;
    fault_if(given > bytes, warp, i, lane, "src-size ", given, " is larger than cp-size");
    fault_if(from % bytes, warp, i, lane, "the source is not aligned to ", bytes, " bytes");
    if (given) {
      locate(warp, i, Space::global, from, lane, given, 1, Use::read);
    }
    const Piece piece{uint32_t(to - warp.block->shared), reinterpret_cast<uint8_t*>(from), bytes,
                      given};
    if (arrives_now()) {
      move(*warp.block, piece);
    } else {
      std::memset(to, 0xFF, bytes);  // until it has arrived
      warp.copies.push_back({&i, lane, warp.committed[size_t(lane)] + 1, piece});
    }
  });
}

// For all groups of a lane but the last few.
void wait_for_copies(Warp& warp, const Instruction& i, uint32_t mask) {
  std::erase_if(warp.copies, [&](const LaneCopy& copy) {
    const size_t lane = size_t(copy.lane);
    const bool waited = mask >> lane & 1 &&
                        copy.group + warp.lanes<uint32_t>(i.from[0])[lane] <= warp.committed[lane];
    if (waited) {
      move(*warp.block, copy.piece);
      if (settings.races) {  // from here on it is the lane's own write
        note_shared(warp, *copy.instruction, copy.lane, copy.piece.shared, copy.piece.bytes,
                    Use::write);
      }
    }
    return waited;
  });
}

Handler pick_copy(Instruction& i) {
  fault_if(i.immediate != 16 && !(i.choices[0] == 0 && (i.immediate == 4 || i.immediate == 8)),
           "a copy of ", i.immediate, " bytes");
  return start_copy;
}

// ---- mbarrier: arrivals and bytes that a phase waits for

PhaseBarrier& barrier_at(Warp& warp, const Instruction& i, int lane, const Address& address) {
  const uint8_t* at = shared_range(warp, i, lane, address_of(warp, address, lane), 8);
  const uint32_t offset = uint32_t(at - warp.block->shared);
  const auto found = warp.block->phase_barriers.find(offset);
  fault_if(found == warp.block->phase_barriers.end(), warp, i, lane,
           "no mbarrier was initialised at ", offset);
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

void initialise(Warp& warp, const Instruction& i, uint32_t mask) {
  access(warp, i, mask, 8, Use::write, [&](int lane, uint8_t* at) {
    const uint32_t count = warp.lanes<uint32_t>(i.from[0])[lane];
    warp.block->phase_barriers[uint32_t(at - warp.block->shared)] = {count, count, 0, 0, {}};
  });
}

void invalidate(Warp& warp, const Instruction& i, uint32_t mask) {
  access(warp, i, mask, 8, Use::write, [&](int, uint8_t* at) {
    warp.block->phase_barriers.erase(uint32_t(at - warp.block->shared));
  });
}

// An arrival, and bytes that are to come.
void expect(Warp& warp, const Instruction& i, uint32_t mask) {
  each(mask, [&](int lane) {
    PhaseBarrier& barrier = barrier_at(warp, i, lane, i.address[0]);
    warp.lanes<uint64_t>(i.to[0])[lane] = barrier.phase;
    barrier.bytes += warp.lanes<uint32_t>(i.from[0])[lane];
    fault_if(barrier.arrivals == 0, warp, i, lane, "more arrivals than the mbarrier expects");
    release(warp, barrier.clocks);  // whoever waits for the phase knows what was done so far
    --barrier.arrivals;
    complete_phase(*warp.block, barrier);
  });
}

// Whether the phase of a parity is complete.
void test(Warp& warp, const Instruction& i, uint32_t mask) {
  uint32_t complete = 0;
  each(mask, [&](int lane) {
    PhaseBarrier& barrier = barrier_at(warp, i, lane, i.address[0]);
    const bool done = (barrier.phase & 1) != (warp.lanes<uint32_t>(i.from[0])[lane] & 1);
    complete |= uint32_t(done) << lane;
    if (done) {
      join(warp.clocks, barrier.clocks);
      ++warp.step;
    }
  });
  warp.set_predicate(i.to[0], complete, mask);
  warp.yielded = complete != mask;
}

// ---- tiles of tensors (TMA)

// A copy that counts its bytes at the mbarrier of the last address.
void issue(Warp& warp, const Instruction& i, int lane, std::vector<Piece> pieces) {
  Block& block = *warp.block;
  BulkCopy copy;
  copy.pieces = std::move(pieces);
  for (const Piece& piece : copy.pieces) {
    copy.bytes += piece.bytes;
    note_copy(warp, i, lane, piece.shared, piece.bytes);
    std::memset(block.shared + piece.shared, 0xFF, piece.bytes);
  }
  barrier_at(warp, i, lane, i.address[2]);
  const uint64_t barrier = address_of(warp, i.address[2], lane);
  copy.barrier = uint32_t(shared_range(warp, i, lane, barrier, 8) - block.shared);
  block.copies.push_back(std::move(copy));
  if (arrives_now()) {
    arrive(block, block.copies.size() - 1);
  }
}

// The elements of a box, each at its place in shared memory; neighbours make up one piece.
void start_tile(Warp& warp, const Instruction& i, uint32_t mask) {
  each(mask, [&](int lane) {
    TensorMap map;
    const uint64_t at = address_of(warp, i.address[1], lane);
    std::memcpy(&map, locate(warp, i, Space::generic, at, lane, 128, 64, Use::read), sizeof map);
    const int rank = i.immediate;
    fault_if(map.magic != TensorMap::kMagic || int(map.rank) != rank, warp, i, lane,
             "no tensor map of rank ", rank);
    const uint64_t shared = address_of(warp, i.address[0], lane);
    fault_if(shared % 128, warp, i, lane, "the tile in shared memory is not aligned");
    uint64_t elements = 1;
    for (uint32_t d = 0; d < map.rank; ++d) {
      elements *= map.box[d];
    }
    shared_range(warp, i, lane, shared, elements * map.bytes);
    std::vector<Piece> pieces;
    for (uint64_t k = 0; k < elements; ++k) {
      uint64_t rest = k, offset = 0;
      bool inside = true;
      for (uint32_t d = 0; d < map.rank; ++d) {
        const int64_t corner = warp.lanes<int32_t>(i.from[d])[lane];
        const int64_t place = corner + int64_t(rest % map.box[d]);
        rest /= map.box[d];
        inside &= place >= 0 && place < int64_t(map.size[d]);
        offset += uint64_t(place) * (d == 0 ? map.bytes : map.stride[d - 1]);
      }
      const uint32_t place = swizzled(uint32_t(shared + k * map.bytes), map.swizzle / 16);
      uint8_t* global =
          inside ? global_range(warp, i, lane, map.address + offset, map.bytes) : nullptr;
      Piece* last = pieces.empty() ? nullptr : &pieces.back();
      if (last && last->shared + last->bytes == place && (last->given > 0) == inside &&
          (!inside || last->global + last->bytes == global)) {
        last->bytes += map.bytes;
        last->given += inside ? map.bytes : 0;
      } else {
        pieces.push_back({place, global, map.bytes, inside ? map.bytes : 0});
      }
    }
    issue(warp, i, lane, std::move(pieces));
  });
}

Handler pick_tile(Instruction& i) {
  fault_if(i.immediate != i.choices[0] + 1,
           "[map, {coordinates}] is expected, of as many dimensions as it says");
  return start_tile;
}

constexpr const char* kTile =
    "async bulk tensor 1d|2d|3d|4d|5d shared::cluster|shared::cta global (tile) "
    "mbarrier::complete_tx::bytes";
const bool kAdded = add_forms({
    {"cp", "async ca|cg shared|shared::cta global H", "s g i 4?", pick_copy},
    {"cp", "async commit_group", "", commit},
    {"cp", "async wait_group", "4", wait_for_copies},
    {"cp", kTile, "s M s", pick_tile},
    {"mbarrier", "init S b64", "m 4", initialise},
    {"mbarrier", "inval S b64", "m", invalidate},
    {"mbarrier", "arrive expect_tx S b64 H", "=8 m 4", expect},
    {"mbarrier", "try_wait parity S b64 H", "=p m 4 4?", test, Flow::poll},
});

}  // namespace

uint32_t swizzled(uint32_t address, uint32_t units) {
  return units > 1 ? address ^ ((address >> 7 & (units - 1)) << 4) : address;
}

void arrive(Block& block, size_t index) {
  const BulkCopy copy = std::move(block.copies[index]);
  block.copies.erase(block.copies.begin() + long(index));
  ++block.copies_clock;
  for (const Piece& piece : copy.pieces) {
    move(block, piece);
  }
  PhaseBarrier& barrier = block.phase_barriers.at(copy.barrier);
  Clocks clocks(block.warps.size() + 1);
  clocks.back() = block.copies_clock;
  join(barrier.clocks, clocks);
  barrier.bytes -= int64_t(copy.bytes);
  complete_phase(block, barrier);
}

}  // namespace ptx
