#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "image.cuh"
#include "ptx.cuh"

namespace fassd::cuda {

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

std::string variable(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

constexpr int drivers_carveout = -1;

// Percentage of a multiprocessor's cache for shared memory: at least what the resident blocks need,
// each with the 1024 bytes that the system reserves and that one block's limit does not include.
int carveout_for(const SharedMemory& shared, const DeviceLimits& limits) {
  static const std::optional<int> asked = []() -> std::optional<int> {
    const std::string text = variable("FASSD_KERNELS_CARVEOUT");
    if (text.empty() || text == "driver") {
      return text.empty() ? std::nullopt : std::optional<int>(drivers_carveout);
    }
    char* end = nullptr;
    const long value = std::strtol(text.c_str(), &end, 10);
    STD_TORCH_CHECK(*end == '\0' && value >= 0 && value <= 100, "FASSD_KERNELS_CARVEOUT is '", text,
                    "'; expected a percentage, 0 to 100, or driver");
    return static_cast<int>(value);
  }();
  if (asked || shared.resident == 0) {
    return asked.value_or(drivers_carveout);
  }
  constexpr int64_t taken = 1024;
  const int64_t percent =
      divide_up(100 * shared.resident * (shared.bytes + taken), limits.shared_bytes + taken);
  return static_cast<int>(std::min<int64_t>(percent, 100));
}

}  // namespace

DeviceLimits device_limits(int device) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) {
    return found->second;
  }
  const DeviceLimits limits = {
      attribute(cudaDevAttrMultiProcessorCount, device),
      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
      attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 +
          attribute(cudaDevAttrComputeCapabilityMinor, device),
  };
  known[device] = limits;
  return limits;
}

bool dependent_launch() {
  static const bool chosen = [] {
    const std::string text = variable("FASSD_KERNELS_DEPENDENT_LAUNCH");
    STD_TORCH_CHECK(text.empty() || text == "0" || text == "1",
                    "FASSD_KERNELS_DEPENDENT_LAUNCH is '", text, "'; expected 0 or 1");
    return text.empty() ? dependent_launch_was_shown : text == "1";
  }();
  return chosen;
}

void prepare_kernel(const void* kernel, int device, const DeviceLimits& limits,
                    const SharedMemory& shared) {
  struct Prepared {
    int64_t shared_bytes = shared_without_consent;
    int carveout = -1;
  };
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, Prepared> kernels;
  const std::lock_guard<std::mutex> lock(mutex);
  Prepared& prepared = kernels[{kernel, device}];
  const auto grow = [&](auto& known, auto wanted, cudaFuncAttribute attribute) {
    if (wanted > known) {
      STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, attribute, static_cast<int>(wanted)));
      known = wanted;
    }
  };
  grow(prepared.shared_bytes, shared.bytes, cudaFuncAttributeMaxDynamicSharedMemorySize);
  grow(prepared.carveout, carveout_for(shared, limits),
       cudaFuncAttributePreferredSharedMemoryCarveout);
}

int position_count(const char* op, int64_t size) {
  STD_TORCH_CHECK(size <= most_positions, op, ": an axis is too large: ", size,
                  "; the cuda backend takes at most ", most_positions);
  return static_cast<int>(size);
}

namespace {

// Returns true if the distance of pixels, in bytes, fits into 32 bits: `bytes`.
bool pixel_bytes(int64_t stride, int64_t element_size, uint32_t& bytes) {
  const bool fits = stride >= 0 && stride <= int64_t(UINT32_MAX) / element_size;
  bytes = fits ? static_cast<uint32_t>(stride * element_size) : 0;
  return fits;
}

}  // namespace

