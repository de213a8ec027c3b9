"""Convolution of a virtual concatenation, with bias, residual and activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fassd_kernels.autocast import follows_autocast
from fassd_kernels.checks import (
    check,
    check_activation,
    check_images,
    check_like,
    check_list,
    check_place,
    check_positive,
    check_storage,
    check_vector,
    check_weight,
    checked,
    shape,
)

KERNELS = ((3, 3), (3, 1), (1, 3), (1, 1))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
"""Activations by name, except ``prelu``, which has a slope for each channel."""


def activate(x: Tensor, activation: str, slope: Tensor | None) -> Tensor:
    """Apply an activation of :data:`FUNCTIONS`, or per-channel ``prelu``."""
    if activation == "prelu":
        assert slope is not None
        return F.prelu(x, slope)
    return FUNCTIONS[activation](x)


def check_conv_act(
    inputs, weight, bias, slope, residual, packed, stride, dilation, activation, pool
):
    """Check the arguments of :func:`conv_act` and return the shape of its result."""
    op = "conv_act"
    first = check_images(op, check_list(op, "inputs", inputs))
    check_weight(op, "weight", weight, sum(x.shape[1] for x in inputs), first, KERNELS)
    check_place(op, "packed", packed, weight)
    check(pool in (1, 2), f"{op}: pool is {pool}; expected 1 or 2")
    vectors = (bias, slope, residual)
    size = check_convolution(
        op, "inputs[0]", first, weight.shape[0], *vectors, stride, dilation, activation
    )
    return size[0], size[1], size[2] // pool, size[3] // pool


@follows_autocast
@checked(check_conv_act)
def conv_act(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    residual: Tensor | None = None,
    packed: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    activation: str = "none",
    pool: int = 1,
) -> Tensor:
    """``act(conv(cat(inputs)) + bias + residual)`` with "same" padding, averaged over `pool`.

    Args:
        inputs: at least one N x C_i x H x W tensor; the convolution's input is their concatenation
            along C, which no other backend writes.
        weight: O x sum(C_i) x kH x kW weight, with a 3x3, 3x1, 1x3 or 1x1 kernel.
        bias: vector of O values, or None.
        slope: vector of O values, PReLU's slopes for negative values.
        residual: N x O x H' x W' image, added before the activation.
        packed: result of :func:`pack_weight` for `weight`, `stride` and `dilation`, or None; it
            saves a compiled backend the packing, and does not change the result.
        stride: vertical and horizontal step, each at least 1.
        dilation: vertical and horizontal distance of the taps, each at least 1.
        activation: ``none``, ``relu``, ``prelu``, ``relu6``, ``hardswish``, ``hardsigmoid``,
            ``sigmoid``, ``silu``, ``gelu`` (by the error function) or ``gelu_tanh``.
        pool: 2 to average the result over 2 x 2 pixels (``F.avg_pool2d(..., 2)``: with an odd side
            the last row or column is dropped), otherwise 1.

    Returns:
        N x O x H' x W' in the inputs' dtype, H' = floor(ceil(H / stride) / pool), channels_last.

    Raises:
        RuntimeError: shapes, dtypes or devices disagree; the message names the argument.
    """
    stride, dilation = pair("stride", stride), pair("dilation", dilation)
    x = inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), 1)
    x = convolve(x, weight, bias, stride, dilation)
    if residual is not None:
        x = x + residual
    x = activate(x, activation, slope)
    return channels_last(x if pool == 1 else F.avg_pool2d(x, pool))


FAR = 2**16
"""Distance of taps, in pixels, from which on it is limited to the image's side."""


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """``F.conv2d`` with "same" padding, at any dilation."""
    # PyTorch computes padding in 32 bits, and crashes if it overflows. A tap at the distance of an
    # image's side only reads padding, like any tap beyond it.
    near = [min(d, x.shape[2 + axis]) if d > FAR else d for axis, d in enumerate(dilation)]
    padding = same_padding(weight, near)
    if x.device.type == "cpu" and x.dtype.itemsize == 2 and max(stride) > 1:
        # On AMX, oneDNN 3.12 reads and writes beyond the image at some strides, for instance if one
        # exceeds the kernel's side (uxlfoundation/oneDNN#5494) or leaves a single column.
        wide = None if bias is None else bias.float()
        y = F.conv2d(x.float(), weight.float(), wide, stride, padding, near, groups)
        return y.to(x.dtype)
    return F.conv2d(x, weight, bias, stride, padding, near, groups)


def check_convolution(
    op: str,
    name: str,
    image: Tensor,
    out_channels: Any,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> tuple[int, int, int, int]:
    """Check steps and epilogue of a convolution of `image`; return the shape of its result."""
    stride, dilation = pair("stride", stride, op), pair("dilation", dilation, op)
    check_vector(op, "bias", bias, out_channels, image)
    check_activation(op, activation, slope, out_channels, image)
    check_positive(op, "stride", stride)
    check_positive(op, "dilation", dilation)
    height = (image.shape[2] + stride[0] - 1) // stride[0]
    width = (image.shape[3] + stride[1] - 1) // stride[1]
    size = (image.shape[0], out_channels, height, width)
    if residual is not None:
        check_like(op, "residual", residual, name, image)
        check_storage(op, "residual", residual)
        check(
            residual.dim() == 4 and all(a == b for a, b in zip(residual.shape, size, strict=True)),
            f"{op}: residual has shape {shape(residual)}; expected {size}, the result's",
        )
    return size


def pair(name: str, value: Sequence[int] | int, op: str = "conv_act") -> tuple[int, int]:
    """Expand an int or one-element list to (vertical, horizontal)."""
    values = [value] if isinstance(value, int) else list(value)
    check(len(values) in (1, 2), f"{op}: {name} is {values}; expected one or two integers")
    return values[0], values[-1]


def same_padding(weight: Tensor, dilation: Sequence[int]) -> list[int]:
    return [dilation[axis] * (weight.shape[2 + axis] // 2) for axis in (0, 1)]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
