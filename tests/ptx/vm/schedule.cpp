// Which warp goes on, and when: divergence, barriers, blocks, grids that begin early.

#include <algorithm>
#include <cstring>
#include <numeric>

#include "memory.h"
#include "syntax.h"

namespace ptx {
namespace {

constexpr int kTurn = 1 << 16;         // instructions of a warp before it is another's turn
constexpr size_t kMostSuspended = 32;  // blocks of a grid that wait for another grid

// The state between two launches: a grid that has let dependents start and is not through yet.
std::unique_ptr<Grid> held;
std::vector<std::unique_ptr<Block>> spare_blocks;  // of which storage is used again

// The order is that of kSpecials in translate.cpp.
void fill_specials(Warp& warp) {
  const Block& block = *warp.block;
  const Grid& grid = *block.grid;
  const auto [x, y, z] = grid.threads;
  const uint32_t multiprocessors = uint32_t(settings.multiprocessors);
  for (const auto& [offset, which] : warp.kernel->specials) {
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      const uint32_t thread = uint32_t(warp.index) * kLanes + lane;
      const uint32_t up_to = (2u << lane) - 1, equal = 1u << lane;
      const std::array<uint32_t, 3> place = {thread % x, thread / x % y, thread / x / y};
      const std::array<uint32_t, 3> values[] = {
          place,
          grid.threads,
          block.index,
          grid.size,
          {lane, uint32_t(warp.index), uint32_t(block.warps.size())},
          {equal, up_to & ~equal, up_to},
          {~up_to, ~up_to | equal, grid.dynamic_shared},
          {block.shared_bytes, uint32_t(block.number % multiprocessors), multiprocessors}};
      warp.lanes<uint32_t>(offset)[lane] = values[which / 3][size_t(which % 3)];
    }
  }
}

// Lets the warps go on that wait at a barrier, if all have arrived.
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
    join(warp.clocks, barrier.clocks);
    if (warp.vote) {
      warp.set_predicate(warp.vote->to[0], barrier.any ? kAllLanes : 0, warp.vote_mask);
    }
  }
  barrier = Barrier();
}

// A warp comes to a barrier; whether it has to wait there.
bool arrive_at_barrier(Warp& warp, const Instruction& i, uint32_t mask) {
  const int lane = __builtin_ctz(mask), numbers = i.inputs - i.outputs;
  const uint32_t name = warp.lanes<uint32_t>(i.from[0])[lane];
  const uint32_t count = numbers > 1 ? warp.lanes<uint32_t>(i.from[1])[lane] : 0;
  fault_if(name > 15, warp, i, lane, "there is no barrier ", name);
  fault_if(numbers > 1 && (count == 0 || count % kLanes), warp, i, lane, "a barrier of ", count,
           " threads");
  Barrier& barrier = warp.block->barriers[name];
  fault_if(barrier.arrived && barrier.expected != count, warp, i, lane,
           "threads disagree on how many meet at the barrier");
  barrier.expected = count;
  barrier.arrived += kLanes;
  release(warp, barrier.clocks);
  warp.vote = i.outputs ? &i : nullptr;
  warp.vote_mask = mask;
  if (warp.vote) {
    barrier.any |= (warp.predicate(i, numbers) & mask) != 0;
  }
  warp.barrier = int(name);
  release_barrier(*warp.block, int(name));
  return warp.barrier >= 0;
}

