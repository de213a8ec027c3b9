// What the lanes of a warp tell one another. (PTX ISA, "Parallel Synchronization and Communication
// Instructions: shfl.sync, vote.sync, redux.sync, elect.sync, bar.warp.sync, barrier".)

#include "translate.h"

namespace ptx {
namespace {

void write_all(Warp& warp, const Instruction& i, uint32_t mask, uint32_t value) {
  each(mask, [&](int lane) { warp.lanes<uint32_t>(i.to[0])[lane] = value; });
}

enum Shuffle { up, down, butterfly, indexed };

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
    const int wanted = i.choices[0] == up          ? lane - b
                       : i.choices[0] == down      ? lane + b
                       : i.choices[0] == butterfly ? lane ^ b
                                                   : (lane & segment) | (b & ~segment);
    const bool valid = i.choices[0] == up ? wanted >= end : wanted <= end;
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
  const uint32_t ones = warp.predicate(i, 0) & mask;
  const bool all = ones == mask, any = ones != 0;
  const bool result = i.choices[0] == 0 ? all : i.choices[0] == 1 ? any : all || !any;
  warp.set_predicate(i.to[0], result ? kAllLanes : 0, mask);
}

void ballot(Warp& warp, const Instruction& i, uint32_t mask) {
  write_all(warp, i, mask, warp.predicate(i, 0) & mask);
}

template <typename T>
void reduce(Warp& warp, const Instruction& i, uint32_t mask) {
  const T* values = warp.lanes<T>(i.from[0]);
  T result = values[__builtin_ctz(mask)];
  for (uint32_t left = mask & (mask - 1); left; left &= left - 1) {
    result = combined(i.choices[0], result, values[__builtin_ctz(left)]);
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
    {"shfl", "up|down|bfly|idx sync b32", "=4|p 4 4 4 4", shuffle, kMembers},
    {"vote", "all|any|uni sync pred", "=p p 4", vote, kMembers},
    {"vote", "ballot sync b32", "=4 p 4", ballot, kMembers},
    {"redux", FASSD_PTX_OPERATIONS " sync s32", "=4 4 4", reduce<int32_t>, kMembers},
    {"redux", FASSD_PTX_OPERATIONS " u32|b32 sync", "=4 4 4", reduce<uint32_t>, kMembers},
    {"elect", "sync", "=4|p 4", elect, kMembers},
    {"activemask", "b32", "=4",
     [](Warp& warp, const Instruction& i, uint32_t mask) { write_all(warp, i, mask, mask); }},
    {"bar", "warp sync", "4", [](Warp& warp, const Instruction&, uint32_t) { ++warp.step; },
     kMembers},
    // name, number of threads, predicate
    {"bar", "sync (cta) (aligned)", "4 4?", nothing, Flow::barrier},
    {"bar", "arrive (cta) (aligned)", "4 4", nothing, Flow::arrival},
    {"bar", "popc red u32 (cta) (aligned)", "=4 4 p", nothing, Flow::barrier},
    {"bar", "popc red u32 (cta) (aligned)", "=4 4 4 p", nothing, Flow::barrier},
    {"bar", "and|or red pred (cta) (aligned)", "=p 4 p", nothing, Flow::barrier},
    {"bar", "and|or red pred (cta) (aligned)", "=p 4 4 p", nothing, Flow::barrier},
    {"griddepcontrol", "launch_dependents", "", nothing, Flow::dependents},
    {"griddepcontrol", "wait", "", nothing, Flow::previous},
    {"bra", "(uni)", "l", nothing, Flow::branch},
    {"ret", "(uni)", "", nothing, Flow::exit},
    {"exit", "", "", nothing, Flow::exit},
    {"trap", "", "", nothing, Flow::trap},
});

}  // namespace
}  // namespace ptx
