"""Resizing; labels, and their certainty, without the enlarged logits.

A program takes BLOCK_M pixels of the result, and all channels (labels) or BLOCK_C of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from fassd_kernels.triton.conv_act import bytes_of
from fassd_kernels.triton.convolution import load_resized, locate, own_pixels
from fassd_kernels.triton.layout import Size
from fassd_kernels.triton.program import (
    INT32_MAX,
    Argument,
    Image,
    Pointer,
    Program,
    Work,
    planned,
)

SIZES = ("pixels", "height", "width", "out_height", "out_width")


@triton.jit(do_not_specialize=SIZES)
def upsample_kernel(
    image, out, strides, out_strides, pixels, height, width, out_height, out_width, channels,
    WIDE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
):  # fmt: skip
    m, n, y, x, c = own_pixels(out_height, out_width, WIDE, BLOCK_M, BLOCK_C)
    # Whole vectors are loaded, and lanes after the last channel are not stored.
    whole = (c < tl.cdiv(channels, VECTOR) * VECTOR)[None, :]
    inside = (m < pixels)[:, None]
    value = load_resized(
        image, n, y, x, c, inside & whole, strides[0], strides[1], strides[2], strides[3],
        height, width, out_height, out_width, VECTOR, ALIGN_CORNERS,
    )  # fmt: skip
    at = n * out_strides[0] + y * out_strides[1] + x * out_strides[2]
    tl.store(
        out + at[:, None] + c[None, :],
        value.to(out.dtype.element_ty),
        mask=inside & (c < channels)[None, :],
    )


@triton.jit
def largest_of(value, real, label, BLOCK_C: tl.constexpr):
    """The largest number in each row, its label, and whether there is a NaN.

    Values that are not `real` do not count. The label is that of the first NaN, or else of the
    first of the largest values.
    """
    best = tl.max(tl.where(real & (value == value), value, float("-inf")), axis=1)
    first = tl.min(tl.where((value == best[:, None]) & real, label, BLOCK_C), axis=1)
    first_odd = tl.min(tl.where((value != value) & real, label, BLOCK_C), axis=1)
    return best, tl.where(first_odd < BLOCK_C, first_odd, first), first_odd < BLOCK_C


@triton.jit(do_not_specialize=SIZES)
def labels_kernel(
    image, out, strides, pixels, height, width, out_height, out_width, channels, scale, equal,
    WIDE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr, MEASURE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    if WIDE:
        tile = tile.to(tl.int64)
        c = c.to(tl.int64)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n, y, x = locate(m, out_height, out_width, 1)
    real = (c < channels)[None, :]
    whole = (c < tl.cdiv(channels, VECTOR) * VECTOR)[None, :]
    value = load_resized(
        image, n, y, x, c, (m < pixels)[:, None] & whole, strides[0], strides[1], strides[2],
        strides[3], height, width, out_height, out_width, VECTOR, ALIGN_CORNERS,
    )  # fmt: skip
    # Like the reference: rounded to the input's type, then the first of the largest; NaN is
    # largest.
    value = value.to(image.dtype.element_ty).to(tl.float32)
    label = tl.arange(0, BLOCK_C)[None, :]
    best, labels, odd = largest_of(value, real, label, BLOCK_C)
    if MEASURE == "":
        tl.store(out + m, labels.to(tl.uint8), mask=m < pixels)
    else:
        # The difference of equal infinities would be NaN.
        below = tl.where(value == best[:, None], 0.0, (value - best[:, None]) * scale)
        below = tl.where(below < -87.0, -87.0, below)
        e = tl.where(real, tl.exp(below), 0.0)
        total = tl.sum(e, axis=1)
        if MEASURE == "entropy":
            mean = tl.sum(tl.where(real, e * below, 0.0), axis=1)
            certainty = 1.0 - (tl.log(total) - mean / total) / equal
        elif MEASURE == "margin":
            others = tl.where(real & (label != labels[:, None]), e, 0.0)
            certainty = (1.0 - tl.max(others, axis=1)) / total
        else:
            certainty = 1.0 / total
        finite = (best - best == 0.0) & (odd == 0)
        level = tl.where(finite, certainty * 255.0 + 0.5, 0.0)
        level = tl.minimum(tl.maximum(level, 0.0), 255.0)
        plane = out_height.to(n.dtype) * out_width
        tl.store(out + n * plane + m, labels.to(tl.uint8), mask=m < pixels)
        tl.store(out + (n + 1) * plane + m, level.to(tl.uint8), mask=m < pixels)


def block_pixels(program: Program, block_c: int) -> int:
    """Pixels of a tile whose four neighbours, in all channels, fit into 4 warps' registers."""
    return 1024 if program.device.interpreted else max(8, 64 * 32 // max(block_c, 32))


def shared_arguments(
    image: Image, size: Sequence[int], block_m: int, block_c: int, furthest: int
) -> dict[str, Any]:
    """Arguments of all kernels that take some pixels of a result and some channels of an image.

    Args:
        size: height and width of the result.
        furthest: largest offset or position, beside those of the image and of the pixels.
    """
    pixels = image.size[0] * size[0] * size[1]
    return {
        "image": Pointer(image.slot, image.offset),
        "strides": image.in_units(image.vector),
        "pixels": pixels,
        "height": image.size[2],
        "width": image.size[3],
        "out_height": size[0],
        "out_width": size[1],
        "channels": image.channels,
        "WIDE": max(image.reach, furthest, pixels + block_m) > INT32_MAX,
        "VECTOR": image.vector,
        "BLOCK_M": block_m,
        "BLOCK_C": block_c,
    }


def furthest_of(image: Image, size: Sequence[int], out_reach: int) -> int:
    """The largest offset in a resized image, or position among its rows or columns."""
    # Halves are counted.
    return max(out_reach, *(2 * out * side for out, side in zip(size, image.size[2:], strict=True)))


def work_of(image: Image, written: int, pixels: int) -> Work:
    """Work of three blends of three operations per channel and pixel."""
    operations = 9 * pixels * image.channels
    return Work(bytes=bytes_of(image) + written, operations=operations)


@planned
def upsample(
    program: Program,
    result: Size,
    input: Argument,
    size: Sequence[int],
    *,
    align_corners: bool = True,
) -> None:
    image, out = program.image(input), program.result(result)
    if out.pixels == 0 or image.channels == 0:
        return
    block_c = min(32, triton.next_power_of_2(image.channels))
    block_m = block_pixels(program, block_c)
    furthest = furthest_of(image, size, out.reach)
    arguments = shared_arguments(image, size, block_m, block_c, furthest) | {
        "out": Pointer(out.slot),
        "out_strides": out.in_units(1)[:3],
        "ALIGN_CORNERS": align_corners,
    }
    grid = (math.ceil(out.pixels / block_m), math.ceil(image.channels / block_c))
    work = work_of(image, bytes_of(out), out.pixels)
    program.launch(upsample_kernel, grid, arguments, work, "upsample")


@planned
def upsample_argmax(
    program: Program,
    result: tuple[int, ...],
    input: Argument,
    size: Sequence[int],
    *,
    align_corners: bool = True,
) -> None:
    launch_labels(program, "upsample_argmax", result, input, size, align_corners)


@planned
def upsample_confidence(
    program: Program,
    result: tuple[int, ...],
    input: Argument,
    size: Sequence[int],
    *,
    measure: str = "margin",
    temperature: float = 1.0,
    align_corners: bool = True,
) -> None:
    scale = min(max(1 / temperature, 1e-30), 1e30)  # the range of a float
    launch_labels(
        program, "upsample_confidence", result, input, size, align_corners, measure, scale
    )


def launch_labels(
    program: Program,
    name: str,
    result: tuple[int, ...],
    input: Argument,
    size: Sequence[int],
    align_corners: bool,
    measure: str = "",
    scale: float = 1.0,
) -> None:
    """Labels, and with a measure also their certainty."""
    image, written = program.image(input), program.labels(result)
    pixels = result[0] * math.prod(size)
    if pixels == 0:
        return
    block_c = triton.next_power_of_2(image.channels)
    block_m = block_pixels(program, block_c)
    reach = math.prod(result)
    furthest = furthest_of(image, size, reach)
    arguments = shared_arguments(image, size, block_m, block_c, furthest) | {
        "out": written,
        "ALIGN_CORNERS": align_corners,
        "scale": scale,
        "equal": math.log(max(image.channels, 2)),
        "MEASURE": measure,
    }
    work = work_of(image, reach, pixels)
    program.launch(labels_kernel, (math.ceil(pixels / block_m),), arguments, work, name)
