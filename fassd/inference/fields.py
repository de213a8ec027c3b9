"""How far the parts of a network see: which rows of its input a row of a part's result depends on.

A part is run on a strip of rows as on a whole picture. What its convolutions pad at an edge of the
strip is wrong as far as they reach, and cut off; the rest is right if the strip begins where a
strided layer has a row, and where a kernel that computes tiles of rows has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from fassd.models.dapf import DAPF, AsymmetricAtrousBranch
from fassd.models.hardnet import HarDBlock
from fassd.models.layers import BNPReLU, ConvBNPReLU, ConvLayer
from fassd.models.mda import MDA

TILE = 4
"""Rows that a kernel of `fassd_kernels` computes together, at most: Winograd's F(4x4, 3x3). All of
a tile's input decides how each of its rows is rounded, so a tile is computed whole or cut off."""

KNOWN = (HarDBlock, ConvLayer, MDA, DAPF, AsymmetricAtrousBranch, ConvBNPReLU, BNPReLU)
"""Modules that are no more than their parts, one behind the other or beside each other."""

LISTS = (nn.ModuleList, nn.Sequential)
POINTWISE = (nn.BatchNorm2d, nn.ReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d)


class Window(NamedTuple):
    """What a sliding window, of a convolution or a pooling, takes along one axis."""

    kernel: int
    stride: int
    padding: int
    dilation: int = 1

    def result(self, size: int) -> int:
        """Positions of the result, of `size` positions."""
        return (size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    @property
    def reach(self) -> int:
        """Positions that it sees before or behind its own, at most."""
        return max(self.padding, self.dilation * (self.kernel - 1) - self.padding)


class Field(NamedTuple):
    """What is known of a part.

    Attributes:
        stride: rows of its input to a row of its result.
        reach: rows that a row of the result sees of the input above its own, and below, at most.
        height, width: of the result.
        values: that all results of its layers have, for each row of its input, on average.
    """

    stride: int
    reach: int
    height: int
    width: int
    values: float


class UnboundedError(ValueError):
    """A module sees the whole picture, or it is not known how far it sees."""


def field_of(parts: Iterable[tuple[str, nn.Module]], size: tuple[int, int]) -> Field:
    """What modules that follow each other see together.

    Branches are counted as if they followed each other: at least what they see.

    Args:
        parts: modules with their names, of `KNOWN` classes.
        size: height and width of the input.

    Raises:
        UnboundedError: there is a module of another class; the message names it.
    """
    height, width = size
    rows, columns, reach, values = 1, 1, 0, 0.0
    for name, leaf in _leaves(parts):
        across, down = window_of(leaf, 1), window_of(leaf, 0)
        tiled = isinstance(leaf, nn.Conv2d) and leaf.kernel_size == (3, 3)
        tiled = tiled and down.stride == down.dilation == 1
        reach += rows * (down.reach + (TILE - 1 if tiled else 0))
        rows, columns = rows * down.stride, columns * across.stride
        height, width = down.result(height), across.result(width)
        if min(height, width) < 1:
            raise ValueError(f"{name}: nothing is left of {size[0]}x{size[1]}")
        values += getattr(leaf, "out_channels", 0) * width / rows
    return Field(rows, reach, height, width, values)


def window_of(leaf: Any, axis: int) -> Window:
    """The window of a convolution or pooling along an axis of the image (0: rows, 1: columns)."""
    kernel, stride, padding, dilation = (
        value if isinstance(value, int) else value[axis]
        for value in (leaf.kernel_size, leaf.stride, leaf.padding, getattr(leaf, "dilation", 1))
    )
    return Window(kernel, stride, padding, dilation)


def _does_as_named(part: nn.Module) -> bool:
    """Whether its class is no other's, with a ``forward`` of its own."""
    return type(part).__module__.partition(".")[0] in ("fassd", "fassd_kernels", "torch")


def _leaves(parts: Iterable[tuple[str, nn.Module]]) -> Iterable[tuple[str, nn.Module]]:
    """The convolutions and poolings in `parts`, in their order."""
    for name, part in parts:
        if isinstance(part, nn.Conv2d) and part.padding_mode == "zeros":
            if isinstance(part.padding, str):
                raise UnboundedError(f"{name} is padded {part.padding!r}; numbers are accepted")
            yield name, part
        elif isinstance(part, nn.AvgPool2d) and not part.ceil_mode:
            yield name, part
        elif isinstance(part, (*KNOWN, *LISTS)) and _does_as_named(part):
            children = part.named_children()
            yield from _leaves((f"{name}.{inner}", child) for inner, child in children)
        elif not isinstance(part, POINTWISE):
            raise UnboundedError(
                f"{name} is a {type(part).__name__}, of which it is not known how far it sees: "
                "the picture cannot be done in strips"
            )
