// Kernels with one mistake each, if `broken`, and each without it. test_planted.py knows what is
// said of them. Blocks of 64 threads reproduce the input, 64 integers; there is room in shared
// memory for two such arrays, and in the output for four.

#include "csrc/cuda/ptx.cuh"

namespace ptx = fassd::cuda::ptx;

namespace {

constexpr int threads = 64;
constexpr int last = 2 * threads - 1;  // integer of shared memory

__device__ int* shared() {
  return reinterpret_cast<int*>(ptx::dynamic_shared());
}

__device__ ptx::SharedAddress vector_address(int i) {
  return ptx::shared_address(shared()) + 16 * i;
}

// Zero, after all; but the value is needed.
__device__ int nothing_of(int value) {
  asm volatile("" : : "r"(value));
  return 0;
}

// Sixteen threads bring the array, whoever waits for it.
__device__ void begin_copies(const int* in, int stage) {
  const int t = threadIdx.x;
  if (t < 16) ptx::copy_async(vector_address(16 * stage + t), in + 4 * t, 16);
  ptx::copy_async_commit();
}

__device__ void finish_copies(int* out) {
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = shared()[threadIdx.x];
}

}  // namespace

#define PLANTED(name)                                                              \
  static __device__ void name(int t, bool broken, const int* in, int* out);        \
  extern "C" __global__ void name##_kernel(bool broken, const int* in, int* out) { \
    name(threadIdx.x, broken, in, out);                                            \
  }                                                                                \
  static __device__ void name(int t, bool broken, const int* in, int* out)

// Two arrays side by side: a write behind the first, a read before the second.
PLANTED(write_behind_an_array) {
  shared()[threads + t] = in[t];
  shared()[t + broken] = 0;
  __syncthreads();
  out[t] = shared()[threads + t];
}

PLANTED(read_before_an_array) {
  shared()[threads + t] = in[t];
  __syncthreads();
  out[t] = in[t] + nothing_of(shared()[threads + t - broken]);
}

PLANTED(write_past_shared_memory) {
  if (t == 0) shared()[last + broken] = 0;
  out[t] = in[t];
}

PLANTED(read_past_shared_memory) {
  if (t == 0) shared()[last] = 0;
  out[t] = in[t] + (t == 0 ? nothing_of(shared()[last + broken]) : 0);
}

PLANTED(read_past_static_shared_memory) {
  __shared__ int table[threads];
  table[t] = in[t];
  __syncthreads();
  out[t] = in[t] + nothing_of(table[t + broken]);
}

PLANTED(matrix_row_past_shared_memory) {
  for (int i = t; i <= last; i += threads) shared()[i] = 0;
  __syncthreads();
  uint32_t values[4];
  ptx::load_matrices(values, vector_address(last / 4 + (broken && t == 9)));
  out[t] = in[t] + nothing_of(static_cast<int>(values[0]));
}

PLANTED(read_past_global_memory) {
  out[t] = in[t] + nothing_of(in[t + broken]);
}

PLANTED(copy_past_global_memory) {
  if (t < 16) ptx::copy_async(vector_address(t), in + 4 * (t + broken), 16);
  finish_copies(out);
}

PLANTED(copy_from_misaligned) {
  if (t < 16) ptx::copy_async(vector_address(t), in + 4 * t + broken, broken ? 12 : 16);
  finish_copies(out);
}

PLANTED(copy_to_misaligned) {
  if (t < 16) ptx::copy_async(vector_address(t) + (broken ? 8 : 0), in + 4 * t, 16);
  finish_copies(out);
}

// Rows of an odd width: most of them begin off the grid.
PLANTED(misaligned_vector) {
  if (t < 16) {
    const int* from = in + 4 * t - (broken && t > 0);
    *reinterpret_cast<int4*>(out + 4 * t) = *reinterpret_cast<const int4*>(from);
  }
}

PLANTED(missing_barrier) {
  shared()[t] = in[t];
  if (!broken) __syncthreads();
  out[last / 2 - t] = shared()[last / 2 - t];
}

// A shuffle makes lanes meet, but it does not make memory seen.
PLANTED(missing_warp_barrier) {
  shared()[t] = in[t];
  if (!broken) __syncwarp();
  out[t] = __shfl_xor_sync(~0u, in[t], 0) + nothing_of(shared()[t ^ 1]);
}

PLANTED(missing_wait) {
  begin_copies(in, 0);
  if (!broken) ptx::copy_async_wait<0>();
  __syncthreads();
  out[t] = shared()[t];
}

// Each thread waits for its own copies, but reads another's.
PLANTED(wait_behind_the_barrier) {
  begin_copies(in, 0);
  if (broken) __syncthreads();
  ptx::copy_async_wait<0>();
  if (!broken) __syncthreads();
  out[t] = shared()[t];
}

// A ring of two stages: the copy for the next round goes where others still read this one's.
PLANTED(early_copy) {
  int sum = 0;
  begin_copies(in, 0);
  begin_copies(in, 1);
  for (int round = 0; round < 4; round++) {
    ptx::copy_async_wait<1>();
    __syncthreads();
    sum += shared()[round % 2 * threads + (t + 1) % threads];
    if (!broken) __syncthreads();
    if (round < 2) {
      begin_copies(in, round % 2);
    } else {
      ptx::copy_async_commit();
    }
  }
  out[t] = in[t] + nothing_of(sum);
}

PLANTED(divergent_barrier) {
  if (!broken || t < 40) __syncthreads();
  out[t] = in[t];
}

// Every block adds its part to the same sums.
PLANTED(blocks_add) {
  if (blockIdx.x == 0) out[t] = in[t];
  if (broken) {
    out[threads] += 1;
  } else {
    atomicAdd(out + threads, 1);
  }
}

// Each block writes before its barriers what its neighbour reads after them.
PLANTED(blocks_read_neighbours) {
  const int block = blockIdx.x;
  if (block == 0) out[t] = in[t];
  if (t == 0) out[threads + block] = 1;
  __syncthreads();
  if (t == 1 && block > 0) nothing_of(out[threads + block - broken]);
}

// The last block to come reads what the others left.
PLANTED(blocks_read_all) {
  if (blockIdx.x == 0) out[t] = in[t];
  if (t != 0) return;
  int* parts = out + threads + 1;
  atomicExch(parts + blockIdx.x, 1);
  if (atomicAdd(out + threads, 1) == static_cast<int>(gridDim.x) - 1) {
    for (unsigned i = 0; i < gridDim.x; i++) {
      nothing_of(broken ? parts[i] : atomicAdd(parts + i, 0));
    }
  }
}

PLANTED(overflow) {
  const int stride = blockDim.x << 24, rows = 1 << 30;  // the same, which nvcc does not know
  out[t] = in[broken ? t * stride / rows : int64_t(t) * stride / rows];
}

PLANTED(shift) {
  const int distance = t % 32 + broken;
  out[t] = in[t] - 1 + static_cast<int>(1u << distance >> distance);
}
