// The vector kernels, written once and compiled once per instruction set. The parts, bottom up:
//
//     vectors_impl.h       loads, stores, dtypes, transposition
//     rows_impl.h          rows of images to planes in scratch memory
//     finish_impl.h        sums back to pixels
//     finish_bytes_impl.h  the same to bytes, packed
//     multiply_impl.h      the product of weights and planes, in registers
//     direct_impl.h        direct convolution
//     winograd_impl.h      convolution by Winograd's method
//     tile_products_impl.h products of tiles
//     tile_rows_impl.h     rows of images to columns of tiles
//     tiles_impl.h         convolution of bfloat16 and of bytes by products of tiles
//     convolution_impl.h   one convolution, by any of them
//     resize_impl.h        conversion, bilinear resizing, argmax, pooling
//     bytes_impl.h         quantisation, resizing and sums of images of bytes
//     depthwise_impl.h     depthwise convolution
//     norm_impl.h          batch norm with an activation, and its gradient
//     loss_impl.h          cross entropy of pixels, and its gradient

// No include guard: a translation unit includes this once, with its macros set. Everything here is
// local to it, and nothing of the standard library that could be shared with other translation
// units is instantiated here, lest the linker keep a copy that needs AVX-512.

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of the undefined lanes in its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace fassd::cpu::FASSD_INSTRUCTION_SET {
namespace {

#include "vectors_impl.h"
//
#include "rows_impl.h"
//
#include "finish_impl.h"
//
#include "finish_bytes_impl.h"
//
#include "multiply_impl.h"
//
#include "direct_impl.h"
//
#include "winograd_impl.h"
//
#include "tile_products_impl.h"
//
#include "tile_rows_impl.h"
//
#include "tiles_impl.h"
//
#include "convolution_impl.h"
//
#include "resize_impl.h"
//
#include "bytes_impl.h"
//
#include "depthwise_impl.h"

//
#include "norm_impl.h"
//
#include "loss_impl.h"

template <typename T, typename Tiles, typename Bytes = TileEmulation<uint8_t>>
constexpr Kernels<T> table = {lanes<T>,
                              tile_outputs,
                              !std::is_void_v<Tiles>,
                              conv_scratch<T>,
                              conv<T, Tiles, Bytes>,
                              depthwise<T>,
                              interpolate<T>,
                              blend_bytes<T>,
                              resize_to_bytes<T>,
                              argmax_row<T>,
                              confidence_row<T>,
                              row_to_planes<T>,
                              blend<T>,
                              pool_rows<T>,
                              max_pool<T>,
                              load<T>,
                              store<T>,
                              quantize<T>,
                              weighted_sum<T>,
                              sum_values<T>,
                              sum_squares<T>,
                              normalize_row<T>,
                              sum_gradients<T>,
                              norm_gradient<T>,
                              add_scaled<T>,
                              spread_row<T>,
                              pixel_losses<T>,
                              pixel_gradients<T>};

}  // namespace

const Kernels<float> float_kernels = table<float, void>;
const Kernels<double> double_kernels = table<double, void>;
#if defined(FASSD_AVX512)
const Kernels<float> vector_kernels = table<float, void, ByteVectors>;
#endif
#if defined(FASSD_TILES)
const Kernels<float> tile_kernels = table<float, FASSD_TILES>;
#endif

}  // namespace fassd::cpu::FASSD_INSTRUCTION_SET
