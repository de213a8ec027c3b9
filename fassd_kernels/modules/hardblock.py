"""HarDBlock through one fused operator."""

from __future__ import annotations

from typing import Any

from torch import nn

from fassd.models.hardnet import HarDBlock
from fassd_kernels.modules.fused import Fused
from fassd_kernels.modules.parts import mismatch, reference_of
from fassd_kernels.reference.hardblock import is_output, sources_of


class FusedHarDBlock(Fused, HarDBlock):
    """A :class:`fassd.models.HarDBlock` through :func:`fassd_kernels.reference.hardblock`.

    Same constructor, parameters, state dict and gradients; see :class:`Fused` for when it fuses.
    """

    operator = "hardblock"
    lead = "layers.0.conv"

    @classmethod
    def mismatch(cls, module: nn.Module) -> str:
        layers = getattr(module, "layers", None)
        count = len(layers) if isinstance(layers, nn.ModuleList) else 0
        return mismatch(module, reference_of(HarDBlock, 1, 1, 1.0, max(count, 1)))

    def add_missing(self) -> None:
        """Add attributes that :class:`HarDBlock` has and a foreign class may not have."""
        numbers = range(1, len(self.layers) + 1)
        self.links = [sources_of(k) for k in numbers]
        self.output_layers = [k for k in numbers if is_output(k, len(self.layers))]
        for name in ("in_channels", "growth_rate", "grmul", "n_layers", "out_channels"):
            self.__dict__.setdefault(name, None)

    def convolutions(self) -> list[tuple[Any, Any]]:
        return [(layer.get_submodule("conv"), layer.get_submodule("norm")) for layer in self.layers]
