#include <string>

#include "boxes.cuh"

namespace fassd::cuda {

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, without linking against the driver; null if it has none.
Encode encode() {
  static const Encode found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
    STD_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                    cudaEnableDefault, &status));
    return status == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(entry) : nullptr;
  }();
  return found;
}

// Sizes, strides in bytes (except the first, which is one element) and the box's size, for each
// axis, the innermost first.
struct Axes {
  static constexpr int most = 4;
  int count = 0;
  cuuint64_t sizes[most], strides[most];
  cuuint32_t box[most];

  void add(int64_t size, int64_t stride, int64_t in_box) {
    sizes[count] = static_cast<cuuint64_t>(size);
    strides[count] = static_cast<cuuint64_t>(stride);
    box[count++] = static_cast<cuuint32_t>(in_box);
  }
};

// Bytes from pixel to pixel; the engine requires at least 16, even if there is only one pixel.
int64_t pixel_stride(const Source& source) {
  return int64_t(source.width) * source.height > 1 ? source.pixel_bytes : 16;
}

void describe(const Context& context, const void* data, const Axes& axes, CUtensorMap& map) {
  const cuuint32_t steps[Axes::most] = {1, 1, 1, 1};
  const CUtensorMapDataType type =
      context.dtype == ScalarType::Half       ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
      : context.dtype == ScalarType::BFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                              : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  const CUresult result =
      encode()(&map, type, axes.count, const_cast<void*>(data), axes.sizes, axes.strides + 1,
               axes.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
               CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  STD_TORCH_CHECK(result == CUDA_SUCCESS, context.op, ": cuTensorMapEncodeTiled failed with error ",
                  int(result));
}

}  // namespace

bool takes_boxes(const Context& context, const Source& source, int64_t batch) {
  const int64_t row = source.width * pixel_stride(source);
  const int64_t picture = source.stride_n * element_size(context);
  return source.vectors && row > 0 && (batch == 1 || (picture > 0 && picture % row == 0)) &&
         encode() != nullptr;
}

void describe_box(const Context& context, const Source& source, int64_t batch, const Plan& plan,
                  const Axis& rows, const Axis& columns, CUtensorMap& map) {
  const int size = element_size(context);
  const int64_t pixel = pixel_stride(source), row = source.width * pixel;
  Axes axes;
  axes.add(source.channels, size, plan.chunk + slot_padding / size);
  axes.add(source.width, pixel, columns.slots);
  axes.add(source.height, row, plan.boxes > 1 ? rows.pitch : rows.slots);
  axes.add(batch, batch > 1 ? source.stride_n * size : source.height * row, 1);
  describe(context, source.data, axes, map);
}

void describe_box(const Context& context, const Filter& filter, const Taps& taps, const Plan& plan,
                  CUtensorMap& map) {
  const Weight& weight = filter.weight;
  const int size = element_size(context);
  const int64_t row = int64_t(weight.stride) * size;
  Axes axes;
  axes.add(weight.stride, size, weight_row(plan.variant.channels()));
  axes.add(weight.in_channels, row, plan.chunk);
  axes.add(int64_t(filter.kernel_h) * filter.kernel_w, row * weight.in_channels, taps.count);
  describe(context, weight.data, axes, map);
}

}  // namespace fassd::cuda
