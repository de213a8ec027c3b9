"""Receptive fields of a network's parts: the input rows that a row of a part's result depends on.

A part is run on a strip of rows as on a whole picture. Rows that depend on a convolution's padding
at an edge of the strip are wrong and are cut off; the others are right if the strip begins at a row
of every strided layer and at a tile of every kernel that computes tiles of rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fassd.models.dapf import DAPF, AsymmetricAtrousBranch
from fassd.models.encoder import STRIDES, Encoder
from fassd.models.hardnet import HarDBlock
from fassd.models.layers import BNPReLU, ConvBNPReLU, ConvLayer
from fassd.models.mda import MDA

TILE = 4
"""Maximum number of rows that a kernel of `fassd_kernels` computes together, by Winograd's method
for 3x3 and 3x1. All of a tile's input affects the rounding of each of its rows, so a tile is
computed completely or cut off."""

KNOWN = (HarDBlock, ConvLayer, MDA, DAPF, AsymmetricAtrousBranch, ConvBNPReLU, BNPReLU)
"""Modules that only run their parts, in sequence or in parallel."""

LISTS = (nn.ModuleList, nn.Sequential)
POINTWISE = (nn.BatchNorm2d, nn.ReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d)


class Window(NamedTuple):
    """The sliding window of a convolution or a pooling along one axis."""

    kernel: int
    stride: int
    padding: int
    dilation: int = 1

    def result(self, size: int) -> int:
        """Number of positions of the result for `size` positions of the input."""
        return (size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    @property
    def reach(self) -> int:
        """Maximum number of positions that it reads before or after its own."""
        return max(self.padding, self.dilation * (self.kernel - 1) - self.padding)


class Field(NamedTuple):
    """The receptive field of a part.

    Attributes:
        stride: number of rows of its input per row of its result.
        reach: maximum number of input rows that a row of the result reads above, or below, its own.
        height, width: size of the result.
        values: number of values in all results of its layers, per row of its input, on average.
    """

    stride: int
    reach: int
    height: int
    width: int
    values: float


class UnboundedError(ValueError):
    """A module reads the whole picture, or its reach is not known."""


def field_of(parts: Iterable[tuple[str, nn.Module]], size: tuple[int, int]) -> Field:
    """The receptive field of a sequence of modules.

    Branches are treated like a sequence, which reads at least as much.

    Args:
        parts: modules with their names, of classes in `KNOWN`.
        size: height and width of the input.

    Raises:
        UnboundedError: a module is of another class; the message names it.
    """
    height, width = size
    rows, columns, reach, values = 1, 1, 0, 0.0
    for name, leaf in _leaves(parts):
        across, down = window_of(leaf, 1), window_of(leaf, 0)
        tiled = isinstance(leaf, nn.Conv2d) and leaf.kernel_size[0] == 3
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
    """True if its class is of this project or of PyTorch, and so does what its name says."""
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


# ----------------------------------------------------------------------------- encoders of timm

PROBED = (2048, 8192)
"""Rows of input with which an encoder's reach is measured."""

PROBED_WIDTH = 64

SAME = 1e-3
"""Relative difference of results up to which rounding explains it."""


