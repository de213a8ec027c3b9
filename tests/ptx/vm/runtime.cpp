// What a host program is linked against: the CUDA runtime, the driver's tensor maps, and those
// parts of PyTorch that a build without CUDA lacks. Nothing here is more than kernels here need.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "api.h"
#include "async.h"
#include "memory.h"

using namespace ptx;

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

std::map<const void*, std::string>& stubs() {
  static auto* all = new std::map<const void*, std::string>;
  return *all;
}
std::map<const void*, size_t>& allowed_shared() {
  static auto* all = new std::map<const void*, size_t>;
  return *all;
}
cudaError_t last_result = cudaSuccess;
bool failed_late = false;  // in what went on after its launch

cudaError_t failed(cudaError_t result, const std::string& why) {
  last_error() = why;
  return last_result = result;
}

cudaError_t run(const void* stub, dim3 grid, dim3 block, size_t shared, void** arguments,
                bool dependent) {
  const auto found = stubs().find(stub);
  if (found == stubs().end()) {
    return failed(cudaErrorInvalidDeviceFunction, "a kernel that was never registered");
  }
  try {
    const Kernel& kernel = kernel_named(found->second);
    const auto consent = allowed_shared().find(stub);
    const size_t most = consent == allowed_shared().end() ? 48 * 1024 : consent->second;
    if (shared + kernel.shared_bytes > most) {
      return failed(cudaErrorInvalidValue, kernel.name + ": " +
                                               std::to_string(shared + kernel.shared_bytes) +
                                               " bytes of shared memory; allowed are " +
                                               std::to_string(most));
    }
    std::vector<uint8_t> parameters(kernel.parameter_bytes, 0xEE);
    for (size_t k = 0; k < kernel.parameters.size(); ++k) {
      std::memcpy(&parameters[kernel.parameters[k].offset], arguments[k],
                  kernel.parameters[k].bytes);
    }
    checked_launch(kernel, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared,
                   std::move(parameters), dependent);
    return cudaSuccess;
  } catch (const std::exception& error) {
    return failed(cudaErrorLaunchFailure, error.what());
  }
}

}  // namespace

EXPORTED void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
EXPORTED void __cudaRegisterFatBinaryEnd(void**) {}
EXPORTED void __cudaUnregisterFatBinary(void**) {}
EXPORTED void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORTED void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, void*,
                                     void*, void*, void*, int*) {
  stubs()[stub] = name;
}
EXPORTED cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) {
  return cudaErrorUnknown;
}
EXPORTED unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return 0; }
EXPORTED cudaError_t __cudaGetKernel(void**, const void*) { return cudaErrorUnknown; }
EXPORTED cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, void*) {
  return cudaErrorUnknown;
}

EXPORTED cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub,
                                         void** arguments) {
  bool dependent = false;
  for (unsigned k = 0; k < config->numAttrs; ++k) {
    const cudaLaunchAttribute& attribute = config->attrs[k];
    if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      if (settings().capability < 90) {
        return failed(cudaErrorNotSupported, "dependent launches need a capability of 9.0");
      }
      dependent = attribute.val.programmaticStreamSerializationAllowed != 0;
    } else {
      return failed(cudaErrorNotSupported,
                    "launch attribute " + std::to_string(int(attribute.id)));
    }
  }
  return run(stub, config->gridDim, config->blockDim, config->dynamicSmemBytes, arguments,
             dependent);
}
EXPORTED cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** arguments,
                                      size_t shared, cudaStream_t) {
  return run(stub, grid, block, shared, arguments, false);
}
EXPORTED cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute,
                                          int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || size_t(value) > most_shared_bytes(settings().capability)) {
      return failed(cudaErrorInvalidValue, std::to_string(value) + " bytes of shared memory");
    }
    allowed_shared()[stub] = size_t(value);
  }
  return cudaSuccess;
}
EXPORTED cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int capability = settings().capability;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = settings().multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = int(most_shared_bytes(capability));
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = capability / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = capability % 10;
      return cudaSuccess;
    default:
      return failed(cudaErrorInvalidValue, "attribute " + std::to_string(int(attribute)));
  }
}
EXPORTED const char* cudaGetErrorString(cudaError_t result) {
  return result == cudaSuccess ? "no error" : last_error().c_str();
}
EXPORTED cudaError_t cudaGetLastError() {
  const cudaError_t result = last_result;
  last_result = cudaSuccess;
  return result;
}
EXPORTED cudaError_t cudaPeekAtLastError() { return last_result; }
EXPORTED cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
EXPORTED cudaError_t cudaSetDevice(int) { return cudaSuccess; }
EXPORTED cudaError_t cudaStreamSynchronize(cudaStream_t) {
  try {
    synchronize();
    return cudaSuccess;
  } catch (const std::exception& error) {
    return failed(cudaErrorLaunchFailure, error.what());
  }
}

