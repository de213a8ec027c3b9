"""conv_act: an implicit GEMM over the virtual concatenation of its inputs.

A program computes BLOCK_M pixels by BLOCK_N output channels; programs for the same pixels are
consecutive, so that one finds in the cache what another has read from memory. For each chunk of
input channels it multiplies all taps (`convolution.multiply_chunk`), then, in registers, adds bias
and residual, activates, averages over 2 x 2, and writes.

The same kernel computes the 3x3 of a HarDBlock, the 1x1 of MDA's tail (whose input is a sum that
passes through batch norm and PReLU first), and the 1x1 after an upsampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from fassd_kernels.reference.conv_act import pair
from fassd_kernels.triton.configurations import Config, Problem, choose, join_notes
from fassd_kernels.triton.convolution import (
    activate,
    convolve,
    load_resized,
    load_vector,
    locate,
)
from fassd_kernels.triton.layout import LANES, Size, round_up
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

MOST_OVERHANG = 1024  # maximum number of pixels or channels of a tile beyond the last one

# Sizes change from picture to picture, and compiling them in gains nothing.
SIZES = ("pixels", "height", "width", "out_height", "out_width", "low_height", "low_width")


@triton.jit(do_not_specialize=SIZES)
def conv_act_kernel(
    inputs, addend, weight, bias, slope, scale, shift, in_slope, residual, out, copy,
    strides, channels, residual_strides, out_strides, copy_strides,
    pixels, height, width, out_height, out_width, low_height, low_width,
    out_channels, weight_stride, step_h, step_w, dilation_h, dilation_w,
    out_offset, out_limit, copy_limit,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, TAPS: tl.constexpr,
    PROLOGUE: tl.constexpr, CLEAN: tl.constexpr, DENSE: tl.constexpr, SKIP: tl.constexpr,
    FLUSH: tl.constexpr, ACTIVATION: tl.constexpr, POOL: tl.constexpr, RESIZED: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
    VECTOR: tl.constexpr, RESIDUAL_VECTOR: tl.constexpr, OUT_VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    columns = tl.cdiv(out_channels, BLOCK_N)
    tile = program // columns
    if WIDE:
        tile = tile.to(tl.int64)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = m < pixels
    n, y, x = locate(m, out_height, out_width, POOL)
    column = (program % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    real = column < out_channels

    acc = convolve(
        inputs, addend, weight, scale, shift, in_slope, strides, channels, n, y * step_h,
        x * step_w, inside, column, height, width, weight_stride, dilation_h, dilation_w,
        KERNEL_H, KERNEL_W, TAPS, PROLOGUE, CLEAN, DENSE, SKIP, FLUSH, PRECISION, WIDE, VECTOR,
        BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip

    if bias is not None:
        acc += load_vector(bias, column, real)[None, :]
    if residual is not None:
        # Whole vectors; lanes after the last channel are cleared below.
        whole = tl.cdiv(out_channels, RESIDUAL_VECTOR) * RESIDUAL_VECTOR
        mask = inside[:, None] & (column < whole)[None, :]
        channel = column.to(tl.int64) if WIDE else column
        if RESIZED:
            acc += load_resized(
                residual, n, y, x, channel, mask,
                residual_strides[0], residual_strides[1], residual_strides[2],
                residual_strides[3], low_height, low_width, out_height, out_width,
                RESIDUAL_VECTOR,
            )  # fmt: skip
        else:
            at = n * residual_strides[0] + y * residual_strides[1] + x * residual_strides[2]
            at = (at * RESIDUAL_VECTOR)[:, None] + (channel * residual_strides[3])[None, :]
            acc += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "prelu":
        acc = activate(acc, load_vector(slope, column, real)[None, :], ACTIVATION)
    else:
        acc = activate(acc, 0.0, ACTIVATION)
    # Lanes after the last channel are written as zeros, whatever their product: an infinite pixel
    # times the weight's padding is not zero.
    acc = tl.where(real[None, :], acc, 0.0)

    if POOL == 1:
        value = acc.to(out.dtype.element_ty)
        target = m
        live = inside
    else:
        windows = tl.reshape(acc, (BLOCK_M // (POOL * POOL), POOL * POOL, BLOCK_N))
        value = (tl.sum(windows, axis=1) / (POOL * POOL)).to(out.dtype.element_ty)
        target = tile * (BLOCK_M // (POOL * POOL)) + tl.arange(0, BLOCK_M // (POOL * POOL))
        live = target * (POOL * POOL) < pixels
        n, y, x = locate(target, out_height, out_width, 1)
    at = (n * out_strides[0] + y * out_strides[1] + x * out_strides[2] + out_offset) * OUT_VECTOR
    tl.store(
        out + at[:, None] + column[None, :],
        value,
        mask=live[:, None] & (column < out_limit * OUT_VECTOR)[None, :],
    )
    if copy is not None:
        at = (n * copy_strides[0] + y * copy_strides[1] + x * copy_strides[2]) * 8
        tl.store(
            copy + at[:, None] + column[None, :],
            value,
            mask=live[:, None] & (column < copy_limit * 8)[None, :],
        )


# --- planning -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prologue:
    """A batch norm and PReLU that the input passes through: one value per channel each."""

    scale: Pointer | None
    shift: Pointer | None
    slope: Pointer | None


def live_taps(
    kernel: tuple[int, int],
    size: tuple[int, int],
    out_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> int:
    """Bits of the taps, row by row, that reach at least one pixel; others read only padding."""

    def reaches(axis: int, index: int) -> bool:
        shift = (index - kernel[axis] // 2) * dilation[axis]
        last = (out_size[axis] - 1) * stride[axis]
        return shift < size[axis] if shift >= 0 else last + shift >= 0

    bits = 0
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            if reaches(0, row) and reaches(1, column):
                bits |= 1 << (row * kernel[1] + column)
    return bits


def partly_dead(size: tuple[int, int], dilation: tuple[int, int], kernel: tuple[int, int]) -> bool:
    """True if it pays to test taps at run time, because many tiles read only padding at some tap.

    A test at every tap prevents pipelined loads; it pays if an outer tap is dead in a third of the
    rows or more.
    """
    return any(
        k > 1 and d > 1 and 3 * d >= n for n, d, k in zip(size, dilation, kernel, strict=True)
    )


def bytes_of(image: Image) -> int:
    return image.pixels * image.channels * image.itemsize


def reading_arguments(
    inputs: Sequence[Image], addend: Image | None, prologue: Prologue | None
) -> dict[str, Any]:
    """Arguments of the kernel for the addresses of the inputs and their prologue."""
    everything = [*inputs, *([addend] if addend else [])]
    vector = min(image.vector for image in everything)
    return {
        "inputs": tuple(Pointer(image.slot, image.offset) for image in inputs),
        "addend": Pointer(addend.slot, addend.offset) if addend else None,
        "scale": prologue.scale if prologue else None,
        "shift": prologue.shift if prologue else None,
        "in_slope": prologue.slope if prologue else None,
        "strides": tuple(s for image in inputs for s in image.in_units(vector)),
        "channels": tuple(image.channels for image in inputs),
        "height": inputs[0].size[2],
        "width": inputs[0].size[3],
        "PROLOGUE": prologue is not None,
        "CLEAN": all(image.clean or image.channels % vector == 0 for image in everything),
        "DENSE": all(image.is_dense for image in everything),
        "VECTOR": vector,
    }


def writing_arguments(
    out: Image,
    out_channels: int,
    pool: int,
    residual: Image | None,
    resized: bool,
    copy: Image | None,
) -> dict[str, Any]:
    """Arguments of the kernel for values added to the sums, and for the addresses of the result."""
    vector = math.gcd(out.vector, out.lanes)
    residual_vector = residual.vector if residual else 1
    return {
        "residual": Pointer(residual.slot, residual.offset) if residual else None,
        "out": Pointer(out.slot),
        "copy": Pointer(copy.slot, copy.offset) if copy else None,
        "residual_strides": residual.in_units(residual_vector) if residual else None,
        "out_strides": out.in_units(vector)[:3],
        "copy_strides": copy.in_units(LANES)[:3] if copy else None,
        "out_height": out.size[2],
        "out_width": out.size[3],
        "low_height": residual.size[2] if residual and resized else 1,
        "low_width": residual.size[3] if residual and resized else 1,
        "out_channels": out_channels,
        "out_offset": out.offset // vector,
        "out_limit": out.lanes // vector,
        "copy_limit": round_up(out_channels, LANES) // LANES if copy else 0,
        "POOL": pool,
        "RESIZED": resized,
        "RESIDUAL_VECTOR": residual_vector,
        "OUT_VECTOR": vector,
    }


def problem_of(program: Program, weight: Weight, arguments: dict[str, Any]) -> Problem:
    """The problem of a launch's configuration, from the kernel's arguments."""
    vector, pool = arguments["VECTOR"], arguments["POOL"]
    stride = (arguments["step_h"], arguments["step_w"])
    dilation = (arguments["dilation_h"], arguments["dilation_w"])
    return Problem(
        "spatial" if weight.taps > 3 else "pointwise",
        arguments["pixels"],
        arguments["out_width"] * pool,
        arguments["channels"],
        weight.out_channels,
        0,
        arguments["TAPS"].bit_count(),
        dilation if weight.taps > 1 else (1, 1),
        program.dtype,
        registers=arguments["PROLOGUE"] or not arguments["CLEAN"],
        narrow=vector * program.itemsize < BYTES,
        extra=join_notes(
            f"{weight.kernel[0]}x{weight.kernel[1]}",
            f"vector={vector}",
            arguments["ACTIVATION"],
            stride != (1, 1) and f"stride={stride[0]}x{stride[1]}",
            pool > 1 and "pool",
            arguments["residual"] and ("resized" if arguments["RESIZED"] else "residual"),
            arguments["copy"] and "copy",
            arguments["PROLOGUE"] and "prologue",
            arguments["addend"] and "addend",
            arguments["SKIP"] and "skip",
            arguments["WIDE"] and "wide",
            program.tf32 and "tf32",
        ),
    )


def is_wide(
    images: Sequence[Image],
    weight: Weight,
    pixels: int,
    out_size: tuple[int, int],
    enlarged: Image | None,
) -> bool:
    """True if offsets and positions need 64 bits; `out_size` is the size before pooling."""
    largest = max(
        *(image.reach for image in images),
        # Positions in the enlarged image, in steps of the smaller one.
        out_size[0] * enlarged.size[2] if enlarged else 0,
        out_size[1] * enlarged.size[3] if enlarged else 0,
        pixels,
        (weight.taps * weight.in_channels + MOST_OVERHANG) * weight.stride,
    )
    return MOST_OVERHANG + largest > INT32_MAX


def plan_conv(
    program: Program,
    inputs: Sequence[Image],
    weight: Weight,
    out: Image,
    *,
    bias: Pointer | None = None,
    slope: Pointer | None = None,
    activation: str = "none",
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    residual: Image | None = None,
    resized: bool = False,
    pool: int = 1,
    prologue: Prologue | None = None,
    addend: Image | None = None,
    copy: Image | None = None,
    label: str = "conv",
) -> None:
    """Add one launch of the kernel to a program.

    Args:
        program: program to add the launch to.
        inputs: images of the virtual concatenation; those without channels are skipped.
        weight: packed weight.
        out: image for the result; a part of an image, or one whose clean lanes become zeros.
        bias, slope: bias and slope of the output channels.
        activation, stride, dilation, pool: options, as of the operator.
        residual: image added before the activation; if `resized`, enlarged to the result's size
            first.
        prologue: batch norm and PReLU that a single input passes through first.
        addend: image added to the single input before that; has the input's layout.
        copy: second image, of the program's own, to write the result to.
        label: text for reports.
    """
    if out.pixels == 0:
        return
    # If all inputs are empty, one of them still gives the size, and the sum is empty.
    inputs = [image for image in inputs if image.channels > 0] or [inputs[0]]
    height, width = inputs[0].size[2:]
    batch, out_channels = out.size[0], weight.out_channels
    out_height, out_width = out.size[2] * pool, out.size[3] * pool
    taps = live_taps(weight.kernel, (height, width), (out_height, out_width), stride, dilation)
    # With a dilation beyond the picture only the middle taps are live: it is clamped.
    dilation = (min(dilation[0], height), min(dilation[1], width))
    everything = [*inputs, *([addend] if addend else [])]
    pixels = batch * out_height * out_width
    shifted = taps & (taps - 1) != 0 or weight.taps == 1
    skip = shifted and partly_dead((height, width), dilation, weight.kernel)
    images = [*everything, out, *([residual] if residual else []), *([copy] if copy else [])]
    enlarged = residual if resized else None
    arguments: dict[str, Any] = {
        **reading_arguments(inputs, addend, prologue),
        **writing_arguments(out, out_channels, pool, residual, resized, copy),
        "weight": weight.pointer,
        "bias": bias,
        "slope": slope,
        "pixels": pixels,
        "weight_stride": weight.stride,
        "step_h": stride[0],
        "step_w": stride[1],
        "dilation_h": dilation[0],
        "dilation_w": dilation[1],
        "KERNEL_H": weight.kernel[0],
        "KERNEL_W": weight.kernel[1],
        "TAPS": taps,
        "SKIP": skip,
        "ACTIVATION": activation,
        "PRECISION": "tf32" if program.tf32 else "ieee",
        "WIDE": is_wide(images, weight, pixels, (out_height, out_width), enlarged),
    }
    problem = problem_of(program, weight, arguments)
    config = choose(problem, program.device)
    columns = -(-out_channels // config.block_n)
    tiles = -(-pixels // config.block_m)
    flush = 0
    if program.dtype.itemsize == 4 and weight.in_channels * weight.taps > 4096:
        flush = max(1, 1024 // (config.block_k * weight.taps))
    arguments |= {
        "FLUSH": flush,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
    }
    work = conv_work(everything, images, weight, pixels, taps.bit_count(), config)
    program.launch(
        conv_act_kernel, (tiles * columns,), arguments, work, label, problem, config,
    )  # fmt: skip


def conv_work(
    inputs: Sequence[Image],
    images: Sequence[Image],
    weight: Weight,
    pixels: int,
    taps: int,
    config: Config,
) -> Work:
    """Memory traffic and operations of a launch.

    Args:
        inputs: images that are convolved, including an addend.
        images: these and all other images that are read or written.
        weight: weight of all taps.
        pixels: number of pixels of the result, before pooling.
        taps: number of taps that reach the picture.
        config: tile sizes.
    """
    size = inputs[0].itemsize
    m, n, k = config.block_m, config.block_n, config.block_k
    # Every input of the concatenation starts a new chunk.
    depth = taps * k * sum(-(-image.channels // k) for image in inputs)
    tiles = -(-pixels // m) * -(-weight.out_channels // n)
    products = taps * weight.in_channels * weight.out_channels
    weights = weight.taps * weight.in_channels * weight.out_channels * size
    return Work(
        bytes=sum(map(bytes_of, images)) + weights,
        operations=2 * pixels * products,
        issued=2 * tiles * m * n * depth,
        loaded=tiles * depth * size * (m + n),
    )


# --- the operator ---------------------------------------------------------------------------------


@planned
def conv_act(
    program: Program,
    size: Size,
    inputs: Sequence[Argument],
    weight: Argument,
    bias: Argument | None,
    slope: Argument | None,
    residual: Argument | None,
    packed: Argument | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    pool: int,
) -> None:
    images = [program.image(x) for x in inputs]
    kernel = program.weight("weight", weight, packed)
    biases, slopes = program.vectors([bias, slope])
    added = program.image(residual) if residual is not None else None
    plan_conv(
        program, images, kernel, program.result(size), bias=biases, slope=slopes,
        activation=activation, stride=pair("stride", stride), dilation=pair("dilation", dilation),
        residual=added, pool=pool,
    )  # fmt: skip
