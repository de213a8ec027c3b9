// Asynchronous copies. (PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy",
// "Tensors", "Parallel Synchronization and Communication Instructions: mbarrier".)

#include "memory.h"
#include "translate.h"

namespace ptx {
namespace {

void move(Block& block, const Piece& piece, bool to_shared) {
  uint8_t* shared = block.shared + piece.shared;
  if (to_shared) {
    std::memcpy(shared, piece.global, piece.given);
    std::memset(shared + piece.given, 0, piece.bytes - piece.given);
  } else {
    std::memcpy(piece.global, shared, piece.given);
  }
}

// Whether the lane's group of a copy is among those that an instruction waits for: all but the
// last few. Without a number it waits also for what is in no group yet.
bool is_waited_for(Warp& warp, const Instruction& i, uint32_t mask, const Copy& copy,
                   const std::array<uint32_t, kLanes>& committed) {
  if (copy.warp != warp.index || !(mask >> copy.lane & 1)) {
    return false;
  }
  const size_t lane = size_t(copy.lane);
  return i.inputs == 0 || copy.group + warp.lanes<uint32_t>(i.from[0])[lane] <= committed[lane];
}

template <auto Warp::* groups>
void commit(Warp& warp, const Instruction&, uint32_t mask) {
  each(mask, [&](int lane) { ++(warp.*groups)[size_t(lane)]; });
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
      move(*warp.block, piece, true);
    } else {
      std::memset(to, 0xFF, bytes);  // until it has arrived
      warp.copies.push_back({{&i, warp.index, lane, warp.committed[size_t(lane)] + 1}, piece});
    }
  });
}

