"""DAPF through one fused operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fassd.models import DAPF
from fassd_kernels.modules.fused import Fused, Packed, Plan
from fassd_kernels.modules.parts import dilation_of, mismatch, reference_of

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
        dilations = tuple(dilation_of(module, f"{name}.atrous_conv3x1") for name in BRANCHES)
        return mismatch(module, reference_of(DAPF, 1, 1, dilations))

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
