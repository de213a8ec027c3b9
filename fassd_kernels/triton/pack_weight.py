"""pack_weight: one order for every stride and dilation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fassd_kernels.reference.pack_weight import check_pack_weight
from fassd_kernels.triton.packing import pack


def pack_weight(
    weight: Tensor,
    *,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    padded: bool = False,
) -> Tensor:
    """:func:`fassd_kernels.reference.pack_weight`; never padded."""
    check_pack_weight(weight, stride=stride, dilation=dilation)
    return pack(weight)
