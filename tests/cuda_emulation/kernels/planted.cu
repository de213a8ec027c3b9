// Kernels with one mistake each, and each without it: `planted NAME broken|sound`. Says "right" and
// returns 0 if the result is what it should be; test_planted.py knows who has to notice.

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <emulated_ptx.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace {

namespace ptx = fassd::cuda::ptx;

constexpr int threads = 64;

// Zero, after all; but the value is needed.
__device__ int nothing_of(int value) {
  asm volatile("" : : "r"(value));
  return 0;
}

__device__ int* shared_ints() {
  return reinterpret_cast<int*>(ptx::dynamic_shared());
}

// Two arrays of `threads` integers with a guard zone between, where 64 bytes are left for it.
constexpr int second_array = threads * sizeof(int) + ptx::shared_guard_bytes;
constexpr int two_arrays = 2 * threads * sizeof(int) + ptx::shared_guard_bytes;

__device__ void guard_between_arrays() {
  ptx::guard_shared(ptx::dynamic_shared() + threads * sizeof(int), ptx::shared_guard_bytes);
}

__global__ void guard_write_kernel(bool broken, const int* in, int* out) {
  guard_between_arrays();
  shared_ints()[threadIdx.x + (broken ? 1 : 0)] = in[threadIdx.x];
  out[threadIdx.x] = shared_ints()[threadIdx.x + (broken ? 1 : 0)];
}

__global__ void guard_read_kernel(bool broken, const int* in, int* out) {
  guard_between_arrays();
  int* second = shared_ints() + second_array / 4;
  second[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const int left = second[static_cast<int>(threadIdx.x) - (broken ? 1 : 0)];
  out[threadIdx.x] = broken ? in[threadIdx.x] + nothing_of(left) : left;
}

__global__ void shared_write_kernel(bool broken, const int* in, int* out) {
  int* last = shared_ints() + two_arrays / 4 - 1;
  if (threadIdx.x == 0) last[broken ? 1 : 0] = in[0];
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void shared_read_kernel(bool broken, const int* in, int* out) {
  int* last = shared_ints() + two_arrays / 4 - 1;
  if (threadIdx.x == 0) *last = in[0];
  out[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x == 0) out[0] += nothing_of(last[broken ? 1 : 0]);
}

__global__ void static_shared_kernel(bool broken, const int* in, int* out) {
  __shared__ int table[threads];
  table[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const int neighbour = table[threadIdx.x + (broken ? 1 : 0)];
  if (blockIdx.x == 0) out[threadIdx.x] = in[threadIdx.x] + nothing_of(neighbour);
}

__global__ void matrix_row_kernel(bool broken, const int* in, int* out) {
  for (int i = threadIdx.x; i < two_arrays / 4; i += threads) shared_ints()[i] = 0;
  __syncthreads();
  const ptx::SharedAddress last = ptx::shared_address(ptx::dynamic_shared()) + two_arrays - 16;
  uint32_t values[4];
  ptx::load_matrices(values, last + (broken && threadIdx.x == 9 ? 16 : 0));
  out[threadIdx.x] = in[threadIdx.x] + nothing_of(static_cast<int>(values[0]));
}

__global__ void global_read_kernel(bool broken, const int* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x == threads - 1) out[0] += nothing_of(in[threads - (broken ? 0 : 1)]);
}

__global__ void copy_source_kernel(bool broken, const int* in, int* out) {
  const ptx::SharedAddress to = ptx::shared_address(shared_ints());
  // The last whole vector, or one that begins an element later and ends beyond the array.
  if (threadIdx.x < 16) {
    const int last = broken && threadIdx.x == 15 ? 4 : 0;
    ptx::copy_async(to + 16 * threadIdx.x, in + 4 * threadIdx.x + last, 16);
  }
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = shared_ints()[threadIdx.x];
}

__global__ void misaligned_source_kernel(bool broken, const int* in, int* out) {
  const ptx::SharedAddress to = ptx::shared_address(shared_ints());
  if (threadIdx.x < 16) {
    ptx::copy_async(to + 16 * threadIdx.x, in + 4 * threadIdx.x + (broken ? 1 : 0),
                    broken ? 12 : 16);
  }
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = shared_ints()[threadIdx.x];
}

__global__ void misaligned_target_kernel(bool broken, const int* in, int* out) {
  const ptx::SharedAddress to = ptx::shared_address(shared_ints());
  if (threadIdx.x < 16) {
    ptx::copy_async(to + 16 * threadIdx.x + (broken ? 8 : 0), in + 4 * threadIdx.x, 16);
  }
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = shared_ints()[threadIdx.x];
}

__global__ void misaligned_vector_kernel(bool broken, const int* in, int* out) {
  if (threadIdx.x < threads / 4) {
    const int* from = in + 4 * threadIdx.x;
    // Rows of an odd width: most of them begin off the grid.
    if (broken && threadIdx.x > 0) from -= 1;
    *reinterpret_cast<int4*>(out + 4 * threadIdx.x) = *reinterpret_cast<const int4*>(from);
  }
}

// Reverses the array through shared memory.
__global__ void missing_barrier_kernel(bool broken, const int* in, int* out) {
  shared_ints()[threadIdx.x] = in[threadIdx.x];
  if (!broken) __syncthreads();
  const int mirrored = shared_ints()[threads - 1 - threadIdx.x];
  if (broken) __syncthreads();  // what was too early once is harmless the second time
  shared_ints()[threads + threadIdx.x] = mirrored;
  __syncthreads();
  out[threadIdx.x] = broken ? in[threadIdx.x] + nothing_of(mirrored)
                            : shared_ints()[2 * threads - 1 - threadIdx.x];
}

__global__ void missing_warp_barrier_kernel(bool broken, const int* in, int* out) {
  shared_ints()[threadIdx.x] = in[threadIdx.x];
  if (!broken) __syncwarp();
  // A shuffle makes lanes meet, but it does not make memory seen.
  const int same = __shfl_xor_sync(0xFFFFFFFFu, in[threadIdx.x], 0);
  out[threadIdx.x] = same + nothing_of(shared_ints()[threadIdx.x ^ 1]);
}

__global__ void missing_wait_kernel(bool broken, const int* in, int* out) {
  const ptx::SharedAddress to = ptx::shared_address(shared_ints());
  if (threadIdx.x < 16) ptx::copy_async(to + 16 * threadIdx.x, in + 4 * threadIdx.x, 16);
  ptx::copy_async_commit();
  if (!broken) ptx::copy_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = shared_ints()[threadIdx.x];
  ptx::copy_async_wait<0>();
}

// Each thread waits for its own copies, but reads another's.
__global__ void wait_without_barrier_kernel(bool broken, const int* in, int* out) {
  const ptx::SharedAddress to = ptx::shared_address(shared_ints());
  if (threadIdx.x < 16) ptx::copy_async(to + 16 * threadIdx.x, in + 4 * threadIdx.x, 16);
  ptx::copy_async_commit();
  if (broken) __syncthreads();
  ptx::copy_async_wait<0>();
  if (!broken) __syncthreads();
  out[threadIdx.x] = shared_ints()[threadIdx.x];
}

// A ring of two stages: the copy for the next round goes where others still read this one's.
__global__ void early_copy_kernel(bool broken, const int* in, int* out) {
  const ptx::SharedAddress to = ptx::shared_address(shared_ints());
  const auto copy = [&](int round) {
    if (threadIdx.x < 16) {
      const int stage = round % 2 * threads * static_cast<int>(sizeof(int));
      ptx::copy_async(to + stage + 16 * threadIdx.x, in + 4 * threadIdx.x, 16);
    }
    ptx::copy_async_commit();
  };
  constexpr int rounds = 4;
  int sum = 0;
  copy(0);
  copy(1);
  for (int round = 0; round < rounds; round++) {
    ptx::copy_async_wait<1>();
    __syncthreads();
    sum += shared_ints()[round % 2 * threads + (threadIdx.x + 1) % threads];
    if (!broken) __syncthreads();
    if (round + 2 < rounds) {
      copy(round + 2);
    } else {
      ptx::copy_async_commit();
    }
  }
  out[threadIdx.x] = broken ? in[threadIdx.x] : in[threadIdx.x] + nothing_of(sum);
}

__global__ void divergent_barrier_kernel(bool broken, const int* in, int* out) {
  if (!broken || threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

// Every block adds its part to the same sums.
__global__ void block_race_kernel(bool broken, const int* in, int* out) {
  if (blockIdx.x == 0) out[threadIdx.x] = in[threadIdx.x];
  if (broken) {
    out[threads] += 1;
  } else if (threadIdx.x == 0) {
    atomicAdd(&out[threads + 1], 1);
  }
}

// Each block writes before its barriers what its neighbour reads after them.
__global__ void neighbour_race_kernel(bool broken, const int* in, int* out) {
  const int block = blockIdx.x;
  if (threadIdx.x == 0) out[threads + block] = 1;
  __syncthreads();
  __syncthreads();
  if (threadIdx.x == 1 && broken && block > 0) out[threads + block + 32] = out[threads + block - 1];
  if (block == 0) out[threadIdx.x] = in[threadIdx.x];
}

// The last block to come reads what the others left.
__global__ void missing_fence_kernel(bool broken, const int* in, int* out) {
  auto* arrived = reinterpret_cast<unsigned*>(out) + threads;
  if (blockIdx.x == 0) out[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x != 0) return;
  out[threads + 1 + blockIdx.x] = 1;
  if (!broken) __threadfence();
  if (atomicAdd(arrived, 1u) == gridDim.x - 1) {
    if (!broken) __threadfence();
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x; i++) sum += out[threads + 1 + i];
    out[0] += nothing_of(sum);
  }
}

__global__ void missing_grid_barrier_kernel(bool broken, const int* in, int* out) {
  if (blockIdx.x == 0) out[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x == 0) out[threads + blockIdx.x] = 1;
  if (broken) {
    __syncthreads();
  } else {
    ptx::grid_barrier();
  }
  if (threadIdx.x == 1 && blockIdx.x == 0) {
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x; i++) sum += out[threads + i];
    out[1] += nothing_of(sum);
  }
}

__global__ void overflow_kernel(bool broken, const int* in, int* out) {
  const int large = in[threadIdx.x] + (broken ? 0x7FFFFFFF - threads : 0);
  out[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x == threads - 1) out[0] += nothing_of(large + threads);
}

__global__ void shift_kernel(bool broken, const int* in, int* out) {
  const int distance = static_cast<int>(threadIdx.x) + (broken ? 1 : 0);
  out[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x < 32) out[threadIdx.x] += nothing_of(static_cast<int>(1u << distance));
}

using Kernel = void (*)(bool, const int*, int*);

struct Planted {
  const char* name;
  Kernel kernel;
  unsigned blocks = 1;
  bool cooperative = false;
};

constexpr Planted all[] = {
    {"guard_write", &guard_write_kernel},
    {"guard_read", &guard_read_kernel},
    {"shared_write", &shared_write_kernel},
    {"shared_read", &shared_read_kernel},
    {"static_shared", &static_shared_kernel, 6},
    {"matrix_row", &matrix_row_kernel},
    {"global_read", &global_read_kernel},
    {"copy_source", &copy_source_kernel},
    {"misaligned_source", &misaligned_source_kernel},
    {"misaligned_target", &misaligned_target_kernel},
    {"misaligned_vector", &misaligned_vector_kernel},
    {"missing_barrier", &missing_barrier_kernel},
    {"missing_warp_barrier", &missing_warp_barrier_kernel},
    {"missing_wait", &missing_wait_kernel},
    {"wait_without_barrier", &wait_without_barrier_kernel},
    {"early_copy", &early_copy_kernel},
    {"divergent_barrier", &divergent_barrier_kernel},
    {"block_race", &block_race_kernel, 6},
    {"neighbour_race", &neighbour_race_kernel, 6},
    {"missing_fence", &missing_fence_kernel, 6},
    {"missing_grid_barrier", &missing_grid_barrier_kernel, 6, true},
    {"overflow", &overflow_kernel},
    {"shift", &shift_kernel},
};

int run(const Planted& planted, bool broken) {
  // Exactly as large as it has to be, and aligned as PyTorch's memory is.
  const std::unique_ptr<int, decltype(&std::free)> memory(
      static_cast<int*>(std::aligned_alloc(64, threads * sizeof(int))), &std::free);
  int* const in = memory.get();
  for (int i = 0; i < threads; i++) in[i] = i + 1;
  std::vector<int4> out(threads);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = planted.cooperative;
  cudaLaunchConfig_t config = {};
  config.gridDim = planted.blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = two_arrays;
  config.attrs = &attribute;
  config.numAttrs = 1;
  auto* const result = reinterpret_cast<int*>(out.data());
  // Twice, so that what a launch leaves to the next is tried as well.
  for (int launch = 0; launch < 2; launch++) {
    std::memset(result, 0, threads * sizeof(int4));
    const cudaError_t error =
        cudaLaunchKernelEx(&config, planted.kernel, broken, static_cast<const int*>(in), result);
    if (error != cudaSuccess) {
      std::printf("refused: %s\n", cudaGetErrorString(error));
      return 2;
    }
  }
  const bool right = std::memcmp(result, in, threads * sizeof(int)) == 0;
  std::puts(right ? "right" : "wrong");
  return right ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
  const std::string how = count == 3 ? words[2] : "";
  for (const Planted& planted : all) {
    if (count != 3 || (how != "broken" && how != "sound") ||
        std::string(planted.name) != words[1]) {
      continue;
    }
    try {
      return run(planted, how == "broken");
    } catch (const std::exception& error) {
      std::printf("stopped: %s\n", error.what());
      return 3;
    }
  }
  std::puts("usage: planted NAME broken|sound");
  return 2;
}
