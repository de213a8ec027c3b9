"""normalize_conv_act in two launches, one for each of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fassd_kernels.operators import OPERATORS
from fassd_kernels.triton.conv_act import conv_act
from fassd_kernels.triton.normalize import normalize


def normalize_conv_act(
    image: Tensor,
    weight: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    padded: bool = False,
    **options: Any,
) -> Tensor:
    """:func:`fassd_kernels.reference.normalize_conv_act`; `padded` as in :mod:`program`.

    `options` are the other arguments, as in :func:`conv_act`.
    """
    given = {"image": image, "weight": weight, "mean": mean, "std": std}
    OPERATORS["normalize_conv_act"].check(**given, **options)
    x = normalize(image, mean=mean, std=std, dtype=weight.dtype)
    return conv_act([x], weight, padded=padded, **options)
