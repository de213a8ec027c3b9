"""Convolution in groups of channels, kernels up to 7x7, with bias, residual and activation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.autocast import follows_autocast
from fassd_kernels.checks import check, check_images, check_weight, checked, shape
from fassd_kernels.reference.conv_act import (
    activate,
    channels_last,
    check_convolution,
    convolve,
    pair,
)

GROUPED_KERNELS = ((1, 1), (3, 3), (5, 5), (7, 7))


def check_grouped_conv_act(
    input, weight, bias, slope, residual, stride, dilation, activation, groups
):
    """Check the arguments of :func:`grouped_conv_act` and return the shape of its result."""
    op = "grouped_conv_act"
    check_images(op, [("input", input)])
    check(
        weight.dim() == 4,
        f"{op}: weight has shape {shape(weight)}; expected four dimensions, O x I x kH x kW",
    )
    channels, out_channels = input.shape[1], weight.shape[0]
    check(
        groups >= 1 and channels % groups == 0 and out_channels % groups == 0,
        f"{op}: groups is {groups}; expected a divisor of the input's {channels} and the weight's "
        f"{out_channels} channels",
    )
    check_weight(op, "weight", weight, channels // groups, input, GROUPED_KERNELS)
    vectors = (bias, slope, residual)
    return check_convolution(
        op, "input", input, out_channels, *vectors, stride, dilation, activation
    )


@follows_autocast
@checked(check_grouped_conv_act)
def grouped_conv_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    activation: str = "none",
    groups: int = 1,
) -> Tensor:
    """``act(conv(input) + bias + residual)`` with "same" padding, in groups of channels.

    Args:
        input: N x I x H x W image.
        weight: O x I / groups x k x k weight; the side k is 1, 3, 5 or 7.
        bias: vector of O values, or None.
        slope: vector of O values, PReLU's slopes for negative values.
        residual: N x O x H' x W' image, added before the activation.
        stride: vertical and horizontal step, each at least 1.
        dilation: vertical and horizontal distance of the taps, each at least 1.
        activation: name of the activation, as in :func:`conv_act`.
        groups: number of groups, a divisor of I and O. I groups, with O = I, make a depthwise
            convolution.

    Returns:
        N x O x H' x W' in the input's dtype, H' = ceil(H / stride), channels_last.

    Raises:
        RuntimeError: shapes, dtypes or devices disagree; the message names the argument.
    """
    op = "grouped_conv_act"
    stride, dilation = pair("stride", stride, op), pair("dilation", dilation, op)
    x = convolve(input, weight, bias, stride, dilation, groups)
    if residual is not None:
        x = x + residual
    return channels_last(activate(x, activation, slope))
