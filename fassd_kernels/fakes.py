"""Shapes, dtypes and layouts of operators on quantised images, for compilers and exporters.

The kernels check their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def bytes_like(*size: Any, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.empty(size, dtype=dtype, memory_format=torch.channels_last)


def quantize(input: Tensor, *_: Any) -> Tensor:
    return bytes_like(*input.shape)


def quantized_conv_act(
    inputs: Sequence[Tensor],
    weight: Tensor,
    *_: Any,
    dtype: torch.dtype = torch.uint8,
    stride: Sequence[int] = (1, 1),
    pool: int = 1,
    **__: Any,
) -> Tensor:
    batch, _channels, *sides = inputs[0].shape
    size = [(side + step - 1) // step // pool for side, step in zip(sides, stride, strict=True)]
    return bytes_like(batch, weight.shape[0], *size, dtype=dtype)


conv_act_quantized = quantized_conv_act


def quantized_upsample(input: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return bytes_like(*input.shape[:2], *size)


def quantized_sum(inputs: Sequence[Tensor], *_: Any, **__: Any) -> Tensor:
    return bytes_like(*inputs[0].shape)
