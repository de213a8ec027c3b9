// A kernel for each primitive of csrc/cuda/ptx.cuh; test_primitives.py says what they do.

#include "csrc/cuda/ptx.cuh"

namespace ptx = fassd::cuda::ptx;

#define KERNEL extern "C" __global__ void

__device__ uint4* vectors() {
  return reinterpret_cast<uint4*>(ptx::dynamic_shared());
}

// Thread t copies `sizes[t]` bytes to a vector that another thread reads.
KERNEL copies(const uint4* in, const int* sizes, uint4* out) {
  const int t = threadIdx.x;
  vectors()[t] = make_uint4(1, 2, 3, 4);
  __syncthreads();
  ptx::copy_async(ptx::shared_address(vectors() + 7 * t % 64), in + t, sizes[t]);
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  __syncthreads();
  out[t] = vectors()[t];
}

// Each thread's three groups of a copy, as they are after it has waited for one more each time.
KERNEL groups(const uint4* in, uint4* out) {
  const int t = threadIdx.x;
  for (int group = 0; group < 3; group++) {
    vectors()[32 * group + t] = make_uint4(1, 2, 3, 4);
    ptx::copy_async(ptx::shared_address(vectors() + 32 * group + t), in + 32 * group + t, 16);
    ptx::copy_async_commit();
  }
  const auto look = [&] {
    for (int group = 0; group < 3; group++, out += 32) out[t] = vectors()[32 * group + t];
  };
  ptx::copy_async_wait<2>();
  look();
  ptx::copy_async_wait<1>();
  look();
  ptx::copy_async_wait<0>();
  look();
}

// Lane i reads the matrices' row at vector `rows[i]`.
KERNEL matrices(const uint4* in, const int* rows, uint32_t* out) {
  for (int i = threadIdx.x; i < 256; i += 32) vectors()[i] = in[i];
  __syncthreads();
  const ptx::SharedAddress row = ptx::shared_address(vectors() + rows[threadIdx.x]);
  uint32_t four[4], two[2];
  const auto keep = [&](const uint32_t* values, int count) {
    for (int i = 0; i < count; i++, out += 32) out[threadIdx.x] = values[i];
  };
  ptx::load_matrices(four, row);
  keep(four, 4);
  ptx::load_matrices_transposed(four, row);
  keep(four, 4);
  ptx::load_matrices_transposed(two, row);
  keep(two, 2);
}

template <typename Multiply>
__device__ void multiply(const uint32_t* a, const uint32_t* b, float* d, Multiply multiply) {
  uint32_t left[4];
  float sums[4];
  for (int i = 0; i < 4; i++) {
    left[i] = a[4 * threadIdx.x + i];
    sums[i] = d[4 * threadIdx.x + i];
  }
  multiply(sums, left, b[2 * threadIdx.x], b[2 * threadIdx.x + 1]);
  for (int i = 0; i < 4; i++) d[4 * threadIdx.x + i] = sums[i];
}
KERNEL multiply_f16(const uint32_t* a, const uint32_t* b, float* d) {
  multiply(a, b, d, ptx::multiply<__half>);
}
KERNEL multiply_bf16(const uint32_t* a, const uint32_t* b, float* d) {
  multiply(a, b, d, ptx::multiply<__nv_bfloat16>);
}
KERNEL multiply_tf32(const uint32_t* a, const uint32_t* b, float* d) {
  multiply(a, b, d, ptx::multiply_tf32);
}

KERNEL round_tf32(const uint32_t* in, uint32_t* out) {
  out[threadIdx.x] = ptx::to_tf32(in[threadIdx.x]);
}

KERNEL select_bits(const uint32_t* masks, const uint32_t* a, const uint32_t* b, uint32_t* out) {
  out[threadIdx.x] = ptx::select_bits(masks[threadIdx.x], a[threadIdx.x], b[threadIdx.x]);
}

// The next kernel may start before this one has written anything.
KERNEL produce(int* values) {
  ptx::let_next_kernel_start();
  values[blockIdx.x] = blockIdx.x + 1;
}
KERNEL consume(const int* values, int* before, int* after) {
  const int early = values[blockIdx.x];
  ptx::wait_for_previous_kernels();
  after[blockIdx.x] = values[blockIdx.x];
  before[blockIdx.x] = early;
}
