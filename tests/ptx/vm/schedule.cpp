// Which warp goes on, and when: divergence, barriers, blocks, grids that begin early.

#include <algorithm>
#include <cstring>
#include <mutex>
#include <numeric>

#include "async.h"
#include "memory.h"

namespace ptx {
namespace {

constexpr int kTurn = 1 << 16;         // instructions of a warp before it is another's turn
constexpr size_t kMostSuspended = 32;  // blocks of a grid that wait for another grid

// Why a block stopped.
enum class Stop : uint8_t { ended, previous, dependents };

// The state between two launches: a grid that has let dependents start and is not through yet.
std::unique_ptr<Grid>& held() {
  static std::unique_ptr<Grid> grid;
  return grid;
}

// The order is that of kSpecials in translate.cpp.
void fill_specials(Warp& warp) {
  const Block& block = *warp.block;
  const Grid& grid = *block.grid;
  for (const auto& [offset, which] : warp.kernel->specials) {
    uint32_t* values = warp.lanes<uint32_t>(offset);
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t thread = uint32_t(warp.index * kLanes + lane);
      const uint32_t constants[] = {
          thread % grid.threads[0],
          thread / grid.threads[0] % grid.threads[1],
          thread / grid.threads[0] / grid.threads[1],
          grid.threads[0],
          grid.threads[1],
          grid.threads[2],
          block.index[0],
          block.index[1],
          block.index[2],
          grid.size[0],
          grid.size[1],
          grid.size[2],
          uint32_t(lane),
          uint32_t(warp.index),
          uint32_t(block.warps.size()),
          1u << lane,
          (1u << lane) - 1,
          (2u << lane) - 1,
          ~((2u << lane) - 1),
          ~((1u << lane) - 1),
          grid.dynamic_shared,
          block.shared_bytes,
          uint32_t(block.number % uint64_t(settings().multiprocessors)),
          uint32_t(settings().multiprocessors),
      };
      values[lane] = constants[which];
    }
  }
}

void release_barrier(Block& block, int name) {
  Barrier& barrier = block.barriers[size_t(name)];
  uint32_t expected = barrier.expected;
  for (const Warp& warp : block.warps) {
    expected += barrier.expected == 0 && !warp.ended ? kLanes : 0;
  }
  if (barrier.arrived == 0 || barrier.arrived < expected) {
    return;
  }
  for (Warp& warp : block.warps) {
    if (warp.barrier != name) {
      continue;
    }
    warp.barrier = -1;
    ++warp.step;
    if (settings().races) {
      join(warp.clocks, barrier.clocks);
    }
    if (warp.vote == 1) {
      each(warp.vote_mask,
           [&](int lane) { warp.lanes<uint32_t>(warp.vote_to)[lane] = barrier.ones; });
    } else if (warp.vote) {
      const bool result = warp.vote == 2 ? barrier.all : barrier.any;
      warp.set_predicate(warp.vote_to, result ? kAllLanes : 0, warp.vote_mask);
    }
  }
  barrier = Barrier();
}

// A warp comes to a barrier; whether it has to wait there.
bool arrive_at_barrier(Warp& warp, const Instruction& i, uint32_t mask) {
  const int lane = __builtin_ctz(mask);
  const uint32_t name = warp.lanes<uint32_t>(i.from[0])[lane];
  const uint32_t count = i.inputs > 1 ? warp.lanes<uint32_t>(i.from[1])[lane] : 0;
  if (name > 15) {
    fault(warp, i, lane, "there is no barrier " + std::to_string(name));
  }
  if (i.inputs > 1 && (count == 0 || count % kLanes)) {
    fault(warp, i, lane, "a barrier of " + std::to_string(count) + " threads");
  }
  Barrier& barrier = warp.block->barriers[name];
  if (barrier.arrived && barrier.expected != count) {
    fault(warp, i, lane, "threads disagree on how many meet at the barrier");
  }
  barrier.expected = count;
  barrier.arrived += kLanes;
  if (settings().races) {
    ++warp.clocks[size_t(warp.index)];
    join(barrier.clocks, warp.clocks);
  }
  warp.vote = i.option2;
  if (warp.vote) {
    const uint32_t ones = (warp.predicate(i.from[2]) ^ (i.immediate ? kAllLanes : 0)) & mask;
    barrier.ones += uint32_t(__builtin_popcount(ones));
    barrier.all &= ones == mask;
    barrier.any |= ones != 0;
    warp.vote_to = i.to[0];
    warp.vote_mask = mask;
  }
  warp.barrier = i.option == 1 ? -1 : int(name);  // bar.arrive does not wait
  release_barrier(*warp.block, int(name));
  return warp.barrier >= 0;
}

// Runs one group of lanes of a warp after the other, always the one that is behind, so that lanes
// that diverged meet again. Stops when the warp waits or ends, or its turn is over.
class WarpRunner {
 public:
  WarpRunner(Warp& warp, int turn, bool previous_ended)
      : warp_(warp), code_(warp.kernel->code.data()), left_(turn), previous_ended_(previous_ended) {}

