"""grouped_conv_act: convolution in groups of channels, tap by tap; a single group uses conv_act.

A program takes BLOCK_M pixels of the result and BLOCK_C of its channels. A depthwise convolution
needs no more than that, as it is bound by memory; wider groups are correct, but not optimised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from fassd_kernels.reference.conv_act import pair
from fassd_kernels.triton.conv_act import bytes_of, plan_conv
from fassd_kernels.triton.convolution import activate, load_vector, own_pixels
from fassd_kernels.triton.layout import Size
from fassd_kernels.triton.program import (
    Argument,
    Pointer,
    Program,
    Work,
    planned,
)
from fassd_kernels.triton.upsample import block_pixels, shared_arguments

SIZES = ("pixels", "height", "width", "out_height", "out_width")


@triton.jit(do_not_specialize=SIZES)
def grouped_conv_kernel(
    image, weight, bias, slope, residual, out,
    strides, weight_strides, residual_strides, out_strides,
    pixels, height, width, out_height, out_width, channels, group_inputs, group_outputs,
    step_h, step_w, dilation_h, dilation_w,
    SIDE: tl.constexpr, ACTIVATION: tl.constexpr, WIDE: tl.constexpr,
    VECTOR: tl.constexpr, RESIDUAL_VECTOR: tl.constexpr, OUT_VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    m, n, y, x, c = own_pixels(out_height, out_width, WIDE, BLOCK_M, BLOCK_C)
    inside = m < pixels
    real = c < channels
    first = c // group_outputs * group_inputs
    acc = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for i in range(group_inputs):
        for row in range(SIDE):
            from_y = y * step_h + (row - SIDE // 2) * dilation_h
            rows = inside & (from_y >= 0) & (from_y < height)
            for column in tl.static_range(SIDE):
                from_x = x * step_w + (column - SIDE // 2) * dilation_w
                there = rows & (from_x >= 0) & (from_x < width)
                at = (n * strides[0] + from_y * strides[1] + from_x * strides[2]) * VECTOR
                value = tl.load(
                    image + at[:, None] + ((first + i) * strides[3])[None, :],
                    mask=there[:, None] & real[None, :],
                    other=0.0,
                )
                tap = i * weight_strides[1] + row * weight_strides[2] + column * weight_strides[3]
                factor = load_vector(weight + tap, c * weight_strides[0], real)
                acc += value.to(tl.float32) * factor[None, :]
    mask = inside[:, None] & real[None, :]
    if bias is not None:
        acc += load_vector(bias, c, real)[None, :]
    if residual is not None:
        at = n * residual_strides[0] + y * residual_strides[1] + x * residual_strides[2]
        at = (at * RESIDUAL_VECTOR)[:, None] + (c * residual_strides[3])[None, :]
        acc += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "prelu":
        acc = activate(acc, load_vector(slope, c, real)[None, :], ACTIVATION)
    else:
        acc = activate(acc, 0.0, ACTIVATION)
    at = (n * out_strides[0] + y * out_strides[1] + x * out_strides[2]) * OUT_VECTOR
    tl.store(out + at[:, None] + c[None, :], acc.to(out.dtype.element_ty), mask=mask)


@planned
def grouped_conv_act(
    program: Program,
    size: Size,
    input: Argument,
    weight: Argument,
    bias: Argument | None,
    slope: Argument | None,
    residual: Argument | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    groups: int,
) -> None:
    image = program.image(input)
    dense = program.weight("weight", weight, None) if groups == 1 else None
    filters = program.image(weight)
    biases, slopes = program.vectors([bias, slope])
    added = program.image(residual) if residual is not None else None
    out = program.result(size)
    if out.pixels == 0:
        return
    steps, dilations = pair("stride", stride), pair("dilation", dilation)
    if dense is not None:
        plan_conv(
            program, [image], dense, out, bias=biases, slope=slopes, activation=activation,
            stride=steps, dilation=dilations, residual=added, label="grouped_conv",
        )  # fmt: skip
        return
    _, inputs, side, _ = weight.shape
    block_c = min(32, triton.next_power_of_2(out.channels))
    block_m = block_pixels(program, block_c)
    images = [image, out, *([added] if added else [])]
    values = weight.tensor.numel()
    reaches = (each.reach for each in (*images, filters))
    furthest = max(4 * max(image.size[2:]), *reaches)
    out_vector = math.gcd(out.vector, out.lanes)
    arguments = shared_arguments(image, size[2:], block_m, block_c, furthest) | {
        "weight": Pointer(filters.slot),
        "bias": biases,
        "slope": slopes,
        "residual": Pointer(added.slot, added.offset) if added else None,
        "out": Pointer(out.slot),
        "weight_strides": filters.strides,
        "residual_strides": added.in_units(added.vector) if added else None,
        "out_strides": out.in_units(out_vector)[:3],
        "channels": out.channels,
        "group_inputs": inputs,
        "group_outputs": out.channels // groups,
        "step_h": steps[0],
        "step_w": steps[1],
        # Beyond the picture, all dilations are equal.
        "dilation_h": min(dilations[0], image.size[2]),
        "dilation_w": min(dilations[1], image.size[3]),
        "SIDE": side,
        "ACTIVATION": activation,
        "RESIDUAL_VECTOR": added.vector if added else 1,
        "OUT_VECTOR": out_vector,
    }
    grid = (math.ceil(out.pixels / block_m), math.ceil(out.channels / block_c))
    operations = 2 * out.pixels * values
    work = Work(sum(map(bytes_of, images)) + values * program.itemsize, operations)
    program.launch(grouped_conv_kernel, grid, arguments, work, "grouped_conv")
