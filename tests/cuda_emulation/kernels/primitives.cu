// Kernels that try the emulation's functions one by one. test_primitives.py calls the functions at
// the end through ctypes; each returns what went wrong, or nothing.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <emulated_ptx.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <type_traits>

namespace {

namespace ptx = fassd::cuda::ptx;

// --- matrices
// -------------------------------------------------------------------------------------

enum class Product { half, bfloat16, tf32 };

// Registers as [warp][lane][register].
__global__ void multiply_kernel(Product product, const uint32_t* a, const uint32_t* b, float* d) {
  uint32_t mine[4];
  float sums[4];
  for (int i = 0; i < 4; i++) {
    mine[i] = a[4 * threadIdx.x + i];
    sums[i] = d[4 * threadIdx.x + i];
  }
  const uint32_t b0 = b[2 * threadIdx.x], b1 = b[2 * threadIdx.x + 1];
  if (product == Product::half) {
    ptx::multiply<__half>(sums, mine, b0, b1);
  } else if (product == Product::bfloat16) {
    ptx::multiply<__nv_bfloat16>(sums, mine, b0, b1);
  } else {
    ptx::multiply_tf32(sums, mine, b0, b1);
  }
  for (int i = 0; i < 4; i++) d[4 * threadIdx.x + i] = sums[i];
}

enum class Load { four, four_transposed, two_transposed };

__global__ void load_kernel(Load load, const uint16_t* memory, int halves, const uint32_t* rows,
                            uint32_t* out) {
  auto* shared = reinterpret_cast<uint16_t*>(ptx::dynamic_shared());
  for (int i = threadIdx.x; i < halves; i += blockDim.x) shared[i] = memory[i];
  __syncthreads();
  const ptx::SharedAddress row = ptx::shared_address(shared) + rows[threadIdx.x];
  if (load == Load::two_transposed) {
    uint32_t pair[2];
    ptx::load_matrices_transposed(pair, row);
    for (int i = 0; i < 2; i++) out[2 * threadIdx.x + i] = pair[i];
    return;
  }
  uint32_t four[4];
  if (load == Load::four) {
    ptx::load_matrices(four, row);
  } else {
    ptx::load_matrices_transposed(four, row);
  }
  for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = four[i];
}

// --- asynchronous copies
// --------------------------------------------------------------------------

// Two groups of one copy; what the destinations hold after each step, [step][group][2 words].
__global__ void copy_steps_kernel(const uint64_t* source, uint64_t* seen) {
  auto* shared = reinterpret_cast<uint64_t*>(ptx::dynamic_shared());
  const ptx::SharedAddress to = ptx::shared_address(shared);
  for (int i = 0; i < 4; i++) shared[i] = 7;
  int step = 0;
  const auto look = [&] {
    for (int i = 0; i < 4; i++) seen[4 * step + i] = shared[i];
    step++;
  };
  ptx::copy_async(to, source, 16);
  look();
  ptx::copy_async_commit();
  ptx::copy_async(to + 16, source + 2, 16);
  ptx::copy_async_wait<0>();  // not of the copy whose group is open
  look();
  ptx::copy_async_commit();
  ptx::copy_async_commit();  // of nothing
  ptx::copy_async_wait<2>();
  look();
  ptx::copy_async_wait<1>();
  look();
}

__global__ void copy_bytes_kernel(const unsigned char* source, int bytes, unsigned char* out) {
  unsigned char* shared = ptx::dynamic_shared();
  ptx::copy_async(ptx::shared_address(shared), source, bytes);
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  for (int i = 0; i < 16; i++) out[i] = shared[i];
}

// More copies at once than there is room for at first, in several rounds.
__global__ void copy_many_kernel(const uint4* source, int count, uint4* out) {
  auto* shared = reinterpret_cast<uint4*>(ptx::dynamic_shared());
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < count; i++) {
      ptx::copy_async(ptx::shared_address(shared + i), source + round * count + i, 16);
    }
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    for (int i = 0; i < count; i++) out[round * count + i] = shared[i];
  }
}

__global__ void copy_to_kernel(const unsigned char* source, int offset, int bytes, int waits) {
  ptx::copy_async(ptx::shared_address(ptx::dynamic_shared()) + offset, source, bytes);
  ptx::copy_async_commit();
  if (waits != 0) ptx::copy_async_wait<0>();
}

// --- lanes
// ----------------------------------------------------------------------------------------

enum class Shuffle { from, exclusive_or, down, up };

