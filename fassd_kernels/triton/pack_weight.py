"""pack_weight: one order for every stride and dilation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fassd_kernels.operators import OPERATORS
from fassd_kernels.triton.packing import pack


def pack_weight(weight: Tensor, *, padded: bool = False, **steps: Any) -> Tensor:
    """:func:`fassd_kernels.reference.pack_weight`; never padded."""
    OPERATORS["pack_weight"].check(weight=weight, **steps)
    return pack(weight)
