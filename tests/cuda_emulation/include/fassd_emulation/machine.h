// A GPU on one thread of the CPU. The threads of a block are fibers; one runs until it has to wait
// for others, and then the next. Blocks run one after another, or all together in a cooperative
// launch. Who waits for ever is named in the exception that ends the launch.
//
// Under ThreadSanitizer the fibers are threads to it, which only barriers, fences and the begin and
// the end of a launch order. Two sets of fibers take turns, in no regular order, so that blocks are
// unordered as well: of two blocks that race, it is even odds that they are in different sets. More
// sets would see more, but every barrier takes time in proportion to all threads that there are.

#pragma once

#include <link.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#include "context.h"
#include "sanitizers.h"
#include "types.h"

namespace fassd::emulation {

// Where in the source a thread waits.
struct Location {
  const char* file = nullptr;
  int line = 0;
  static constexpr Location here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

struct Block;
struct Thread;

// Threads in a row.
struct Queue {
  Thread* head = nullptr;
  Thread* tail = nullptr;
};

// A copy that was issued and has not arrived.
struct PendingCopy {
  uint64_t bytes[2];
  unsigned char* to;
  uint64_t group;
};

struct Thread {
  Fiber fiber;
  Thread* next = nullptr;
  Block* block = nullptr;
  uint3 index = {};
  int rank = 0;  // in the block
  bool ended = false;
  bool waits = false;
  // What it waits at.
  const char* waits_at = "";
  int wait_name = -1;
  int wait_expected = 0;
  Location where;
  // Asynchronous copies, oldest first, in a ring of `copy_capacity` (a power of two).
  PendingCopy* copies = nullptr;
  uint64_t copy_capacity = 0, copies_begin = 0, copies_end = 0;
  uint64_t open_group = 0;     // the number of the group that the next commit closes
  uint64_t ordered_after = 0;  // the number of the host's release that it has acquired
};

constexpr int most_barriers = 16;
constexpr int most_warps = 32;
constexpr int most_meetings = 8;

// What ThreadSanitizer knows a barrier by. Two, for even and odd generations: a thread that has
// not left yet must not see what the fastest does before the next one.
struct Tokens {
  uint64_t even = 0, odd = 0;
  FASSD_INLINE void* of(unsigned generation) { return generation % 2 ? &odd : &even; }
};

struct BlockTokens {
  Tokens barriers[most_barriers];
  Tokens meetings[most_warps][most_meetings];
};

struct Barrier {
  int arrived = 0;
  int expected = 0;
  unsigned generation = 0;
  Location where;
  Queue waiting;
  // Of __syncthreads_count and the like: the counts of this generation and of the last.
  int votes[2] = {};
};

// Lanes of a warp that meet under one mask.
struct Meeting {
  unsigned mask = 0;
  unsigned arrived = 0;
  unsigned generation = 0;
  const char* what = "";
  Location where;
  Queue waiting;
  void* lanes[32] = {};
};

struct Warp {
  Meeting meetings[most_meetings];
  int count = 0;
};

struct Guard {
  unsigned char* begin;
  size_t bytes;
};

constexpr int most_guards = 64;
constexpr unsigned char guard_byte = 0xFD;  // in halves, not a number
constexpr size_t end_guard_bytes = under_asan ? 0 : 64;

struct Block {
  uint3 index = {};
  Thread** threads = nullptr;  // made when first needed, and used again
  size_t capacity = 0;
  int count = 0;  // that take part
  unsigned char* shared = nullptr;
  Barrier barriers[most_barriers];
  Warp warps[most_warps];
  Guard guards[most_guards];
  int guard_count = 0;
  BlockTokens* tokens = nullptr;
};

struct Launch {
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;
  int capability = 0;  // what the emulated device can do, times ten
};

// Where the variables that are __shared__ are, on this thread of the CPU.
struct StaticShared {
  unsigned char* begin = nullptr;
  size_t bytes = 0;
};

struct Machine {
  std::mutex one_launch;
  const Launch* launch = nullptr;
  Thread* current = nullptr;
  unsigned char* shared = nullptr;  // of the current thread's block
  Queue ready;
  Thread host;  // who launches
  int alive = 0;
  bool failed = false;
  char failure[2048] = {};
  Barrier grid_barrier;
  Tokens* grid_tokens = nullptr;
  uint64_t start_token = 0, end_token = 0, fence_token = 0;
  uint64_t releases = 0;     // of the start token
  Block** blocks = nullptr;  // with their threads, for use again and again
  size_t block_count = 0;
  unsigned turn = 0;
  StaticShared static_shared;
  const unsigned char* anchor = nullptr;  // of the thread that static_shared is of
};

inline Machine machine;

// --- rows of threads
// ------------------------------------------------------------------------------

FASSD_INLINE void push_back(Queue& queue, Thread* thread) {
  thread->next = nullptr;
  if (queue.tail == nullptr) {
    queue.head = thread;
  } else {
    queue.tail->next = thread;
  }
  queue.tail = thread;
}

FASSD_INLINE Thread* pop(Queue& queue) {
  Thread* first = queue.head;
  if (first != nullptr) {
    queue.head = first->next;
    if (queue.head == nullptr) queue.tail = nullptr;
  }
  return first;
}

FASSD_INLINE void append(Queue& queue, Queue& more) {
  if (more.head == nullptr) return;
  if (queue.tail == nullptr) {
    queue.head = more.head;
  } else {
    queue.tail->next = more.head;
  }
  queue.tail = more.tail;
  more = Queue{};
}

FASSD_INLINE void prepend(Queue& queue, Queue& more) {
  if (more.head == nullptr) return;
  more.tail->next = queue.head;
  if (queue.tail == nullptr) queue.tail = more.tail;
  queue.head = more.head;
  more = Queue{};
}

// --- switching
// ------------------------------------------------------------------------------------

FASSD_INLINE void become(Thread* thread) {
  machine.current = thread;
  threadIdx = thread->index;
  blockIdx = thread->block->index;
  machine.shared = thread->block->shared;
}

// Goes on with the next thread that can, or with the host.
FASSD_UNCHECKED inline void leave(bool for_good) {
  Thread* self = machine.current;
  Thread* next = pop(machine.ready);
  if (next == nullptr || machine.failed) {
    machine.current = nullptr;
    depart(self->fiber, machine.host.fiber, for_good);
  } else {
    become(next);
    depart(self->fiber, next->fiber, for_good);
  }
  arrive_on(self->fiber, nullptr);
}

// Ends the launch with a message; printf's arguments.
[[noreturn]] __attribute__((format(printf, 1, 2))) FASSD_UNCHECKED inline void fail(
    const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Thread* self = machine.current;
  if (self == nullptr) {
    std::fputs("CUDA emulation, outside of any kernel: ", stderr);
    std::vfprintf(stderr, format, arguments);
    std::fputs("\n", stderr);
    std::abort();
  }
  {
    const Ignore ignore;
    const int begun = std::snprintf(machine.failure, sizeof machine.failure,
                                    "block (%u, %u, %u), thread (%u, %u, %u): ", blockIdx.x,
                                    blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    std::vsnprintf(machine.failure + begun, sizeof machine.failure - size_t(begun), format,
                   arguments);
  }
  va_end(arguments);
  machine.failed = true;
  leave(true);
  __builtin_unreachable();
}

FASSD_UNCHECKED inline void check_copies_arrived(Thread* self) {
  if (self->copies_begin != self->copies_end) {
    fail("ends while %d of its asynchronous copies have not been waited for",
         static_cast<int>(self->copies_end - self->copies_begin));
  }
}

inline void run_body() {
  try {
    machine.launch->body(machine.launch->arguments);
  } catch (const std::exception& error) {
    fail("the kernel threw: %s", error.what());
  } catch (...) {
    fail("the kernel threw something that is no exception");
  }
}

FASSD_UNCHECKED inline void run_thread() {
  arrive_on(machine.current->fiber,
            machine.host.fiber.stack == nullptr ? &machine.host.fiber : nullptr);
  Thread* self = machine.current;
  if (self->ordered_after != machine.releases) {
    self->ordered_after = machine.releases;
    order_acquire(&machine.start_token);
  }
  run_body();
  check_copies_arrived(self);
  self->ended = true;
  machine.alive--;
  leave(true);
  __builtin_unreachable();
}

// The current thread waits in a row until somebody puts it among those that are ready.
FASSD_UNCHECKED inline void wait_in(Queue& queue, const char* what, int name, int expected,
                                    Location where) {
  Thread* self = machine.current;
  self->waits = true;
  self->waits_at = what;
  self->wait_name = name;
  self->wait_expected = expected;
  self->where = where;
  push_back(queue, self);
  leave(false);
  self->waits = false;
}

// Lets every other thread that can go on do so first.
FASSD_UNCHECKED inline void give_way() {
  push_back(machine.ready, machine.current);
  leave(false);
}

// --- barriers
// -------------------------------------------------------------------------------------

FASSD_UNCHECKED inline bool same_place(Location a, Location b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

// Returns the sum of `vote` over the threads.
FASSD_UNCHECKED inline int meet_at(Barrier& barrier, Tokens* tokens, int expected, int vote,
                                   const char* what, int name, Location where) {
  const unsigned generation = barrier.generation;
  if (tokens != nullptr) order_release(tokens->of(generation));
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.where = where;
    barrier.votes[generation % 2] = 0;
  } else if (barrier.expected != expected) {
    fail("comes to barrier %d for %d threads, at %s:%d, where others wait for %d, at %s:%d", name,
         expected, where.file, where.line, barrier.expected, barrier.where.file,
         barrier.where.line);
  }
  barrier.votes[generation % 2] += vote;
  if (++barrier.arrived < expected) {
    wait_in(barrier.waiting, what, name, expected, where);
  } else {
    barrier.arrived = 0;
    barrier.generation++;
    append(machine.ready, barrier.waiting);
  }
  if (tokens != nullptr) order_acquire(tokens->of(generation));
  return barrier.votes[generation % 2];
}

FASSD_UNCHECKED inline Block& current_block(const char* what) {
  if (machine.current == nullptr) fail("%s was called", what);
  return *machine.current->block;
}

FASSD_INLINE Tokens* barrier_tokens(Block& block, int name) {
  return under_tsan ? &block.tokens->barriers[name] : nullptr;
}

// __syncthreads, of all threads of the block at one place in the program: CUDA allows it in
// conditional code only if the condition is the same for all.
FASSD_UNCHECKED inline int meet_block(int vote, const char* what, Location where) {
  Block& block = current_block(what);
  Barrier& barrier = block.barriers[0];
  if (barrier.arrived != 0 && !same_place(barrier.where, where)) {
    fail("comes to %s at %s:%d, where others wait at %s:%d", what, where.file, where.line,
         barrier.where.file, barrier.where.line);
  }
  return meet_at(barrier, barrier_tokens(block, 0), block.count, vote, what, 0, where);
}

FASSD_UNCHECKED inline void meet_named(int name, int threads, Location where) {
  Block& block = current_block("a named barrier");
  if (name < 1 || name >= most_barriers) {
    fail("names barrier %d at %s:%d; expected 1 to 15", name, where.file, where.line);
  }
  if (threads < 32 || threads % 32 != 0 || threads > block.count) {
    fail("comes to barrier %d for %d threads at %s:%d; expected a multiple of 32, of a block of %d",
         name, threads, where.file, where.line, block.count);
  }
  meet_at(block.barriers[name], barrier_tokens(block, name), threads, 0, "barrier", name, where);
}

FASSD_UNCHECKED inline void meet_grid(Location where) {
  current_block("a grid barrier");
  const Launch& launch = *machine.launch;
  if (!launch.cooperative) {
    fail("comes to a grid barrier at %s:%d in a launch that is not cooperative", where.file,
         where.line);
  }
  const int threads = static_cast<int>(launch.grid.x * launch.grid.y * launch.grid.z *
                                       launch.block.x * launch.block.y * launch.block.z);
  meet_at(machine.grid_barrier, machine.grid_tokens, threads, 0, "the grid's barrier", -1, where);
}

// The lanes named in `mask` meet; the last to come runs `work` on what each of them brought. Only
// __syncwarp makes memory seen (`orders`).
FASSD_UNCHECKED inline void meet_lanes(unsigned mask, const char* what, void* mine,
                                       void (*work)(void* const* lanes, unsigned mask), bool orders,
                                       Location where) {
  Block& block = current_block(what);
  Thread* self = machine.current;
  const int lane = self->rank % 32, warp_index = self->rank / 32;
  const int lanes_here = block.count - 32 * warp_index;
  if ((mask >> lane & 1) == 0) {
    fail("lane %d comes to %s at %s:%d with the mask %08x, which does not name it", lane, what,
         where.file, where.line, mask);
  }
  if (lanes_here < 32 && mask >> lanes_here != 0) {
    fail("%s at %s:%d has the mask %08x, but the block's last warp has %d lanes", what, where.file,
         where.line, mask, lanes_here);
  }
  Warp& warp = block.warps[warp_index];
  int found = 0;
  while (found < warp.count && warp.meetings[found].mask != mask) found++;
  if (found == warp.count) {
    if (found == most_meetings) fail("a warp used more than %d masks", most_meetings);
    warp.count++;
    warp.meetings[found].mask = mask;
    warp.meetings[found].arrived = 0;
    warp.meetings[found].generation = 0;
    warp.meetings[found].waiting = Queue{};
  }
  Meeting& meeting = warp.meetings[found];
  if (meeting.arrived == 0) {
    meeting.what = what;
    meeting.where = where;
  } else if (meeting.what != what && std::strcmp(meeting.what, what) != 0) {
    fail("comes to %s at %s:%d, where other lanes of its warp wait at %s, %s:%d", what, where.file,
         where.line, meeting.what, meeting.where.file, meeting.where.line);
  }
  Tokens* tokens = under_tsan && orders ? &block.tokens->meetings[warp_index][found] : nullptr;
  const unsigned generation = meeting.generation;
  if (tokens != nullptr) order_release(tokens->of(generation));
  meeting.lanes[lane] = mine;
  meeting.arrived |= 1u << lane;
  if (meeting.arrived != mask) {
    wait_in(meeting.waiting, what, -1, __builtin_popcount(mask), where);
  } else {
    if (work != nullptr) work(meeting.lanes, mask);
    meeting.arrived = 0;
    meeting.generation++;
    // The warp goes on before others do: its stacks are in the cache.
    prepend(machine.ready, meeting.waiting);
  }
  if (tokens != nullptr) order_acquire(tokens->of(generation));
}

// --- asynchronous copies
// --------------------------------------------------------------------------

FASSD_UNCHECKED inline PendingCopy& new_copy(Thread* self) {
  if (self->copies_end - self->copies_begin == self->copy_capacity) {
    const Ignore ignore;
    const uint64_t capacity = self->copy_capacity == 0 ? 64 : 2 * self->copy_capacity;
    auto* larger = static_cast<PendingCopy*>(std::malloc(capacity * sizeof(PendingCopy)));
    uint64_t count = 0;
    for (uint64_t i = self->copies_begin; i != self->copies_end; i++) {
      larger[count++] = self->copies[i % self->copy_capacity];
    }
    std::free(self->copies);
    self->copies = larger;
    self->copy_capacity = capacity;
    self->copies_begin = 0;
    self->copies_end = count;
  }
  return self->copies[self->copies_end++ % self->copy_capacity];
}

struct Sixteen {
  uint64_t words[2];
};

// The oldest copy of a group before `group`, if there is one; taken off the list.
FASSD_UNCHECKED inline bool take_copy(uint64_t group, Sixteen& bytes, unsigned char*& to) {
  Thread* self = machine.current;
  if (self->copies_begin == self->copies_end) return false;
  const PendingCopy& copy = self->copies[self->copies_begin % self->copy_capacity];
  if (copy.group >= group) return false;
  bytes.words[0] = copy.bytes[0];
  bytes.words[1] = copy.bytes[1];
  to = copy.to;
  self->copies_begin++;
  return true;
}

// --- shared memory
// --------------------------------------------------------------------------------

FASSD_UNCHECKED inline void guard_zone(unsigned char* begin, size_t bytes) {
  Block& block = current_block("guard_shared");
  for (int i = 0; i < block.guard_count; i++) {
    if (block.guards[i].begin == begin && block.guards[i].bytes == bytes) return;
  }
  const size_t size = machine.launch->shared_bytes;
  if (begin < block.shared || begin + bytes > block.shared + size) {
    fail("guards %d bytes at %d of %d of shared memory", static_cast<int>(bytes),
         static_cast<int>(begin - block.shared), static_cast<int>(size));
  }
  if (block.guard_count == most_guards) fail("has more than %d guard zones", most_guards);
  block.guards[block.guard_count++] = {begin, bytes};
  if (under_asan) {
    poison(begin, bytes);
  } else {
    fill_unseen(begin, guard_byte, bytes);
  }
}

// Opens a guard zone; false if somebody wrote into it.
FASSD_UNCHECKED inline bool open_guard(const Guard& guard) {
  if (under_asan) {
    unpoison(guard.begin, guard.bytes);
    return true;
  }
  return filled_unseen(guard.begin, guard_byte, guard.bytes);
}

// Opens the zones in a part of shared memory. Threads may do so one after another.
FASSD_UNCHECKED inline void open_zones(unsigned char* begin, size_t bytes) {
  Block& block = current_block("unguard_shared");
  int kept = 0;
  for (int i = 0; i < block.guard_count; i++) {
    const Guard guard = block.guards[i];
    if (guard.begin + guard.bytes <= begin || begin + bytes <= guard.begin) {
      block.guards[kept++] = guard;
      continue;
    }
    if (!open_guard(guard)) {
      fail("finds that the guard zone at byte %d of dynamic shared memory was written",
           static_cast<int>(guard.begin - block.shared));
    }
    fill_unseen(guard.begin, 0xFF, guard.bytes);
  }
  block.guard_count = kept;
}

FASSD_UNCHECKED inline void check_guards(Block& block) {
  const size_t size = machine.launch->shared_bytes;
  long broken = -1;
  for (int i = 0; i < block.guard_count; i++) {
    if (!open_guard(block.guards[i])) broken = block.guards[i].begin - block.shared;
  }
  if (!filled_unseen(block.shared + size, guard_byte, end_guard_bytes)) {
    broken = static_cast<long>(size);
  }
  block.guard_count = 0;
  if (broken >= 0 && !machine.failed) {
    machine.failed = true;
    const Ignore ignore;
    std::snprintf(machine.failure, sizeof machine.failure,
                  "block (%u, %u, %u): the guard zone at byte %ld of %d bytes of dynamic shared "
                  "memory was written",
                  block.index.x, block.index.y, block.index.z, broken, static_cast<int>(size));
  }
}

inline thread_local unsigned char static_shared_anchor;

// Of all modules' thread-local storage, that which the anchor is in.
FASSD_UNCHECKED inline int find_static_shared(dl_phdr_info* module, size_t, void* found) {
  auto* const begin = static_cast<unsigned char*>(module->dlpi_tls_data);
  for (int i = 0; begin != nullptr && i < module->dlpi_phnum; i++) {
    const auto& header = module->dlpi_phdr[i];
    if (header.p_type == PT_TLS && &static_shared_anchor >= begin &&
        &static_shared_anchor < begin + header.p_memsz) {
      *static_cast<StaticShared*>(found) = {begin, header.p_memsz};
    }
  }
  return 0;
}

// --- the host's part
// ------------------------------------------------------------------------------

// Makes room for `count` pointers.
template <typename T>
FASSD_UNCHECKED inline void grow(T**& items, size_t& capacity, size_t count) {
  if (count <= capacity) return;
  auto** larger = static_cast<T**>(std::calloc(count, sizeof(T*)));
  for (size_t i = 0; i < capacity; i++) larger[i] = items[i];
  std::free(items);
  items = larger;
  capacity = count;
}

FASSD_UNCHECKED inline Block& block_at(size_t i) {
  grow(machine.blocks, machine.block_count, i + 1);
  if (machine.blocks[i] == nullptr) machine.blocks[i] = new Block;
  return *machine.blocks[i];
}

FASSD_UNCHECKED inline unsigned char* new_shared(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes + end_guard_bytes) != 0) throw std::bad_alloc();
  return static_cast<unsigned char*>(memory);
}

// The threads of a block at the beginning of the kernel.
FASSD_UNCHECKED inline void start_block(Block& block, uint3 index) {
  const Launch& launch = *machine.launch;
  const Ignore ignore;
  block.count = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  block.index = index;
  grow(block.threads, block.capacity, static_cast<size_t>(block.count));
  for (int i = 0; i < most_barriers; i++) {
    block.barriers[i].arrived = 0;
    block.barriers[i].generation = 0;
    block.barriers[i].waiting = Queue{};
  }
  for (int i = 0; i < (block.count + 31) / 32; i++) block.warps[i].count = 0;
  block.guard_count = 0;
  // ThreadSanitizer must take the memory for new, or blocks would race for it.
  if (under_tsan) block.tokens = new BlockTokens;
  block.shared = new_shared(launch.shared_bytes);
  fill_unseen(block.shared, 0xFF, launch.shared_bytes);
  fill_unseen(block.shared + launch.shared_bytes, guard_byte, end_guard_bytes);
  uint3 position = {0, 0, 0};
  for (int i = 0; i < block.count; i++) {
    Thread*& thread = block.threads[i];
    if (thread == nullptr) {
      thread = new Thread;
      create_stack(thread->fiber, static_cast<unsigned>(i));
      create_tsan_fiber(thread->fiber);
    }
    thread->block = &block;
    thread->index = position;
    thread->rank = i;
    thread->ended = thread->waits = false;
    thread->copies_begin = thread->copies_end = thread->open_group = 0;
    start_fiber(thread->fiber, &run_thread);
    push_back(machine.ready, thread);
    if (++position.x == launch.block.x) {
      position.x = 0;
      if (++position.y == launch.block.y) {
        position.y = 0;
        position.z++;
      }
    }
  }
  machine.alive += block.count;
}

FASSD_UNCHECKED inline void finish_block(Block& block) {
  check_guards(block);
  const Ignore ignore;
  std::free(block.shared);
  block.shared = nullptr;
  if (under_tsan) delete block.tokens;
}

FASSD_UNCHECKED inline void run_until_idle() {
  Thread* first = pop(machine.ready);
  become(first);
  depart(machine.host.fiber, first->fiber, false);
  arrive_on(machine.host.fiber, nullptr);
  machine.current = nullptr;
}

// What the host has done is seen by the threads that start from now on.
FASSD_UNCHECKED inline void order_threads_after_host() {
  machine.releases++;
  order_release(&machine.start_token);
}

// And what the threads have done since, by the host. It speaks for each in turn, once a launch:
// fibers that did so themselves at the end of each block would spend most of the time with it.
FASSD_UNCHECKED inline void order_host_after_threads() {
#ifdef FASSD_EMULATION_TSAN
  for (size_t b = 0; b < machine.block_count; b++) {
    Block* block = machine.blocks[b];
    for (size_t i = 0; block != nullptr && i < block->capacity; i++) {
      Thread* thread = block->threads[i];
      if (thread == nullptr || thread->ordered_after != machine.releases) continue;
      __tsan_switch_to_fiber(thread->fiber.tsan, __tsan_switch_to_fiber_no_sync);
      order_release(&machine.end_token);
      __tsan_switch_to_fiber(machine.host.fiber.tsan, __tsan_switch_to_fiber_no_sync);
    }
  }
  order_acquire(&machine.end_token);
#endif
}

FASSD_UNCHECKED inline bool same_state(const Thread& a, const Thread& b) {
  if (a.ended || b.ended || !a.waits || !b.waits) return a.ended == b.ended && a.waits == b.waits;
  return a.waits_at == b.waits_at && a.wait_name == b.wait_name &&
         a.wait_expected == b.wait_expected && same_place(a.where, b.where);
}

// Who waits at what, a line for each block in which somebody does.
FASSD_UNCHECKED inline void describe_deadlock(std::string& text) {
  text = "deadlock: no thread can go on";
  int lines = 0;
  for (size_t b = 0; b < machine.block_count; b++) {
    const Block* block = machine.blocks[b];
    if (block == nullptr || block->shared == nullptr) continue;
    if (++lines > 8) {
      text += "\n  and so on";
      break;
    }
    char part[512];
    std::snprintf(part, sizeof part, "\n  block (%u, %u, %u):", block->index.x, block->index.y,
                  block->index.z);
    text += part;
    for (int first = 0, parts = 0; first < block->count && parts < 40; parts++) {
      const Thread& thread = *block->threads[first];
      int last = first;
      while (last + 1 < block->count && same_state(thread, *block->threads[last + 1])) last++;
      std::snprintf(part, sizeof part, first == last ? "%s thread %d" : "%s threads %d to %d",
                    parts == 0 ? "" : ";", first, last);
      text += part;
      if (thread.ended) {
        text += first == last ? " has ended" : " have ended";
      } else {
        std::snprintf(part, sizeof part, " at %s", thread.waits_at);
        text += part;
        if (thread.wait_name > 0) text += " " + std::to_string(thread.wait_name);
        std::snprintf(part, sizeof part, " of %d (%s:%d)", thread.wait_expected, thread.where.file,
                      thread.where.line);
        text += part;
      }
      first = last + 1;
    }
  }
}

// After a failure, threads stand where they were; they are made as new.
FASSD_UNCHECKED inline void abandon_threads() {
  for (size_t b = 0; b < machine.block_count; b++) {
    Block* block = machine.blocks[b];
    if (block == nullptr || block->shared == nullptr) continue;
    finish_block(*block);
    for (int i = 0; i < block->count; i++) {
      Fiber& fiber = block->threads[i]->fiber;
      unpoison(fiber.stack, fiber.bytes);
      create_tsan_fiber(fiber);
    }
  }
}

FASSD_UNCHECKED inline void throw_if_stuck() {
  if (machine.alive == 0 && !machine.failed) return;
  const Ignore ignore;
  std::string text = machine.failure;
  if (!machine.failed) describe_deadlock(text);
  machine.failed = true;  // the guards have nothing to add
  order_host_after_threads();
  abandon_threads();
  throw std::runtime_error("CUDA emulation: " + text);
}

FASSD_UNCHECKED inline void throw_if_guards_broke() {
  if (!machine.failed) return;
  order_host_after_threads();
  throw std::runtime_error(std::string("CUDA emulation: ") + machine.failure);
}

FASSD_UNCHECKED inline void run_one_by_one() {
  const Launch& launch = *machine.launch;
  const StaticShared statics = machine.static_shared;
  for (unsigned z = 0; z < launch.grid.z; z++) {
    for (unsigned y = 0; y < launch.grid.y; y++) {
      for (unsigned x = 0; x < launch.grid.x; x++) {
        machine.turn = machine.turn * 1664525u + 1013904223u;
        Block& block = block_at(under_tsan ? machine.turn >> 31 : 0);
        fill_unseen(statics.begin, 0xFF, statics.bytes);
        start_block(block, {x, y, z});
        run_until_idle();
        throw_if_stuck();
        finish_block(block);
        throw_if_guards_broke();
        // Static shared memory is the same for all blocks: those that use it are put in order.
        if (under_tsan && !filled_unseen(statics.begin, 0xFF, statics.bytes)) {
          order_host_after_threads();
          order_threads_after_host();
        }
      }
    }
  }
}

FASSD_UNCHECKED inline void run_together() {
  const Launch& launch = *machine.launch;
  size_t count = 0;
  for (unsigned z = 0; z < launch.grid.z; z++) {
    for (unsigned y = 0; y < launch.grid.y; y++) {
      for (unsigned x = 0; x < launch.grid.x; x++) start_block(block_at(count++), {x, y, z});
    }
  }
  machine.grid_barrier.arrived = 0;
  machine.grid_barrier.generation = 0;
  machine.grid_barrier.waiting = Queue{};
  Tokens* tokens = nullptr;
  if (under_tsan) {
    const Ignore ignore;
    tokens = new Tokens;
  }
  machine.grid_tokens = tokens;
  run_until_idle();
  throw_if_stuck();
  for (size_t i = 0; i < count; i++) finish_block(block_at(i));
  {
    const Ignore ignore;
    delete tokens;
  }
  throw_if_guards_broke();
}

// Runs a kernel to its end. Throws std::runtime_error if it does not get there.
FASSD_UNCHECKED inline void run(const Launch& launch) {
  const std::lock_guard<std::mutex> lock(machine.one_launch);
  machine.launch = &launch;
  machine.alive = 0;
  machine.failed = false;
  machine.ready = Queue{};
  machine.host.fiber.stack = nullptr;
#ifdef FASSD_EMULATION_TSAN
  machine.host.fiber.tsan = __tsan_get_current_fiber();
#endif
  if (!under_asan && machine.anchor != &static_shared_anchor) {
    machine.anchor = &static_shared_anchor;
    dl_iterate_phdr(&find_static_shared, &machine.static_shared);
  }
  order_threads_after_host();
  blockDim = launch.block;
  gridDim = launch.grid;
  if (launch.cooperative) {
    run_together();
  } else {
    run_one_by_one();
  }
  order_host_after_threads();
}

}  // namespace fassd::emulation
