#include "pool.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>
#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__) || defined(__APPLE__)
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#define FASSD_RESERVES
#endif

namespace fassd::cpu {

namespace {

constexpr int64_t line = 64, huge_page = 2 << 20;
// Pages above the highest address in recent use are given back, except for `slack`. Recent means
// since the last mark but one; there is a mark every requests_per_mark requests, a few pictures.
constexpr int64_t requests_per_mark = 1024, slack = 8 << 20;

int64_t round_up(int64_t bytes, int64_t step) {
  return (bytes + step - 1) / step * step;
}

// Bytes that this machine has; as many as can be counted where it does not say.
int64_t physical_memory() {
#if defined(FASSD_RESERVES)
  const int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) {
    return pages * page;
  }
#endif
  return std::numeric_limits<int64_t>::max() / 4;
}

// Under AddressSanitizer the system allocates every block, so that accesses beyond a block or after
// its life are seen.
#if defined(FASSD_RESERVES) && !defined(__SANITIZE_ADDRESS__)
// Addresses for more than this machine's memory; pages come when they are first written. Null where
// the system does not allow it: under a limit of addresses they are needed for other things, and
// blocks come from the system one by one.
char* reserve(int64_t& size) {
  size = round_up(2 * physical_memory(), huge_page);
  void* const found = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) {
    size = 0;
    return nullptr;
  }
#if defined(MADV_HUGEPAGE)
  madvise(found, size, MADV_HUGEPAGE);
#endif
  return static_cast<char*>(found);
}

void give_back(char* data, int64_t bytes) {
  madvise(data, bytes, MADV_DONTNEED);
}
#else
char* reserve(int64_t& size) {
  size = 0;
  return nullptr;
}

void give_back(char*, int64_t) {}
#endif

class Pool {
 public:
  Pool() {
    base_ = reserve(size_);
    if (size_ > 0) {
      free_[0] = size_;
    }
    const char* asked = std::getenv("FASSD_KERNELS_POISON");
    poison_ = asked != nullptr && *asked != '\0' && *asked != '0';
  }

  void* acquire(int64_t wanted) {
    // There are addresses for more than the memory that a write would find behind them.
    STD_TORCH_CHECK(wanted <= memory_, "fassd_kernels: not enough memory for ", wanted, " bytes");
    const int64_t bytes = std::max(round_up(wanted, line), line);
    void* data = nullptr;
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      if (++requests_ % requests_per_mark == 0) {
        trim();
      }
      data = take(bytes);
    }
    if (data == nullptr) {
      data = ::operator new(bytes, std::align_val_t(line), std::nothrow);
      STD_TORCH_CHECK(data != nullptr, "fassd_kernels: not enough memory for ", bytes, " bytes");
    }
    if (poison_) {
      std::memset(data, 0xff, wanted);
    }
    return data;
  }

  void release(void* data) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = used_.find(data);
    if (found == used_.end()) {
      ::operator delete(data, std::align_val_t(line));
      return;
    }
    int64_t begin = static_cast<char*>(data) - base_, bytes = found->second;
    used_.erase(found);
    // With its free neighbours it becomes one.
    auto next = free_.lower_bound(begin);
    if (next != free_.end() && next->first == begin + bytes) {
      bytes += next->second;
      next = free_.erase(next);
    }
    if (next != free_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == begin) {
        before->second += bytes;
        return;
      }
    }
    try {
      free_[begin] = bytes;
    } catch (const std::bad_alloc&) {
      // Not even for the entry was there memory: these addresses are not given out again.
    }
  }

  int64_t release_kept() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return shrink(0);
  }

  int64_t held() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return touched_;
  }

  std::mutex& mutex() { return mutex_; }

 private:
  // The lowest place with room.
  void* take(int64_t bytes) {
    for (auto place = free_.begin(); place != free_.end(); ++place) {
      const auto [begin, room] = *place;
      if (room < bytes) {
        continue;
      }
      free_.erase(place);
      if (room > bytes) {
        free_[begin + bytes] = room - bytes;
      }
      used_[base_ + begin] = bytes;
      peak_ = std::max(peak_, begin + bytes);
      touched_ = std::max(touched_, begin + bytes);
      return base_ + begin;
    }
    return nullptr;
  }

  void trim() {
    shrink(std::max(peak_, peak_before_) + slack);
    peak_before_ = peak_;
    peak_ = 0;
    for (const auto& [data, bytes] : used_) {
      peak_ = std::max(peak_, static_cast<char*>(data) - base_ + bytes);
    }
  }

  // Gives pages from `limit` on back, as far as they are free; returns the bytes.
  int64_t shrink(int64_t limit) {
    if (free_.empty()) {
      return 0;
    }
    const auto [begin, room] = *std::prev(free_.end());
    const int64_t from = round_up(std::max(begin, limit), huge_page);
    if (begin + room != size_ || from >= touched_) {
      return 0;
    }
    const int64_t bytes = touched_ - from;
    give_back(base_ + from, round_up(bytes, huge_page));
    touched_ = from;
    return bytes;
  }

  std::mutex mutex_;
  const int64_t memory_ = physical_memory();
  char* base_ = nullptr;
  int64_t size_ = 0;
  std::map<int64_t, int64_t> free_;          // where a free place begins, and its bytes
  std::unordered_map<void*, int64_t> used_;  // blocks and their bytes
  int64_t touched_ = 0;                      // where the pages end that may have been written
  int64_t peak_ = 0, peak_before_ = 0, requests_ = 0;
  bool poison_ = false;
};

// Never destroyed: tensors may be freed after static objects are. A process that forks while
// another thread is in here would leave its child a mutex that stays locked.
Pool& pool() {
  static Pool* const the_pool = [] {
    Pool* const made = new Pool;
#if defined(FASSD_RESERVES)
    static std::mutex* mutex;
    mutex = &made->mutex();
    pthread_atfork([] { mutex->lock(); }, [] { mutex->unlock(); }, [] { mutex->unlock(); });
#endif
    return made;
  }();
  return *the_pool;
}

}  // namespace

void* acquire_memory(int64_t bytes) {
  return pool().acquire(bytes);
}

void release_memory(void* data) noexcept {
  pool().release(data);
}

int64_t release_kept_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);  // PyTorch's own, of which glibc keeps what lies below anything in use
#endif
  return pool().release_kept();
}

int64_t held_memory() {
  return pool().held();
}

}  // namespace fassd::cpu
