// What the lanes of a warp tell one another. (PTX ISA, "Parallel Synchronization and Communication
// Instructions: shfl.sync, vote.sync, match.sync, redux.sync, elect.sync, bar.warp.sync,
// barrier".)

#include <algorithm>

#include "translate.h"

namespace ptx {
namespace {

enum Shuffle : uint8_t { up, down, butterfly, indexed };

void shuffle(Warp& warp, const Instruction& i, uint32_t mask) {
  std::array<uint32_t, kLanes> values, results;
  std::copy_n(warp.lanes<uint32_t>(i.from[0]), kLanes, values.begin());
  uint32_t in_range = 0;
  each(mask, [&](int lane) {
    const uint32_t b = warp.lanes<uint32_t>(i.from[1])[lane] & 31;
    const uint32_t c = warp.lanes<uint32_t>(i.from[2])[lane];
    const uint32_t clamp = c & 31, segment = c >> 8 & 31;
    const int most = int((lane & segment) | (clamp & ~segment)), least = int(lane & segment);
    int from = lane;
    bool valid = false;
    switch (Shuffle(i.option)) {
      case up:
        from = lane - int(b);
        valid = from >= most;
        break;
      case down:
        from = lane + int(b);
        valid = from <= most;
        break;
      case butterfly:
        from = lane ^ int(b);
        valid = from <= most;
        break;
      case indexed:
        from = least | int(b & ~segment);
        valid = from <= most;
        break;
    }
    from = valid ? from : lane;
    if (!(mask >> from & 1)) {
      fault(warp, i, lane, "reads from lane " + std::to_string(from) + ", which takes no part");
    }
    results[lane] = values[from];
    in_range |= uint32_t(valid) << lane;
  });
  each(mask, [&](int lane) { warp.lanes<uint32_t>(i.to[0])[lane] = results[lane]; });
  if (i.outputs > 1) {
    warp.set_predicate(i.to[1], in_range, mask);
  }
}

void bind_shuffle(Binding& b) {
  Instruction& i = b.instruction;
  b.required({"sync"});
  i.option = uint8_t(b.required({"up", "down", "bfly", "idx"}));
  b.type();
  b.expect(5);
  i.run = shuffle;
  i.flow = Flow::members;
  const Operand& to = b.operands[0];
  b.add_target(to.kind == Operand::vector ? to.parts[0] : to, 4);
  if (to.kind == Operand::vector) {
    i.to[i.outputs++] = b.predicate(to.parts[1]);
  }
  for (int k = 1; k < 4; ++k) {
    b.add_source(b.operands[k], 4);
  }
  i.from[15] = b.source(b.operands[4], 4);
}

enum Vote : uint8_t { vote_all, vote_any, vote_uniform, vote_ballot };

void vote(Warp& warp, const Instruction& i, uint32_t mask) {
  const uint32_t ones = (warp.predicate(i.from[0]) ^ (i.option2 ? kAllLanes : 0)) & mask;
  if (i.option == vote_ballot) {
    each(mask, [&](int lane) { warp.lanes<uint32_t>(i.to[0])[lane] = ones; });
    return;
  }
  const bool result = i.option == vote_all   ? ones == mask
                      : i.option == vote_any ? ones != 0
                                             : ones == mask || ones == 0;
  warp.set_predicate(i.to[0], result ? kAllLanes : 0, mask);
}

void bind_vote(Binding& b) {
  Instruction& i = b.instruction;
  b.required({"sync"});
  i.option = uint8_t(b.required({"all", "any", "uni", "ballot"}));
  b.type();
  b.expect(3);
  i.run = vote;
  i.flow = Flow::members;
  i.outputs = i.inputs = 1;
  i.to[0] = i.option == vote_ballot ? b.target(b.operands[0], 4) : b.predicate(b.operands[0]);
  i.from[0] = b.predicate(b.operands[1]);
  i.option2 = b.operands[1].negated;
  i.from[15] = b.source(b.operands[2], 4);
}

void reduce(Warp& warp, const Instruction& i, uint32_t mask) {
  const uint32_t* values = warp.lanes<uint32_t>(i.from[0]);
  uint32_t result = values[__builtin_ctz(mask)];
  const bool has_sign = i.type == Type::s32;
  each(mask & (mask - 1), [&](int lane) {
    const uint32_t x = values[lane];
    const bool less = has_sign ? int32_t(x) < int32_t(result) : x < result;
    switch (i.option) {
      case 0:
        result += x;
        break;
      case 1:
        result = less ? x : result;
        break;
      case 2:
        result = less ? result : x;
        break;
      case 3:
        result &= x;
        break;
      case 4:
        result |= x;
        break;
      default:
        result ^= x;
    }
  });
  each(mask, [&](int lane) { warp.lanes<uint32_t>(i.to[0])[lane] = result; });
}

void bind_reduce(Binding& b) {
  Instruction& i = b.instruction;
  b.required({"sync"});
  i.option = uint8_t(b.required({"add", "min", "max", "and", "or", "xor"}));
  i.type = b.type();
  b.expect(3);
  i.run = reduce;
  i.flow = Flow::members;
  b.add_target(b.operands[0], 4);
  b.add_source(b.operands[1], 4);
  i.from[15] = b.source(b.operands[2], 4);
}

// One lane of the mask, the lowest here, is told that it is it.
void bind_elect(Binding& b) {
  Instruction& i = b.instruction;
  b.required({"sync"});
  b.expect(2);
  const Operand& to = b.operands[0];
  if (to.kind != Operand::vector) {
    throw Fault("a register and a predicate are expected");
  }
  i.run = [](Warp& warp, const Instruction& i, uint32_t mask) {
    const int leader = __builtin_ctz(mask);
    each(mask, [&](int lane) { warp.lanes<uint32_t>(i.to[0])[lane] = uint32_t(leader); });
    warp.set_predicate(i.to[1], 1u << leader, mask);
  };
  i.flow = Flow::members;
  b.add_target(to.parts[0], 4);
  i.to[i.outputs++] = b.predicate(to.parts[1]);
  i.from[15] = b.source(b.operands[1], 4);
}

void bind_active_mask(Binding& b) {
  b.type();
  b.expect(1);
  b.instruction.run = [](Warp& warp, const Instruction& i, uint32_t mask) {
    each(mask, [&](int lane) { warp.lanes<uint32_t>(i.to[0])[lane] = mask; });
  };
  b.add_target(b.operands[0], 4);
}

// bar.sync 0; barrier.sync.aligned 1, 64; bar.red.popc.u32 d, 0, p; bar.arrive 1, 64; and of the
// warp alone: bar.warp.sync mask.
void bind_barrier(Binding& b) {
  Instruction& i = b.instruction;
  if (b.flag("warp")) {
    b.required({"sync"});
    b.expect(1);
    i.flow = Flow::members;
    i.run = [](Warp& warp, const Instruction&, uint32_t) { ++warp.step; };
    i.from[15] = b.source(b.operands[0], 4);
    return;
  }
  b.flag("cta");
  b.flag("aligned");
  const int kind = b.required({"sync", "arrive", "red"});
  i.flow = Flow::barrier;
  i.option = uint8_t(kind);
  size_t k = 0;
  if (kind == 2) {
    i.option2 = uint8_t(b.required({"popc", "and", "or"}) + 1);
    b.type();
    b.expect(3, 4);
    i.outputs = 1;
    i.to[0] = i.option2 == 1 ? b.target(b.operands[k++], 4) : b.predicate(b.operands[k++]);
    i.from[2] = b.predicate(b.operands.back());
    i.immediate = b.operands.back().negated;
    b.operands.pop_back();
  } else {
    b.expect(1, 2);
  }
  i.from[0] = b.source(b.operands[k++], 4);
  i.inputs = 1;
  if (k < b.operands.size()) {
    i.from[1] = b.source(b.operands[k], 4);
    i.inputs = 2;
  } else if (kind == 1) {
    throw Fault("an arrival needs a number of threads");
  }
}

// Programmatic dependent launch (PTX ISA, "griddepcontrol").
void bind_dependency(Binding& b) {
  b.instruction.flow =
      b.required({"launch_dependents", "wait"}) == 0 ? Flow::dependents : Flow::previous;
  b.expect(0);
}

template <Flow flow>
void bind_flow(Binding& b) {
  b.flag("uni");
  b.expect(0);
  b.instruction.flow = flow;
}

const bool kAdded = add_opcodes({
    {"shfl", bind_shuffle},
    {"vote", bind_vote},
    {"redux", bind_reduce},
    {"elect", bind_elect},
    {"activemask", bind_active_mask},
    {"bar", bind_barrier},
    {"barrier", bind_barrier},
    {"griddepcontrol", bind_dependency},
    {"ret", bind_flow<Flow::exit>},
    {"exit", bind_flow<Flow::exit>},
    {"trap", bind_flow<Flow::trap>},
});

}  // namespace
}  // namespace ptx
