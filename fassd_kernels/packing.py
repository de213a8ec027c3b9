"""Weights in the form that the kernels need: batch norm folded, laid out for vector loads.

A packed weight is still an O x I x kH x kW tensor, so every operator and the reference take it;
only its strides differ: output channels are adjacent, in the order of the kernels' registers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """The type to fold in: float64, except on devices that lack it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def batch_norm_affine(bn: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift, C values each, that an eval-mode batch norm applies: ``x * scale + shift``.

    Computed in float64; differentiable with respect to the batch norm's weight and bias.
    """
    exact = exact_dtype(bn.running_mean)
    scale = torch.rsqrt(bn.running_var.to(exact) + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight.to(exact)
    shift = -bn.running_mean.to(exact) * scale
    if bn.bias is not None:
        shift = shift + bn.bias.to(exact)
    return scale, shift


def fold(conv: Any, bn: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution with its batch norm folded in, as `dtype`."""
    weight, bias = conv.weight, conv.bias
    if bn is None:
        return outputs_adjacent(weight.to(dtype)), None if bias is None else bias.to(dtype)
    scale, shift = batch_norm_affine(bn)
    weight = weight.to(scale.dtype) * scale[:, None, None, None]
    if bias is not None:
        shift = shift + bias.to(scale.dtype) * scale
    return outputs_adjacent(weight.to(dtype)), shift.to(dtype)


def outputs_adjacent(weight: Tensor) -> Tensor:
    """The same O x I x kH x kW weight, its output channels adjacent in memory (kH, kW, I, O)."""
    return weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)


def is_foldable(bn: Any) -> bool:
    """True if a batch norm uses running statistics; only those can be folded."""
    return not bn.training and bn.running_mean is not None
