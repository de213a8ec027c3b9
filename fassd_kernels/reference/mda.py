"""The whole MDA module (multi-resolution dilated asymmetric), batch norms folded."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fassd_kernels.autocast import follows_autocast
from fassd_kernels.checks import (
    check,
    check_images,
    check_packed,
    check_positive,
    check_vector,
    check_weight,
    checked,
    shape,
)
from fassd_kernels.reference.asymmetric_conv import asymmetric_conv
from fassd_kernels.reference.conv_act import channels_last, conv_act

# Weights in order, and their kernels.
CONVOLUTIONS = {
    "reduce": (3, 3),
    "square": (3, 3),
    "vertical": (3, 1),
    "horizontal": (1, 3),
    "project": (1, 1),
}
# PReLUs in order. The first and the last follow a batch norm without a convolution before it, so
# these have a scale; that of the others is folded into the weight.
ACTIVATIONS = ("input", "reduce", "square", "vertical", "horizontal", "sum")
SCALES = ("input", "sum")


def check_mda(input, weights, scales, shifts, slopes, packed, dilation):
    """Check the arguments of :func:`mda` and return the shape of its result."""
    op = "mda"
    check_images(op, [("input", input)])
    for name, tensors, count in (
        ("weights", weights, len(CONVOLUTIONS)),
        ("scales", scales, len(SCALES)),
        ("shifts", shifts, len(ACTIVATIONS)),
        ("slopes", slopes, len(ACTIVATIONS)),
    ):
        check(len(tensors) == count, f"{op}: {name} has {len(tensors)} tensors; expected {count}")
    check_packed(op, packed, len(CONVOLUTIONS), input)
    check_positive(op, "dilation", [dilation])
    check(
        weights[0].dim() == 4,
        f"{op}: weights[0] (reduce) has shape {shape(weights[0])}; "
        "expected four dimensions, O x I x kH x kW",
    )
    channels, width = input.shape[1], weights[0].shape[0]
    for i, (role, kernel) in enumerate(CONVOLUTIONS.items()):
        in_channels = channels if role == "reduce" else width
        out_channels = channels if role == "project" else width
        name = f"weights[{i}] ({role})"
        check_weight(op, name, weights[i], in_channels, input, [kernel])
        check(
            weights[i].shape[0] == out_channels,
            f"{op}: {name} has {weights[i].shape[0]} output channels; expected {out_channels}",
        )
    for i, role in enumerate(SCALES):
        expected = channels if role == "input" else width
        check_vector(op, f"scales[{i}]", scales[i], expected, input)
    for i, role in enumerate(ACTIVATIONS):
        expected = channels if role == "input" else width
        check_vector(op, f"shifts[{i}]", shifts[i], expected, input)
        check_vector(op, f"slopes[{i}]", slopes[i], expected, input)
    return input.shape[0], channels, input.shape[2], input.shape[3]


@follows_autocast
@checked(check_mda)
def mda(
    input: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    slopes: Sequence[Tensor],
    packed: Sequence[Tensor] | None = None,
    *,
    dilation: int,
) -> Tensor:
    """``input + project(act(act(square(r)) + asymmetric(r)))``, ``r = act(reduce(act(input)))``.

    Every ``act`` is a batch norm (folded where it follows a convolution) and a PReLU.

    Args:
        input: N x C x H x W image.
        weights: reduce (M x C x 3 x 3), square (M x M x 3 x 3), vertical (M x M x 3 x 1),
            horizontal (M x M x 1 x 3), project (C x M x 1 x 1).
        scales: scales of the batch norms of the input (C) and of the sum (M).
        shifts: six vectors, input (C), then reduce, square, vertical, horizontal, sum (M each):
            batch norm's shift, which is the bias of a convolution before it.
        slopes: slopes of the six PReLUs, in the order of `shifts`.
        packed: results of :func:`pack_weight` for each weight at its dilation, or None.
        dilation: dilation of the 3x1 and the 1x3, at least 1.

    Returns:
        N x C x H x W in the input's dtype, channels_last.

    Raises:
        RuntimeError: shapes, dtypes or devices disagree; the message names the argument.
    """
    x = affine_prelu(input, scales[0], shifts[0], slopes[0])
    x = conv_act([x], weights[0], shifts[1], activation="prelu", slope=slopes[1])
    square = conv_act([x], weights[1], shifts[2], activation="prelu", slope=slopes[2])
    asymmetric = asymmetric_conv(
        x,
        weights[2],
        weights[3],
        shifts[3],
        shifts[4],
        dilation=dilation,
        activation="prelu",
        vertical_slope=slopes[3],
        horizontal_slope=slopes[4],
    )
    x = affine_prelu(square + asymmetric, scales[1], shifts[5], slopes[5])
    return channels_last(conv_act([x], weights[4], residual=input))


def affine_prelu(x: Tensor, scale: Tensor, shift: Tensor, slope: Tensor) -> Tensor:
    """PReLU(x * scale + shift), each per channel."""
    return F.prelu(x * scale[:, None, None] + shift[:, None, None], slope)
