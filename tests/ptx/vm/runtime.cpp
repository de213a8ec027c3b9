// What a host program is linked against: the CUDA runtime, the driver's tensor maps, and those
// parts of PyTorch that a build without CUDA lacks. Nothing here is more than kernels here need.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "memory.h"

using namespace ptx;

namespace {

// The host's function that stands for a kernel.
struct Stub {
  std::string name;
  size_t most_shared = 48 * 1024;
  int carveout = -1;
};
std::map<const void*, Stub> stubs;
uint64_t attributes_set = 0, dependent_launches = 0;
bool failed_late = false;  // in what went on after its launch

// Runs `act`; a failed launch, whatever it is that goes wrong.
template <typename Act>
cudaError_t attempt(Act act) {
  return succeeds(act) ? cudaSuccess : cudaErrorLaunchFailure;
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
  stubs[stub].name = name;
}
// Of launches by <<< >>>, which no kernel here is begun with.
EXPORTED cudaError_t __cudaPopCallConfiguration() {
  return cudaErrorUnknown;
}
EXPORTED cudaError_t __cudaGetKernel() {
  return cudaErrorUnknown;
}
EXPORTED cudaError_t __cudaLaunchKernel() {
  return cudaErrorUnknown;
}

EXPORTED cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                         void** arguments) {
  return attempt([&] {
    const auto found = stubs.find(function);
    fault_if(found == stubs.end(), "a kernel that was never registered");
    Kernel& kernel = kernel_named(found->second.name);
    Grid grid;
    grid.size = {config->gridDim.x, config->gridDim.y, config->gridDim.z};
    grid.threads = {config->blockDim.x, config->blockDim.y, config->blockDim.z};
    grid.dynamic_shared = uint32_t(config->dynamicSmemBytes);
    for (unsigned k = 0; k < config->numAttrs; ++k) {
      const cudaLaunchAttribute& attribute = config->attrs[k];
      fault_if(attribute.id != cudaLaunchAttributeProgrammaticStreamSerialization,
               "launch attribute ", int(attribute.id));
      fault_if(settings.capability < 90, "dependent launches need a capability of 9.0");
      grid.dependent = attribute.val.programmaticStreamSerializationAllowed != 0;
      dependent_launches += grid.dependent;
    }
    const size_t wanted = config->dynamicSmemBytes + kernel.shared_bytes;
    fault_if(wanted > found->second.most_shared, kernel.name, ": ", wanted,
             " bytes of shared memory; allowed are ", found->second.most_shared);
    grid.parameters.assign(kernel.parameter_bytes, 0xEE);
    for (size_t k = 0; k < kernel.parameters.size(); ++k) {
      const Parameter& parameter = kernel.parameters[k];
      std::memcpy(&grid.parameters[parameter.offset], arguments[k], parameter.bytes);
    }
    checked_launch(kernel, std::move(grid));
  });
}
EXPORTED cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute,
                                          int value) {
  return attempt([&] {
    attributes_set += 1;
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
      fault_if(value < 0 || size_t(value) > most_shared_bytes(), value, " bytes of shared memory");
      stubs[stub].most_shared = size_t(value);
    } else {
      fault_if(attribute != cudaFuncAttributePreferredSharedMemoryCarveout || value > 100,
               "attribute ", int(attribute), " of a kernel: ", value);
      stubs[stub].carveout = value;
    }
  });
}
EXPORTED uint64_t ptx_attributes_set() {
  return attributes_set;
}
EXPORTED uint64_t ptx_dependent_launches() {
  return dependent_launches;
}
// Percent; -1 where it was left to the driver.
EXPORTED int ptx_carveout(const char* kernel) {
  for (const auto& [stub, found] : stubs) {
    if (found.name == kernel) {
      return found.carveout;
    }
  }
  return -1;
}
EXPORTED cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int capability = int(settings.capability);
  const std::map<cudaDeviceAttr, int> known = {
      {cudaDevAttrMultiProcessorCount, int(settings.multiprocessors)},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, int(most_shared_bytes())},
      {cudaDevAttrComputeCapabilityMajor, capability / 10},
      {cudaDevAttrComputeCapabilityMinor, capability % 10},
  };
  return attempt([&] { *value = known.at(attribute); });
}
EXPORTED cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return attempt([] { synchronize(); });
}

// ---- tensor maps (CUDA driver API, cuTensorMapEncodeTiled)

