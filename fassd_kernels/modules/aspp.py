"""ASPP through one fused operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fassd.models.aspp import ASPP
from fassd_kernels.modules.conv import FusedConvLayer
from fassd_kernels.modules.fused import Fused, Packed, Plan, missing_attribute


class FusedASPP(Fused, ASPP):
    """A :class:`fassd.models.aspp.ASPP` through :func:`fassd_kernels.reference.aspp`.

    Same constructor, parameters, state dict and gradients; see :class:`Fused` for when it fuses.
    """

    operator = "aspp"
    lead = "conv1x1.conv"

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        missing = missing_attribute(module, ("conv1x1", "atrous", "pooled", "fuse"))
        if missing:
            return missing
        parts: Any = module
        if not isinstance(parts.atrous, nn.ModuleList):
            return f"atrous is a {type(parts.atrous).__name__}; expected ModuleList"
        layers = {"conv1x1": parts.conv1x1, "pooled": parts.pooled, "fuse": parts.fuse}
        layers |= {f"atrous[{i}]": layer for i, layer in enumerate(parts.atrous)}
        for name, layer in layers.items():
            why = FusedConvLayer.mismatch(layer)
            kernel = (3, 3) if name.startswith("atrous") else (1, 1)
            if not why and (layer.conv.kernel_size, layer.conv.stride) != (kernel, (1, 1)):
                why = f"conv is {layer.conv}; expected a {kernel} kernel at stride 1"
            if not why and layer.conv.dilation[0] != layer.conv.dilation[1]:
                why = f"conv is {layer.conv}; expected one dilation"
            if why:
                return f"{name}: {why}"
        width, inplanes = parts.conv1x1.conv.out_channels, parts.conv1x1.conv.in_channels
        for name, layer in layers.items():
            expected = width * (2 + len(parts.atrous)) if name == "fuse" else inplanes
            if layer.conv.in_channels != expected:
                return f"{name} takes {layer.conv.in_channels} channels; expected {expected}"
            if name != "fuse" and layer.conv.out_channels != width:
                return f"{name} gives {layer.conv.out_channels} channels; expected {width}"
        return ""

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
