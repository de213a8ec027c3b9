"""aspp: a launch per branch, one for the mean, and the 1x1 that fuses them.

The branch of the mean is one pixel a picture. Its share of the last 1x1 is computed there and added
to every pixel, as a residual whose strides are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from fassd_kernels.reference.aspp import check_aspp
from fassd_kernels.triton.conv_act import bytes_of, plan_conv
from fassd_kernels.triton.layout import LANES, round_up
from fassd_kernels.triton.packing import check_packed_weight
from fassd_kernels.triton.program import (
    INT32_MAX,
    Image,
    Pointer,
    Program,
    Work,
    cached,
    interleave,
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


def aspp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed: Sequence[Tensor] | None = None,
    *,
    dilations: Sequence[int],
    padded: bool = False,
) -> Tensor:
    """:func:`fassd_kernels.reference.aspp`; `padded` as in :mod:`program`."""

    def plan(program: Program) -> None:
        size = check_aspp(input, weights, biases, packed, dilations=dilations)
        batch, _, height, rows = size
        image = program.image(input)
        width = weights[0].shape[0]
        *first, fuse = weights
        first_packed = packed[:-1] if packed is not None else None
        kernels, vectors = program.weights("aspp", first, first_packed, biases[:-1])
        # What the means contribute is the same at every pixel of a picture: a residual.
        fuse_packed = packed[-1] if packed is not None else None
        check_packed_weight("aspp", f"weights[{len(first)}]", fuse[:, :-width], fuse_packed)
        kernels.append(program.weight(fuse, fuse_packed, 0, fuse.shape[1] - width))
        vectors.append(program.vector(biases[-1]))
        of_means = program.weight(fuse, None, fuse.shape[1] - width)
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
        share = program.scratch(batch, out.channels, 1, 1)
        plan_conv(program, [pooled], of_means, share, label="aspp share of the means")
        everywhere = replace(share, size=(batch, out.channels, height, rows))
        plan_conv(
            program, branches, kernels[-1], out, bias=vectors[-1], activation="relu",
            residual=everywhere, label="aspp fuse",
        )  # fmt: skip

    tensors = [input, *interleave(weights, packed, biases), weights[-1] if weights else None]
    settings = (len(weights), packed is not None, tuple(dilations))
    return cached("aspp", tensors, settings, padded, plan)