// ---- tensor maps (CUDA driver API, cuTensorMapEncodeTiled)

EXPORTED CUresult cuTensorMapEncodeTiled(CUtensorMap* into, CUtensorMapDataType type,
                                         cuuint32_t rank, void* address, const cuuint64_t* size,
                                         const cuuint64_t* strides, const cuuint32_t* box,
                                         const cuuint32_t* element_strides,
                                         CUtensorMapInterleave interleave,
                                         CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                         CUtensorMapFloatOOBfill fill) {
  TensorMap map;
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      map.bytes = 1;
      break;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      map.bytes = 2;
      break;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
      map.bytes = 4;
      break;
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
  const auto is_multiple = [](uint64_t value, uint64_t of) { return value % of == 0; };
  map.magic = TensorMap::kMagic;
  map.address = reinterpret_cast<uint64_t>(address);
  map.rank = rank;
  map.swizzle = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE   ? 0
                : swizzle == CU_TENSOR_MAP_SWIZZLE_32B  ? 32
                : swizzle == CU_TENSOR_MAP_SWIZZLE_64B  ? 64
                                                        : 128;
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE ||
      swizzle > CU_TENSOR_MAP_SWIZZLE_128B) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  if (rank < 1 || rank > 5 || !is_multiple(map.address, 16) ||
      !is_multiple(reinterpret_cast<uint64_t>(into), 64)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (uint32_t d = 0; d < rank; ++d) {
    if (size[d] == 0 || size[d] > 1ull << 32 || box[d] == 0 || box[d] > 256 ||
        element_strides[d] != 1) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    map.size[d] = uint32_t(size[d]);
    map.box[d] = box[d];
    if (d > 0) {
      if (!is_multiple(strides[d - 1], 16) || strides[d - 1] >= 1ull << 40) {
        return CUDA_ERROR_INVALID_VALUE;
      }
      map.stride[d - 1] = strides[d - 1];
    }
  }
  const uint32_t row = box[0] * map.bytes;
  if (!is_multiple(row, 16) || (map.swizzle && row > map.swizzle)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::memset(into, 0, sizeof *into);
  std::memcpy(into, &map, sizeof map);
  return CUDA_SUCCESS;
}
EXPORTED cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned,
                                                      unsigned long long,
                                                      cudaDriverEntryPointQueryResult* status) {
  const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *entry = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  if (status) {
    *status = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  }
  return cudaSuccess;
}

// ---- of PyTorch's stable interface: one device, one stream, messages of errors. (Its types are
// pointers and integers, so that no header of PyTorch is needed.)

EXPORTED int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
// An operator has launched all it wants: what it launched has ended when it returns.
EXPORTED int32_t aoti_torch_delete_device_guard(void*) {
  if (cudaStreamSynchronize(nullptr) == cudaSuccess && !failed_late) {
    return 0;
  }
  failed_late = false;
  std::fprintf(stderr, "%s\n", last_error().c_str());  // PyTorch ends the process
  return 1;
}
EXPORTED int32_t aoti_torch_get_current_device_index(int32_t* index) {
  *index = 0;
  return 0;
}
EXPORTED int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
EXPORTED int32_t torch_c10_cuda_check_msg(int32_t result, const char* file, const char*,
                                          uint32_t line, bool, char** message) {
  *message = nullptr;
  if (result != cudaSuccess) {
    const std::string text = "CUDA error: " + last_error() + " (" + file + ":" +
                             std::to_string(line) + ")";
    *message = strdup(text.c_str());
  }
  return 0;
}
EXPORTED void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }

// ---- memory that is watched: what PyTorch allocates on the CPU, if this library is preloaded

extern "C" void* __libc_memalign(size_t, size_t);
extern "C" void __libc_free(void*);

EXPORTED int posix_memalign(void** out, size_t alignment, size_t bytes) noexcept {
  void* memory = __libc_memalign(alignment, bytes ? bytes : 1);
  if (!memory) {
    return 12;  // ENOMEM
  }
  constexpr size_t kMostFilled = size_t(1) << 28;
  if (bytes < kMostFilled) {
    std::memset(memory, 0xFF, bytes);  // NaNs
  }
  add_allocation(reinterpret_cast<uint64_t>(memory), bytes);
  *out = memory;
  return 0;
}
EXPORTED void free(void* memory) noexcept {
  static thread_local bool inside = false;
  if (memory && (reinterpret_cast<uint64_t>(memory) & 63) == 0 && !inside) {
    inside = true;
    const auto address = reinterpret_cast<uint64_t>(memory);
    if (is_allocation(address)) {
      failed_late |= cudaStreamSynchronize(nullptr) != cudaSuccess;  // it may be in use still
      drop_allocation(address);
    }
    inside = false;
  }
  __libc_free(memory);
}
