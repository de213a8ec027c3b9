#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>

#include "image.cuh"
#include "ptx.cuh"

namespace fassd::cuda {

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
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

int preferred_carveout() {
  static const int percent = [] {
    const char* text = std::getenv("FASSD_KERNELS_CARVEOUT");
    if (text == nullptr || *text == '\0') {
      return -1;
    }
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    STD_TORCH_CHECK(*end == '\0' && value >= 0 && value <= 100, "FASSD_KERNELS_CARVEOUT is '", text,
                    "'; expected a percentage, 0 to 100");
    return static_cast<int>(value);
  }();
  return percent;
}

void prepare_kernel(const void* kernel, int device, size_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int>, size_t> allowed;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = allowed.try_emplace({kernel, device}, shared_without_consent);
  if (is_new && preferred_carveout() >= 0) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                        preferred_carveout()));
  }
  if (shared_bytes > entry->second) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_bytes)));
    entry->second = shared_bytes;
  }
}

int position_count(const char* op, int64_t size) {
  STD_TORCH_CHECK(size <= most_positions, op, ": an axis is too large: ", size,
                  "; the cuda backend takes at most ", most_positions);
  return static_cast<int>(size);
}

namespace {

// Whether the distance of pixels, in bytes, is a number of 32 bits: `bytes`.
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
  source.stride_c = tensor.size(1) > 1 ? tensor.stride(1) : 0;  // else any number, even 2^62
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
  // Where the last pixel's last vector ends, and the memory.
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
  const int64_t size = tensor.element_size(), elements = 16 / size;
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
  target.vectors = regular && aligned(16) && target.lanes % elements == 0;
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
