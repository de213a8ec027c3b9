"""HarDBlock through one fused operator."""

from __future__ import annotations

from typing import Any

from torch import nn

from fassd.models.hardnet import HarDBlock
from fassd_kernels.modules.conv import FusedConvLayer
from fassd_kernels.modules.fused import Fused, missing_attribute
from fassd_kernels.reference.hardblock import is_output, sources_of


class FusedHarDBlock(Fused, HarDBlock):
    """A :class:`fassd.models.HarDBlock` through :func:`fassd_kernels.reference.hardblock`.

    Same constructor, parameters, state dict and gradients; see :class:`Fused` for when it fuses.
    """

    operator = "hardblock"
    lead = "layers.0.conv"

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        missing = missing_attribute(module, ("layers", "layers.0"))
        if missing:
            return missing
        layers: Any = module.get_submodule("layers")
        if not isinstance(layers, nn.ModuleList):
            return f"layers is a {type(layers).__name__}; expected ModuleList"
        widths: list[int] = []
        for k, layer in enumerate(layers, start=1):
            why = FusedConvLayer.mismatch(layer)
            if why:
                return f"layers[{k - 1}]: {why}"
            conv: Any = layer.get_submodule("conv")
            if (conv.kernel_size, conv.stride, conv.dilation) != ((3, 3), (1, 1), (1, 1)):
                return f"layers[{k - 1}]: conv is {conv}; expected a 3x3 kernel at stride 1"
            widths = widths or [conv.in_channels]
            feeding = sum(widths[source] for source in sources_of(k))
            if conv.in_channels != feeding:
                return f"layers[{k - 1}] takes {conv.in_channels} channels; expected {feeding}"
            widths.append(conv.out_channels)
        return ""

    def add_missing(self) -> None:
        """Add attributes that :class:`HarDBlock` has and a foreign class may not have."""
        numbers = range(1, len(self.layers) + 1)
        self.links = [sources_of(k) for k in numbers]
        self.output_layers = [k for k in numbers if is_output(k, len(self.layers))]
        for name in ("in_channels", "growth_rate", "grmul", "n_layers", "out_channels"):
            self.__dict__.setdefault(name, None)

    def convolutions(self) -> list[tuple[Any, Any]]:
        return [(layer.get_submodule("conv"), layer.get_submodule("norm")) for layer in self.layers]