// Runs one group of lanes of a warp after the other, always the one that is behind, so that lanes
// that diverged meet again. Stops when the warp waits or ends, or its turn is over.
class WarpRunner {
 public:
  WarpRunner(Warp& warp, int turn, bool previous_ended)
      : warp_(warp),
        code_(warp.kernel->code.data()),
        left_(turn),
        previous_ended_(previous_ended) {}

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
    fault_if(!behind, warp_, code_[groups[0].at], __builtin_ctz(groups[0].mask),
             "lanes wait for others of their warp, which wait elsewhere or have ended");
    at_ = behind->at;
    mask_ = 0;
    next_ = ~0u;
    std::erase_if(groups, [&](const Together& group) {
      if (group.at == at_) {
        mask_ |= group.mask;
      } else if (group.at > at_) {
        next_ = std::min(next_, group.at);
      }
      return group.at == at_;
    });
    return true;
  }

  void leave(uint32_t at, uint32_t mask, bool parked = false) {
    if (mask) {
      warp_.groups.push_back({at, mask, parked});
    }
  }

  enum class Next : uint8_t { on, regroup, stop };

  // Executes until the group changes; false if the warp has to stop.
  bool go() {
    for (; at_ < next_ && left_ > 0; ++at_) {
      --left_;
      const Instruction& i = code_[at_];
      const uint32_t mask = mask_ & (warp_.predicate(i.guard) ^ i.guard_inverted);
      ++i.count.warps;
      i.count.lanes += uint32_t(__builtin_popcount(mask));
      if (!mask) {
        continue;
      }
      if (i.flow == Flow::next) {
        i.run(warp_, i, mask);
      } else if (const Next next = special(i, mask); next != Next::on) {
        return next == Next::regroup;
      }
    }
    leave(at_, mask_);
    return left_ > 0;
  }

  Next left_at(uint32_t at, Next next, bool parked = false) {
    leave(at, mask_, parked);
    return next;
  }

  // What is more than to execute and go on.
  Next special(const Instruction& i, uint32_t mask) {
    const int lane = __builtin_ctz(mask);
    switch (i.flow) {
      case Flow::branch:
        leave(i.target, mask);
        leave(at_ + 1, mask_ & ~mask);
        return Next::regroup;
      case Flow::exit:
        warp_.alive &= ~mask;
        mask_ &= ~mask;
        return mask_ ? Next::on : Next::regroup;
      case Flow::trap:
        fault(warp_, i, lane, "trap");
      case Flow::members: {
        const uint32_t members = warp_.lanes<uint32_t>(i.from[i.inputs - 1])[lane];
        if (mask & ~members) {
          fault(warp_, i, __builtin_ctz(mask & ~members), "a lane that the mask does not name");
        }
        if (members & warp_.alive & ~mask) {
          return left_at(at_, Next::regroup, true);
        }
        i.run(warp_, i, mask);
        return Next::on;
      }
      case Flow::aligned:
      case Flow::barrier:
        if (mask != warp_.alive) {
          return left_at(at_, Next::regroup, true);
        }
        if (i.flow != Flow::aligned) {
          return left_at(at_ + 1, arrive_at_barrier(warp_, i, mask) ? Next::stop : Next::regroup);
        }
        fault_if(mask != kAllLanes, warp_, i, 0,
                 "an instruction of the whole warp, of which lanes have ended");
        i.run(warp_, i, mask);
        return Next::on;
      case Flow::poll:
        i.run(warp_, i, mask);
        return warp_.yielded ? left_at(at_ + 1, Next::stop) : Next::on;
      case Flow::dependents:
        warp_.started_dependents = true;
        return left_at(at_ + 1, Next::stop);
      default:  // Flow::previous
        warp_.awaits_previous = !previous_ended_;
        return previous_ended_ ? Next::on : left_at(at_, Next::stop);
    }
  }

  Warp& warp_;
  const Instruction* code_;
  int left_;
  bool previous_ended_;
  uint32_t at_ = 0, mask_ = 0, next_ = 0;
};

// Why a block stopped.
enum class Stop : uint8_t { ended, previous, dependents };

[[noreturn]] Stop deadlock(Block& block) {
  std::string states;
  Warp* first = nullptr;
  for (Warp& warp : block.warps) {
    states += warp.ended          ? " ended"
              : warp.barrier >= 0 ? joined(" at barrier ", warp.barrier)
                                  : " polling";
    first = first || warp.ended ? first : &warp;
  }
  const Together& group = first->groups[0];
  fault(*first, first->kernel->code[group.at ? group.at - 1 : 0], __builtin_ctz(group.mask),
        "deadlock; the warps:", states);
}

// Runs a block until it ends, or until all of it waits for the grid before it, or, if asked, has
// let the grid behind it start.
Stop run_block(Block& block, bool previous_ended, bool stop_at_dependents) {
  Grid& grid = *block.grid;
  const bool shuffled = settings.seed != 0;
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
      if (block.copies.empty()) {
        return awaiting ? Stop::previous : deadlock(block);
      }
      arrive(block, shuffled ? dice() % block.copies.size() : 0);
      continue;
    }
    const size_t which = ready[shuffled ? dice() % ready.size() : block.turn++ % ready.size()];
    const int turn = shuffled ? 1 + int(dice() % (dice() % 4 ? 400 : 20)) : kTurn;
    Warp& warp = block.warps[which];
    grid.instructions += uint64_t(WarpRunner(warp, turn, previous_ended).run());
    if (grid.instructions > settings.most_instructions) {
      const uint32_t at = warp.groups.empty() ? 0 : warp.groups[0].at;
      fault(warp, warp.kernel->code[at], 0, "more than ", settings.most_instructions,
            " instructions in one launch: does it loop for ever?");
    }
    for (int name = 0; warp.ended && name < 16; ++name) {
      release_barrier(block, name);
    }
    if (polling && !warp.yielded) {  // it may have done what others wait for
      for (Warp& other : block.warps) {
        other.yielded = false;
      }
    }
    if (settings.arrival == kRandom && !block.copies.empty() && dice() % 8 == 0) {
      arrive(block, dice() % block.copies.size());
    }
  }
}

