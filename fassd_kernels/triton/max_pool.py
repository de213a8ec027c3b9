"""max_pool: the largest values of windows, BLOCK_M pixels and BLOCK_C channels per program."""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from fassd_kernels.reference.conv_act import pair
from fassd_kernels.triton.conv_act import bytes_of
from fassd_kernels.triton.convolution import own_pixels
from fassd_kernels.triton.layout import Size
from fassd_kernels.triton.program import Argument, Pointer, Program, Work, planned
from fassd_kernels.triton.upsample import block_pixels, shared_arguments

SIZES = ("pixels", "height", "width", "out_height", "out_width")


@triton.jit(do_not_specialize=SIZES)
def max_pool_kernel(
    image, out, strides, out_strides, pixels, height, width, out_height, out_width, channels,
    kernel_h, kernel_w, step_h, step_w, padding_h, padding_w,
    WIDE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    m, n, y, x, c = own_pixels(out_height, out_width, WIDE, BLOCK_M, BLOCK_C)
    inside = m < pixels
    real = c < channels
    best = tl.full((BLOCK_M, BLOCK_C), float("-inf"), tl.float32)
    for row in range(kernel_h):
        from_y = y * step_h + row - padding_h
        rows = inside & (from_y >= 0) & (from_y < height)
        for column in range(kernel_w):
            from_x = x * step_w + column - padding_w
            there = rows & (from_x >= 0) & (from_x < width)
            at = (n * strides[0] + from_y * strides[1] + from_x * strides[2]) * VECTOR
            value = tl.load(
                image + at[:, None] + (c * strides[3])[None, :],
                mask=there[:, None] & real[None, :],
                other=float("-inf"),
            ).to(tl.float32)
            best = tl.where((value > best) | (value != value), value, best)
    at = n * out_strides[0] + y * out_strides[1] + x * out_strides[2]
    tl.store(
        out + at[:, None] + c[None, :],
        best.to(out.dtype.element_ty),
        mask=inside[:, None] & real[None, :],
    )


@planned
def max_pool(
    program: Program,
    size: Size,
    input: Argument,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> None:
    image, out = program.image(input), program.result(size)
    if out.pixels == 0 or image.channels == 0:
        return
    sides, steps = pair("kernel", kernel), pair("stride", stride)
    around = pair("padding", padding)
    block_c = min(32, triton.next_power_of_2(out.channels))
    block_m = block_pixels(program, block_c)
    furthest = max(2 * max(image.size[2:]), out.reach)
    arguments = shared_arguments(image, size[2:], block_m, block_c, furthest) | {
        "out": Pointer(out.slot),
        "out_strides": out.in_units(1)[:3],
        "kernel_h": sides[0],
        "kernel_w": sides[1],
        "step_h": steps[0],
        "step_w": steps[1],
        "padding_h": around[0],
        "padding_w": around[1],
    }
    grid = (math.ceil(out.pixels / block_m), math.ceil(out.channels / block_c))
    work = Work(bytes_of(image) + bytes_of(out), sides[0] * sides[1] * out.pixels * out.channels)
    program.launch(max_pool_kernel, grid, arguments, work, "max_pool")
