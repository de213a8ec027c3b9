// Tensors as this stand-in for PyTorch has them.

#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace libtorch {

// Memory that ends where a page ends that nobody may touch: an access beyond it ends the process.
class Storage {
 public:
  // Filled with NaN (255 for integers). Throws std::bad_alloc.
  explicit Storage(int64_t bytes);
  // Somebody else's, freed by `deleter`.
  Storage(void* data, int64_t bytes, void (*deleter)(void*, void*), void* context);
  ~Storage();
  Storage(const Storage&) = delete;

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  char* data_ = nullptr;
  int64_t bytes_ = 0, mapped_ = 0;
  void* base_ = nullptr;
  void (*deleter_)(void*, void*) = nullptr;
  void* context_ = nullptr;
};

// PyTorch's numbers of dtypes, and the bytes of a value.
enum Dtype : int32_t {
  uint8 = 0,
  int32 = 3,
  int64 = 4,
  half = 5,
  float32 = 6,
  float64 = 7,
  boolean = 11,
  bfloat16 = 15
};
int64_t element_size(int32_t dtype);

using Kernel = void (*)(StableIValue*, uint64_t, uint64_t);
// What an operator was registered with for the CPU; null where there is none of that name.
Kernel kernel(const std::string& name);

}  // namespace libtorch

struct AtenTensorOpaque {
  std::shared_ptr<libtorch::Storage> storage;
  std::vector<int64_t> sizes, strides;
  int64_t offset = 0;
  int32_t dtype = libtorch::float32;

  char* data() const { return storage->data() + offset * libtorch::element_size(dtype); }
  int64_t numel() const;
};

struct StableListOpaque {
  std::vector<StableIValue> items;
};

struct StringOpaque {
  std::string text;
};
