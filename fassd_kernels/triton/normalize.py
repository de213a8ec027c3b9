"""normalize: 3 x 256 values, computed in float64 once, looked up for every pixel."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fassd_kernels.triton.layout import LANES, Size
from fassd_kernels.triton.program import INT32_MAX, Argument, Pointer, Program, Work, planned

BLOCK = 1024


@triton.jit(do_not_specialize=("values", "height", "width"))
def normalize_kernel(
    picture, table, out, strides, values, height, width, WIDE: tl.constexpr, BLOCK_M: tl.constexpr
):
    """A program writes BLOCK_M values of the channels_last result."""
    tile = tl.program_id(0)
    if WIDE:
        tile = tile.to(tl.int64)
    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = i < values
    channel = i % 3
    pixel = i // 3
    x = pixel % width
    y = pixel // width % height
    n = pixel // (width * height)
    # The input is RGB, the output BGR.
    at = n * strides[0] + y * strides[1] + x * strides[2] + (2 - channel) * strides[3]
    value = tl.load(picture + at, mask=inside, other=0).to(tl.int32)
    tl.store(out + i, tl.load(table + channel * 256 + value, mask=inside, other=0.0), mask=inside)


@functools.cache  # cached for good: a captured graph reads it by its address
def table_of(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The result for each value of each channel, 3 x 256; rounded once, from float64."""
    values = torch.arange(256, dtype=torch.float64)
    rows = [(values - m) / s for m, s in zip(mean, std, strict=True)]
    return torch.stack(rows).to(dtype).to(device)


@planned
def normalize(
    program: Program,
    size: Size,
    image: Argument,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> None:
    picture = Pointer(program.argument(image))
    device = image.tensor.device
    table = Pointer(program.constant(table_of(tuple(mean), tuple(std), dtype, device)))
    out = program.result(size)
    if out.pixels == 0:
        return
    count = out.pixels * 3
    strides = image.tensor.stride()
    reach = sum((n - 1) * s for n, s in zip(image.shape, strides, strict=True))
    arguments = {
        "picture": picture,
        "table": table,
        "out": Pointer(out.slot),
        "strides": strides,
        "values": count,
        "height": size[2],
        "width": size[3],
        "WIDE": max(reach, count + BLOCK, out.reach + LANES) > INT32_MAX,
        "BLOCK_M": BLOCK,
    }
    work = Work(bytes=count * (1 + dtype.itemsize), operations=2 * count)
    program.launch(normalize_kernel, (-(-count // BLOCK),), arguments, work, "normalize")
