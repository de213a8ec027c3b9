"""asymmetric_conv: 3x1 -> activation -> 1x3 -> activation in one launch.

A program takes a stretch of one row of the picture, or as many whole rows as fit, each in a SPAN of
positions: BLOCK_M positions by BLOCK_N output channels. It computes the 3x1 for them, BLOCK_MIDDLE
channels at a time, keeps the result in registers, and multiplies it by the 1x3, whose outer taps
need it `dilation` positions to the left and right:

    positions  |<-------------- BLOCK_M -------------->|
    3x1        v v v v v v v v v v v v v v v v v v v v v   one row, 3 rows read, taps in padding
    1x3                o o o o o o o o o o o o o           skipped
                 halo                             halo     (none where the whole row fits)

``gather`` exchanges values between positions. If a halo on both sides would take up most of the
tile, the 3x1 is instead computed again for each tap (``SHIFT = "recompute"``). Several branches of
the same shape that only differ in dilation, as in DAPF, are one launch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from fassd_kernels.triton.configurations import Config, Problem, choose, join_notes
from fassd_kernels.triton.conv_act import MOST_OVERHANG, bytes_of
from fassd_kernels.triton.convolution import activate, load_vector, multiply
from fassd_kernels.triton.layout import Size, round_up
from fassd_kernels.triton.program import (
    BYTES,
    INT32_MAX,
    Argument,
    Image,
    Pointer,
    Program,
    Weight,
    Work,
    planned,
)

SIZES = ("rows", "height", "width", "tiles")


@triton.jit
def pick(values, branch):
    """values[branch], for a tuple of pointers or numbers."""
    value = values[0]
    for i in tl.static_range(1, len(values)):
        value = tl.where(branch == i, values[i], value)
    return value


@triton.jit
def finish(acc, bias, slope, column, real, ACTIVATION: tl.constexpr):
    """Bias, if any, and activation of sums [BLOCK_M, columns]; `real` columns have channels."""
    if bias is not None:
        acc += load_vector(bias, column, real)[None, :]
    if ACTIVATION == "prelu":
        acc = activate(acc, load_vector(slope, column, real)[None, :], ACTIVATION)
    else:
        acc = activate(acc, 0.0, ACTIVATION)
    return acc


@triton.jit
def shifted(
    values, position, shift, SPAN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_MIDDLE: tl.constexpr
):
    """values[m + shift] of each row [BLOCK_M, BLOCK_MIDDLE]; zero beyond its stretch of SPAN."""
    source = position + shift
    there = (source >= 0) & (source < SPAN)
    source = tl.where(there, tl.arange(0, BLOCK_M) + shift, 0)
    index = tl.broadcast_to(source[:, None], (BLOCK_M, BLOCK_MIDDLE))
    value = tl.gather(values, index, axis=0)
    return tl.where(there[:, None], value, 0.0).to(values.dtype)


@triton.jit
def vertical(
    image, weight, bias, slope, n, y, x, middle, strides, channels, middles, height, width,
    weight_stride, dilation,
    ACTIVATION: tl.constexpr, CLEAN: tl.constexpr, DENSE: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_MIDDLE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The 3x1 and its activation at pixels (n, y, x) [BLOCK_M]: zero left and right of the picture.

    Returns [BLOCK_M, BLOCK_MIDDLE] in the weights' type, as if it had been written and read.
    """
    inside = (x >= 0) & (x < width)
    real = middle < middles
    acc = tl.zeros((BLOCK_M, BLOCK_MIDDLE), tl.float32)
    for tap in tl.static_range(3):
        row = y + (tap - 1) * dilation
        there = inside & (row >= 0) & (row < height)
        if tl.max(there.to(tl.int32), axis=0) > 0:
            if DENSE:
                offset = ((n * height + row) * width + x) * strides[2] * VECTOR
            else:
                offset = (n * strides[0] + row * strides[1] + x * strides[2]) * VECTOR
            for first in range(0, channels, BLOCK_K):
                k = first + tl.arange(0, BLOCK_K)
                if WIDE:
                    k = k.to(tl.int64)
                loaded = k < tl.cdiv(channels, VECTOR) * VECTOR
                value = tl.load(
                    image + offset[:, None] + (k * strides[3])[None, :],
                    mask=there[:, None] & loaded[None, :],
                    other=0.0,
                )
                if not CLEAN:
                    value = tl.where((k < channels)[None, :], value, 0.0)
                at_row = (tap * channels + k) * weight_stride
                acc = multiply(
                    value, weight, at_row, k < channels, middle, weight_stride, acc, PRECISION
                )
    acc = finish(acc, bias, slope, middle, real, ACTIVATION)
    return tl.where(inside[:, None] & real[None, :], acc, 0.0).to(weight.dtype.element_ty)