def encoder_field(encoder: Encoder, size: tuple[int, int]) -> Field:
    """The receptive field of an encoder of timm, measured by the spread of NaNs.

    Its modules are of any kind, so it cannot be added up. The additional reach of the fused
    kernels' tiles is added for each convolution that may use them.

    Args:
        encoder: in eval mode.
        size: height and width of the picture.

    Returns:
        The field of all its maps together, at the coarsest's stride; `height` and `width` are those
        of the coarsest.

    Raises:
        UnboundedError: a module, which the message names, reads the whole picture; or the result
            for a row depends on its position.
    """
    probe = copy.deepcopy(encoder).cpu().float()
    # A captured encoder with a hook runs unchanged, without a graph for each of these sizes.
    probe.project[0].register_forward_hook(lambda *call: None)
    probe.body.register_forward_hook(lambda *call: None)
    stride = STRIDES[-1]
    for rows in PROBED:
        seen = _Probe(probe, rows)
        reach = seen.reach(stride)
        if reach is not None:
            break
    else:
        sees = f"the whole picture, in {seen.culprit}" if seen.culprit else f"{rows // 2} rows"
        raise UnboundedError(
            f"the encoder {encoder.name!r} sees {sees}: the picture cannot be done in strips"
        )
    _check_place(probe, reach)
    height, width = (-(-side // stride) for side in size)
    values = seen.values * size[1] / PROBED_WIDTH
    # Rounded up to a row of the coarsest map.
    return Field(stride, -(-(reach + seen.tiles) // stride) * stride, height, width, values)


def _check_place(encoder: Encoder, reach: int) -> None:
    """Check that rows of a strip have the same results as in the picture, except at its edges.

    They would not with windows that divide a picture, or positions in it.
    """
    shift = TILE * STRIDES[-1]
    rows = reach + 3 * shift
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, rows, PROBED_WIDTH, generator=draw)
    with torch.inference_mode():
        whole, lower, upper = (encoder(part) for part in (x, x[:, :, shift:], x[:, :, :-shift]))
    for stride, *maps in zip(STRIDES, whole, lower, upper, strict=True):
        edge, all_rows = -(-(reach + shift) // stride), rows // stride
        kept, moved = maps[0][:, :, edge:], maps[1][:, :, edge - shift // stride :]
        above, cut = (each[:, :, : all_rows - edge] for each in (maps[0], maps[2]))
        for one, other in ((kept, moved), (above, cut)):
            if (one - other).norm() > SAME * one.norm():
                raise UnboundedError(
                    f"what the encoder {encoder.name!r} makes of a row depends on where it lies in "
                    "the picture, as of windows that divide it: it cannot be done in strips"
                )


class _Probe:
    """One run of an encoder on zeros with a band of NaN rows in the middle.

    Attributes:
        culprit: name and class of the first module whose result is entirely NaN.
        tiles: number of input rows that tiles of kernels read, over all convolutions.
        values: number of values per input row in its maps and its largest intermediate results.
    """

    def __init__(self, encoder: Encoder, rows: int) -> None:
        self.culprit, self.tiles, self._rows, self._largest = "", 0, rows, 0
        self._middle = rows // 2 // STRIDES[-1] * STRIDES[-1]
        x = torch.zeros(1, 3, rows, PROBED_WIDTH)
        x[:, :, self._middle : self._middle + STRIDES[-1]] = torch.nan
        names = {part: f"base.{name}" for name, part in encoder.named_modules() if name}
        handles = [part.register_forward_hook(partial(self._look, names[part])) for part in names]
        try:
            with torch.inference_mode():
                self._maps = encoder(x)
        finally:
            for handle in handles:
                handle.remove()
        # For a layer: its input, its result, and the values that a block adds to it.
        values = 4 * self._largest + sum(each.numel() for each in self._maps)
        self.values = values / rows

    def _look(self, name: str, part: Any, inputs: tuple[Any, ...], result: Any) -> None:
        if not isinstance(result, Tensor):
            return
        self._largest = max(self._largest, result.numel())
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) and part.stride == (1, 1):
            self.tiles += (TILE - 1) * -(-self._rows // result.shape[2])
        given = [each for each in inputs if isinstance(each, Tensor)]
        if not self.culprit and result.isnan().all() and not all(x.isnan().all() for x in given):
            self.culprit = f"{name}, a {type(part).__name__}"

    def reach(self, stride: int) -> int | None:
        """Rows above and below that are read; None if all rows are."""
        most = 0
        for each in self._maps:
            step = self._rows // each.shape[2]
            found = each.isnan().any(1)[0].any(1).nonzero().flatten()
            if not len(found) or found[0] == 0 or found[-1] == each.shape[2] - 1:
                return None
            above, below = self._middle - int(found[0]) * step, (int(found[-1]) + 1) * step
            most = max(most, above, below - self._middle - stride)
        return most