EXPORTED CUresult cuTensorMapEncodeTiled(CUtensorMap* into, CUtensorMapDataType type,
                                         cuuint32_t rank, void* address, const cuuint64_t* size,
                                         const cuuint64_t* strides, const cuuint32_t* box,
                                         const cuuint32_t* element_strides,
                                         CUtensorMapInterleave interleave,
                                         CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                         CUtensorMapFloatOOBfill fill) {
  static const std::map<CUtensorMapDataType, uint32_t> kBytes = {
      {CU_TENSOR_MAP_DATA_TYPE_UINT8, 1},   {CU_TENSOR_MAP_DATA_TYPE_UINT16, 2},
      {CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2}, {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2},
      {CU_TENSOR_MAP_DATA_TYPE_UINT32, 4},  {CU_TENSOR_MAP_DATA_TYPE_INT32, 4},
      {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4},
  };
  const auto found = kBytes.find(type);
  if (found == kBytes.end() || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
      fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE || swizzle > CU_TENSOR_MAP_SWIZZLE_128B) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  TensorMap map;
  map.magic = TensorMap::kMagic;
  map.address = reinterpret_cast<uint64_t>(address);
  map.rank = rank;
  map.bytes = found->second;
  map.swizzle = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 0 : 16u << swizzle;
  bool valid =
      rank >= 1 && rank <= 5 && map.address % 16 == 0 && reinterpret_cast<uint64_t>(into) % 64 == 0;
  for (uint32_t d = 0; valid && d < rank; ++d) {
    map.size[d] = uint32_t(size[d]);
    map.box[d] = box[d];
    valid = size[d] > 0 && size[d] <= 1ull << 32 && box[d] > 0 && box[d] <= 256 &&
            element_strides[d] == 1;
    if (d > 0) {
      map.stride[d - 1] = strides[d - 1];
      valid = valid && strides[d - 1] % 16 == 0 && strides[d - 1] < 1ull << 40;
    }
  }
  const uint32_t row = map.box[0] * map.bytes;
  if (!valid || row % 16 || (map.swizzle && row > map.swizzle)) {
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
// An operator has launched all it wants: what it launched has ended when it returns, unless kernels
// shall overlap with those of the next operator.
EXPORTED int32_t aoti_torch_delete_device_guard(void*) {
  if (settings.overlap > 1) {
    return 0;
  }
  if (cudaStreamSynchronize(nullptr) == cudaSuccess && !failed_late) {
    return 0;
  }
  failed_late = false;
  std::fprintf(stderr, "%s\n", last_error.c_str());  // PyTorch ends the process
  return 1;
}
EXPORTED int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
EXPORTED int32_t torch_c10_cuda_check_msg(int32_t result, const char* file, const char*,
                                          uint32_t line, bool, char** message) {
  *message = nullptr;
  if (result != cudaSuccess) {
    *message = strdup(joined("CUDA error: ", last_error, " (", file, ':', line, ')').c_str());
  }
  return 0;
}
EXPORTED void torch_c10_cuda_free_error_msg(char* message) {
  std::free(message);
}

// ---- memory that is watched: what PyTorch allocates on the CPU, if this library is preloaded

extern "C" void* __libc_memalign(size_t, size_t);
extern "C" void __libc_free(void*);

EXPORTED int posix_memalign(void** out, size_t alignment, size_t bytes) noexcept {
  *out = __libc_memalign(alignment, bytes ? bytes : 1);
  if (!*out) {
    return 12;  // ENOMEM
  }
  constexpr size_t kMostFilled = size_t(1) << 28;
  std::memset(*out, 0xFF, bytes < kMostFilled ? bytes : 0);  // NaNs
  add_allocation(reinterpret_cast<uint64_t>(*out), bytes);
  return 0;
}
EXPORTED void free(void* memory) noexcept {
  static thread_local bool inside = false;  // drop_allocation frees memory of its own
  const uint64_t address = reinterpret_cast<uint64_t>(memory);
  if (memory && address % 64 == 0 && !inside) {
    inside = true;
    if (is_allocation(address)) {
      if (settings.overlap > 1) {  // it stays, for kernels that have not ended
        inside = false;
        return;
      }
      failed_late |= cudaStreamSynchronize(nullptr) != cudaSuccess;  // it may be in use still
      drop_allocation(address);
    }
    inside = false;
  }
  __libc_free(memory);
}
