#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "image.cuh"
#include "ptx.cuh"

namespace fassd::cuda {

namespace {

constexpr int block_threads = 256;
constexpr int table_values = 3 * 256;
constexpr int64_t most_blocks = 4096;  // blocks walk more pixels in strides

struct Normalization {
  double mean[3], std[3];
};

struct Picture {
  const uint8_t* pixels;
  int64_t height, width;
  int64_t stride_n, stride_h, stride_w, stride_c;  // in bytes
};

template <typename T>
__device__ T convert(double value) {
  return static_cast<T>(value);
}
template <>
__device__ __half convert<__half>(double value) {
  return __double2half(value);
}
template <>
__device__ __nv_bfloat16 convert<__nv_bfloat16>(double value) {
  return __double2bfloat16(value);
}

// One thread computes one value of the channels_last result at a time, so that writes are
// coalesced. A channel has 256 possible values: every block computes them once, in double, and
// looks them up in shared memory; double arithmetic per pixel would cost a consumer card more than
// the memory.
template <typename T>
__global__ void __launch_bounds__(block_threads)
    normalize_kernel(Picture picture, Normalization normalization, T* out, int64_t count) {
  T* table = reinterpret_cast<T*>(ptx::dynamic_shared());
  ptx::wait_for_previous_kernels();
  static_assert(block_threads == 256, "a thread computes the table's entries of its own value");
#pragma unroll  // so that mean and std are not indexed at run time, which takes local memory on
                // sm_75
  for (int channel = 0; channel < 3; channel++) {
    table[channel * 256 + threadIdx.x] =
        convert<T>((int(threadIdx.x) - normalization.mean[channel]) / normalization.std[channel]);
  }
  __syncthreads();
  const int64_t step = int64_t(gridDim.x) * block_threads;
  for (int64_t i = int64_t(blockIdx.x) * block_threads + threadIdx.x; i < count; i += step) {
    const int64_t pixel = i / 3;
    const int channel = static_cast<int>(i - 3 * pixel);
    const int64_t row = pixel / picture.width, x = pixel - row * picture.width;
    const int64_t n = row / picture.height, y = row - n * picture.height;
    const uint8_t value = picture.pixels[n * picture.stride_n + y * picture.stride_h +
                                         x * picture.stride_w + (2 - channel) * picture.stride_c];
    out[i] = table[channel * 256 + value];
  }
}

template <typename T>
void run_normalize(const Picture& picture, const Normalization& normalization, Tensor& out) {
  const int64_t count = out.numel();
  const int64_t blocks = std::min((count + block_threads - 1) / block_threads, most_blocks);
  Queue(out).launch(&normalize_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(block_threads),
                    table_values * sizeof(T), picture, normalization,
                    static_cast<T*>(out.mutable_data_ptr()), count);
}

}  // namespace

Tensor normalize(const Tensor& image, const std::vector<double>& mean,
                 const std::vector<double>& std, ScalarType dtype) {
  const ImageSize size = check_normalize(image, mean, std, dtype).size;
  const torch::stable::accelerator::DeviceGuard guard(image.get_device_index());
  Tensor out = torch::stable::empty(size.sizes(), dtype, std::nullopt, image.device(), std::nullopt,
                                    torch::headeronly::MemoryFormat::ChannelsLast);
  if (size.numel() == 0) {
    return out;
  }
  const Picture picture = {static_cast<const uint8_t*>(image.const_data_ptr()),
                           size.height,
                           size.width,
                           image.stride(0),
                           image.stride(1),
                           image.stride(2),
                           image.stride(3)};
  const Normalization normalization = {{mean[0], mean[1], mean[2]}, {std[0], std[1], std[2]}};
  switch (dtype) {
    case ScalarType::Double:
      run_normalize<double>(picture, normalization, out);
      break;
    case ScalarType::Float:
      run_normalize<float>(picture, normalization, out);
      break;
    case ScalarType::Half:
      run_normalize<__half>(picture, normalization, out);
      break;
    default:
      run_normalize<__nv_bfloat16>(picture, normalization, out);
  }
  return out;
}

}  // namespace fassd::cuda
