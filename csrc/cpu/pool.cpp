#include "pool.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fassd::cpu {

namespace {

constexpr int64_t line = 64, huge_page = 2 << 20;
// Blocks are kept up to this multiple of what was in use at most lately, plus a little.
constexpr double keep = 1.25;
constexpr int64_t keep_always = 8 << 20;
// "Lately": since the last mark but one; there is a mark every so many requests, some frames.
constexpr int64_t requests_per_mark = 512;

struct Block {
  void* data;
  int64_t bytes;
};

// Under AddressSanitizer nothing is kept: it shall see every access beyond a block or after its
// life.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool keeps = false;
#else
constexpr bool keeps = true;
#endif

class Pool {
 public:
  void* acquire(int64_t wanted) {
    const int64_t bytes = rounded(wanted);
    void* data = nullptr;
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      if (++requests_ % requests_per_mark == 0) {
        peak_before_ = peak_;
        peak_ = in_use_;
      }
      data = take(bytes);
    }
    if (data == nullptr) {
      data = allocate(bytes);
      const std::lock_guard<std::mutex> guard(mutex_);
      use(data, bytes);
    }
    if (poison_) {
      std::memset(data, 0xff, wanted);
    }
    return data;
  }

  void release(void* data) {
    std::vector<void*> surplus;
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      const auto found = used_.find(data);
      const int64_t bytes = found->second;
      used_.erase(found);
      in_use_ -= bytes;
      kept_.push_back({data, bytes});
      kept_bytes_ += bytes;
      trim(surplus);
    }
    for (void* block : surplus) {
      std::free(block);
    }
  }

  int64_t release_kept() {
    const std::lock_guard<std::mutex> guard(mutex_);
    const int64_t bytes = kept_bytes_;
    for (const Block& block : kept_) {
      std::free(block.data);
    }
    kept_.clear();
    kept_bytes_ = 0;
    return bytes;
  }

  int64_t held() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return kept_bytes_ + in_use_;
  }

 private:
  // Eight sizes per octave, so that a block serves its neighbours too.
  static int64_t rounded(int64_t bytes) {
    if (!keeps) {
      return std::max<int64_t>((bytes + line - 1) / line * line, line);
    }
    int64_t step = line;
    while (bytes > 16 * step) {
      step *= 2;
    }
    return std::max<int64_t>((bytes + step - 1) / step * step, line);
  }

  static void* allocate(int64_t bytes) {
    const bool huge = keeps && bytes >= 2 * huge_page;
    void* data = nullptr;
    if (posix_memalign(&data, huge ? huge_page : line, bytes) != 0) {
      STD_TORCH_CHECK(false, "fassd_kernels: not enough memory for ", bytes, " bytes");
    }
#if defined(__linux__)
    if (huge) {
      madvise(data, bytes / huge_page * huge_page, MADV_HUGEPAGE);
    }
#endif
    return data;
  }

  void use(void* data, int64_t bytes) {
    used_[data] = bytes;
    in_use_ += bytes;
    peak_ = std::max(peak_, in_use_);
  }

  // The smallest kept block that holds `bytes` without wasting half of them; of equals the one
  // released last, which the cache may still hold.
  void* take(int64_t bytes) {
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block) {
      if (block->bytes >= bytes && block->bytes <= bytes + bytes / 2 &&
          (best == kept_.end() || block->bytes <= best->bytes)) {
        best = block;
      }
    }
    if (best == kept_.end()) {
      return nullptr;
    }
    void* const data = best->data;
    kept_bytes_ -= best->bytes;
    use(data, best->bytes);
    kept_.erase(best);
    return data;
  }

  // Blocks beyond what is worth keeping, those first that were released first.
  void trim(std::vector<void*>& surplus) {
    const int64_t lately = std::max(peak_, peak_before_);
    const int64_t limit = keeps ? int64_t(keep * double(lately)) + keep_always : 0;
    size_t count = 0;
    while (count < kept_.size() && kept_bytes_ + in_use_ > limit) {
      surplus.push_back(kept_[count].data);
      kept_bytes_ -= kept_[count].bytes;
      count++;
    }
    kept_.erase(kept_.begin(), kept_.begin() + count);
  }

  std::mutex mutex_;
  std::vector<Block> kept_;  // in the order of their release
  std::unordered_map<void*, int64_t> used_;
  int64_t kept_bytes_ = 0, in_use_ = 0, peak_ = 0, peak_before_ = 0, requests_ = 0;
  const bool poison_ = [] {
    const char* asked = std::getenv("FASSD_KERNELS_POISON");
    return asked != nullptr && *asked != '\0' && *asked != '0';
  }();
};

// Never destroyed: tensors may be freed after static objects are.
Pool& pool() {
  static Pool* const the_pool = new Pool;
  return *the_pool;
}

}  // namespace

void* acquire_memory(int64_t bytes) {
  return pool().acquire(bytes);
}

void release_memory(void* data) {
  pool().release(data);
}

int64_t release_kept_memory() {
  return pool().release_kept();
}

int64_t held_memory() {
  return pool().held();
}

}  // namespace fassd::cpu