Source source_of(const char* op, const Tensor& tensor, int64_t first, int64_t channels) {
  const int64_t elements = 16 / int64_t(tensor.element_size());
  Source source;
  source.data = static_cast<const char*>(tensor.const_data_ptr()) +
                first * tensor.stride(1) * int64_t(tensor.element_size());
  source.stride_n = tensor.size(0) > 1 ? tensor.stride(0) : 0;
  source.stride_c = tensor.size(1) > 1 ? tensor.stride(1) : 0;  // otherwise any number, even 2^62
  source.stride_h = tensor.size(2) > 1 ? tensor.stride(2) : 0;
  source.stride_w = tensor.size(3) > 1 ? tensor.stride(3) : source.stride_h;
  source.height = position_count(op, tensor.size(2));
  source.width = position_count(op, tensor.size(3));
  source.channels = position_count(op, channels < 0 ? tensor.size(1) : channels);
  STD_TORCH_CHECK(int64_t(source.height) * source.width <= most_pixels, op,
                  ": a picture has too many pixels: ", source.height, " x ", source.width,
                  "; the cuda backend takes at most ", most_pixels);
  source.vectors = (source.channels <= 1 || source.stride_c == 1) &&
                   reinterpret_cast<uintptr_t>(source.data) % 16 == 0 &&
                   source.stride_n % elements == 0 && source.stride_w % elements == 0 &&
                   (source.height <= 1 || source.stride_h == source.width * source.stride_w) &&
                   pixel_bytes(source.stride_w, tensor.element_size(), source.pixel_bytes);
  // The end of the last pixel's last vector, and that of the memory.
  int64_t held = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &held));
  const int64_t end = tensor.storage_offset() + first * source.stride_c +
                      (tensor.size(0) - 1) * source.stride_n +
                      (source.height - 1) * source.stride_h + (source.width - 1) * source.stride_w +
                      round_up(source.channels, lanes);
  source.whole = source.vectors && end * tensor.element_size() <= held;
  return source;
}

Target target_of(const Tensor& tensor) {
  return target_of(tensor, 0, round_up(tensor.size(1), lanes));
}

Target target_of(const Tensor& tensor, int64_t first, int64_t last) {
  const int64_t size = tensor.element_size();
  Target target;
  target.data = static_cast<char*>(tensor.mutable_data_ptr()) + first * size;
  target.stride_n = tensor.stride(0);
  target.stride_h = tensor.stride(2);
  target.stride_w = tensor.stride(3);
  target.lanes = position_count("a result", last - first);
  const bool regular = target.stride_h == tensor.size(3) * target.stride_w &&
                       pixel_bytes(target.stride_w, size, target.pixel_bytes);
  const auto aligned = [&](int64_t bytes) {
    return reinterpret_cast<uintptr_t>(target.data) % bytes == 0 &&
           target.stride_n * size % bytes == 0 && target.stride_w * size % bytes == 0;
  };
  target.vectors = regular && aligned(16) && target.lanes % lanes == 0;
  target.pairs = regular && size == 2 && aligned(4) && target.lanes % 2 == 0;
  return target;
}

namespace {

bool is_whole(const Tensor& vector) {
  int64_t held = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(vector.get(), &held));
  const int64_t end = vector.storage_offset() + round_up(vector.numel(), lanes);
  return vector.is_contiguous() && end * int64_t(vector.element_size()) <= held &&
         reinterpret_cast<uintptr_t>(vector.const_data_ptr()) % 16 == 0;
}

Tensor whole_copy(const Tensor& vector) {
  const Tensor whole =
      torch::stable::empty({round_up(vector.numel(), lanes)}, vector.scalar_type(), std::nullopt,
                           vector.device(), std::nullopt, std::nullopt);
  Tensor copy = torch::stable::narrow(const_cast<Tensor&>(whole), 0, 0, vector.numel());
  torch::stable::copy_(copy, vector);
  return copy;
}

}  // namespace

Tensor empty_image(const Tensor& like, const ImageSize& size) {
  ImageSize whole = size;
  whole.channels = round_up(size.channels, lanes);
  Tensor image =
      torch::stable::empty(whole.sizes(), like.scalar_type(), std::nullopt, like.device(),
                           std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  return whole.channels == size.channels ? image
                                         : torch::stable::narrow(image, 1, 0, size.channels);
}

Vectors::Vectors(const std::vector<OptionalTensor>& tensors) {
  for (const OptionalTensor& tensor : tensors) {
    if (tensor.has_value()) {
      kept_.push_back(is_whole(*tensor) ? *tensor : whole_copy(*tensor));
    }
    data_.push_back(tensor.has_value() ? kept_.back().const_data_ptr() : nullptr);
  }
}

Vectors::Vectors(const Tensors& tensors)
    : Vectors(std::vector<OptionalTensor>(tensors.begin(), tensors.end())) {}

}  // namespace fassd::cuda
