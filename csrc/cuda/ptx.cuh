// The instructions that C++ cannot express, each once: asynchronous copies, matrix fragments,
// tensor cores, dependent launches. All inline PTX of this backend is in this header.
//
// Shared memory is addressed by 32 bits, as the hardware does. The fragments' layouts are those of
// the PTX ISA, section "Matrix multiply-accumulate instructions": with g = lane / 4, t = lane % 4,
//   accumulators (16 x 8):  d0, d1 = D[g][2t, 2t + 1],  d2, d3 = D[g + 8][2t, 2t + 1].

#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace fassd::cuda::ptx {

using SharedAddress = uint32_t;

__device__ __forceinline__ SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

// The shared memory that the launch asked for.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

// Address of element `index`, of that many bytes, in global memory.
template <typename Byte>
__device__ __forceinline__ Byte* element(Byte* first, int index, uint32_t bytes) {
  uint64_t address;
  asm("mad.wide.u32 %0, %1, %2, %3;"
      : "=l"(address)
      : "r"(index), "r"(bytes), "l"(static_cast<uint64_t>(__cvta_generic_to_global(first))));
  return static_cast<Byte*>(__cvta_global_to_generic(address));
}

// Stores 16 bytes to shared memory.
__device__ __forceinline__ void store_shared(SharedAddress to, uint4 value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

// Copies 16 bytes from global to shared memory, both 16-byte aligned; `source_bytes` (0 to 16) are
// read and the others become zero. They have arrived after the wait that follows.
__device__ __forceinline__ void copy_async(SharedAddress to, const void* from, int source_bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(source_bytes)
               : "memory");
#else
  uint4 value = make_uint4(0, 0, 0, 0);
  if (source_bytes == 16) {
    value = *static_cast<const uint4*>(from);
  } else if (source_bytes > 0) {
    const uint16_t* halves = static_cast<const uint16_t*>(from);
    const auto half = [&](int i) { return uint32_t(2 * i < source_bytes ? halves[i] : 0); };
    value = make_uint4(half(0) | half(1) << 16, half(2) | half(3) << 16, half(4) | half(5) << 16,
                       half(6) | half(7) << 16);
  }
  store_shared(to, value);
#endif
}

// Closes the group of copies that this thread started since the last one.
__device__ __forceinline__ void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `pending` of this thread's groups have not arrived.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// Boxes of tensors that an engine copies (TMA; PTX ISA, "Tensors"), and barriers that count the
// bytes (PTX ISA, "mbarrier"). Both require sm_90 or later, which the callers ensure.
#if __CUDA_ARCH__ >= 900
constexpr bool copies_boxes = true;

// Initialises a barrier whose phases end when one thread has announced a number of bytes, and these
// have arrived.
__device__ __forceinline__ void create_barrier(SharedAddress barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}

// Orders this thread's writes to shared memory, including barriers, before the engine's later ones.
__device__ __forceinline__ void show_to_engine() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void expect_bytes(SharedAddress barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits until the phase of that parity has ended; its bytes can be read then.
__device__ __forceinline__ void wait_for_phase(SharedAddress barrier, uint32_t parity) {
  uint32_t ended;
  do {
    asm volatile(
        "{ .reg .pred ended; mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2; "
        "selp.u32 %0, 1, 0, ended; }"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (ended == 0);
}

// Starts copying the map's box at these coordinates, the innermost first, to shared memory
// (128-byte aligned). Elements outside the tensor become zero.
__device__ __forceinline__ void copy_box(SharedAddress to, const CUtensorMap& map,
                                         SharedAddress barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void copy_box(SharedAddress to, const CUtensorMap& map,
                                         SharedAddress barrier, int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
      : "memory");
}
#else
constexpr bool copies_boxes = false;
__device__ __forceinline__ void create_barrier(SharedAddress) {}
__device__ __forceinline__ void show_to_engine() {}
__device__ __forceinline__ void expect_bytes(SharedAddress, uint32_t) {}
__device__ __forceinline__ void wait_for_phase(SharedAddress, uint32_t) {}
template <typename... Coordinates>
__device__ __forceinline__ void copy_box(SharedAddress, const CUtensorMap&, SharedAddress,
                                         Coordinates...) {}
#endif

// A value that the compiler cannot see through if the engine copies, so that it does not compute
// derived values, which are rarely needed, ahead of time.
__device__ __forceinline__ int rarely(int value) {
  if constexpr (copies_boxes) {
    asm volatile("" : "+r"(value));
  }
  return value;
}

// Four 8 x 8 matrices of 16 bits. Lane i gives the address of row i % 8 of matrix i / 8 (16 bytes,
// aligned) and gets, of each matrix, elements 2t and 2t + 1 of row g.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
}

// The same, transposed: elements 2t and 2t + 1 of column g.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
}

// Two matrices, whose rows are addressed by lanes 0 to 15.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[2], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(row)
               : "memory");
}

