"""The 1x1 convolution of [upsample(low), skip]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fassd_kernels.autocast import follows_autocast
from fassd_kernels.checks import (
    check,
    check_activation,
    check_images,
    check_like,
    check_list,
    check_packed,
    check_vector,
    check_weight,
    checked,
    shape,
)
from fassd_kernels.reference.conv_act import conv_act
from fassd_kernels.reference.upsample import upsample


def check_upsample_conv1x1(low, skip, weight, bias, slope, packed, activation):
    """Check the arguments of :func:`upsample_conv1x1` and return the shape of its result."""
    op = "upsample_conv1x1"
    first_low = check_images(op, check_list(op, "low", low))
    first_skip = check_images(op, check_list(op, "skip", skip))
    check_like(op, "skip[0]", first_skip, "low[0]", first_low)
    check(
        first_low.shape[0] == first_skip.shape[0],
        f"{op}: skip[0] has shape {shape(first_skip)}, but low[0] has {shape(first_low)}; "
        "the batch must agree",
    )
    check(
        first_low.shape[2] >= 1 and first_low.shape[3] >= 1,
        f"{op}: low[0] has shape {shape(first_low)}; expected height and width of at least 1",
    )
    in_channels = sum(x.shape[1] for x in (*low, *skip))
    check_weight(op, "weight", weight, in_channels, first_low, [(1, 1)])
    check_vector(op, "bias", bias, weight.shape[0], first_low)
    check_activation(op, activation, slope, weight.shape[0], first_low)
    check_packed(op, packed, 2, weight)
    return first_skip.shape[0], weight.shape[0], first_skip.shape[2], first_skip.shape[3]


@follows_autocast
@checked(check_upsample_conv1x1)
def upsample_conv1x1(
    low: Sequence[Tensor],
    skip: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    packed: Sequence[Tensor] | None = None,
    *,
    activation: str = "none",
) -> Tensor:
    """``act(conv1x1(cat(upsample(cat(low)), cat(skip))) + bias)``.

    A 1x1 convolution commutes with bilinear resizing (whose weights sum to one), so the backends
    convolve `low` at its own size: with a fraction of the operations, and without writing the
    upsampled image or the concatenation.

    Args:
        low: at least one N x C_i x h x w tensor.
        skip: at least one N x C_j x H x W tensor; `low` is resized to H x W, align_corners=True.
        weight: O x (sum(C_i) + sum(C_j)) x 1 x 1 weight.
        bias: vector of O values, or None.
        slope: vector of O slopes, for ``prelu``.
        packed: results of :func:`pack_weight` for the weight's channels of `low` and for those of
            `skip`, or None.
        activation: name of the activation, as in :func:`conv_act`.

    Returns:
        N x O x H x W in the inputs' dtype, channels_last.

    Raises:
        RuntimeError: shapes, dtypes or devices disagree; the message names the argument.
    """
    up = upsample(torch.cat(list(low), 1), skip[0].shape[2:])
    return conv_act([up, *skip], weight, bias, activation=activation, slope=slope)