template <typename T>
__global__ void shuffle_kernel(Shuffle kind, const T* values, const int* arguments, int width,
                               unsigned mask, T* out) {
  if ((mask >> threadIdx.x % 32 & 1) == 0) return;
  const T value = values[threadIdx.x];
  const int argument = arguments[threadIdx.x];
  T result = value;
  switch (kind) {
    case Shuffle::from:
      result = __shfl_sync(mask, value, argument, width);
      break;
    case Shuffle::exclusive_or:
      result = __shfl_xor_sync(mask, value, argument, width);
      break;
    case Shuffle::down:
      result = __shfl_down_sync(mask, value, argument, width);
      break;
    case Shuffle::up:
      result = __shfl_up_sync(mask, value, argument, width);
      break;
  }
  out[threadIdx.x] = result;
}

// Halves of a warp that go their own ways, each with its mask.
__global__ void diverged_kernel(int* out) {
  const int lane = threadIdx.x;
  int value = lane;
  if (lane < 16) {
    for (int i = 0; i < 5; i++) value = __shfl_sync(0x0000FFFFu, value, (lane + 1) % 16);
  } else {
    for (int i = 0; i < 3; i++) value = __shfl_xor_sync(0xFFFF0000u, value, 1);
    __syncwarp(0xFFFF0000u);
  }
  __syncwarp();
  out[lane] = value;
}

__global__ void vote_kernel(const int* votes, unsigned mask, unsigned* out) {
  if ((mask >> threadIdx.x % 32 & 1) == 0) return;
  const int vote = votes[threadIdx.x];
  out[3 * threadIdx.x] = __ballot_sync(mask, vote);
  out[3 * threadIdx.x + 1] = __any_sync(mask, vote);
  out[3 * threadIdx.x + 2] = __all_sync(mask, vote);
}

// --- blocks
// ---------------------------------------------------------------------------------------

__global__ void indices_kernel(unsigned* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  unsigned* mine = out + 6 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
  const unsigned values[6] = {blockIdx.x,  blockIdx.y,  blockIdx.z,
                              threadIdx.x, threadIdx.y, threadIdx.z};
  for (int i = 0; i < 6; i++) mine[i] = values[i];
}

