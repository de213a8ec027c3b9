"""Convolution and resizing of quantised images: bytes of one scale and one zero point.

A quantised image is uint8, with values ``scale * (q - zero)``. Products are summed up exactly; what
follows is computed in float64 here and in float32 by the kernels, whose results may therefore be
one step of the byte away from these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fassd_kernels.reference.conv_act import activate, channels_last, conv_act, same_padding
from fassd_kernels.reference.upsample import upsample


def quantize(input: Tensor, scale: float, zero: int) -> Tensor:
    """Values to the nearest bytes: ``clamp(round(x / scale) + zero, 0, 255)``, halves to even.

    Args:
        input: N x C x H x W image of any floating dtype. NaN becomes `zero`.
        scale: distance of two adjacent bytes' values, finite, above 0.
        zero: byte of the value 0, from 0 to 255.

    Returns:
        N x C x H x W, uint8, channels_last.
    """
    levels = (input.double() / scale).nan_to_num(nan=0.0).round() + zero
    return channels_last(levels.clamp(0, 255).to(torch.uint8))


def dequantize(input: Tensor, scale: float, zero: int) -> Tensor:
    """Bytes to the values that they stand for, in float64."""
    return scale * (input.double() - zero)


def quantized_conv_act(
    inputs: Sequence[Tensor],
    weight: Tensor,
    factor: Tensor,
    bias: Tensor,
    slope: Tensor | None,
    residual: Tensor | None,
    packed: Tensor,
    *,
    zeros: Sequence[int],
    residual_scale: float = 1.0,
    residual_zero: int = 0,
    scale: float = 0.0,
    zero: int = 0,
    dtype: torch.dtype,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    activation: str = "none",
    pool: int = 1,
) -> Tensor:
    """``act(factor * conv(cat(inputs)) + bias + residual)`` of bytes, averaged over `pool`.

    Args:
        inputs: at least one N x C_i x H x W image, uint8. Outside the image, ``inputs[i]`` is
            ``zeros[i]``.
        weight: O x sum(C_i) x kH x kW weight, int8, with a 3x3, 3x1, 1x3 or 1x1 kernel, of at most
            65,793 products per output, whose sum 32 bits hold.
        factor: vector of O values, float32: what a sum of products is multiplied by.
        bias: vector of O values, float32. It contains what the inputs' zero points add up to.
        slope: vector of O values, float32: PReLU's slopes for negative values; otherwise None.
        residual: N x O x H' x W' image, added before the activation: float32, bfloat16 or float16;
            or uint8, with `residual_scale` and `residual_zero`.
        packed: result of ``pack_quantized_weight`` for `weight`, `stride` and `dilation`, or an
            empty tensor.
        zeros: byte of the value 0 of each input.
        scale, zero: those of the result, if `dtype` is uint8.
        dtype: type of the result: uint8, float32, bfloat16 or float16.
        stride: vertical and horizontal step, each at least 1.
        dilation: vertical and horizontal distance of the taps, each at least 1.
        activation: activation, as in :func:`conv_act`.
        pool: 2 to average the result over 2 x 2 pixels, otherwise 1.

    Returns:
        N x O x H' x W' in `dtype`, H' = floor(ceil(H / stride) / pool), channels_last.
    """
    height, width = same_padding(weight, dilation)
    edges = (width, width, height, height)
    # Float64 holds the sums exactly.
    padded = [F.pad(x.double(), edges, value=z) for x, z in zip(inputs, zeros, strict=True)]
    sums = F.conv2d(torch.cat(padded, 1), weight.double(), None, stride, 0, dilation)
    y = sums * factor.double()[:, None, None] + bias.double()[:, None, None]
    if residual is not None:
        y += (
            dequantize(residual, residual_scale, residual_zero)
            if residual.dtype == torch.uint8
            else residual.double()
        )
    y = activate(y, activation, None if slope is None else slope.double())
    size = [side // pool for side in y.shape[2:]]
    # PyTorch refuses to make an empty image.
    y = F.avg_pool2d(y, pool) if min(size) > 0 else y.new_empty((*y.shape[:2], *size))
    return quantize(y, scale, zero) if dtype == torch.uint8 else channels_last(y.to(dtype))


def conv_act_quantized(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    packed: Tensor | None,
    *,
    scale: float,
    zero: int,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    activation: str = "none",
) -> Tensor:
    """:func:`quantize` of :func:`conv_act`; the kernels do not write what is in between.

    Args:
        inputs, weight, bias, slope, packed, stride, dilation, activation: as in :func:`conv_act`.
        scale, zero: those of the result, as in :func:`quantize`.

    Returns:
        N x O x H' x W', uint8, channels_last.
    """
    place = {"stride": stride, "dilation": dilation, "activation": activation}
    return quantize(conv_act(inputs, weight, bias, slope, None, packed, **place), scale, zero)


def pack_quantized_weight(weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Lay out an int8 weight as the kernels read it; empty here.

    Args:
        weight: O x I x kH x kW weight, int8, with a 3x3, 3x1, 1x3 or 1x1 kernel.
        stride, dilation: stride and dilation of the convolution that uses it.

    Returns:
        A tensor of one dimension, uint8.
    """
    return weight.new_empty(0, dtype=torch.uint8)


def quantized_upsample(input: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Bilinear resize of bytes, to bytes of the same scale and zero point; halves to even.

    Args:
        input: N x C x H x W image, uint8, H and W at least 1.
        size: height and width of the result, each at least 1.
        align_corners: alignment, as in :func:`upsample`.

    Returns:
        N x C x size, uint8, channels_last.
    """
    return upsample(input.double(), size, align_corners=align_corners).round().to(torch.uint8)


def quantized_sum(
    inputs: Sequence[Tensor],
    factors: Tensor,
    bias: Tensor,
    slope: Tensor | None,
    *,
    scale: float,
    zero: int,
    activation: str = "none",
) -> Tensor:
    """``act(factors[0] * inputs[0] + factors[1] * inputs[1] + ... + bias)``, to bytes.

    Args:
        inputs: at least one N x C x H x W image, uint8, of which the bytes are taken as numbers, or
            float32, bfloat16 or float16.
        factors: factor of each input's channels, len(inputs) x C, float32.
        bias: vector of C values, float32. It contains what the inputs' zero points add up to.
        slope: vector of C values, float32: PReLU's slopes for negative values; otherwise None.
        scale, zero: those of the result.
        activation: activation, as in :func:`conv_act`.

    Returns:
        N x C x H x W, uint8, channels_last.
    """
    parts = zip(inputs, factors.double()[..., None, None], strict=True)
    y = sum((factor * x.double() for x, factor in parts), bias.double()[:, None, None])
    y = activate(y, activation, None if slope is None else slope.double())
    return quantize(y, scale, zero)