void keep(std::unique_ptr<Block> block) {
  spare_blocks.push_back(std::move(block));
}

// The place in a vector that is at a multiple of `alignment`, with `bytes` behind it.
uint8_t* room(std::vector<uint8_t>& storage, size_t bytes, size_t alignment) {
  storage.resize(std::max(storage.size(), bytes + alignment));
  return reinterpret_cast<uint8_t*>(aligned(reinterpret_cast<uint64_t>(storage.data()), alignment));
}

std::unique_ptr<Block> make_block(Grid& grid, uint64_t number) {
  auto block = std::make_unique<Block>();
  if (!spare_blocks.empty()) {
    block->shared_storage = std::move(spare_blocks.back()->shared_storage);
    block->written = std::move(spare_blocks.back()->written);
    block->register_files = std::move(spare_blocks.back()->register_files);
    block->history = std::move(spare_blocks.back()->history);
    spare_blocks.pop_back();
  }
  const Kernel& kernel = *grid.kernel;
  const uint32_t threads = grid.threads[0] * grid.threads[1] * grid.threads[2];
  const size_t warps = (threads + kLanes - 1) / kLanes;
  block->grid = &grid;
  block->number = number;
  block->index = {uint32_t(number % grid.size[0]), uint32_t(number / grid.size[0] % grid.size[1]),
                  uint32_t(number / grid.size[0] / grid.size[1])};
  block->shared_bytes = kernel.shared_bytes + grid.dynamic_shared;
  block->shared = room(block->shared_storage, block->shared_bytes, 1024);
  std::memset(block->shared, 0xFF, block->shared_bytes);
  block->written.assign(block->shared_bytes, 0);
  if (settings.races) {
    block->history.assign(block->shared_bytes, History());
  }
  block->register_files.resize(std::max(block->register_files.size(), warps));
  block->warps.resize(warps);
  for (size_t index = 0; index < warps; ++index) {
    Warp& warp = block->warps[index];
    warp.block = block.get();
    warp.kernel = &kernel;
    warp.index = int(index);
    warp.registers = room(block->register_files[index], kernel.registers.size(), 64);
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

void run(std::unique_ptr<Grid> grid) {
  std::vector<uint64_t> order(uint64_t(grid->size[0]) * grid->size[1] * grid->size[2]);
  std::iota(order.begin(), order.end(), 0);
  if (settings.seed) {
    std::shuffle(order.begin(), order.end(), dice);
  }
  size_t begun = 0;
  std::vector<std::unique_ptr<Block>> waiting;
  if (held && grid->dependent) {  // as many as there is room for, before that one has ended
    for (; begun < order.size() && waiting.size() < kMostSuspended; ++begun) {
      std::unique_ptr<Block> block = make_block(*grid, order[begun]);
      const bool waits = run_block(*block, false, false) == Stop::previous;
      waits ? waiting.push_back(std::move(block)) : keep(std::move(block));
    }
  }
  synchronize();
  forget_global_accesses();  // what follows comes after all that the grid before has done
  const auto go_on = [&](std::unique_ptr<Block> block) {
    const bool hold = settings.overlap && grid->kernel->starts_dependents &&
                      grid->suspended.size() < kMostSuspended;
    const bool stops = run_block(*block, true, hold) == Stop::dependents;
    stops ? grid->suspended.push_back(std::move(block)) : keep(std::move(block));
  };
  for (std::unique_ptr<Block>& block : waiting) {
    go_on(std::move(block));
  }
  for (; begun < order.size(); ++begun) {
    go_on(make_block(*grid, order[begun]));
  }
  if (!grid->suspended.empty()) {
    held = std::move(grid);
  }
}

}  // namespace

void launch(std::unique_ptr<Grid> grid) {
  try {
    run(std::move(grid));
  } catch (...) {
    held.reset();
    throw;
  }
}

void synchronize() {
  if (const std::unique_ptr<Grid> grid = std::move(held)) {
    for (std::unique_ptr<Block>& block : grid->suspended) {
      run_block(*block, true, false);
      keep(std::move(block));
    }
  }
}

}  // namespace ptx