// Each thread adds up what its neighbours wrote, step by step around the block.
__global__ void barrier_kernel(int steps, int* out) {
  auto* shared = reinterpret_cast<int*>(ptx::dynamic_shared());
  int value = threadIdx.x;
  for (int i = 0; i < steps; i++) {
    shared[threadIdx.x] = value;
    __syncthreads();
    value += shared[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
  }
  out[threadIdx.x] = value;
}

__global__ void counts_kernel(const int* votes, int* out) {
  const int vote = votes[threadIdx.x];
  out[3 * threadIdx.x] = __syncthreads_count(vote);
  out[3 * threadIdx.x + 1] = __syncthreads_or(vote);
  out[3 * threadIdx.x + 2] = __syncthreads_and(vote);
}

// Two warps write, two read: barrier 1 says "full", barrier 2 "empty"; the last warp has its own.
__global__ void named_barrier_kernel(int rounds, int* out) {
  auto* shared = reinterpret_cast<int*>(ptx::dynamic_shared());
  const int thread = threadIdx.x;
  if (thread >= 128) {
    for (int i = 0; i < 2 * rounds; i++) ptx::named_barrier(15, 32);
    return;
  }
  int sum = 0;
  for (int i = 0; i < rounds; i++) {
    if (thread < 64) {
      shared[thread] = 100 * i + thread;
      ptx::named_barrier(1, 128);
    } else {
      ptx::named_barrier(1, 128);
      sum += shared[127 - thread];
    }
    ptx::named_barrier(2, 128);
  }
  if (thread >= 64) out[thread - 64] = sum;
}

template <typename T>
__global__ void static_shared_kernel(uint32_t* fresh, T* out) {
  __shared__ T table[64];
  uint32_t bits = 0;
  std::memcpy(&bits, &table[threadIdx.x], sizeof(T));
  fresh[blockIdx.x * 64 + threadIdx.x] = bits;
  __syncthreads();
  table[threadIdx.x] = static_cast<T>(threadIdx.x + blockIdx.x);
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = table[63 - threadIdx.x];
}

// What dynamic shared memory holds at first, and how its address is aligned.
__global__ void fresh_shared_kernel(int bytes, int* differing, int* misaligned) {
  unsigned char* shared = ptx::dynamic_shared();
  if (threadIdx.x == 0) {
    *misaligned += static_cast<int>(reinterpret_cast<uintptr_t>(shared) % 128);
    for (int i = 0; i < bytes; i++) {
      *differing += shared[i] != 0xFF;
      shared[i] = 0;
    }
  }
}

struct Large {
  double values[64];
};

__global__ void large_parameter_kernel(const __grid_constant__ Large large, double* out) {
  out[threadIdx.x] = large.values[threadIdx.x];
}

__global__ void grid_barrier_kernel(int rounds, int* counter, int* out) {
  int wrong = 0;
  for (int i = 1; i <= rounds; i++) {
    atomicAdd(counter, 1);
    ptx::grid_barrier();
    wrong += *counter != i * static_cast<int>(gridDim.x * blockDim.x);
    ptx::grid_barrier();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = wrong;
}

// The last block to come adds up what all left.
__global__ void last_block_kernel(int* parts, unsigned* arrived, int* sum) {
  if (threadIdx.x != 0) return;
  parts[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
  __threadfence();
  if (atomicAdd(arrived, 1u) != gridDim.x - 1) return;
  __threadfence();
  for (unsigned i = 0; i < gridDim.x; i++) *sum += parts[i];
}

template <typename T>
__global__ void atomics_kernel(T* cells, T* olds) {
  const T mine = static_cast<T>(blockIdx.x * blockDim.x + threadIdx.x);
  olds[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(&cells[0], 1);
  if (mine == T(5)) atomicExch(&cells[3], T(55));
  if constexpr (std::is_integral_v<T>) {
    atomicMax(&cells[1], mine);
    atomicMin(&cells[2], mine);
    atomicCAS(&cells[4], mine, mine + 1);  // each finds what the one before left
  }
}

// --- what goes wrong
// ------------------------------------------------------------------------------

enum class Mistake {
  none,
  ends_early,         // half of the block does not come to the barrier
  two_barriers,       // each half comes to its own
  two_syncthreads,    // at different places in the program
  other_count,        // of threads at one named barrier
  lane_missing,       // of a shuffle
  mask_without_me,    // a lane that its own mask does not name
  different_meeting,  // lanes of one warp, one mask, two functions
  from_outside,       // a shuffle that reads a lane beyond its mask
  trap,
  exception,
  grid_barrier,  // in a launch that is not cooperative
  far_address,   // of memory that is not shared
  guard_zone,    // written
  past_the_end,  // of dynamic shared memory
  barrier_name,
  barrier_count,
};

__global__ void mistake_kernel(Mistake mistake, int* out) {
  const unsigned thread = threadIdx.x;
  const bool first = thread < 32;
  unsigned char* shared = ptx::dynamic_shared();
  ptx::guard_shared(shared + 64, ptx::shared_guard_bytes);
  switch (mistake) {
    case Mistake::none:
      __syncthreads();
      break;
    case Mistake::ends_early:
      if (first) __syncthreads();
      break;
    case Mistake::two_barriers:
      ptx::named_barrier(first ? 3 : 4, 64);
      break;
    case Mistake::two_syncthreads:
      if (first) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case Mistake::other_count:
      ptx::named_barrier(1, first ? 64 : 32);
      break;
    case Mistake::lane_missing:
      if (thread != 7) out[thread] = __shfl_sync(0xFFFFFFFFu, 1, 0);
      break;
    case Mistake::mask_without_me:
      __syncwarp(0xFFFFFFFEu);
      break;
    case Mistake::different_meeting:
      if (thread % 2 != 0) {
        __syncwarp();
      } else {
        out[thread] = __any_sync(0xFFFFFFFFu, 1);
      }
      break;
    case Mistake::from_outside:
      if (thread < 16) out[thread] = __shfl_sync(0x0000FFFFu, 1, 20);
      break;
    case Mistake::trap:
      if (thread == 3) __trap();
      break;
    case Mistake::exception:
      if (thread == 3) throw std::runtime_error("as asked");
      break;
    case Mistake::grid_barrier:
      ptx::grid_barrier();
      break;
    case Mistake::far_address:
      out[0] = static_cast<int>(ptx::shared_address(out));
      break;
    case Mistake::guard_zone:
      if (thread == 5) shared[64 + 5] = 0;
      break;
    case Mistake::past_the_end:
      if (thread == 5) shared[256] = 0;
      break;
    case Mistake::barrier_name:
      ptx::named_barrier(16, 64);
      break;
    case Mistake::barrier_count:
      ptx::named_barrier(1, 40);
      break;
  }
  if (mistake == Mistake::none) ptx::unguard_shared(shared, 256);
  if (mistake == Mistake::none) shared[64] = 1;
}

// Some blocks of a cooperative launch leave before the barrier.
__global__ void lonely_block_kernel() {
  if (blockIdx.x == 1) return;
  ptx::grid_barrier();
}

// --- launches
// -------------------------------------------------------------------------------------

// Kept for ever, as nobody knows for how long the caller wants it.
const char* say(const std::string& text) {
  return text.empty() ? "" : strdup(text.c_str());
}

struct Shape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;
};

template <typename... Parameters, typename... Arguments>
const char* run(const Shape& shape, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = shape.cooperative;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  try {
    const cudaError_t error =
        cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
    return say(error == cudaSuccess ? "" : cudaGetErrorString(error));
  } catch (const std::exception& error) {
    return say(error.what());
  }
}

template <typename T>
const char* run_shuffle(int kind, const void* values, const int* arguments, int width,
                        unsigned mask, void* out) {
  return run({1, 64}, &shuffle_kernel<T>, static_cast<Shuffle>(kind), static_cast<const T*>(values),
             arguments, width, mask, static_cast<T*>(out));
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char* multiply(int product, int warps, const uint32_t* a, const uint32_t* b, float* d) {
  return run({1, unsigned(32 * warps)}, &multiply_kernel, static_cast<Product>(product), a, b, d);
}

const char* load_matrices(int load, const uint16_t* memory, int halves, const uint32_t* rows,
                          uint32_t* out) {
  return run({1, 32, size_t(2 * halves)}, &load_kernel, static_cast<Load>(load), memory, halves,
             rows, out);
}

const char* copy_steps(const uint64_t* source, uint64_t* seen) {
  return run({1, 1, 32}, &copy_steps_kernel, source, seen);
}

const char* copy_bytes(const unsigned char* source, int bytes, unsigned char* out) {
  return run({1, 1, 16}, &copy_bytes_kernel, source, bytes, out);
}

const char* copy_many(const void* source, int count, void* out) {
  return run({1, 1, size_t(16 * count)}, &copy_many_kernel, static_cast<const uint4*>(source),
             count, static_cast<uint4*>(out));
}

const char* copy_to(const unsigned char* source, int offset, int bytes, int waits) {
  return run({1, 1, 64}, &copy_to_kernel, source, offset, bytes, waits);
}

const char* shuffle_int(int kind, const void* values, const int* arguments, int width,
                        unsigned mask, void* out) {
  return run_shuffle<int>(kind, values, arguments, width, mask, out);
}
const char* shuffle_float(int kind, const void* values, const int* arguments, int width,
                          unsigned mask, void* out) {
  return run_shuffle<float>(kind, values, arguments, width, mask, out);
}
const char* shuffle_long(int kind, const void* values, const int* arguments, int width,
                         unsigned mask, void* out) {
  return run_shuffle<long long>(kind, values, arguments, width, mask, out);
}
const char* shuffle_double(int kind, const void* values, const int* arguments, int width,
                           unsigned mask, void* out) {
  return run_shuffle<double>(kind, values, arguments, width, mask, out);
}

const char* diverged(int* out) {
  return run({1, 32}, &diverged_kernel, out);
}

const char* vote(const int* votes, unsigned mask, unsigned* out) {
  return run({1, 64}, &vote_kernel, votes, mask, out);
}

const char* indices(unsigned* out) {
  return run({{3, 2, 4}, {5, 4, 3}}, &indices_kernel, out);
}

const char* barrier(int threads, int steps, int* out) {
  return run({1, unsigned(threads), size_t(4 * threads)}, &barrier_kernel, steps, out);
}

const char* counts(int threads, const int* votes, int* out) {
  return run({1, unsigned(threads)}, &counts_kernel, votes, out);
}

const char* named_barrier(int rounds, int* out) {
  return run({1, 160, 256}, &named_barrier_kernel, rounds, out);
}

const char* static_shared_int(uint32_t* fresh, int* out) {
  return run({3, 64}, &static_shared_kernel<int>, fresh, out);
}

const char* static_shared_short(uint32_t* fresh, short* out) {
  return run({3, 64}, &static_shared_kernel<short>, fresh, out);
}

const char* fresh_shared(int bytes, int* differing, int* misaligned) {
  return run({3, 32, size_t(bytes)}, &fresh_shared_kernel, bytes, differing, misaligned);
}

const char* large_parameter(const double* values, double* out) {
  Large large;
  std::memcpy(large.values, values, sizeof large.values);
  return run({1, 64}, &large_parameter_kernel, large, out);
}

const char* grid_barrier(int blocks, int rounds, int* counter, int* out) {
  return run({unsigned(blocks), 64, 0, true}, &grid_barrier_kernel, rounds, counter, out);
}

const char* last_block(int* parts, unsigned* arrived, int* sum) {
  return run({10, 32}, &last_block_kernel, parts, arrived, sum);
}

const char* atomics_int(int* cells, int* olds) {
  return run({2, 64}, &atomics_kernel<int>, cells, olds);
}
const char* atomics_unsigned(unsigned* cells, unsigned* olds) {
  return run({2, 64}, &atomics_kernel<unsigned>, cells, olds);
}
const char* atomics_long(unsigned long long* cells, unsigned long long* olds) {
  return run({2, 64}, &atomics_kernel<unsigned long long>, cells, olds);
}
const char* atomics_float(float* cells, float* olds) {
  return run({2, 64}, &atomics_kernel<float>, cells, olds);
}

const char* mistake(int which, int* out) {
  return run({2, 64, 256}, &mistake_kernel, static_cast<Mistake>(which), out);
}

const char* lonely_block() {
  return run({3, 32, 0, true}, &lonely_block_kernel);
}

const char* launch(const unsigned* grid, const unsigned* block, size_t shared_bytes,
                   int cooperative) {
  return run(
      {{grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes, cooperative != 0},
      +[] {});
}

// To a kernel that has been allowed `allowed` bytes.
const char* launch_with_consent(size_t shared_bytes, int allowed) {
  const cudaError_t error = cudaFuncSetAttribute(
      &lonely_block_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
  if (error != cudaSuccess) return say(std::string("consent: ") + cudaGetErrorString(error));
  return run({2, 32, shared_bytes, true}, &lonely_block_kernel);
}

int device_attribute(int attribute) {
  int value = -1;
  cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(attribute), -1);
  return value;
}

void halves_to_floats(const uint16_t* from, float* to, int count) {
  for (int i = 0; i < count; i++) to[i] = __half2float(__ushort_as_half(from[i]));
}
void floats_to_halves(const float* from, uint16_t* to, int count) {
  for (int i = 0; i < count; i++) to[i] = __half_as_ushort(__float2half(from[i]));
}
void doubles_to_halves(const double* from, uint16_t* to, int count) {
  for (int i = 0; i < count; i++) to[i] = __half_as_ushort(__double2half(from[i]));
}
void bfloat16s_to_floats(const uint16_t* from, float* to, int count) {
  for (int i = 0; i < count; i++) to[i] = __bfloat162float(__ushort_as_bfloat16(from[i]));
}
void floats_to_bfloat16s(const float* from, uint16_t* to, int count) {
  for (int i = 0; i < count; i++) to[i] = __bfloat16_as_ushort(__float2bfloat16(from[i]));
}
void doubles_to_bfloat16s(const double* from, uint16_t* to, int count) {
  for (int i = 0; i < count; i++) to[i] = __bfloat16_as_ushort(__double2bfloat16(from[i]));
}
void floats_to_half_pairs(const float* from, uint16_t* to, int pairs) {
  for (int i = 0; i < pairs; i++) {
    const __half2 pair = __floats2half2_rn(from[2 * i], from[2 * i + 1]);
    const float2 back = __half22float2(pair);
    to[2 * i] = __half_as_ushort(__low2half(pair));
    to[2 * i + 1] = __half_as_ushort(__float2half(back.y));
  }
}
void floats_to_bfloat16_pairs(const float* from, uint16_t* to, int pairs) {
  for (int i = 0; i < pairs; i++) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
    const float2 back = __bfloat1622float2(pair);
    to[2 * i] = __bfloat16_as_ushort(__low2bfloat16(pair));
    to[2 * i + 1] = __bfloat16_as_ushort(__float2bfloat16(back.y));
  }
}
void floats_to_tf32(const uint32_t* from, uint32_t* to, int count) {
  for (int i = 0; i < count; i++) to[i] = ptx::to_tf32(from[i]);
}

}  // extern "C"
#pragma GCC visibility pop
