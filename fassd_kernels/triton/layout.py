"""Images in memory: channels_last, with pixels whole vectors apart if that is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

BYTES = 16  # bytes of the widest load, and the alignment that the compiler is given
LANES = 8  # padded pixels begin at multiples of this many elements: 16 bytes of a half type

Size = tuple[int, int, int, int]


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def pixel_stride(channels: int, padded: bool) -> int:
    return round_up(channels, LANES) if padded else channels


def strides_of(size: Size, stride: int) -> Size:
    """channels_last strides with `stride` elements from pixel to pixel."""
    _, _, height, width = size
    return (height * width * stride, 1, width * stride, stride)


def empty_image(size: Sequence[Any], dtype: torch.dtype, device: Any, padded: bool) -> Tensor:
    """An N x C x H x W channels_last tensor, with pixels a multiple of `LANES` elements apart."""
    batch, channels, height, width = size
    if not padded or channels % LANES == 0:
        return torch.empty(size, dtype=dtype, device=device, memory_format=torch.channels_last)
    stride = pixel_stride(channels, padded)
    buffer = torch.empty((batch, height, width, stride), dtype=dtype, device=device)
    return buffer.permute(0, 3, 1, 2)[:, :channels]


@dataclass(frozen=True)
class Image:
    """An N x C x H x W image, or some of its channels, as a kernel accesses it.

    Attributes:
        slot: slot of the tensor that holds it.
        size: sizes N, C, H, W.
        strides: strides of N, C, H, W, in elements; 0 if the size is 1.
        offset: offset of its first element from the tensor's, in elements.
        itemsize: bytes of an element.
        aligned: True if the tensor's address is a multiple of 16 bytes.
        lanes: number of its channels, including zeros after the last one.
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
        """True if whole vectors can be read from it: zeros follow the last channel."""
        return self.lanes >= round_up(self.channels, LANES)

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[2] * self.size[3]

    @property
    def vector(self) -> int:
        """The widest load along channels, in elements, that is possible at every pixel."""
        if (self.channels > 1 and self.strides[1] != 1) or not self.aligned:
            return 1
        lanes = BYTES // self.itemsize
        return math.gcd(lanes, self.offset, *self.strides[:1], *self.strides[2:])

    @property
    def is_dense(self) -> bool:
        """True if pixels are at equal distances, across rows and pictures."""
        batch, _, height, width = self.size
        step = self.strides[3] if width > 1 else self.strides[2]
        return (
            (width == 1 or self.strides[3] == step)
            and (height == 1 or self.strides[2] == step * width)
            and (batch == 1 or self.strides[0] == step * width * height)
        )

    @property
    def reach(self) -> int:
        """The largest offset that a kernel computes in it, in elements, including padded lanes."""
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
            # The distance of pixels, even in pictures one pixel wide.
            batch, _, height, width = self.size
            w = w or (h // width if height > 1 else n // (height * width) if batch > 1 else 0)
        # With only one channel, its stride must not make a different kernel.
        return n // vector, h // vector, w // vector, c if self.channels > 1 else 1


def image_of(slot: int, tensor: Tensor) -> Image:
    """A tensor of the call, as a kernel accesses it."""
    batch, channels, height, width = tensor.shape
    n, c, h, w = (
        0 if size == 1 else stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    size = (batch, channels, height, width)
    aligned = is_aligned(tensor)
    return Image(slot, size, (n, c, h, w), 0, tensor.element_size(), aligned, channels)


def is_aligned(tensor: Tensor) -> bool:
    """True if whole vectors can be loaded, from its address up to those of the last channels.

    In an image of one pixel there is no distance of pixels that would leave room for them.
    """
    if tensor.data_ptr() % BYTES:
        return False
    if tensor.dim() != 4 or tensor.shape[1] % LANES == 0 or tensor.numel() == 0:
        return True
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((n - 1) * s for n, s in steps) - tensor.shape[1] + 1
    room = tensor.untyped_storage().nbytes() // tensor.element_size()
    return last + round_up(tensor.shape[1], LANES) <= room
