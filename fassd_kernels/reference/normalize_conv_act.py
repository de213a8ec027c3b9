"""The network's first convolution, on unprepared pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fassd_kernels.autocast import follows_autocast
from fassd_kernels.checks import (
    check,
    check_activation,
    check_place,
    check_positive,
    check_vector,
    check_weight,
    checked,
)
from fassd_kernels.reference.conv_act import KERNELS, conv_act, pair
from fassd_kernels.reference.normalize import check_picture, normalize


def check_normalize_conv_act(
    image, weight, bias, slope, packed, mean, std, stride, dilation, activation
):
    """Check the arguments of :func:`normalize_conv_act` and return the shape of its result."""
    op = "normalize_conv_act"
    check_picture(op, image, mean, std, torch.float32)
    stride, dilation = pair("stride", stride, op), pair("dilation", dilation, op)
    # The picture has no floating type: the weight's is that of the call.
    check_weight(op, "weight", weight, 3, weight, KERNELS)
    check(
        weight.dtype.is_floating_point,
        f"{op}: weight has dtype {weight.dtype}; expected float32, float16, bfloat16 or float64",
    )
    check(
        weight.device == image.device,
        f"{op}: weight is on {weight.device}, but image is on {image.device}",
    )
    check_place(op, "packed", packed, weight)
    check_vector(op, "bias", bias, weight.shape[0], weight)
    check_activation(op, activation, slope, weight.shape[0], weight)
    check_positive(op, "stride", stride)
    check_positive(op, "dilation", dilation)
    height = (image.shape[1] + stride[0] - 1) // stride[0]
    width = (image.shape[2] + stride[1] - 1) // stride[1]
    return image.shape[0], weight.shape[0], height, width


@follows_autocast
@checked(check_normalize_conv_act)
def normalize_conv_act(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    packed: Tensor | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    activation: str = "none",
) -> Tensor:
    """``conv_act([normalize(image)], weight, bias, ...)``: the normalised picture, in the weight's
    type, need not be written.

    Args:
        image: N x H x W x 3 pictures, uint8, RGB.
        weight: O x 3 x kH x kW weight, for blue, green, red.
        bias: vector of O values, or None.
        slope: vector of O slopes, for ``prelu``.
        packed: result of :func:`pack_weight` for the weight, or None.
        mean, std: mean and deviation, as in :func:`normalize`.
        stride, dilation, activation: stride, dilation and activation, as in :func:`conv_act`.

    Returns:
        N x O x ceil(H / stride) x ceil(W / stride) in the weight's dtype, channels_last.

    Raises:
        RuntimeError: shapes, dtypes or devices disagree; the message names the argument.
    """
    x = normalize(image, mean=mean, std=std, dtype=weight.dtype)
    return conv_act(
        [x], weight, bias, slope, stride=stride, dilation=dilation, activation=activation
    )
