// What the extension asks of PyTorch, of its C interface: tensors, lists, strings, registration.
// So the extension's own objects are linked to a program that has no PyTorch, statically, for a
// machine that it is emulated on.

#include "libtorch.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <new>
#include <stdexcept>

namespace libtorch {

namespace {

std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> registered;
  return registered;
}

StableIValue as_value(const void* pointer) {
  return reinterpret_cast<StableIValue>(pointer);
}

// Strides of a dense tensor, its axes in this order in memory.
std::vector<int64_t> dense(const std::vector<int64_t>& sizes, const std::vector<size_t>& order) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = order.size(); i-- > 0;) {
    strides[order[i]] = step;
    step *= sizes[order[i]] > 1 ? sizes[order[i]] : 1;
  }
  return strides;
}

AtenTensorHandle empty(std::vector<int64_t> sizes, std::vector<int64_t> strides, int32_t dtype) {
  auto* const made = new AtenTensorOpaque;
  made->sizes = std::move(sizes);
  made->strides = std::move(strides);
  made->dtype = dtype;
  made->storage = std::make_shared<Storage>(made->numel() * element_size(dtype));
  return made;
}

// aten::empty.memory_format(size, dtype, layout, device, pin_memory, memory_format).
void call_empty(StableIValue* stack) {
  auto* const list = reinterpret_cast<StableListHandle>(stack[0]);
  const std::vector<int64_t> sizes(list->items.begin(), list->items.end());
  delete list;
  int64_t options[5];
  for (int i = 0; i < 5; i++) {
    auto* const given = reinterpret_cast<StableIValue*>(stack[1 + i]);
    options[i] = given ? int64_t(int32_t(*given)) : -1;
    delete given;
  }
  const bool last = options[4] == aoti_torch_memory_format_channels_last();
  std::vector<size_t> order(sizes.size());
  for (size_t i = 0; i < order.size(); i++) {
    order[i] = i;
  }
  if (last) {
    order = {0, 2, 3, 1};
  }
  const int32_t dtype = options[0] < 0 ? int32_t(float32) : int32_t(options[0]);
  stack[0] = as_value(empty(sizes, dense(sizes, order), dtype));
}

// aten::empty_like, of a tensor without gaps.
void call_empty_like(StableIValue* stack) {
  auto* const like = reinterpret_cast<AtenTensorHandle>(stack[0]);
  stack[0] = as_value(empty(like->sizes, like->strides, like->dtype));
  delete like;
}

}  // namespace

Storage::Storage(int64_t bytes) : bytes_(bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
  mapped_ = whole + page;
  base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base_ == MAP_FAILED) {
    throw std::bad_alloc();
  }
  mprotect(static_cast<char*>(base_) + whole, page, PROT_NONE);
  data_ = static_cast<char*>(base_) + whole - bytes;
  std::memset(data_, 0xff, bytes);
}

Storage::Storage(void* data, int64_t bytes, void (*deleter)(void*, void*), void* context)
    : data_(static_cast<char*>(data)), bytes_(bytes), deleter_(deleter), context_(context) {}

Storage::~Storage() {
  if (base_ != nullptr) {
    munmap(base_, mapped_);
  } else if (deleter_ != nullptr) {
    deleter_(data_, context_);
  }
}

int64_t element_size(int32_t dtype) {
  switch (dtype) {
    case uint8:
    case boolean:
      return 1;
    case half:
    case bfloat16:
      return 2;
    case int32:
    case float32:
      return 4;
    default:
      return 8;
  }
}

Kernel kernel(const std::string& name) {
  const auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : found->second;
}

}  // namespace libtorch

int64_t AtenTensorOpaque::numel() const {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    product *= size;
  }
  return product;
}

// --- the interface -------------------------------------------------------------------------------

// Numbers that mean something to the two sides alone.
#define NUMBER(name, value)                \
  extern "C" int32_t aoti_torch_##name() { \
    return value;                          \
  }
