// The runtime's interface: errors, attributes of the emulated device, launches.

#pragma once

#include <cstdlib>
#include <cstring>
#include <map>
#include <tuple>
#include <type_traits>

#include "machine.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorNotSupported = 801
};

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4
};

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrReservedSharedMemoryPerBlock = 111
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};

enum cudaLaunchAttributeID {
  cudaLaunchAttributeIgnore = 0,
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6
};

union cudaLaunchAttributeValue {
  char pad[64];
  int cooperative;
  int programmaticStreamSerializationAllowed;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace fassd::emulation {

constexpr int multiprocessors = 3;
constexpr int threads_per_multiprocessor = 1536;
constexpr int reserved_shared_bytes = 1024;  // of every block
constexpr int shared_bytes_per_multiprocessor = 100 * 1024;
constexpr size_t shared_bytes_by_default = 48 * 1024;
constexpr size_t parameter_bytes = 4096;

// Compute capability times ten: FASSD_EMULATED_CAPABILITY, or 86.
inline int capability() {
  const char* text = std::getenv("FASSD_EMULATED_CAPABILITY");
  const int value = text == nullptr ? 0 : std::atoi(text);
  return value > 0 ? value : 86;
}

// The most that a block may ask for, by compute capability.
inline int shared_bytes_with_consent() {
  const int value = capability();
  return (value < 80                   ? 64
          : value == 80 || value == 87 ? 163
          : value >= 90 && value < 120 ? 227
                                       : 99) *
         1024;
}

// How much dynamic shared memory a kernel has been allowed.
struct Consents {
  std::mutex mutex;
  std::map<const void*, size_t> bytes;
};
inline Consents& consents() {
  static Consents* const all = new Consents;
  return *all;
}
inline size_t allowed_shared_bytes(const void* kernel) {
  Consents& all = consents();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.bytes.find(kernel);
  return found == all.bytes.end() ? shared_bytes_by_default : found->second;
}

inline int blocks_per_multiprocessor(const void* kernel, int threads, size_t shared_bytes) {
  if (threads < 1 || threads > 1024 || shared_bytes > allowed_shared_bytes(kernel)) return 0;
  const int by_shared =
      shared_bytes_per_multiprocessor / (static_cast<int>(shared_bytes) + reserved_shared_bytes);
  const int by_threads = threads_per_multiprocessor / threads;
  const int fewest = by_shared < by_threads ? by_shared : by_threads;
  return fewest < 2 ? fewest : 2;
}

// What CUDA would say to a launch.
inline cudaError_t refusal(const cudaLaunchConfig_t& config, const void* kernel,
                           bool& cooperative) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7FFFFFFFu || grid.y > 65535 ||
      grid.z > 65535 || block.x < 1 || block.y < 1 || block.z < 1 || block.x > 1024 ||
      block.y > 1024 || block.z > 64 || uint64_t(block.x) * block.y * block.z > 1024) {
    return cudaErrorInvalidConfiguration;
  }
  if (config.dynamicSmemBytes > allowed_shared_bytes(kernel)) return cudaErrorInvalidValue;
  cooperative = false;
  for (unsigned i = 0; i < config.numAttrs; i++) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    switch (attribute.id) {
      case cudaLaunchAttributeIgnore:
        break;
      case cudaLaunchAttributeCooperative:
        cooperative = attribute.val.cooperative != 0;
        break;
      case cudaLaunchAttributeProgrammaticStreamSerialization:
        if (attribute.val.programmaticStreamSerializationAllowed != 0 && capability() < 90) {
          return cudaErrorNotSupported;
        }
        break;
      default:
        return cudaErrorInvalidValue;
    }
  }
  if (cooperative) {
    const int fit = blocks_per_multiprocessor(kernel, static_cast<int>(block.x * block.y * block.z),
                                              config.dynamicSmemBytes);
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    if (blocks > uint64_t(multiprocessors) * uint64_t(fit)) {
      return cudaErrorCooperativeLaunchTooLarge;
    }
  }
  return cudaSuccess;
}

// A kernel and its arguments, of which every thread gets a copy.
template <typename... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  std::tuple<std::decay_t<Parameters>...> arguments;
  static void run(const void* self) {
    const Call* call = static_cast<const Call*>(self);
    std::apply(call->kernel, call->arguments);
  }
};

inline cudaError_t last_error = cudaSuccess;

inline cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace fassd::emulation

inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
  }
  return "unrecognized error code";
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorNotSupported:
      return "operation not supported";
  }
  return "unrecognized error code";
}

inline cudaError_t cudaPeekAtLastError() {
  return fassd::emulation::last_error;
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = fassd::emulation::last_error;
  fassd::emulation::last_error = cudaSuccess;
  return error;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int) {
  return cudaSuccess;
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

// A CPU tensor's device is -1; it stands for the emulated one.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  namespace emulation = fassd::emulation;
  if (device < -1 || device > 0) return emulation::remember(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = emulation::shared_bytes_by_default;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = emulation::multiprocessors;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = emulation::threads_per_multiprocessor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = emulation::capability() / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = emulation::capability() % 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = emulation::shared_bytes_per_multiprocessor;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulation::shared_bytes_with_consent();
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = emulation::reserved_shared_bytes;
      break;
    default:
      return emulation::remember(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int value) {
  namespace emulation = fassd::emulation;
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > emulation::shared_bytes_with_consent()) {
      return emulation::remember(cudaErrorInvalidValue);
    }
    emulation::Consents& all = emulation::consents();
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.bytes[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(value);
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, T* kernel, int threads,
                                                          size_t shared_bytes) {
  *blocks = fassd::emulation::blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel),
                                                        threads, shared_bytes);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  namespace emulation = fassd::emulation;
  static_assert((0 + ... + sizeof(Parameters)) <= emulation::parameter_bytes,
                "a kernel's parameters take at most 4 KB");
  static_assert((true && ... && std::is_trivially_copyable_v<Parameters>),
                "a kernel's parameters are copied byte by byte");
  emulation::Launch launch;
  const cudaError_t error =
      emulation::refusal(*config, reinterpret_cast<const void*>(kernel), launch.cooperative);
  if (error != cudaSuccess) return emulation::remember(error);
  const emulation::Call<Parameters...> call = {kernel, {std::forward<Arguments>(arguments)...}};
  launch.body = &emulation::Call<Parameters...>::run;
  launch.arguments = &call;
  launch.grid = config->gridDim;
  launch.block = config->blockDim;
  launch.shared_bytes = config->dynamicSmemBytes;
  launch.capability = emulation::capability();
  emulation::run(launch);
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}
