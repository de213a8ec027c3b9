"""Whether a kernel's result is right: the reference in float64 decides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# ||out - exact|| / ||exact|| of a whole operator.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def exactly(argument: Any) -> Any:
    """Floating tensors, or lists of them, in float64."""
    if isinstance(argument, Tensor):
        return argument.double() if argument.is_floating_point() else argument
    return [exactly(x) for x in argument] if isinstance(argument, list | tuple) else argument


def relative_error(result: Tensor, exact: Tensor) -> float:
    """||result - exact|| / ||exact||; NaN where something is not finite."""
    return float((result.double() - exact).norm() / exact.norm())
