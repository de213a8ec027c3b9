"""The pair 3x1 -> activation -> 1x3 -> activation, both dilated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.autocast import follows_autocast
from fassd_kernels.checks import (
    KINKED,
    check_activation,
    check_images,
    check_packed,
    check_positive,
    check_vector,
    check_weight,
    checked,
)
from fassd_kernels.reference.conv_act import conv_act


def check_asymmetric_conv(
    input,
    vertical_weight,
    horizontal_weight,
    vertical_bias,
    horizontal_bias,
    vertical_slope,
    horizontal_slope,
    packed,
    dilation,
    activation,
):
    """Check the arguments of :func:`asymmetric_conv` and return the shape of its result."""
    op = "asymmetric_conv"
    check_images(op, [("input", input)])
    check_weight(op, "vertical_weight", vertical_weight, input.shape[1], input, [(3, 1)])
    middle = vertical_weight.shape[0]
    check_weight(op, "horizontal_weight", horizontal_weight, middle, input, [(1, 3)])
    out_channels = horizontal_weight.shape[0]
    check_vector(op, "vertical_bias", vertical_bias, middle, input)
    check_vector(op, "horizontal_bias", horizontal_bias, out_channels, input)
    check_positive(op, "dilation", [dilation])
    check_activation(op, activation, vertical_slope, middle, input, "vertical_slope", KINKED)
    check_activation(
        op, activation, horizontal_slope, out_channels, input, "horizontal_slope", KINKED
    )
    check_packed(op, packed, 2, input)
    return input.shape[0], out_channels, input.shape[2], input.shape[3]


@follows_autocast
@checked(check_asymmetric_conv)
def asymmetric_conv(
    input: Tensor,
    vertical_weight: Tensor,
    horizontal_weight: Tensor,
    vertical_bias: Tensor | None = None,
    horizontal_bias: Tensor | None = None,
    vertical_slope: Tensor | None = None,
    horizontal_slope: Tensor | None = None,
    packed: Sequence[Tensor] | None = None,
    *,
    dilation: int = 1,
    activation: str = "relu",
) -> Tensor:
    """A dilated 3x3 convolution factorised into 3x1 and 1x3, an activation after each.

    This is a branch of DAPF (ReLU, dilation 12, 24, 36) and of MDA (PReLU, dilation 8, 4, 2).

    Args:
        input: N x C x H x W image.
        vertical_weight: M x C x 3 x 1 weight.
        horizontal_weight: O x M x 1 x 3 weight.
        vertical_bias, horizontal_bias: M and O values, or None.
        vertical_slope, horizontal_slope: M and O slopes, for ``prelu``.
        packed: results of :func:`pack_weight` for both weights, or None.
        dilation: dilation of both convolutions, each on its own axis, at least 1.
        activation: activation after both convolutions: ``none``, ``relu`` or ``prelu``.

    Returns:
        N x O x H x W in the input's dtype, channels_last.

    Raises:
        RuntimeError: shapes, dtypes or devices disagree; the message names the argument.
    """
    x = conv_act(
        [input],
        vertical_weight,
        vertical_bias,
        dilation=(dilation, 1),
        activation=activation,
        slope=vertical_slope,
    )
    return conv_act(
        [x],
        horizontal_weight,
        horizontal_bias,
        dilation=(1, dilation),
        activation=activation,
        slope=horizontal_slope,
    )
