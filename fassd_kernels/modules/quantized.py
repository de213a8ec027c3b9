"""A FASSD-Net whose convolutions compute in bytes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from fassd.models.network import FASSDNet
from fassd_kernels.graphs.captured import Capturing
from fassd_kernels.modules.fused import is_traced, runs_as_written
from fassd_kernels.modules.network import FusedNetwork, has_own_methods
from fassd_kernels.modules.snapshot import hooked_globally


class QuantizedNetwork(Capturing, FusedNetwork):
    """A :class:`FusedNetwork` of plain modules, whose logits come of graphs that compute in bytes.

    Labels, certainty and resizing are those of :class:`FusedNetwork`. The network's own code runs
    in float wherever a :class:`fassd_kernels.graphs.captured.Captured` module's does, and for parts
    of the network, such as `encode_part`.
    """

    def as_written(self, x: Tensor) -> Tensor:
        return FASSDNet._scores(self, x)

    def fused(self, method: str, **arguments: Any) -> Tensor:
        if method == "_scores" and arguments["begin"] == 0:
            x = arguments["x"]
            plain = runs_as_written(self, x) or is_traced() or hooked_globally()
            compiled = None if plain or not has_own_methods(self) else self.compiled()
            if compiled is not None:
                result: Tensor = compiled(self, x)
                return result
        result = getattr(FASSDNet, method)(self, **arguments)
        return result

    def looking_once(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()  # what is captured looks itself