// d += a * b on 16 x 16 by 16 x 8 values of T (__half or __nv_bfloat16), two to a register:
//   a0 = A[g][2t..], a1 = A[g + 8][2t..], a2 = A[g][2t + 8..], a3 = A[g + 8][2t + 8..],
//   b0 = B[2t..][g], b1 = B[2t + 8..][g].
template <typename T>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1);

template <>
__device__ __forceinline__ void multiply<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                 uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // Turing's tensor cores take half as many terms at a time
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

template <>
__device__ __forceinline__ void multiply<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                        uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();  // the operators refuse bfloat16 on Turing
#endif
}

// d += a * b on 16 x 8 by 8 x 8 values of TF32, one to a register:
//   a0 = A[g][t], a1 = A[g + 8][t], a2 = A[g][t + 4], a3 = A[g + 8][t + 4], b0 = B[t][g],
//   b1 = B[t + 4][g].
__device__ __forceinline__ void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();  // the operators multiply in float32 on Turing
#endif
}

// A float's bits rounded to TF32, to nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(uint32_t bits) {
#if __CUDA_ARCH__ >= 800
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#else
  return bits;
#endif
}

// The maximum of a value and zero; NaN stays NaN.
__device__ __forceinline__ float relu(float value) {
#if __CUDA_ARCH__ >= 800
  asm("max.NaN.f32 %0, %0, 0f00000000;" : "+f"(value));
  return value;
#else
  return value < 0.0f ? 0.0f : value;
#endif
}

// Two floats rounded to T (__half or __nv_bfloat16), the first in the lower half; with `relu`,
// negative values become zero, and NaN stays NaN.
template <typename T, bool relu>
__device__ __forceinline__ uint32_t round_to_halves(float first, float second) {
  constexpr bool half = std::is_same_v<T, __half>;
  uint32_t rounded;
#if __CUDA_ARCH__ >= 800
  if constexpr (half && relu) {
    asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(rounded) : "f"(second), "f"(first));
  } else if constexpr (half) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(rounded) : "f"(second), "f"(first));
  } else if constexpr (relu) {
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(rounded) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(rounded) : "f"(second), "f"(first));
  }
#else
  first = relu && first < 0.0f ? 0.0f : first;
  second = relu && second < 0.0f ? 0.0f : second;
  if constexpr (half) {
    rounded = __half_as_ushort(__float2half(first)) |
              uint32_t(__half_as_ushort(__float2half(second))) << 16;
  } else {
    rounded = 0;
    __trap();  // the operators refuse bfloat16 on Turing
  }
#endif
  return rounded;
}

// The bits of `a` where those of `mask` are set, otherwise those of `b`.
__device__ __forceinline__ uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
  uint32_t selected;
  asm("lop3.b32 %0, %1, %2, %3, 0xCA;" : "=r"(selected) : "r"(mask), "r"(a), "r"(b));
  return selected;
}

// Two values of T (__half or __nv_bfloat16) each: a * b + c, rounded once.
template <typename T>
__device__ __forceinline__ uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  if constexpr (std::is_same_v<T, __half>) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  } else {
#if __CUDA_ARCH__ >= 800
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
#else
    __trap();  // the operators refuse bfloat16 on Turing
#endif
  }
  return result;
}

// All ones for those of two halves whose sign is minus.
__device__ __forceinline__ uint32_t signs_of(uint32_t halves) {
  uint32_t ones;
  asm("prmt.b32 %0, %1, 0, 0xBB99;" : "=r"(ones) : "r"(halves));
  return ones;
}

// Programmatic dependent launch: waits until the kernels before this one have ended and their
// results can be read. A kernel launched without it does not wait here.
__device__ __forceinline__ void wait_for_previous_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Allows the next kernel to be launched, which waits as above.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace fassd::cuda::ptx
