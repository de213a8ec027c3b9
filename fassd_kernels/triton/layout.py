"""Images in memory: channels_last, pixels whole vectors apart where that is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

BYTES = 16  # of the widest load, and the alignment that the compiler is told of
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


@dataclass(frozen=True)
class Image:
    """An N x C x H x W image, or some channels of one, as a kernel finds it.

    Attributes:
        slot: of the tensor that holds it.
        size: N, C, H, W.
        strides: in elements, N, C, H, W; 0 where the size is 1.
        offset: of its first element from the tensor's, in elements.
        itemsize: bytes of an element.
        aligned: whether the tensor's address is a multiple of 16 bytes.
        lanes: channels that belong to it, the zeros behind the last one included.
    """

    slot: int
    size: Size
    strides: Size
    offset: int
    itemsize: int
    aligned: bool
    lanes: int

    @property
    def channels(self) -> int:
        return self.size[1]

    @property
    def clean(self) -> bool:
        """Whether whole vectors can be read from it: zeros follow the last channel."""
        return self.lanes >= round_up(self.channels, LANES)

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[2] * self.size[3]

    @property
    def vector(self) -> int:
        """The widest load along channels, in elements, that every pixel of it allows."""
        if (self.channels > 1 and self.strides[1] != 1) or not self.aligned:
            return 1
        lanes = BYTES // self.itemsize
        return math.gcd(lanes, self.offset, *self.strides[:1], *self.strides[2:])

    @property
    def is_dense(self) -> bool:
        """Whether pixels follow each other at equal distances, over rows and pictures."""
        batch, _, height, width = self.size
        step = self.strides[3] if width > 1 else self.strides[2]
        return (
            (width == 1 or self.strides[3] == step)
            and (height == 1 or self.strides[2] == step * width)
            and (batch == 1 or self.strides[0] == step * width * height)
        )

    @property
    def reach(self) -> int:
        """The largest offset that a kernel computes in it, in elements, padded lanes included."""
        steps = zip(self.size, self.strides, strict=True)
        return self.offset + sum((n - 1) * s for n, s in steps if n) + LANES

    def part(self, first: int, channels: int, lanes: int = 0) -> Image:
        """Its channels [first, first + channels), and zeros up to `lanes`."""
        size = (self.size[0], channels, *self.size[2:])
        lanes = lanes or channels
        return replace(self, size=size, offset=self.offset + first, lanes=lanes)

    def in_units(self, vector: int) -> tuple[int, int, int, int]:
        """Strides as kernels take them: N, H, W in units of `vector`, C in elements."""
        n, c, h, w = self.strides
        if self.is_dense:
            # The distance of pixels, also in pictures one pixel wide.
            batch, _, height, width = self.size
            w = w or (h // width if height > 1 else n // (height * width) if batch > 1 else 0)
        # Where there is one channel only, its stride is nothing to tell another kernel by.
        return n // vector, h // vector, w // vector, c if self.channels > 1 else 1


def image_of(slot: int, tensor: Tensor) -> Image:
    """A tensor of the call, as a kernel finds it."""
    batch, channels, height, width = tensor.shape
    n, c, h, w = (
        0 if size == 1 else stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    size = (batch, channels, height, width)
    aligned = is_aligned(tensor)
    return Image(slot, size, (n, c, h, w), 0, tensor.element_size(), aligned, channels)


def is_aligned(tensor: Tensor) -> bool:
    """Whether whole vectors can be loaded, from its address on to those of the last channels.

    An image of one pixel has no distance of pixels that would leave room for them.
    """
    if tensor.data_ptr() % BYTES:
        return False
    if tensor.dim() != 4 or tensor.shape[1] % LANES == 0 or tensor.numel() == 0:
        return True
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((n - 1) * s for n, s in steps) - tensor.shape[1] + 1
    room = tensor.untyped_storage().nbytes() // tensor.element_size()
    return last + round_up(tensor.shape[1], LANES) <= room