  // Returns the instructions that were executed.
  int run() {
    const int turn = left_;
    while (pick() && go()) {
    }
    return turn - left_;
  }

 private:
  // The lanes furthest behind, all together; false if the warp has ended.
  bool pick() {
    std::vector<Together>& groups = warp_.groups;
    if (groups.empty()) {
      warp_.ended = true;
      return false;
    }
    const Together* behind = nullptr;
    for (const Together& group : groups) {
      if (!group.parked && (!behind || group.at < behind->at)) {
        behind = &group;
      }
    }
    if (!behind) {
      fault(warp_, code_[groups[0].at], __builtin_ctz(groups[0].mask),
            "lanes wait for others of their warp, which wait elsewhere or have ended");
    }
    at_ = behind->at;
    mask_ = 0;
    next_ = ~0u;
    size_t kept = 0;
    for (const Together& group : groups) {
      if (group.at == at_) {
        mask_ |= group.mask;
        continue;
      }
      next_ = group.at > at_ ? std::min(next_, group.at) : next_;
      groups[kept++] = group;
    }
    groups.resize(kept);
    return true;
  }

  void leave(uint32_t at, uint32_t mask, bool parked = false) {
    if (mask) {
      warp_.groups.push_back({at, mask, parked});
    }
  }

  // Executes until the group changes; false if the warp has to stop.
  bool go() {
    while (true) {
      if (at_ >= next_) {
        leave(at_, mask_);
        return true;
      }
      if (left_ <= 0) {
        leave(at_, mask_);
        return false;
      }
      --left_;
      const Instruction& i = code_[at_];
      const uint32_t mask =
          i.guarded ? mask_ & (warp_.predicate(i.guard) ^ (i.guard_negated ? kAllLanes : 0))
                    : mask_;
      ++i.count.warps;
      i.count.lanes += uint32_t(__builtin_popcount(mask));
      if (i.flow == Flow::next) {
        if (mask) {
          i.run(warp_, i, mask);
        }
        ++at_;
      } else if (i.flow == Flow::branch) {
        if (mask) {
          leave(i.target, mask);
          leave(at_ + 1, mask_ & ~mask);
          return true;
        }
        ++at_;
      } else if (!mask) {
        ++at_;
      } else {
        switch (special(i, mask)) {
          case Next::on:
            ++at_;
            break;
          case Next::regroup:
            return true;
          case Next::stop:
            return false;
        }
      }
    }
  }

  enum class Next : uint8_t { on, regroup, stop };

  // What is more than to execute and go on.
  Next special(const Instruction& i, uint32_t mask) {
    switch (i.flow) {
      case Flow::exit:
        warp_.alive &= ~mask;
        mask_ &= ~mask;
        return mask_ ? Next::on : Next::regroup;
      case Flow::trap:
        fault(warp_, i, __builtin_ctz(mask), "trap");
      case Flow::members: {
        const uint32_t members = warp_.lanes<uint32_t>(i.from[15])[__builtin_ctz(mask)];
        if (mask & ~members) {
          fault(warp_, i, __builtin_ctz(mask & ~members), "a lane that the mask does not name");
        }
        if (members & warp_.alive & ~mask) {
          leave(at_, mask_, true);
          return Next::regroup;
        }
        i.run(warp_, i, mask);
        return Next::on;
      }
      case Flow::aligned:
      case Flow::barrier:
        if (mask != warp_.alive) {
          leave(at_, mask_, true);
          return Next::regroup;
        }
        if (i.flow == Flow::barrier) {
          const bool waits = arrive_at_barrier(warp_, i, mask);
          leave(at_ + 1, mask_);
          return waits ? Next::stop : Next::regroup;
        }
        if (mask != kAllLanes) {
          fault(warp_, i, 0, "an instruction of the whole warp, of which lanes have ended");
        }
        i.run(warp_, i, mask);
        return Next::on;
      case Flow::poll:
        i.run(warp_, i, mask);
        if (warp_.yielded) {
          leave(at_ + 1, mask_);
          return Next::stop;
        }
        return Next::on;
      case Flow::dependents:
        warp_.started_dependents = true;
        leave(at_ + 1, mask_);
        return Next::stop;
      default:  // Flow::previous
        if (!previous_ended_) {
          warp_.awaits_previous = true;
          leave(at_, mask_);
          return Next::stop;
        }
        return Next::on;
    }
  }