@triton.jit(do_not_specialize=SIZES)
def asymmetric_conv_kernel(
    image, vertical_weights, horizontal_weights, vertical_biases, horizontal_biases,
    vertical_slopes, horizontal_slopes, dilations, out,
    strides, out_strides, rows, height, width, tiles, channels, middles, out_channels,
    vertical_stride, horizontal_stride, out_branch, out_limit,
    SPAN: tl.constexpr, HALO: tl.constexpr, SHIFT: tl.constexpr, ACTIVATION: tl.constexpr,
    CLEAN: tl.constexpr, DENSE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    VECTOR: tl.constexpr, OUT_VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_MIDDLE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    branch = tl.program_id(1)
    columns = tl.cdiv(out_channels, BLOCK_N)
    stretch = program // columns
    dilation = pick(dilations, branch)
    weight = pick(vertical_weights, branch)
    next_weight = pick(horizontal_weights, branch)
    bias = pick(vertical_biases, branch) if vertical_biases is not None else None
    next_bias = pick(horizontal_biases, branch) if horizontal_biases is not None else None
    slope = pick(vertical_slopes, branch) if vertical_slopes is not None else None
    next_slope = pick(horizontal_slopes, branch) if horizontal_slopes is not None else None

    position = tl.arange(0, BLOCK_M) % SPAN
    row = stretch // tiles * (BLOCK_M // SPAN) + tl.arange(0, BLOCK_M) // SPAN
    x = (stretch % tiles) * (SPAN - 2 * HALO) - HALO + position
    # Rows after the last one are treated as if they were far to the right.
    x = tl.where(row < rows, x, 2 * width)
    y = row % height
    n = row // height
    column = (program % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    if WIDE:
        x = x.to(tl.int64)
        y = y.to(tl.int64)
        n = n.to(tl.int64)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, middles, BLOCK_MIDDLE):
        middle = first + tl.arange(0, BLOCK_MIDDLE)
        if SHIFT == "gather":
            whole = vertical(
                image, weight, bias, slope, n, y, x, middle, strides, channels, middles,
                height, width, vertical_stride, dilation,
                ACTIVATION, CLEAN, DENSE, PRECISION, WIDE, VECTOR, BLOCK_M, BLOCK_MIDDLE, BLOCK_K,
            )  # fmt: skip
        for tap in tl.static_range(3):
            shift = (tap - 1) * dilation
            if (tap == 1) | (dilation < width):
                if SHIFT == "gather":
                    if tap == 1:
                        value = whole
                    else:
                        value = shifted(whole, position, shift, SPAN, BLOCK_M, BLOCK_MIDDLE)
                else:
                    value = vertical(
                        image, weight, bias, slope, n, y, x + shift, middle, strides,
                        channels, middles, height, width, vertical_stride, dilation,
                        ACTIVATION, CLEAN, DENSE, PRECISION, WIDE, VECTOR, BLOCK_M, BLOCK_MIDDLE,
                        BLOCK_K,
                    )  # fmt: skip
                at_row = (tap * middles + middle) * horizontal_stride
                acc = multiply(
                    value, next_weight, at_row, middle < middles, column, horizontal_stride, acc,
                    PRECISION,
                )  # fmt: skip

    real = column < out_channels
    acc = finish(acc, next_bias, next_slope, column, real, ACTIVATION)
    acc = tl.where(real[None, :], acc, 0.0)
    at = n * out_strides[0] + y * out_strides[1] + x * out_strides[2] + branch * out_branch
    live = (position >= HALO) & (position < SPAN - HALO) & (x < width)
    tl.store(
        out + (at * OUT_VECTOR)[:, None] + column[None, :],
        acc.to(out.dtype.element_ty),
        mask=live[:, None] & (column < out_limit * OUT_VECTOR)[None, :],
    )


# --- planning -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Branch:
    """A pair of convolutions: its weights, packed, and what follows each."""

    vertical: Weight
    horizontal: Weight
    dilation: int
    biases: tuple[Pointer | None, Pointer | None] = (None, None)
    slopes: tuple[Pointer | None, Pointer | None] = (None, None)


def branch_arguments(branches: Sequence[Branch], largest: int) -> dict[str, Any]:
    """Arguments of the kernel that differ between branches; `largest` is the picture's side."""

    def each(values: Sequence[Any]) -> tuple[Any, ...] | None:
        return None if values[0] is None else tuple(values)

    return {
        "vertical_weights": tuple(b.vertical.pointer for b in branches),
        "horizontal_weights": tuple(b.horizontal.pointer for b in branches),
        "vertical_biases": each([b.biases[0] for b in branches]),
        "horizontal_biases": each([b.biases[1] for b in branches]),
        "vertical_slopes": each([b.slopes[0] for b in branches]),
        "horizontal_slopes": each([b.slopes[1] for b in branches]),
        # Beyond the picture, all dilations are equal: their outer taps read padding.
        "dilations": tuple(min(b.dilation, largest) for b in branches),
    }


def is_wide(image: Image, branches: Sequence[Branch], outs: Sequence[Image]) -> bool:
    """True if offsets and positions need 64 bits."""
    vertical, horizontal = branches[0].vertical, branches[0].horizontal
    rows = 3 * (max(vertical.in_channels, vertical.out_channels) + MOST_OVERHANG)
    largest = max(
        image.reach + dilation_offset(image),
        *(out.reach for out in outs),
        image.pixels * horizontal.out_channels,  # more programs than possible
        rows * max(vertical.stride, horizontal.stride),
    )
    return MOST_OVERHANG + largest > INT32_MAX


def plan_asymmetric(
    program: Program,
    image: Image,
    branches: Sequence[Branch],
    outs: Sequence[Image],
    activation: str,
    label: str = "asymmetric",
) -> None:
    """Add one launch for branches of equal shapes, whose results `outs` are in one tensor."""
    if outs[0].pixels == 0:
        return
    first, out = branches[0], outs[0]
    batch, channels, height, width = image.size
    middles, out_channels = first.vertical.out_channels, first.horizontal.out_channels
    dilation = max(branch.dilation for branch in branches)
    vector = image.vector
    clean = image.clean or channels % vector == 0
    wide = is_wide(image, branches, outs)
    problem = Problem(
        "asymmetric",
        batch * height * width,
        width,
        (channels,),
        out_channels,
        middles,
        3,
        (dilation, dilation),
        program.dtype,
        registers=not clean,
        narrow=vector * program.itemsize < BYTES,
        extra=join_notes(
            f"vector={vector}",
            activation,
            len(branches) > 1 and f"branches={len(branches)}",
            wide and "wide",
            program.tf32 and "tf32",
        ),
    )
    config = choose(problem, program.device)
    span, halo, shift, tiles = stretches(width, dilation, config)
    stacks = -(-batch * height // (config.block_m // span))
    columns = -(-out_channels // config.block_n)
    rows = batch * height
    step = outs[1].offset - out.offset if len(outs) > 1 else 0
    out_vector = math.gcd(out.vector, out.lanes, step)

    arguments: dict[str, Any] = {
        **branch_arguments(branches, max(height, width)),
        "image": Pointer(image.slot, image.offset),
        "out": Pointer(out.slot, out.offset),
        "strides": image.in_units(vector),
        "out_strides": out.in_units(out_vector)[:3],
        "rows": rows,
        "height": height,
        "width": width,
        "tiles": tiles,
        "channels": channels,
        "middles": middles,
        "out_channels": out_channels,
        "vertical_stride": first.vertical.stride,
        "horizontal_stride": first.horizontal.stride,
        "out_branch": step // out_vector,
        "out_limit": out.lanes // out_vector,
        "SPAN": span,
        "HALO": halo,
        "SHIFT": shift,
        "ACTIVATION": activation,
        "CLEAN": clean,
        "DENSE": image.is_dense,
        "PRECISION": "tf32" if program.tf32 else "ieee",
        "WIDE": wide,
        "VECTOR": vector,
        "OUT_VECTOR": out_vector,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_MIDDLE": config.block_middle,
        "BLOCK_K": config.block_k,
    }
    grid = (stacks * tiles * columns, len(branches))
    work = asymmetric_work(image, branches, outs, math.prod(grid), shift, config)
    program.launch(asymmetric_conv_kernel, grid, arguments, work, label, problem, config)


def asymmetric_work(
    image: Image,
    branches: Sequence[Branch],
    outs: Sequence[Image],
    programs: int,
    shift: str,
    config: Config,
) -> Work:
    """Memory traffic and operations of a launch with that many programs."""
    size, channels = image.itemsize, image.channels
    middles = branches[0].vertical.out_channels
    out_channels = branches[0].horizontal.out_channels
    m, n, middle = config.block_m, config.block_n, config.block_middle
    # The 3x1, once, or again for each tap of the 1x3.
    depth = 3 * round_up(channels, config.block_k) * (1 if shift == "gather" else 3)
    steps = programs * -(-middles // middle)
    weights = 3 * middles * (channels + out_channels) * size
    return Work(
        bytes=bytes_of(image) + sum(map(bytes_of, outs)) + len(branches) * weights,
        operations=sum(live_operations(image, b, middles, out_channels) for b in branches),
        issued=2 * steps * m * middle * (depth + 3 * n),
        loaded=steps * size * (depth * (m + middle) + 3 * middle * n),
    )


def stretches(width: int, dilation: int, config: Config) -> tuple[int, int, str, int]:
    """Positions of a stretch, halo, way to shift values, and number of stretches in a row."""
    block = config.block_m
    if config.recompute:
        return min(block, triton.next_power_of_2(width)), 0, "recompute", -(-width // block)
    if width <= block:
        return triton.next_power_of_2(width), 0, "gather", 1
    if dilation < width and 4 * dilation <= block:
        return block, dilation, "gather", -(-width // (block - 2 * dilation))
    return block, 0, "recompute", -(-width // block)


def dilation_offset(image: Image) -> int:
    """Distance of the farthest computed address, never read, from the picture: tile and shift."""
    return (MOST_OVERHANG + 4 * image.size[3]) * image.strides[3] + 2 * image.size[2] * (
        image.strides[2]
    )


def live_operations(image: Image, branch: Branch, middles: int, out_channels: int) -> int:
    """Number of multiplications and additions that do not involve padding."""
    batch, channels, height, width = image.size
    rows = height + 2 * max(height - branch.dilation, 0)
    columns = width + 2 * max(width - branch.dilation, 0)
    vertical_products = rows * width * channels * middles
    return 2 * batch * (vertical_products + columns * height * middles * out_channels)


# --- the operator ---------------------------------------------------------------------------------


@planned
def asymmetric_conv(
    program: Program,
    size: Size,
    input: Argument,
    vertical_weight: Argument,
    horizontal_weight: Argument,
    vertical_bias: Argument | None,
    horizontal_bias: Argument | None,
    vertical_slope: Argument | None,
    horizontal_slope: Argument | None,
    packed: Sequence[Argument] | None,
    dilation: int,
    activation: str,
) -> None:
    packs = packed if packed is not None else (None, None)
    image = program.image(input)
    vertical = program.weight("vertical_weight", vertical_weight, packs[0])
    horizontal = program.weight("horizontal_weight", horizontal_weight, packs[1])
    biases = (program.vector(vertical_bias), program.vector(horizontal_bias))
    slopes = (program.vector(vertical_slope), program.vector(horizontal_slope))
    branch = Branch(vertical, horizontal, dilation, biases, slopes)
    plan_asymmetric(program, image, [branch], [program.result(size)], activation)
