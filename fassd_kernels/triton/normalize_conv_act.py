"""normalize_conv_act in two launches, one for each of its parts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.reference.normalize_conv_act import check_normalize_conv_act
from fassd_kernels.triton.conv_act import conv_act
from fassd_kernels.triton.normalize import normalize


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
    padded: bool = False,
) -> Tensor:
    """:func:`fassd_kernels.reference.normalize_conv_act`; `padded` as in :mod:`program`."""
    check_normalize_conv_act(
        image, weight, bias, slope, packed, mean=mean, std=std, stride=stride, dilation=dilation,
        activation=activation,
    )  # fmt: skip
    x = normalize(image, mean=mean, std=std, dtype=weight.dtype)
    return conv_act(
        [x], weight, bias, slope, packed=packed, stride=stride, dilation=dilation,
        activation=activation, padded=padded,
    )  # fmt: skip
