// Cross entropy of pixels, and its gradient, that read the logits once where they lie.

#pragma once

#include "../schema.h"

namespace fassd::cpu {

// Logits are N x C x H x W, floating and channels_last, labels N x H x W of int64: a class, C + n
// for the classes that row n of `groups`, bool G x C, allows, or `ignored`.
//
// Returns the losses, N x H x W in float32 (float64 for float64); 0 where they are ignored.
Tensor pixel_losses(const Tensor& logits, const Tensor& labels, const Tensor& groups,
                    int64_t ignored);

// Returns the gradient of the logits, channels_last; `gradient` is dense, of the losses' type.
Tensor pixel_losses_backward(const Tensor& gradient, const Tensor& logits, const Tensor& labels,
                             const Tensor& groups, int64_t ignored);

}  // namespace fassd::cpu