void wait_for_copies(Warp& warp, const Instruction& i, uint32_t mask) {
  std::erase_if(warp.copies, [&](const LaneCopy& copy) {
    const bool waited = is_waited_for(warp, i, mask, copy, warp.committed);
    if (waited) {
      move(*warp.block, copy.piece, true);
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

// Arrivals, and bytes that come or have come: as many as the number says, or one arrival.
template <bool arrives, int bytes>
void act(Warp& warp, const Instruction& i, uint32_t mask) {
  each(mask, [&](int lane) {
    PhaseBarrier& barrier = barrier_at(warp, i, lane, i.address[0]);
    const uint32_t phase = barrier.phase;
    const uint32_t number = i.inputs ? warp.lanes<uint32_t>(i.from[0])[lane] : 1;
    barrier.bytes += int64_t(number) * bytes;
    if (arrives) {
      const uint32_t count = bytes ? 1 : number;
      fault_if(count > barrier.arrivals, warp, i, lane, "more arrivals than the mbarrier expects");
      release(warp, barrier.clocks);  // whoever waits for the phase knows what was done so far
      barrier.arrivals -= count;
    }
    complete_phase(*warp.block, barrier);
    if (i.outputs) {
      warp.lanes<uint64_t>(i.to[0])[lane] = phase;
    }
  });
}

// Whether the phase of a state, or that of a parity, is complete.
template <bool parity>
void test(Warp& warp, const Instruction& i, uint32_t mask) {
  uint32_t complete = 0;
  each(mask, [&](int lane) {
    PhaseBarrier& barrier = barrier_at(warp, i, lane, i.address[0]);
    const bool done = parity ? (barrier.phase & 1) != (warp.lanes<uint32_t>(i.from[0])[lane] & 1)
                             : barrier.phase != warp.lanes<uint64_t>(i.from[0])[lane];
    complete |= uint32_t(done) << lane;
    if (done) {
      join(warp.clocks, barrier.clocks);
      ++warp.step;
    }
  });
  warp.set_predicate(i.to[0], complete, mask);
  warp.yielded = complete != mask;
}

// ---- bulk copies: ranges of bytes, and tiles of tensors (TMA)

// A copy to shared memory counts its bytes at the mbarrier of the last address, one to global
// memory belongs to a group of the lane.
void issue(Warp& warp, const Instruction& i, int lane, std::vector<Piece> pieces, bool to_shared) {
  Block& block = *warp.block;
  BulkCopy copy;
  static_cast<Copy&>(copy) = {&i, warp.index, lane, warp.bulk_committed[size_t(lane)] + 1};
  copy.pieces = std::move(pieces);
  copy.to_shared = to_shared;
  for (const Piece& piece : copy.pieces) {
    copy.bytes += piece.bytes;
    note_copy(warp, i, lane, piece.shared, piece.bytes, to_shared ? Use::write : Use::read);
    if (to_shared) {
      std::memset(block.shared + piece.shared, 0xFF, piece.bytes);
    }
  }
  if (to_shared) {
    barrier_at(warp, i, lane, i.address[2]);
    const uint64_t barrier = address_of(warp, i.address[2], lane);
    copy.barrier = uint32_t(shared_range(warp, i, lane, barrier, 8) - block.shared);
  }
  block.copies.push_back(std::move(copy));
  if (arrives_now()) {
    arrive(block, block.copies.size() - 1);
  }
}

template <bool to_shared>
void start_bulk(Warp& warp, const Instruction& i, uint32_t mask) {
  each(mask, [&](int lane) {
    const uint64_t shared = address_of(warp, i.address[to_shared ? 0 : 1], lane);
    const uint64_t global = address_of(warp, i.address[to_shared ? 1 : 0], lane);
    const uint32_t bytes = warp.lanes<uint32_t>(i.from[0])[lane];
    fault_if(bytes % 16 || shared % 16 || global % 16, warp, i, lane,
             "addresses and size of a bulk copy are multiples of 16");
    const uint8_t* place = shared_range(warp, i, lane, shared, bytes);
    issue(warp, i, lane,
          {{uint32_t(place - warp.block->shared), global_range(warp, i, lane, global, bytes), bytes,
            bytes}},
          to_shared);
  });
}

// The elements of a box, each at its place in shared memory; neighbours make up one piece.
template <bool to_shared>
void start_tile(Warp& warp, const Instruction& i, uint32_t mask) {
  each(mask, [&](int lane) {
    TensorMap map;
    const uint64_t at = address_of(warp, i.address[to_shared ? 1 : 0], lane);
    std::memcpy(&map, locate(warp, i, Space::generic, at, lane, 128, 64, Use::read), sizeof map);
    const int rank = i.immediate;
    fault_if(map.magic != TensorMap::kMagic || int(map.rank) != rank, warp, i, lane,
             "no tensor map of rank ", rank);
    const uint64_t shared = address_of(warp, i.address[to_shared ? 0 : 1], lane);
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
    issue(warp, i, lane, std::move(pieces), to_shared);
  });
}

void wait_for_bulk(Warp& warp, const Instruction& i, uint32_t mask) {
  Block& block = *warp.block;
  for (size_t k = 0; k < block.copies.size();) {
    const BulkCopy& copy = block.copies[k];
    if (!copy.to_shared && is_waited_for(warp, i, mask, copy, warp.bulk_committed)) {
      arrive(block, k);
    } else {
      ++k;
    }
  }
  warp.clocks.back() = block.copies_clock;
}

template <Handler run>
Handler pick_tile(Instruction& i) {
  fault_if(i.immediate != i.choices[0] + 1,
           "[map, {coordinates}] is expected, of as many dimensions as it says");
  return run;
}

constexpr const char* kToShared =
    "async bulk shared::cluster|shared::cta global mbarrier::complete_tx::bytes";
constexpr const char* kToGlobal = "async bulk global shared::cta bulk_group";
constexpr const char* kTileToShared =
    "async bulk tensor 1d|2d|3d|4d|5d shared::cluster|shared::cta global (tile) "
    "mbarrier::complete_tx::bytes";
constexpr const char* kTileToGlobal =
    "async bulk tensor 1d|2d|3d|4d|5d global shared::cta (tile) bulk_group";
const bool kAdded = add_forms({
    {"cp", "async ca|cg shared|shared::cta global H", "s g i 4?", pick_copy},
    {"cp", "async commit_group", "", commit<&Warp::committed>},
    {"cp", "async wait_group", "4", wait_for_copies},
    {"cp", "async wait_all", "", wait_for_copies},
    {"cp", kToShared, "s g 4 s", start_bulk<true>},
    {"cp", kToGlobal, "g s 4", start_bulk<false>},
    {"cp", kTileToShared, "s M s", pick_tile<start_tile<true>>},
    {"cp", kTileToGlobal, "M s", pick_tile<start_tile<false>>},
    {"cp", "async bulk commit_group", "", commit<&Warp::bulk_committed>},
    {"cp", "async bulk wait_group (read)", "4", wait_for_bulk},
    {"mbarrier", "init S b64", "m 4", initialise},
    {"mbarrier", "inval S b64", "m", invalidate},
    {"mbarrier", "expect_tx S b64 H", "m 4", act<false, 1>},
    {"mbarrier", "complete_tx S b64 H", "m 4", act<false, -1>},
    {"mbarrier", "arrive S b64 H", "=8 m 4?", act<true, 0>},
    {"mbarrier", "arrive expect_tx S b64 H", "=8 m 4", act<true, 1>},
    {"mbarrier", "test_wait|try_wait S b64 H", "=p m 8 4?", test<false>, Flow::poll},
    {"mbarrier", "test_wait|try_wait parity S b64 H", "=p m 4 4?", test<true>, Flow::poll},
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
    move(block, piece, copy.to_shared);
  }
  if (copy.to_shared) {
    PhaseBarrier& barrier = block.phase_barriers.at(copy.barrier);
    Clocks clocks(block.warps.size() + 1);
    clocks.back() = block.copies_clock;
    join(barrier.clocks, clocks);
    barrier.bytes -= int64_t(copy.bytes);
    complete_phase(block, barrier);
  }
}

}  // namespace ptx
