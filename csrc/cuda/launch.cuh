// How a kernel is launched: on the stream that PyTorch works on, on the tensor's own device.

#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <type_traits>

#include "../plan/plan.h"

namespace fassd::cuda {

DeviceLimits device_limits(int device);

// Percent of a multiprocessor's cache that kernels prefer as shared memory, as the environment
// variable FASSD_KERNELS_CARVEOUT has it; -1, which leaves it to the driver, where it is not set.
// Throws where it is no percentage.
int preferred_carveout();

// Sets the attributes of `kernel` on a device, once for each amount of dynamic shared memory.
void prepare_kernel(const void* kernel, int device, size_t shared_bytes);

constexpr size_t shared_without_consent = 48 * 1024;  // bytes that every kernel may ask for

inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Whether kernels overlap with the end of those before them (programmatic dependent launch, sm_90
// and later). Every kernel of this backend waits for its predecessors before it touches memory, so
// results do not depend on it.
inline bool dependent_launch() {
  static const bool asked = [] {
    const char* value = std::getenv("FASSD_KERNELS_DEPENDENT_LAUNCH");
    return value != nullptr && value[0] == '1';
  }();
  return asked;
}

// A grid of so many blocks, of what a kernel calls `items`; throws where a GPU knows no such grid.
inline dim3 grid_of(const char* op, const char* items, int64_t x, int64_t y = 1, int64_t z = 1) {
  constexpr int64_t most_x = (int64_t(1) << 31) - 1, most_others = 65535;
  STD_TORCH_CHECK(x <= most_x && y <= most_others && z <= most_others, op, ": the call has ", x,
                  " x ", y, " x ", z, " ", items, "; the cuda backend takes at most ", most_x,
                  " x ", most_others, " x ", most_others);
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

// Calls `function` with the one of `values` that equals `value`, as a std::integral_constant.
template <int... values, typename Function>
void with_constant(const char* op, int value, const Function& function) {
  const bool compiled =
      ((value == values && (function(std::integral_constant<int, values>()), true)) || ...);
  STD_TORCH_CHECK(compiled, op, ": no kernel was compiled for ", value, " warps or tiles");
}

// Where kernels of one operator call go.
struct Queue {
  explicit Queue(const torch::stable::Tensor& tensor)
      : device(tensor.get_device_index()),
        limits(device_limits(device)),
        stream(current_stream(tensor)) {}

  // Launches without the <<<>>> syntax, and throws if the launch is refused.
  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
              Arguments... arguments) const {
    if (shared_bytes > shared_without_consent || preferred_carveout() >= 0) {
      prepare_kernel(reinterpret_cast<const void*>(kernel), device, shared_bytes);
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    cudaLaunchAttribute attribute = {};
    if (limits.capability >= 90 && dependent_launch()) {
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
      config.attrs = &attribute;
      config.numAttrs = 1;
    }
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  }

  int device;
  DeviceLimits limits;
  cudaStream_t stream;
};

}  // namespace fassd::cuda
