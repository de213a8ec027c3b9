// Launching kernels: on PyTorch's current stream, on the tensor's own device.

#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <type_traits>

#include "../plan/memo.h"

namespace fassd::cuda {

DeviceLimits device_limits(int device);

// Dynamic shared memory of a block, and the blocks per multiprocessor that the plan assumes; 0 if
// it does not.
struct SharedMemory {
  SharedMemory(int64_t bytes, int resident = 0) : bytes(bytes), resident(resident) {}

  int64_t bytes;
  int resident;
};

// True if overlapping kernels are known to be correct on a device: once the "dependent" part of a
// GPU's report (benchmarks/results) has passed there. On an executor of PTX they are.
constexpr bool dependent_launch_was_shown = false;

// True if kernels overlap with the end of those before them (programmatic dependent launch, sm_90
// and later). Every kernel of this backend waits for its predecessors before it touches memory, so
// results do not depend on it. The environment variable FASSD_KERNELS_DEPENDENT_LAUNCH, 1 or 0,
// decides; without it, the function above does.
bool dependent_launch();

// Sets the attributes that launches of `kernel` need: the shared memory of a block, and the part of
// a multiprocessor's cache that is shared memory, which is what the resident blocks need, or the
// value of the environment variable FASSD_KERNELS_CARVEOUT: a percentage, or "driver" for the
// driver's choice. Both only grow, so that a kernel is set up once for its largest plan: later, and
// while a graph is captured, this is a lookup.
void prepare_kernel(const void* kernel, int device, const DeviceLimits& limits,
                    const SharedMemory& shared);

constexpr int64_t shared_without_consent = 48 * 1024;  // bytes that every kernel may ask for

inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// A grid of that many blocks, which a kernel calls `items`; throws if it is too large for a GPU.
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

// The queue for the kernels of one operator call.
struct Queue {
  explicit Queue(const torch::stable::Tensor& tensor)
      : device(tensor.get_device_index()),
        limits(device_limits(device)),
        stream(current_stream(tensor)) {}

  // Launches without the <<<>>> syntax, and throws if the launch is refused.
  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, SharedMemory shared,
              Arguments... arguments) const {
    if (shared.resident > 0 || shared.bytes > shared_without_consent) {
      prepare_kernel(reinterpret_cast<const void*>(kernel), device, limits, shared);
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = static_cast<size_t>(shared.bytes);
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