NUMBER(dtype_uint8, 0)
NUMBER(dtype_int8, 1)
NUMBER(dtype_int16, 2)
NUMBER(dtype_int32, 3)
NUMBER(dtype_int64, 4)
NUMBER(dtype_float16, 5)
NUMBER(dtype_float32, 6)
NUMBER(dtype_float64, 7)
NUMBER(dtype_complex32, 8)
NUMBER(dtype_complex64, 9)
NUMBER(dtype_complex128, 10)
NUMBER(dtype_bool, 11)
NUMBER(dtype_bfloat16, 15)
NUMBER(dtype_float8_e5m2, 23)
NUMBER(dtype_float8_e4m3fn, 24)
NUMBER(dtype_float8_e5m2fnuz, 25)
NUMBER(dtype_float8_e4m3fnuz, 26)
NUMBER(dtype_uint16, 27)
NUMBER(dtype_uint32, 28)
NUMBER(dtype_uint64, 29)
NUMBER(device_type_cpu, 0)
NUMBER(device_type_cuda, 1)
NUMBER(device_type_xpu, 12)
NUMBER(device_type_mps, 13)
NUMBER(device_type_meta, 14)
NUMBER(device_type_privateuse1, 20)
NUMBER(layout_strided, 0)
NUMBER(layout_sparse_coo, 1)
NUMBER(layout_sparse_csr, 2)
NUMBER(layout__mkldnn, 3)
NUMBER(layout_sparse_csc, 4)
NUMBER(layout_sparse_bsr, 5)
NUMBER(layout_sparse_bsc, 6)
NUMBER(layout_jagged, 7)
NUMBER(memory_format_contiguous_format, 0)
NUMBER(memory_format_preserve_format, 1)
NUMBER(memory_format_channels_last, 2)
NUMBER(memory_format_channels_last_3d, 3)
#undef NUMBER

extern "C" {

int32_t torch_dtype_float8_e8m0fnu() {
  return 44;
}
int32_t torch_dtype_float4_e2m1fn_x2() {
  return 45;
}
uint64_t aoti_torch_abi_version() {
  return TORCH_ABI_VERSION;
}
size_t aoti_torch_dtype_element_size(int32_t dtype) {
  return libtorch::element_size(dtype);
}

// Registration: schemas are Python's affair, and there is one device.
AOTITorchError aoti_torch_library_init_def(const char*, const char*, uint32_t,
                                           TorchLibraryHandle* ret) {
  *ret = nullptr;
  return 0;
}
AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t,
                                            TorchLibraryHandle* ret) {
  *ret = nullptr;
  return 0;
}
AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char*) {
  return 0;
}
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) {
  return 0;
}
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name,
                                  void (*fn)(StableIValue*, uint64_t, uint64_t), uint64_t) {
  libtorch::kernels()[name] = fn;
  return 0;
}

