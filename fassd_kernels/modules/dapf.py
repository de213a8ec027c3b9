"""DAPF through one fused operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fassd.models import DAPF
from fassd_kernels.modules.fused import (
    Fused,
    Packed,
    Plan,
    conv_mismatch,
    missing_attribute,
    norm_mismatch,
)

BRANCHES = ("pyBranch2", "pyBranch3", "pyBranch4")


class FusedDAPF(Fused, DAPF):
    """A :class:`fassd.models.DAPF` that runs :func:`fassd_kernels.reference.dapf` fused.

    Same constructor, ``FusedDAPF(inplanes, alpha=2, dilations=(12, 24, 36))``, parameters, state
    dict and gradients; see :class:`Fused` for when it fuses.
    ``FusedDAPF.from_reference(model.DAPF)`` makes one from a module.
    """

    operator = "dapf"
    lead = "conv1x1"

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        parts = ("atrous_conv3x1", "bn3x1", "atrous_conv1x3", "bn1x3")
        branched = (f"{branch}.{part}" for branch in BRANCHES for part in parts)
        names = ("conv1x1", "bn1x1", "conv1", "bn1", *branched)
        missing = missing_attribute(module, names)
        if missing:
            return missing
        get = module.get_submodule
        reasons = [conv_mismatch(name, get(name), (1, 1), 1) for name in ("conv1x1", "conv1")]
        reasons += [norm_mismatch(name, get(name)) for name in names if ".bn" in f".{name}"]
        for branch in BRANCHES:
            vertical = get(f"{branch}.atrous_conv3x1")
            dilation = vertical.dilation[0] if isinstance(vertical, nn.Conv2d) else 1
            for part, kernel in (("atrous_conv3x1", (3, 1)), ("atrous_conv1x3", (1, 3))):
                name = f"{branch}.{part}"
                reasons.append(conv_mismatch(name, get(name), kernel, dilation))
        return next(filter(None, reasons), "")

    def branches(self) -> list[Any]:
        return [getattr(self, name) for name in BRANCHES]

    def convolutions(self) -> list[tuple[Any, Any]]:
        pairs: list[tuple[Any, Any]] = []
        for branch in self.branches():
            pairs += (branch.atrous_conv3x1, branch.bn3x1), (branch.atrous_conv1x3, branch.bn1x3)
        return [(self.conv1x1, self.bn1x1), *pairs, (self.conv1, self.bn1)]

    def pack(self, dtype: torch.dtype) -> Packed:
        dilations = [branch.atrous_conv3x1.dilation[0] for branch in self.branches()]
        return {**super().pack(dtype), "dilations": dilations}

    def plan(self, packed: Packed) -> list[Plan]:
        dilations = [step for d in packed["dilations"] for step in ((d, 1), (1, d))]
        steps = [(1, 1), *dilations, (1, 1)]
        return [(weight, (1, 1), d) for weight, d in zip(packed["weights"], steps, strict=True)]
