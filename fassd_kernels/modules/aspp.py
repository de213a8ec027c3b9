"""ASPP through one fused operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fassd.models.aspp import ASPP
from fassd_kernels.modules.fused import Fused, Packed, Plan
from fassd_kernels.modules.parts import dilation_of, mismatch, reference_of


class FusedASPP(Fused, ASPP):
    """A :class:`fassd.models.aspp.ASPP` through :func:`fassd_kernels.reference.aspp`.

    Same constructor, parameters, state dict and gradients; see :class:`Fused` for when it fuses.
    """

    operator = "aspp"
    lead = "conv1x1.conv"

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        parts: Any = module
        layers = getattr(parts, "atrous", None)
        names = range(len(layers)) if isinstance(layers, nn.ModuleList) else ()
        dilations = tuple(dilation_of(module, f"atrous.{i}.conv") for i in names)
        return mismatch(module, reference_of(ASPP, 1, 1, dilations or (1,)))

    def convolutions(self) -> list[tuple[Any, Any]]:
        layers: list[Any] = [self.conv1x1, *self.atrous, self.pooled, self.fuse]
        return [(layer.conv, layer.norm) for layer in layers]

    def pack(self, dtype: torch.dtype) -> Packed:
        dilations = [conv.dilation[0] for conv, _ in self.convolutions()[1:-2]]
        return {**super().pack(dtype), "dilations": dilations}

    def plan(self, packed: Packed) -> list[Plan]:
        dilations = [1, *packed["dilations"], 1, 1]
        *weights, fuse = packed["weights"]
        pooled = weights[-1].shape[0]  # their share of the last 1x1 is a bias
        weights.append(fuse[:, : fuse.shape[1] - pooled])
        return [(w, (1, 1), (d, d)) for w, d in zip(weights, dilations, strict=True)]
