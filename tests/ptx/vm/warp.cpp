// What the lanes of a warp tell one another. (PTX ISA, "Parallel Synchronization and Communication
// Instructions: shfl.sync, vote.sync, redux.sync, elect.sync, bar.warp.sync, barrier".)

#include <algorithm>

#include "translate.h"

namespace ptx {
namespace {

void write_all(Warp& warp, const Instruction& i, uint32_t mask, uint32_t value) {
  each(mask, [&](int lane) { warp.lanes<uint32_t>(i.to[0])[lane] = value; });
}

void shuffle(Warp& warp, const Instruction& i, uint32_t mask) {
  std::array<uint32_t, kLanes> values;
  std::copy_n(warp.lanes<uint32_t>(i.from[0]), kLanes, values.begin());
  uint32_t in_range = 0;
  for (uint32_t left = mask; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    const int b = int(warp.lanes<uint32_t>(i.from[1])[lane] & 31);
    const int c = int(warp.lanes<uint32_t>(i.from[2])[lane]);
    const int clamp = c & 31, segment = c >> 8 & 31;
    const int end = (lane & segment) | (clamp & ~segment);
    const bool butterfly = i.choices[0] == 0;
    const int wanted = butterfly ? lane ^ b : (lane & segment) | (b & ~segment);
    const bool valid = wanted <= end;
    const int from = valid ? wanted : lane;
    fault_if(!(mask >> from & 1), warp, i, lane, "reads from lane ", from, ", which takes no part");
    warp.lanes<uint32_t>(i.to[0])[lane] = values[size_t(from)];
    in_range |= uint32_t(valid) << lane;
  }
  if (i.outputs > 1) {
    warp.set_predicate(i.to[1], in_range, mask);
  }
}

void vote(Warp& warp, const Instruction& i, uint32_t mask) {
  warp.set_predicate(i.to[0], warp.predicate(i, 0) & mask ? kAllLanes : 0, mask);
}

void reduce(Warp& warp, const Instruction& i, uint32_t mask) {
  const int32_t* values = warp.lanes<int32_t>(i.from[0]);
  int32_t result = values[__builtin_ctz(mask)];
  for (uint32_t left = mask; left; left &= left - 1) {
    const int32_t value = values[__builtin_ctz(left)];
    result = i.choices[0] == 0 ? std::min(result, value) : std::max(result, value);
  }
  write_all(warp, i, mask, uint32_t(result));
}

// One lane of the mask, the lowest here, is told that it is it.
void elect(Warp& warp, const Instruction& i, uint32_t mask) {
  const int leader = __builtin_ctz(mask);
  write_all(warp, i, mask, uint32_t(leader));
  warp.set_predicate(i.to[1], 1u << leader, mask);
}

constexpr Flow kMembers = Flow::members;
const bool kAdded = add_forms({
    {"shfl", "bfly|idx sync b32", "=4|p 4 4 4 4", shuffle, kMembers},
    {"vote", "any sync pred", "=p p 4", vote, kMembers},
    {"redux", "min|max sync s32", "=4 4 4", reduce, kMembers},
    {"elect", "sync", "=4|p 4", elect, kMembers},
    {"bar", "warp sync", "4", [](Warp& warp, const Instruction&, uint32_t) { ++warp.step; },
     kMembers},
    // name, number of threads, predicate
    {"bar", "sync (cta) (aligned)", "4 4?", nothing, Flow::barrier},
    {"bar", "or red pred (cta) (aligned)", "=p 4 p", nothing, Flow::barrier},
    {"bar", "or red pred (cta) (aligned)", "=p 4 4 p", nothing, Flow::barrier},
    {"griddepcontrol", "launch_dependents", "", nothing, Flow::dependents},
    {"griddepcontrol", "wait", "", nothing, Flow::previous},
    {"bra", "(uni)", "l", nothing, Flow::branch},
    {"ret", "(uni)", "", nothing, Flow::exit},
    {"exit", "", "", nothing, Flow::exit},
    {"trap", "", "", nothing, Flow::trap},
});

}  // namespace
}  // namespace ptx