AOTITorchError aoti_torch_new_uninitialized_tensor(AtenTensorHandle* ret) {
  *ret = new AtenTensorOpaque;
  return 0;
}
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle from, AtenTensorHandle* ret) {
  *ret = new AtenTensorOpaque(*from);
  return 0;
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  delete tensor;
  return 0;
}
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* ret) {
  *ret = int64_t(tensor->sizes.size());
  return 0;
}
AOTITorchError aoti_torch_get_numel(AtenTensorHandle tensor, int64_t* ret) {
  *ret = tensor->numel();
  return 0;
}
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** ret) {
  *ret = tensor->sizes.data();
  return 0;
}
AOTITorchError aoti_torch_get_size(AtenTensorHandle tensor, int64_t axis, int64_t* ret) {
  *ret = tensor->sizes.at(axis);
  return 0;
}
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** ret) {
  *ret = tensor->strides.data();
  return 0;
}
AOTITorchError aoti_torch_get_stride(AtenTensorHandle tensor, int64_t axis, int64_t* ret) {
  *ret = tensor->strides.at(axis);
  return 0;
}
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* ret) {
  *ret = tensor->dtype;
  return 0;
}
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* ret) {
  *ret = aoti_torch_device_type_cpu();
  return 0;
}
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* ret) {
  *ret = -1;
  return 0;
}
AOTITorchError aoti_torch_get_storage_offset(AtenTensorHandle tensor, int64_t* ret) {
  *ret = tensor->offset;
  return 0;
}
AOTITorchError aoti_torch_get_storage_size(AtenTensorHandle tensor, int64_t* ret) {
  *ret = tensor->storage->bytes();
  return 0;
}
AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle tensor, bool* ret) {
  int64_t step = 1;
  *ret = true;
  for (size_t i = tensor->sizes.size(); i-- > 0; step *= tensor->sizes[i]) {
    *ret = *ret && (tensor->sizes[i] == 1 || tensor->strides[i] == step);
  }
  return 0;
}
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** ret) {
  *ret = tensor->data();
  return 0;
}
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** ret) {
  *ret = tensor->data();
  return 0;
}
AOTITorchError aoti_torch_aten_narrow(AtenTensorHandle tensor, int64_t dim, int64_t start,
                                      int64_t length, AtenTensorHandle* ret) {
  *ret = new AtenTensorOpaque(*tensor);
  (*ret)->sizes.at(dim) = length;
  (*ret)->offset += start * tensor->strides.at(dim);
  return 0;
}
AOTITorchError torch_from_blob(void* data, int64_t ndim, const int64_t* sizes,
                               const int64_t* strides, int64_t offset, int32_t dtype, int32_t,
                               int32_t, AtenTensorHandle* ret, int32_t, const uint8_t*, int64_t,
                               void (*deleter)(void*, void*), void* context) {
  auto* const made = new AtenTensorOpaque;
  made->sizes.assign(sizes, sizes + ndim);
  made->strides.assign(strides, strides + ndim);
  made->offset = offset;
  made->dtype = dtype;
  const int64_t bytes = made->numel() * libtorch::element_size(dtype);
  made->storage = std::make_shared<libtorch::Storage>(data, bytes, deleter, context);
  *ret = made;
  return 0;
}
AOTITorchError torch_call_dispatcher(const char* name, const char*, StableIValue* stack, uint64_t) {
  if (std::strcmp(name, "aten::empty") == 0) {
    libtorch::call_empty(stack);
  } else if (std::strcmp(name, "aten::empty_like") == 0) {
    libtorch::call_empty_like(stack);
  } else {
    return 1;
  }
  return 0;
}

AOTITorchError torch_new_list_reserve_size(size_t size, StableListHandle* ret) {
  *ret = new StableListOpaque;
  (*ret)->items.reserve(size);
  return 0;
}
AOTITorchError torch_list_size(StableListHandle list, size_t* size) {
  *size = list->items.size();
  return 0;
}
AOTITorchError torch_list_get_item(StableListHandle list, size_t index, StableIValue* element) {
  *element = list->items.at(index);
  return 0;
}
AOTITorchError torch_list_push_back(StableListHandle list, StableIValue element) {
  list->items.push_back(element);
  return 0;
}
AOTITorchError torch_delete_list(StableListHandle list) {
  delete list;
  return 0;
}

AOTITorchError torch_new_string_handle(const char* data, size_t length, StringHandle* handle) {
  *handle = new StringOpaque{std::string(data, length)};
  return 0;
}
AOTITorchError torch_delete_string(StringHandle handle) {
  delete handle;
  return 0;
}
AOTITorchError torch_string_length(StringHandle handle, size_t* length) {
  *length = handle->text.size();
  return 0;
}
AOTITorchError torch_string_c_str(StringHandle handle, const char** data) {
  *data = handle->text.c_str();
  return 0;
}

// Two shares of everything, one after the other, as of two threads.
static uint32_t thread_index = 0;
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc f,
                                  void* context) {
  const int64_t middle = begin + (end - begin + 1) / 2;
  f(begin, middle, context);
  if (middle < end) {
    thread_index = 1;
    try {
      f(middle, end, context);
    } catch (...) {
      thread_index = 0;
      throw;
    }
    thread_index = 0;
  }
  return 0;
}
AOTITorchError torch_get_thread_idx(uint32_t* index) {
  *index = thread_index;
  return 0;
}
AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = 2;
  return 0;
}

}  // extern "C"
