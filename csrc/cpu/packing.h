// Convolution weights in the order in which the product reads them.
//
// For each block of output channels (for_output_blocks in multiply_impl.h):
//     direct:    [tap][input channel][output channel of the block]
//     Winograd:  [16 or 36 values of G g G^T][input channel][output channel of the block]
//     of lines:  [6 values of G g][input channel][output channel of the block], then all blocks
//                directly
// and for products of tiles, in tiles of 64 bytes of terms by 16 output channels.
//
// Packing costs as much as reading the weights a few times: little for a large picture, a fifth of
// the time for a small one. So the operator `pack_weight` gives packed weights as a tensor, that
// the other operators take beside the plain weight.

#pragma once

#include "kernels.h"
#include "memory.h"

namespace fassd::cpu {

// How a convolution with such a weight is computed in T.
template <typename T>
Method method_for(const Tensor& weight, const Integers& stride, const Integers& dilation);

// `weight` packed for `method`, behind a header that tells for what; directly, where a value of
// another method's is not finite.
template <typename T>
Tensor pack(const Tensor& weight, Method method);

// A convolution's weights: those that were packed before, or packed now.
template <typename T>
class Weights {
 public:
  // `packed`: what `pack_weight` gave for this weight, stride and dilation, or nothing. Throws
  // where it is for another weight; for another instruction set, it is packed again.
  Weights(const char* op, const Tensor& weight, const OptionalTensor& packed,
          const Integers& stride = {1, 1}, const Integers& dilation = {1, 1});
  Weights(const Weights&) = delete;
  // A convolution of `count` inputs to a result of `height` rows and `width` columns, without an
  // epilogue; the caller sets where it writes.
  Conv<T> convolution(const Image* inputs, int64_t count, int64_t height, int64_t width) const;

 private:
  static const T* direct(const void* self);

  Tensor weight_, packed_;
  Integers stride_, dilation_;
  Method method_;
  struct Direct;
  std::shared_ptr<Direct> direct_;
};

}  // namespace fassd::cpu
