"""upsample and upsample_argmax: bilinear; labels without the enlarged logits.

A program takes BLOCK_M pixels of the result, and all channels (labels) or BLOCK_C of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from fassd_kernels.triton.conv_act import bytes_of
from fassd_kernels.triton.convolution import load_resized, locate
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
    tile = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if WIDE:
        tile = tile.to(tl.int64)
        c = c.to(tl.int64)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n, y, x = locate(m, out_height, out_width, 1)
    # Whole vectors are loaded, and what lies behind the last channel not stored.
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


@triton.jit(do_not_specialize=SIZES)
def upsample_argmax_kernel(
    image, out, strides, pixels, height, width, out_height, out_width, channels,
    WIDE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
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
    # As the reference: rounded to the input's type, then the first of the largest; NaN is largest.
    value = value.to(image.dtype.element_ty).to(tl.float32)
    odd = (value != value) & real
    best = tl.max(tl.where(real & (value == value), value, float("-inf")), axis=1)
    label = tl.arange(0, BLOCK_C)[None, :]
    first = tl.min(tl.where((value == best[:, None]) & real, label, BLOCK_C), axis=1)
    first_odd = tl.min(tl.where(odd, label, BLOCK_C), axis=1)
    tl.store(out + m, tl.where(first_odd < BLOCK_C, first_odd, first).to(tl.uint8), mask=m < pixels)


def block_pixels(program: Program, block_c: int) -> int:
    """Pixels of a tile: four neighbours of so many channels have to fit into 4 warps' registers."""
    return 1024 if program.device.interpreted else max(8, 64 * 32 // max(block_c, 32))


def shared_arguments(
    image: Image,
    size: Sequence[int],
    block_m: int,
    block_c: int,
    out_reach: int,
    align_corners: bool,
) -> dict[str, Any]:
    """What both kernels take."""
    batch, channels, height, width = image.size
    pixels = batch * size[0] * size[1]
    positions = 2 * max(size[0] * height, size[1] * width)  # halves are counted
    return {
        "image": Pointer(image.slot, image.offset),
        "strides": image.in_units(image.vector),
        "pixels": pixels,
        "height": height,
        "width": width,
        "out_height": size[0],
        "out_width": size[1],
        "channels": channels,
        "WIDE": max(image.reach, out_reach, positions, pixels + block_m) > INT32_MAX,
        "VECTOR": image.vector,
        "BLOCK_M": block_m,
        "BLOCK_C": block_c,
        "ALIGN_CORNERS": align_corners,
    }


def work_of(image: Image, written: int, pixels: int) -> Work:
    """Per channel and pixel: three blends of three operations."""
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
    arguments = shared_arguments(image, size, block_m, block_c, out.reach, align_corners)
    arguments |= {"out": Pointer(out.slot), "out_strides": out.in_units(1)[:3]}
    grid = (math.ceil(out.pixels / block_m), math.ceil(image.channels / block_c))
    work = work_of(image, bytes_of(out), out.pixels)
    program.launch(upsample_kernel, grid, arguments, work, "upsample")


@planned
def upsample_argmax(
    program: Program,
    result: tuple[int, int, int],
    input: Argument,
    size: Sequence[int],
    *,
    align_corners: bool = True,
) -> None:
    image, labels = program.image(input), program.labels(result)
    pixels = math.prod(result)
    if pixels == 0:
        return
    block_c = triton.next_power_of_2(image.channels)
    block_m = block_pixels(program, block_c)
    arguments = shared_arguments(image, size, block_m, block_c, pixels, align_corners) | {
        "out": labels
    }
    work = work_of(image, pixels, pixels)
    grid = (math.ceil(pixels / block_m),)
    program.launch(upsample_argmax_kernel, grid, arguments, work, "upsample_argmax")
