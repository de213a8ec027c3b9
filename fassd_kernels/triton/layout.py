"""How images lie in memory: channels_last, pixels whole vectors apart where that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LANES = 8  # padded pixels begin at multiples of so many elements: 16 bytes of a half type

Size = tuple[int, int, int, int]


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def pixel_stride(channels: int, padded: bool) -> int:
    return round_up(channels, LANES) if padded else channels


def strides_of(size: Size, stride: int) -> Size:
    """channels_last strides with so many elements from pixel to pixel."""
    _, _, height, width = size
    return (height * width * stride, 1, width * stride, stride)


def empty_image(size: Sequence[Any], dtype: torch.dtype, device: Any, padded: bool) -> Tensor:
    """An N x C x H x W channels_last tensor, its pixels `LANES` elements apart or a multiple."""
    batch, channels, height, width = size
    if not padded or channels % LANES == 0:
        return torch.empty(size, dtype=dtype, device=device, memory_format=torch.channels_last)
    stride = pixel_stride(channels, padded)
    buffer = torch.empty((batch, height, width, stride), dtype=dtype, device=device)
    return buffer.permute(0, 3, 1, 2)[:, :channels]