  Warp& warp_;
  const Instruction* code_;
  int left_;
  bool previous_ended_;
  uint32_t at_ = 0, mask_ = 0, next_ = 0;
};

[[noreturn]] void deadlock(Block& block) {
  std::string states;
  Warp* first = nullptr;
  for (Warp& warp : block.warps) {
    states += warp.ended          ? " ended"
              : warp.barrier >= 0 ? " at barrier " + std::to_string(warp.barrier)
                                  : " polling";
    first = first || warp.ended ? first : &warp;
  }
  const Together& group = first->groups[0];
  fault(*first, first->kernel->code[group.at ? group.at - 1 : 0], __builtin_ctz(group.mask),
        "deadlock; the warps:" + states);
}

// Runs a block until it ends, or until all of it waits for the grid before it, or, if asked, has
// let the grid behind it start.
Stop run_block(Block& block, bool previous_ended, bool stop_at_dependents) {
  Grid& grid = *block.grid;
  const bool shuffled = settings().seed != 0;
  for (Warp& warp : block.warps) {
    warp.awaits_previous &= !previous_ended;
  }
  std::vector<size_t> ready;
  while (true) {
    ready.clear();
    bool ended = true, started = true, awaiting = false, polling = false;
    for (const Warp& warp : block.warps) {
      ended &= warp.ended;
      started &= warp.ended || warp.started_dependents;
      awaiting |= warp.awaits_previous;
      polling |= warp.yielded;
      if (!warp.ended && warp.barrier < 0 && !warp.awaits_previous && !warp.yielded) {
        ready.push_back(size_t(warp.index));
      }
    }
    if (ended) {
      while (!block.copies.empty()) {
        arrive(block, 0);
      }
      return Stop::ended;
    }
    if (stop_at_dependents && started) {
      return Stop::dependents;
    }
    if (ready.empty()) {
      if (!block.copies.empty()) {
        arrive(block, shuffled ? dice()() % block.copies.size() : 0);
      } else if (awaiting) {
        return Stop::previous;
      } else {
        deadlock(block);
      }
      continue;
    }
    const size_t which = ready[shuffled ? dice()() % ready.size() : block.turn++ % ready.size()];
    const int turn = shuffled ? 1 + int(dice()() % (dice()() % 4 ? 400 : 20)) : kTurn;
    Warp& warp = block.warps[which];
    grid.instructions += uint64_t(WarpRunner(warp, turn, previous_ended).run());
    if (grid.instructions > settings().most_instructions) {
      const Together& group = warp.groups.empty() ? Together{} : warp.groups[0];
      fault(warp, warp.kernel->code[group.at], 0,
            "more than " + std::to_string(settings().most_instructions) +
                " instructions in one launch: does it loop for ever?");
    }
    if (warp.ended) {
      for (int name = 0; name < 16; ++name) {
        release_barrier(block, name);
      }
    }
    if (polling && !warp.yielded) {  // it may have done what others wait for
      for (Warp& other : block.warps) {
        other.yielded = false;
      }
    }
    if (settings().arrival == Arrival::random && !block.copies.empty() && dice()() % 8 == 0) {
      arrive(block, dice()() % block.copies.size());
    }
  }
}

std::vector<std::unique_ptr<Block>>& spare_blocks() {
  static std::vector<std::unique_ptr<Block>> spare;
  return spare;
}

std::unique_ptr<Block> make_block(Grid& grid, uint64_t number) {
  std::unique_ptr<Block> block;
  if (spare_blocks().empty()) {
    block = std::make_unique<Block>();
  } else {
    block = std::move(spare_blocks().back());
    spare_blocks().pop_back();
  }
  const Kernel& kernel = *grid.kernel;
  const uint32_t threads = grid.threads[0] * grid.threads[1] * grid.threads[2];
  const size_t warps = (threads + kLanes - 1) / kLanes;
  block->grid = &grid;
  block->number = number;
  block->index = {uint32_t(number % grid.size[0]), uint32_t(number / grid.size[0] % grid.size[1]),
                  uint32_t(number / grid.size[0] / grid.size[1])};
  block->shared_bytes = kernel.shared_bytes + grid.dynamic_shared;
  constexpr size_t kAlignment = 1024;
  block->shared_storage.resize(block->shared_bytes + kAlignment);
  block->shared = reinterpret_cast<uint8_t*>(
      (reinterpret_cast<uint64_t>(block->shared_storage.data()) + kAlignment - 1) / kAlignment *
      kAlignment);
  std::memset(block->shared, 0xFF, block->shared_bytes);
  block->written.assign(block->shared_bytes, 0);
  block->barriers.fill(Barrier());
  block->phase_barriers.clear();
  block->copies.clear();
  block->copies_clock = 0;
  block->turn = 0;
  if (settings().races) {
    block->history.assign(block->shared_bytes, History());
    block->readers.clear();
  }
  block->register_files.resize(std::max(block->register_files.size(), warps));
  block->warps.clear();
  block->warps.resize(warps);
  for (size_t index = 0; index < warps; ++index) {
    Warp& warp = block->warps[index];
    std::vector<uint8_t>& file = block->register_files[index];
    file.resize(std::max(file.size(), kernel.registers.size() + 64));
    warp.block = block.get();
    warp.kernel = &kernel;
    warp.index = int(index);
    warp.registers = reinterpret_cast<uint8_t*>(
        (reinterpret_cast<uint64_t>(file.data()) + 63) / 64 * 64);
    std::memcpy(warp.registers, kernel.registers.data(), kernel.registers.size());
    warp.local.assign(size_t(kernel.local_bytes) * kLanes, 0xFF);
    const uint32_t lanes = threads - uint32_t(index) * kLanes;
    warp.alive = lanes >= kLanes ? kAllLanes : (1u << lanes) - 1;
    warp.groups = {{0, warp.alive, false}};
    warp.clocks.assign(warps + 1, 0);
    warp.clocks[index] = 1;
    fill_specials(warp);
  }
  return block;
}

void keep(std::unique_ptr<Block> block) { spare_blocks().push_back(std::move(block)); }

void finish(Grid& grid) {
  for (std::unique_ptr<Block>& block : grid.suspended) {
    run_block(*block, true, false);
    keep(std::move(block));
  }
  grid.suspended.clear();
}

std::vector<uint64_t> order_of(uint64_t blocks) {
  std::vector<uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (settings().seed) {
    std::shuffle(order.begin(), order.end(), dice());
  }
  return order;
}

void run(std::unique_ptr<Grid> grid) {
  const Kernel& kernel = *grid->kernel;
  const std::vector<uint64_t> order =
      order_of(uint64_t(grid->size[0]) * grid->size[1] * grid->size[2]);
  size_t begun = 0;
  std::vector<std::unique_ptr<Block>> waiting;
  const bool early = held() && grid->dependent;
  if (early) {  // as many blocks as there is room for, before the grid before has ended
    for (; begun < order.size() && waiting.size() < kMostSuspended; ++begun) {
      std::unique_ptr<Block> block = make_block(*grid, order[begun]);
      if (run_block(*block, false, false) == Stop::previous) {
        waiting.push_back(std::move(block));
      } else {
        keep(std::move(block));
      }
    }
  }
  if (held()) {
    finish(*held());
    held().reset();
  }
  forget_global_accesses();  // what follows comes after all that the grid before has done
  const auto go_on = [&](std::unique_ptr<Block> block) {
    const bool hold = settings().overlap && kernel.starts_dependents &&
                      grid->suspended.size() < kMostSuspended;
    if (run_block(*block, true, hold) == Stop::dependents) {
      grid->suspended.push_back(std::move(block));
    } else {
      keep(std::move(block));
    }
  };
  for (std::unique_ptr<Block>& block : waiting) {
    go_on(std::move(block));
  }
  for (; begun < order.size(); ++begun) {
    go_on(make_block(*grid, order[begun]));
  }
  if (!grid->suspended.empty()) {
    held() = std::move(grid);
  }
}

}  // namespace

void launch(const Kernel& kernel, std::array<uint32_t, 3> size, std::array<uint32_t, 3> threads,
            uint32_t dynamic_shared, std::vector<uint8_t> parameters, bool dependent) {
  auto grid = std::make_unique<Grid>();
  grid->kernel = &kernel;
  grid->size = size;
  grid->threads = threads;
  grid->dynamic_shared = dynamic_shared;
  grid->parameters = std::move(parameters);
  grid->parameters.resize(kernel.parameter_bytes + 16);
  grid->dependent = dependent;
  const uint64_t blocks = uint64_t(size[0]) * size[1] * size[2];
  const_cast<Kernel&>(kernel).launches += 1;
  const_cast<Kernel&>(kernel).blocks += blocks;
  try {
    run(std::move(grid));
  } catch (...) {
    held().reset();
    throw;
  }
}

void synchronize() {
  if (held()) {
    const std::unique_ptr<Grid> grid = std::move(held());
    finish(*grid);
  }
}

}  // namespace ptx
