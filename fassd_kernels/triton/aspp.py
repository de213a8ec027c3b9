"""aspp: one launch for each branch, one for the mean, and the 1x1 that fuses them.

The branch of the mean is one pixel per picture. Its share of the last 1x1 is computed there and
added to every pixel, as a residual whose strides are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import triton
import triton.language as tl

from fassd_kernels.triton.conv_act import bytes_of, plan_conv
from fassd_kernels.triton.layout import LANES, Size, round_up
from fassd_kernels.triton.program import (
    INT32_MAX,
    Argument,
    Image,
    Pointer,
    Program,
    Work,
    planned,
)

BLOCK_PIXELS, BLOCK_CHANNELS = 128, 16


@triton.jit(do_not_specialize=("pixels", "width"))
def mean_kernel(
    image, out, strides, out_stride, pixels, width, channels, out_limit,
    WIDE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Means over all pixels: a program sums BLOCK_C channels of one picture."""
    n = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if WIDE:
        n = n.to(tl.int64)
        c = c.to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in range(0, pixels, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        if WIDE:
            m = m.to(tl.int64)
        at = (n * strides[0] + m // width * strides[1] + m % width * strides[2]) * VECTOR
        total += tl.load(
            image + at[:, None] + (c * strides[3])[None, :],
            mask=(m < pixels)[:, None] & (c < channels)[None, :],
            other=0.0,
        ).to(tl.float32)
    mean = tl.sum(total, axis=0) / pixels
    tl.store(out + n * out_stride + c, mean.to(out.dtype.element_ty), mask=c < out_limit)


def plan_mean(program: Program, image: Image, out: Image) -> None:
    """Add the launch for the mean of every channel to `out`, an image of one pixel."""
    batch, channels, height, width = image.size
    vector = image.vector
    limit = round_up(channels, LANES)
    arguments = {
        "image": Pointer(image.slot, image.offset),
        "out": Pointer(out.slot, out.offset),
        "strides": image.in_units(vector),
        "out_stride": limit,
        "pixels": height * width,
        "width": width,
        "channels": channels,
        "out_limit": limit,
        "WIDE": image.reach > INT32_MAX,
        "VECTOR": vector,
        "BLOCK_M": BLOCK_PIXELS,
        "BLOCK_C": BLOCK_CHANNELS,
    }
    work = Work(bytes=bytes_of(image), operations=image.pixels * channels)
    grid = (batch, -(-limit // BLOCK_CHANNELS))
    program.launch(mean_kernel, grid, arguments, work, "aspp mean")


@planned
def aspp(
    program: Program,
    size: Size,
    input: Argument,
    weights: Sequence[Argument],
    biases: Sequence[Argument],
    packed: Sequence[Argument] | None,
    dilations: Sequence[int],
) -> None:
    batch, out_channels, height, rows = size
    image = program.image(input)
    *first, fuse = weights
    width, last = weights[0].shape[0], len(first)
    kernels = program.weights(first, packed[:-1] if packed is not None else None)
    # The contribution of the means is the same at every pixel of a picture: a residual.
    of_branches = fuse.shape[1] - width
    fuse_packed = packed[-1] if packed is not None else None
    kernels.append(program.weight(f"weights[{last}]", fuse, fuse_packed, 0, of_branches))
    of_means = program.weight("the means", fuse, None, of_branches)
    vectors = program.vectors(biases)
    out = program.result(size)
    if out.pixels == 0:
        return
    branches = program.side_by_side(size, [width] * (1 + len(dilations)))
    for i, branch in enumerate(branches):
        d = dilations[i - 1] if i else 1
        plan_conv(
            program, [image], kernels[i], branch, bias=vectors[i], activation="relu",
            dilation=(d, d), label=f"aspp {'1x1' if i == 0 else f'3x3 at {d}'}",
        )  # fmt: skip
    mean = program.scratch(batch, image.channels, 1, 1)
    plan_mean(program, image, mean)
    pooled = program.scratch(batch, width, 1, 1)
    plan_conv(
        program, [mean], kernels[-2], pooled, bias=vectors[-2], activation="relu",
        label="aspp pooled",
    )  # fmt: skip
    share = program.scratch(batch, out_channels, 1, 1)
    plan_conv(program, [pooled], of_means, share, label="aspp share of the means")
    everywhere = replace(share, size=(batch, out_channels, height, rows))
    plan_conv(
        program, branches, kernels[-1], out, bias=vectors[-1], activation="relu",
        residual=everywhere, label="aspp fuse",
    )  # fmt: skip
